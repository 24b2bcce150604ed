"""The sidecar's audit log, read and checked: which noise is behind which served certificate.

Written by the sidecar (`serving/certifier/audit.py`), one JSON object a line. Served certificates
have no row in a log of ours, so this is the only place from which they can be drawn again.
"""

import base64
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmacer.errors import UserError
from tfmacer.guarantee.certificate import Certificate, certify
from tfmacer.guarantee.counts import Counts
from tfmacer.guarantee.rule import Rule
from tfmacer.guarantee.smoothing import law
from tfmacer.guarantee.stopping import StopRule
from tfmacer.records.runs import Smoothing
from tfmacer.records.sealing import pixels_digest

# Between builds of SciPy the quantiles differ by less.
_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AuditEntry:
    """One served certificate and its noise.

    Attributes:
      certificate_id: its name in the answer.
      pixels_sha256: hex digest of the pixels, float32, little-endian, row-major.
      pixels: float32 `[H, W, C]`; None where the operator does not keep images.
      smoothing: the model that answered.
      rule: as the request asked.
      select_seed: int32 `[2]`, of the draws that chose the class.
      estimate_seed: int32 `[2]`, of the draws that bounded its probability.
      certificate: what was handed out.
    """

    certificate_id: str
    pixels_sha256: str
    pixels: npt.NDArray[np.float32] | None
    smoothing: Smoothing
    rule: Rule
    select_seed: npt.NDArray[np.int32]
    estimate_seed: npt.NDArray[np.int32]
    certificate: Certificate

    @classmethod
    def from_json(cls, line: str) -> "AuditEntry":
        """Reads one line.

        Raises:
          ValueError, KeyError, TypeError: it is not such a line.
        """
        fields: dict[str, Any] = json.loads(line)
        rule = fields["rule"] | {"stop": StopRule.parse(fields["rule"]["stop"])}
        lists = {k: tuple(v) for k, v in fields["certificate"].items() if isinstance(v, list)}
        pixels = None
        if "pixels_float32" in fields:
            data = np.frombuffer(base64.b64decode(fields["pixels_float32"]), "<f4")
            pixels = data.reshape(fields["shape"]).astype(np.float32)
        return cls(
            certificate_id=fields["certificate_id"],
            pixels_sha256=fields["pixels_sha256"],
            pixels=pixels,
            smoothing=Smoothing.from_fields(fields["model"]["smoothing"]),
            rule=Rule(**rule),
            select_seed=np.array(fields["select_seed"], np.int32),
            estimate_seed=np.array(fields["estimate_seed"], np.int32),
            certificate=Certificate(**(fields["certificate"] | lists)),
        )


def read_audit_log(path: Path) -> Iterator[AuditEntry]:
    """The entries of an audit log, in the order in which they were answered.

    Raises:
      UserError: the file cannot be read, or a line is not an entry; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        try:
            yield AuditEntry.from_json(line)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: not an audit entry: {error}") from error


def verify_entry(
    entry: AuditEntry, redraw: Callable[[AuditEntry], Counts] | None = None
) -> str | None:
    """Computes a served certificate again.

    Args:
      entry: from the audit log.
      redraw: draws the votes again; None trusts the recorded ones.

    Returns:
      What is wrong with the entry; None where nothing is.
    """
    found = entry.certificate
    if entry.pixels is not None and pixels_digest(entry.pixels) != entry.pixels_sha256:
        return "the pixels are not those of pixels_sha256"
    counts = Counts(select_counts=found.select_counts, counts=found.counts, n0=found.n0, n=found.n)
    noise = law(
        entry.smoothing.noise_family,
        sigma=entry.smoothing.sigma,
        params=entry.smoothing.noise_params,
        dimension=int(np.prod(entry.smoothing.input_shape)),
    )
    expected = certify(counts, entry.rule, noise)
    for field in dataclasses.fields(Certificate):
        recorded, right = getattr(found, field.name), getattr(expected, field.name)
        if not _close(recorded, right):
            return f"{field.name} is {recorded}, it should be {right}"
    if redraw is not None and (drawn := redraw(entry)) != counts:
        return f"drawn again the votes are {drawn.counts}, recorded are {counts.counts}"
    return None


def _close(recorded: Any, right: Any) -> bool:
    if isinstance(recorded, float) and isinstance(right, float):
        return abs(recorded - right) <= _TOLERANCE
    return bool(recorded == right)
