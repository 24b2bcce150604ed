"""The sidecar's audit log, read and checked.

Written by the sidecar (`serving/sidecar/audit.py`), one JSON object a line, each a link of a
chain.
"""

import contextlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmacer.common.errors import Notice, UserError
from tfmacer.guarantee.bounds import BOUNDS, VoteBound
from tfmacer.guarantee.certificate import certify
from tfmacer.guarantee.counts import Counts
from tfmacer.records import chain
from tfmacer.records.audit_entries import ID, MADE_WITH, AuditEntry
from tfmacer.records.chain import Chain
from tfmacer.records.sealing import pixels_digest

# By how much, at most; only to the safe side, see `_agree`.
_TOLERANCE = 1e-9
# Larger than any of these bounds, to the side on which less is claimed.
_SAFE_SIDE = {"p_lower": -1, "radius": -1, "p_upper_second": 1}


def read_audit_log(path: Path) -> Iterator[AuditEntry]:
    """The entries of an audit log and of what it was rotated to, in the order of their answers.

    A torn last line is left out; a `Notice` says so.

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
    """Each line, its file and number, and whether the file is the last one."""
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
        named = re.search(rb'"certificate_id": "(%b)"' % ID.encode(), line)
        name = f"certificate {named[1].decode()}: " if named else ""
        raise UserError(f"{where}: {name}not an audit entry: {error}") from error


class Trail:
    """Checks what concerns several entries: one chain, no certificate and no noise twice.

    Attributes:
      entries: how many were followed.
      chain: what they are links of.
    """

    def __init__(self, head: str | None = None) -> None:
        """An empty log; for `head`, see `Chain`."""
        self.entries = 0
        self.chain = Chain(head)
        self._certificates: dict[str, str] = {}
        self._seeds: dict[bytes, str] = {}

    def follow(self, entry: AuditEntry) -> str | None:
        """Adds the next entry; returns what is wrong with its position, None where nothing is."""
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
    entry: AuditEntry, replay: Callable[[AuditEntry], Counts] | None = None
) -> str | None:
    """Computes a served certificate again.

    Returns:
      What is wrong with the entry; None where nothing is.

    Raises:
      UserError: the votes cannot be drawn again.
    """
    try:
        fault = next(_faults(entry), None)
    except (UserError, ArithmeticError) as error:  # values that no certificate can be made of
        return str(error)
    found = entry.certificate.draws
    if fault is None and replay is not None and (again := replay(entry)) != found:
        fault = (
            f"drawn again the votes are {again.select_counts} and {again.counts}, "
            f"recorded are {found.select_counts} and {found.counts}"
        )
    return fault


def _faults(entry: AuditEntry) -> Iterator[str]:
    """All that is wrong with an entry, the cause before its consequences."""
    found, model = entry.certificate, entry.smoothing
    rule = found.rule
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
    if entry.pixels is not None:
        yield from _wrong_pixels(entry.pixels, entry.pixels_sha256)
        certified = model.distribution.pixels(entry.pixels)
        if entry.place is not None and not np.array_equal(certified, entry.pixels):
            yield "the pixels are not the multiples of 1/255 that were certified"
    right = certify(found.draws, rule, model.distribution)
    exact = entry.made_with == MADE_WITH
    for field in ("predict", *_SAFE_SIDE):
        recorded, computed = getattr(found, field), getattr(right, field)
        if not _agree(field, recorded, computed, exact=exact):
            made = repr(entry.made_with)[:80] if entry.made_with else "made by an older version"
            yield f"{field} is {recorded!r}, it should be {computed!r} ({made}; here {MADE_WITH})"


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
