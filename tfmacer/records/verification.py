"""Computing the records of a log again from the votes that they keep."""

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np

from tfmacer.common.errors import UserError
from tfmacer.guarantee.certificate import Certificate, certify, decided, round_down
from tfmacer.guarantee.counts import Counts
from tfmacer.records.logs import Log
from tfmacer.records.rows import SOFT_COLUMNS, Record
from tfmacer.records.settings import LogSettings

# By how much a record may claim less than is computed here: other builds of SciPy have other
# quantiles, and logs keep radii at 9 decimals, rounded toward zero.
_LESS = {"p_lower": -1e-11, "radius": -2e-9, "p_upper_second": 1e-11}
# By how much a bound may claim more: what those builds differ by where they are as exact as here.
_MORE = 1e-14
# Softmax in float32 sums to one within about 1e-7 for each class.
_SUM_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Replayed:
    """What drawing again gave for one image.

    Attributes:
      label: the dataset's, -1 where it has none.
      clean: class of the base network without noise.
      draws: the votes.
      pixels_sha256: of the image that they were drawn for.
    """

    label: int
    clean: int
    draws: Counts
    pixels_sha256: str


Replay = Callable[[LogSettings, Record], Replayed]


def verify_log(log: Log, replay: Replay | None = None) -> str | None:
    """Computes every record of a log again.

    Returns:
      The idx of the first wrong record and what is wrong with it; None where all are right.

    Raises:
      UserError: the log is another project's, which keeps no votes.
    """
    if log.settings is None:
        raise UserError(
            f"{log.path}: not a log of tfmacer: without votes nothing can be recomputed"
        )
    for record in log.records:
        for fault in _faults(record, log.settings, replay):
            return f"idx {record.idx}: {fault}"
    return None


def _faults(record: Record, settings: LogSettings, replay: Replay | None) -> Iterator[str]:
    """All that is wrong with a record, the cause before its consequences."""
    rule, distribution = settings.rule, settings.classifier.distribution
    draws = record.require_draws()
    if record.idx not in settings.indices:
        yield "its image was not selected"
    yield from _impossible_sums(draws)
    try:
        certificate = certify(draws, rule, distribution)
    except UserError as error:  # the draws are not those of the rule
        yield str(error)
        return
    if record.predict != certificate.predict:
        yield _wrong("predict", record.predict, certificate.predict)
    most = _most(certificate)
    for field, least in _LESS.items():
        found, right = getattr(record, field), getattr(certificate, field)
        right = round_down(right) if field == "radius" else right
        if found != right and not _between(found, most.get(field), right, least):
            yield _wrong(field, found, right)
    early = draws.n < rule.n
    if early and rule.stop.kind != "budget" and not decided(draws, rule, distribution):
        yield _wrong("n", draws.n, "more: nothing was decided by then")
    if replay is not None:
        yield from _replay_faults(record, replay(settings, record))
    digest = settings.sealed(record).digest
    if record.digest != digest:
        yield _wrong("digest", record.digest, f"{digest}: the row was altered")


def _wrong(field: str, found: object, right: object) -> str:
    return f"{field} is {found}, it should be {right}"


def _impossible_sums(draws: Counts) -> Iterator[str]:
    """Sums that no probabilities have."""
    for field, total in (("select_sums", draws.n0), ("sums", draws.n)):
        sums = getattr(draws, field)
        if sums is not None and abs(math.fsum(sums) - total) > _SUM_TOLERANCE * total:
            yield _wrong(field, f"a sum of {math.fsum(sums)}", total)
    for each, squares in zip(draws.sums or (), draws.square_sums or (), strict=True):
        # Probabilities lie in [0, 1]: Jensen's inequality on one side, p^2 <= p on the other.
        if not each**2 / draws.n * (1 - 1e-6) - 1e-9 <= squares <= each * (1 + 1e-6):
            yield _wrong("square_sums", squares, f"one that is possible with a sum of {each}")


def _replay_faults(record: Record, replayed: Replayed) -> Iterator[str]:
    draws = record.require_draws()
    # Format version 1 has no pixels to compare.
    if record.pixels_sha256 not in (None, replayed.pixels_sha256):
        found = f"{replayed.pixels_sha256}, as found"
        yield _wrong("pixels_sha256", record.pixels_sha256, found)
    for field, mine, other in (
        ("label", record, replayed),
        ("clean", record, replayed),
        ("select_counts", draws, replayed.draws),
        ("counts", draws, replayed.draws),
    ):
        if getattr(mine, field) != getattr(other, field):
            yield _wrong(field, getattr(mine, field), f"{getattr(other, field)}, as drawn again")
    for field in SOFT_COLUMNS:
        sums, again = getattr(draws, field), getattr(replayed.draws, field)
        if sums is not None and not np.allclose(sums, again, rtol=1e-9, atol=1e-9):
            yield _wrong(field, sums, f"{again}, as drawn again")


def _most(certificate: Certificate) -> dict[str, float]:
    """The most that other builds compute where `certificate` is computed here."""
    p_lower, second = min(certificate.p_lower + _MORE, 1.0), certificate.p_upper_second
    most = {"p_lower": p_lower}
    if second is not None:
        most["p_upper_second"] = second = max(second - _MORE, 0.0)
    certified = certificate.radius > 0
    radius = certificate.distribution.radius(p_lower, second) if certified else 0.0
    return most | {"radius": round_down(radius * (1 + _MORE))}


def _between(found: object, most: float | None, right: object, less: float) -> bool:
    """Whether a number lies between the least and the most that honest builds give."""
    if most is None or not isinstance(found, float) or not isinstance(right, float):
        return False
    low, high = sorted((most, right + less))
    return low <= found <= high
