"""Computing the records of a log again from the votes that they keep."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np

from tfmacer.common.errors import UserError
from tfmacer.guarantee.certificate import Certificate, certify, decided, round_down
from tfmacer.guarantee.counts import Counts
from tfmacer.guarantee.distribution import NoiseDistribution
from tfmacer.records.logs import Log
from tfmacer.records.rows import Record
from tfmacer.records.settings import LogSettings

# By how much a record may claim less than is computed here: other builds of SciPy have other
# quantiles, and logs keep radii at 9 decimals, rounded toward zero.
_LESS = {"p_lower": -1e-11, "radius": -2e-9, "p_upper_second": 1e-11}
# By how much a bound may claim more: what those builds differ by where they are as exact as here.
_MORE = 1e-14
# Softmax in float32 sums to one within about 1e-7 for each class.
_SUM_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Redrawn:
    """What drawing again gave for one image.

    Attributes:
      label: the dataset's, -1 where it has none.
      clean: class of the base network without noise.
      counts: the votes.
      pixels_sha256: of the image that they were drawn for.
    """

    label: int
    clean: int
    counts: Counts
    pixels_sha256: str


Redraw = Callable[[LogSettings, Record], Redrawn]


@dataclasses.dataclass(frozen=True)
class Difference:
    """The first field of a row that is not what it should be."""

    idx: int
    field: str
    found: object
    expected: object

    def __str__(self) -> str:
        return f"idx {self.idx}: {self.field} is {self.found}, it should be {self.expected}"


def verify_log(log: Log, redraw: Redraw | None = None) -> Difference | None:
    """Computes every record of a log again.

    Args:
      log: one of ours; its settings and the form of its rows were checked in reading.
      redraw: draws an image's votes again; None trusts the recorded ones.

    Returns:
      The first difference, None where there is none.

    Raises:
      UserError: the log is another project's, which keeps no votes.
    """
    if log.settings is None:
        raise UserError(
            f"{log.path}: not a log of tfmacer: without votes nothing can be recomputed"
        )
    for record in log.records:
        for difference in _differences(record, log.settings, redraw):
            return difference
    return None


def _differences(
    record: Record, settings: LogSettings, redraw: Redraw | None
) -> Iterator[Difference]:
    """All that is wrong with a record, the cause before its consequences."""
    yield from _inconsistencies(record, settings)
    certificate = certify(record.all_counts, settings.rule, settings.distribution)
    expected = Record.of(
        certificate,
        idx=record.idx,
        label=record.label,
        clean=record.clean or 0,
        seconds=0.0,
        pixels_sha256=record.pixels_sha256 or "",
    )
    most = _most(certificate, settings.distribution)
    for field in ("predict", "p_lower", "p_upper_second", "radius", "stopped_early", "correct"):
        found, should = getattr(record, field), getattr(expected, field)
        if found != should and not _claims_no_more(field, found, should, most.get(field)):
            yield Difference(record.idx, field, found, should)
    if (
        record.stopped_early
        and settings.rule.stop.kind != "budget"
        and not decided(record.all_counts, settings.rule, settings.distribution)
    ):
        yield Difference(record.idx, "n", record.n, "more: nothing was decided by then")
    if redraw is not None:
        yield from _redrawn_differences(record, redraw(settings, record))
    digest = settings.sealed(record).digest
    if record.digest != digest:
        yield Difference(record.idx, "digest", record.digest, f"{digest}: the row was altered")


def _inconsistencies(record: Record, settings: LogSettings) -> Iterator[Difference]:
    """What cannot be, whatever the votes were."""
    rule = settings.rule
    if record.idx not in settings.indices:
        yield Difference(record.idx, "idx", record.idx, "that of a selected image")
    if not -1 <= record.label < settings.num_classes:
        yield Difference(record.idx, "label", record.label, f"-1 to {settings.num_classes - 1}")
    if record.clean is None or not 0 <= record.clean < settings.num_classes:
        yield Difference(record.idx, "clean", record.clean, f"0 to {settings.num_classes - 1}")
    if record.bound != rule.bound:
        yield Difference(record.idx, "bound", record.bound, rule.bound)
    if record.n0 != rule.n0:
        yield Difference(record.idx, "n0", record.n0, rule.n0)
    if record.n not in rule.looks:
        yield Difference(record.idx, "n", record.n, f"one of {', '.join(map(str, rule.looks))}")
    for field, draws in {"select_counts": rule.n0, "counts": record.n or 0}.items():
        votes = getattr(record, field)
        if min(votes) < 0 or sum(votes) != draws:
            yield Difference(record.idx, field, f"{sum(votes)} votes", f"{draws} votes")
    for field, draws in {"select_sums": rule.n0, "sums": record.n or 0}.items():
        sums = getattr(record, field)
        if sums is not None and not math.isclose(
            math.fsum(sums), draws, abs_tol=_SUM_TOLERANCE * draws
        ):
            yield Difference(record.idx, field, f"a sum of {math.fsum(sums)}", draws)
    for total, squares in zip(record.sums or (), record.square_sums or (), strict=True):
        # Probabilities lie in [0, 1]: Jensen's inequality on one side, p^2 <= p on the other.
        jensen = total**2 / (record.n or 1)
        if not jensen * (1 - 1e-6) - 1e-9 <= squares <= total * (1 + 1e-6):
            yield Difference(record.idx, "square_sums", squares, f"possible beside {total}")


def _redrawn_differences(record: Record, redrawn: Redrawn) -> Iterator[Difference]:
    # Format version 1 has no pixels to compare.
    if record.pixels_sha256 not in (None, redrawn.pixels_sha256):
        yield Difference(
            record.idx, "pixels_sha256", record.pixels_sha256, f"{redrawn.pixels_sha256}, as found"
        )
    for field, expected in {
        "label": redrawn.label,
        "clean": redrawn.clean,
        "select_counts": redrawn.counts.select_counts,
        "counts": redrawn.counts.counts,
    }.items():
        if getattr(record, field) != expected:
            yield Difference(record.idx, field, getattr(record, field), f"{expected}, as redrawn")
    for field in ("select_sums", "sums", "square_sums"):
        found, expected = getattr(record, field), getattr(redrawn.counts, field)
        if found is not None and not np.allclose(found, expected, rtol=1e-9, atol=1e-9):
            yield Difference(record.idx, field, found, f"{expected}, as redrawn")


def _most(certificate: Certificate, distribution: NoiseDistribution) -> dict[str, float]:
    """The most that other builds compute where `certificate` is computed here."""
    p_lower, second = min(certificate.p_lower + _MORE, 1.0), certificate.p_upper_second
    most = {"p_lower": p_lower}
    if second is not None:
        most["p_upper_second"] = second = max(second - _MORE, 0.0)
    radius = distribution.radius(p_lower, second) if certificate.radius > 0 else 0.0
    return most | {"radius": round_down(radius * (1 + _MORE))}


def _claims_no_more(field: str, found: object, should: object, most: float | None) -> bool:
    """Whether a number lies between the least and the most that honest builds give."""
    if most is None or not isinstance(found, float) or not isinstance(should, float):
        return False
    low, high = sorted((most, should + _LESS[field]))
    return low <= found <= high
