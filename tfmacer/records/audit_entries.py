"""One entry of the sidecar's audit log: which noise is behind a served certificate.

Served certificates are in no certification log, so their votes can be drawn again from here alone.
"""

import base64
import binascii
import dataclasses
import json
import math
import platform
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from tfmacer.guarantee.certificate import Certificate
from tfmacer.guarantee.counts import Counts
from tfmacer.guarantee.rule import Rule
from tfmacer.noise import generators
from tfmacer.records import chain
from tfmacer.records.chain import Place
from tfmacer.records.runs import Smoothing
from tfmacer.records.sealing import build, names, plain
from tfmacer.records.settings import rule_of
from tfmacer.version import __version__

# What computed the numbers of a certificate: between builds of SciPy, and between processors, its
# quantiles differ in the last places.
MADE_WITH = f"tfmacer {__version__}, scipy {scipy.__version__}, {platform.machine()}"
ID = "[0-9A-Za-z_.-]{1,64}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Call:
    """What an entry and its JSON have alike."""

    certificate_id: str
    time: str
    request_id: str
    client: str
    pixels_sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fields(_Call):
    """The names and types of an entry as JSON."""

    shape: tuple[int, int, int]
    model: Mapping[str, Any]
    rule: Mapping[str, Any]
    select_seed: tuple[int, int]
    estimate_seed: tuple[int, int]
    certificate: Mapping[str, Any]
    made_with: str | None = None
    pixels_float32: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Model:
    name: str
    version: int
    smoothing: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Conclusion:
    predict: int
    radius: float
    p_lower: float
    p_upper_second: float | None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AuditEntry(_Call):
    """One served certificate and its noise.

    Attributes:
      certificate_id: its name in the answer.
      time: when it was handed out, ISO 8601.
      request_id: of the call.
      client: who asked.
      pixels_sha256: hex digest of the pixels, float32, little-endian, row-major.
      pixels: float32 `[H, W, C]`; None where the operator does not keep images.
      model_name: of the model that answered.
      model_version: its version.
      smoothing: what it is.
      select_seed: int32 `[2]`, of the draws that chose the class.
      estimate_seed: int32 `[2]`, of the draws that bounded its probability.
      certificate: what was handed out, by the rule that the request asked for.
      made_with: the versions that computed it, see `MADE_WITH`; None in logs without a chain.
      where: file and line of the entry.
      place: in the chain; None before it is written, and in logs of older versions, without one.
    """

    pixels: npt.NDArray[np.float32] | None
    model_name: str
    model_version: int
    smoothing: Smoothing
    select_seed: npt.NDArray[np.int32]
    estimate_seed: npt.NDArray[np.int32]
    certificate: Certificate
    made_with: str | None = MADE_WITH
    where: str = ""
    place: Place | None = None

    def fields(self, *, pixels: bool = True) -> dict[str, Any]:
        """The fields of the entry, as JSON has them.

        Args:
          pixels: whether to keep the image itself (base64 of float32, little-endian, row-major);
            without it only its digest is kept, and drawing again needs the image from elsewhere.
        """
        fields = {
            **_call(self),
            "shape": list(self.smoothing.input_shape),
            "model": {
                "name": self.model_name,
                "version": self.model_version,
                "smoothing": plain(self.smoothing),
            },
            "rule": plain(self.certificate.rule),
            "select_seed": self.select_seed.tolist(),
            "estimate_seed": self.estimate_seed.tolist(),
            "certificate": _certificate_fields(self.certificate),
            "made_with": self.made_with,
        }
        if pixels and self.pixels is not None:
            data = self.pixels.astype("<f4").tobytes()
            fields["pixels_float32"] = base64.b64encode(data).decode()
        return fields

    @classmethod
    def from_line(cls, line: str, *, where: str = "") -> "AuditEntry":
        """Reads one line; raises ValueError where it is none, or was altered."""
        read, place = chain.from_line(line)
        fields = build(_Fields, read)
        if not re.fullmatch(ID, fields.certificate_id):
            raise ValueError(f"certificate_id is {fields.certificate_id[:80]!r}")
        if (place is None) != (fields.made_with is None):
            raise ValueError("made_with goes with a place in the chain")
        model = build(_Model, fields.model)
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
            **_call(fields),
            pixels=_pixels(fields),
            model_name=model.name,
            model_version=model.version,
            smoothing=smoothing,
            select_seed=_seed("select_seed", fields.select_seed),
            estimate_seed=_seed("estimate_seed", fields.estimate_seed),
            certificate=_certificate(certificate, rule_of(fields.rule), smoothing),
            made_with=fields.made_with,
            where=where,
            place=place,
        )


def _call(fields: _Call) -> dict[str, Any]:
    return {name: getattr(fields, name) for name in names(_Call)}


def _certificate_fields(certificate: Certificate) -> dict[str, Any]:
    """A certificate as JSON has it: it says again what it has of its rule and its noise."""
    draws, rule, noise = certificate.draws, certificate.rule, certificate.distribution
    return {
        "predict": certificate.predict,
        "radius": certificate.radius,
        "norm": noise.norm,
        "alpha": rule.alpha,
        "sigma": noise.sigma,
        "family": noise.family,
        "dimension": noise.dimension,
        "generator": noise.generator,
        "bound": rule.bound,
        "bilateral": rule.bilateral,
        "beta": rule.beta,
        "n0": draws.n0,
        "n": draws.n,
        "select_counts": draws.select_counts,
        "counts": draws.counts,
        "select_sums": draws.select_sums if rule.soft else None,
        "sums": draws.sums if rule.soft else None,
        "square_sums": draws.square_sums if rule.soft else None,
        "p_lower": certificate.p_lower,
        "p_upper_second": certificate.p_upper_second,
        "stopped_early": certificate.stopped_early,
    }


def _certificate(fields: Mapping[str, Any], rule: Rule, smoothing: Smoothing) -> Certificate:
    """Reads what `_certificate_fields` wrote.

    Raises:
      ValueError: a field is missing, unknown or of another type, or says something else of the
        rule or the noise than these do.
    """
    own, counted = (
        {name: fields[name] for name in names(kind) if name in fields}
        for kind in (_Conclusion, Counts)
    )
    draws = build(Counts, counted, optional=())
    if len(draws.counts) != smoothing.num_classes:
        raise ValueError(
            f"counts has {len(draws.counts)} classes, the model {smoothing.num_classes}"
        )
    certificate = Certificate(
        draws=draws,
        rule=rule,
        distribution=smoothing.distribution,
        **vars(build(_Conclusion, own, optional=())),
    )
    written = _certificate_fields(certificate)
    if unknown := [name for name in fields if name not in written]:
        raise ValueError(f"the field {unknown[0]!r} is not known")
    for name, right in written.items():
        if name not in fields:
            raise ValueError(f"the field {name!r} is missing")
        if json.dumps(fields[name]) != json.dumps(right):
            raise ValueError(f"{name} is {fields[name]!r}, it should be {right!r}")
    return certificate


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


def _seed(name: str, values: tuple[int, int]) -> npt.NDArray[np.int32]:
    if not all(-(2**31) <= value < 2**31 for value in values):
        raise ValueError(f"{name} must be two integers of 32 bits, got {values}")
    return np.array(values, np.int32)
