"""The sidecar's audit log, read and checked: which noise is behind which served certificate.

Written by the sidecar (`serving/sidecar/audit.py`), one JSON object a line, each a link of a
chain. Served certificates have no row in a log of ours, so this is the only place from which they
can be drawn again.
"""

import base64
import binascii
import contextlib
import dataclasses
import json
import math
import os
import platform
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from tfmacer.common.errors import Notice, UserError
from tfmacer.guarantee.bounds import BOUNDS, VoteBound
from tfmacer.guarantee.certificate import Certificate, certify
from tfmacer.guarantee.counts import Counts
from tfmacer.guarantee.rule import Rule
from tfmacer.guarantee.stopping import StopRule
from tfmacer.noise import generators
from tfmacer.records import chain
from tfmacer.records.chain import Chain, Place
from tfmacer.records.runs import Smoothing
from tfmacer.records.sealing import pixels_digest, typed
from tfmacer.version import __version__

# What computed the numbers of a certificate: between builds of SciPy, and between processors, its
# quantiles differ in the last places.
MADE_WITH = f"tfmacer {__version__}, scipy {scipy.__version__}, {platform.machine()}"
_ID = "[0-9A-Za-z_.-]{1,64}"
# By how much, at most; only to the safe side, see `_agree`.
_TOLERANCE = 1e-9
# Larger than any of these bounds, to the side on which less is claimed.
_SAFE_SIDE = {"p_lower": -1, "radius": -1, "p_upper_second": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fields:
    """The names and types of an entry as JSON."""

    certificate_id: str
    time: str
    request_id: str
    client: str
    pixels_sha256: str
    shape: tuple[int, int, int]
    model: Mapping[str, Any]
    rule: Mapping[str, Any]
    select_seed: tuple[int, int]
    estimate_seed: tuple[int, int]
    certificate: Mapping[str, Any]
    pixels_float32: str | None = None
    made_with: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Model:
    name: str
    version: int
    smoothing: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AuditEntry:
    """One served certificate and its noise.

    Attributes:
      where: file and line of the entry.
      certificate_id: its name in the answer.
      pixels_sha256: hex digest of the pixels, float32, little-endian, row-major.
      pixels: float32 `[H, W, C]`; None where the operator does not keep images.
      smoothing: the model that answered.
      rule: as the request asked.
      select_seed: int32 `[2]`, of the draws that chose the class.
      estimate_seed: int32 `[2]`, of the draws that bounded its probability.
      certificate: what was handed out.
      made_with: the versions that computed it, see `MADE_WITH`; None in logs without a chain.
      place: in the chain; None in logs of older versions, which have none.
    """

    where: str
    certificate_id: str
    pixels_sha256: str
    pixels: npt.NDArray[np.float32] | None
    smoothing: Smoothing
    rule: Rule
    select_seed: npt.NDArray[np.int32]
    estimate_seed: npt.NDArray[np.int32]
    certificate: Certificate
    made_with: str | None
    place: Place | None

    @classmethod
    def from_line(cls, line: str, *, where: str = "") -> "AuditEntry":
        """Reads one line.

        Raises:
          ValueError: it is not such a line, or was altered after it was written.
        """
        read, place = chain.from_line(line)
        fields = _Fields(**typed(_Fields, read))
        if not re.fullmatch(_ID, fields.certificate_id):
            raise ValueError(f"certificate_id is {fields.certificate_id[:80]!r}")
        if (place is None) != (fields.made_with is None):
            raise ValueError("made_with goes with a place in the chain")
        model = _Model(**typed(_Model, fields.model))
        smoothing = Smoothing.from_fields(model.smoothing)
        if fields.shape != smoothing.input_shape:
            raise ValueError(f"shape is {fields.shape}, the model takes {smoothing.input_shape}")
        if not re.fullmatch("[0-9a-f]{64}", fields.pixels_sha256):
            raise ValueError(f"pixels_sha256 is {fields.pixels_sha256[:80]!r}, not 64 hex digits")
        certificate = fields.certificate
        if place is None:  # from before certificates named these
            known = {"dimension": math.prod(smoothing.input_shape), "generator": generators.PHILOX}
            certificate = {**known, **certificate}
        return cls(
            where=where,
            certificate_id=fields.certificate_id,
            pixels_sha256=fields.pixels_sha256,
            pixels=_pixels(fields),
            smoothing=smoothing,
            rule=Rule(**typed(_RULE, fields.rule)),
            select_seed=_seed("select_seed", fields.select_seed),
            estimate_seed=_seed("estimate_seed", fields.estimate_seed),
            certificate=Certificate(**typed(_CERTIFICATE, certificate)),
            made_with=fields.made_with,
            place=place,
        )


def _pixels(fields: _Fields) -> npt.NDArray[np.float32] | None:
    if fields.pixels_float32 is None:
        return None
    try:
        data = base64.b64decode(fields.pixels_float32, validate=True)
    except (ValueError, binascii.Error) as error:
        raise ValueError(f"pixels_float32 is not base64: {error}") from error
    if len(data) != 4 * math.prod(fields.shape):
        raise ValueError(f"pixels_float32 has {len(data)} bytes, shape is {fields.shape}")
    return np.frombuffer(data, "<f4").reshape(fields.shape).astype(np.float32)


def _all_of(kind: type) -> type:
    """The fields of a dataclass as they are written: each of them, a stop rule as text.

    None has a default: a field that is added later has to be given one here, for logs of before.
    """
    fields = dataclasses.fields(kind)
    return dataclasses.make_dataclass(
        kind.__name__,
        [(each.name, str if each.type is StopRule else each.type) for each in fields],
    )


_RULE, _CERTIFICATE = _all_of(Rule), _all_of(Certificate)


def _seed(name: str, values: tuple[int, int]) -> npt.NDArray[np.int32]:
    if not all(-(2**31) <= value < 2**31 for value in values):
        raise ValueError(f"{name} must be two integers of 32 bits, got {values}")
    return np.array(values, np.int32)


def read_audit_log(path: Path) -> Iterator[AuditEntry]:
    """The entries of an audit log and of what it was rotated to, in the order of their answers.

    A torn last line is left out; a `Notice` says so.

    Args:
      path: of the file that the sidecar writes, or of one that it was rotated to.

    Raises:
      UserError: a file cannot be read, or a line is not an entry; names the line.
    """
    try:
        for where, line, last in _lines(path):
            if last and not line.endswith(b"\n"):
                text = f"{where}: the line is torn, {len(line)} bytes without an end: left out"
                warnings.warn(text, Notice, stacklevel=2)
            else:
                yield _entry(line, where)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def _lines(path: Path) -> Iterator[tuple[str, bytes, bool]]:
    """Each line, where it stands, and whether that is the last file."""
    with contextlib.ExitStack() as stack:
        newest = None
        if path.exists() or not chain.rotated(path):
            # Opened first: it may be rotated while the others are read.
            newest = stack.enter_context(open(path, "rb"))
        older = chain.rotated(path)
        if newest is not None:
            opened = os.fstat(newest.fileno())
            older = [file for file in older if not os.path.samestat(file.stat(), opened)]
        for file in older:
            with open(file, "rb") as lines:
                for number, line in enumerate(lines, 1):
                    yield f"{file}:{number}", line, newest is None and file == older[-1]
        for number, line in enumerate(newest or (), 1):
            yield f"{path}:{number}", line, True


def _entry(line: bytes, where: str) -> AuditEntry:
    try:
        return AuditEntry.from_line(line.decode().removesuffix("\n"), where=where)
    except ValueError as error:
        named = re.search(rb'"certificate_id": "(%b)"' % _ID.encode(), line)
        name = f"certificate {named[1].decode()}: " if named else ""
        raise UserError(f"{where}: {name}not an audit entry: {error}") from error


class Trail:
    """What the entries of a log say together: one chain, no certificate and no noise twice.

    Attributes:
      entries: how many were followed.
      chain: what they are links of.
    """

    def __init__(self, head: str | None = None) -> None:
        """Nothing is followed yet.

        Args:
          head: the newest digest that is known, see `Chain`.
        """
        self.entries = 0
        self.chain = Chain(head)
        self._certificates: dict[str, str] = {}
        self._seeds: dict[bytes, str] = {}

    def follow(self, entry: AuditEntry) -> str | None:
        """Takes up the next entry; returns what is wrong with its place, None where nothing is."""
        self.entries += 1
        faults = [self.chain.follow(entry.place)]
        if entry.certificate_id in self._certificates:
            faults.append(f"is there twice, first at {self._certificates[entry.certificate_id]}")
        self._certificates[entry.certificate_id] = entry.where
        for name in ("select_seed", "estimate_seed"):
            seed = getattr(entry, name).tobytes()
            if (other := self._seeds.get(seed, entry.certificate_id)) != entry.certificate_id:
                faults.append(f"{name} is one of certificate {other}: no two may share their noise")
            self._seeds[seed] = entry.certificate_id
        return next((fault for fault in faults if fault), None)


def verify_entry(
    entry: AuditEntry, redraw: Callable[[AuditEntry], Counts] | None = None
) -> str | None:
    """Computes a served certificate again.

    Args:
      entry: from the audit log.
      redraw: draws the votes again; None trusts the recorded ones.

    Returns:
      What is wrong with the entry; None where nothing is.

    Raises:
      UserError: the votes cannot be drawn again.
    """
    try:
        fault = next(_faults(entry), None)
    except (UserError, ArithmeticError) as error:  # values that no certificate can be made of
        return str(error)
    if fault is None and redraw is not None and (drawn := redraw(entry)) != _counts(entry):
        found = entry.certificate
        fault = (
            f"drawn again the votes are {drawn.select_counts} and {drawn.counts}, "
            f"recorded are {found.select_counts} and {found.counts}"
        )
    return fault


def _counts(entry: AuditEntry) -> Counts:
    found = entry.certificate
    return Counts(select_counts=found.select_counts, counts=found.counts, n0=found.n0, n=found.n)


def _faults(entry: AuditEntry) -> Iterator[str]:
    """All that is wrong with an entry, the cause before its consequences."""
    found, rule, model = entry.certificate, entry.rule, entry.smoothing
    if np.array_equal(entry.select_seed, entry.estimate_seed):
        yield (
            f"select_seed and estimate_seed are both {entry.select_seed.tolist()}: the draws that "
            "choose the class must be independent of those that bound its probability"
        )
    bounds = [name for name, bound in BOUNDS.items() if isinstance(bound, VoteBound)]
    if entry.place is not None:  # a deadline may end the draws of any answer
        bounds = [name for name in bounds if BOUNDS[name].anytime]
    if rule.bound not in bounds:
        yield f"bound is {rule.bound}, a sidecar's is one of {', '.join(bounds)}"
    if rule.block_size != model.block_size:
        yield f"block_size of the rule is {rule.block_size}, the model's {model.block_size}"
    if len(found.counts) != model.num_classes:
        yield f"counts has {len(found.counts)} classes, the model {model.num_classes}"
    if entry.pixels is not None:
        yield from _wrong_pixels(entry.pixels, entry.pixels_sha256)
        certified = model.distribution.pixels(entry.pixels)
        if entry.place is not None and not np.array_equal(certified, entry.pixels):
            yield "the pixels are not the multiples of 1/255 that were certified"
    expected = certify(_counts(entry), rule, model.distribution)
    for field in dataclasses.fields(Certificate):
        recorded, right = getattr(found, field.name), getattr(expected, field.name)
        if not _agree(field.name, recorded, right, exact=entry.made_with == MADE_WITH):
            made = repr(entry.made_with)[:80] if entry.made_with else "made by an older version"
            yield f"{field.name} is {recorded!r}, it should be {right!r} ({made}; here {MADE_WITH})"


def _wrong_pixels(pixels: npt.NDArray[np.float32], digest: str) -> Iterator[str]:
    outside = np.argwhere(~((pixels >= 0) & (pixels <= 1)))
    if len(outside):
        place = tuple(outside[0].tolist())
        yield f"pixel {place} is {pixels[place]}, it must lie in [0, 1]"
    if pixels_digest(pixels) != digest:
        yield "the pixels are not those of pixels_sha256"


def _agree(name: str, recorded: Any, right: Any, *, exact: bool) -> bool:
    """Whether a field is what it should be, to the last bit of what was handed out.

    What other builds computed may claim a little less, but never more.
    """
    if json.dumps(recorded) == json.dumps(right):
        return True
    if exact or name not in _SAFE_SIDE or not isinstance(recorded, float) or right is None:
        return False
    return bool(0 <= (recorded - right) * _SAFE_SIDE[name] <= _TOLERANCE)
