"""Several runs side by side: their names, paired differences, and groups."""

import dataclasses
import functools
import itertools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from tfmacer.common.text import visible
from tfmacer.records.logs import Log
from tfmacer.report.copies import other_pixels, repeated, repetitions
from tfmacer.report.summary import Estimate, Run, mean_difference

# Two unrelated orders of ten classes agree on this many labels with probability 1e-20.
_FEWEST_COMMON = 20
_SEED = re.compile(r"[-_.]?seed[-_=]?\d+", re.IGNORECASE)
# Whose normal quantile makes score intervals of at least 95 %.
_SCORE_CONFIDENCE = 0.97


def name_runs(logs: Sequence[Log]) -> list[Run]:
    """Names each log by what tells its path from the others'.

    A log `RUN/certify/NAME.tsv` goes by the run's name where that is enough.
    """
    parts = [_parts(log.path.resolve()) for log in logs]
    start = _common(parts) if len(parts) > 1 else len(parts[0]) - (2 if _in_run(logs[0]) else 1)
    end = _common([part[::-1] for part in parts]) if len(parts) > 1 else 0
    names = ["/".join(part[start : len(part) - end]) for part in parts]
    if len(set(names)) < len(names) or not all(names):
        names = [str(log.path) for log in logs]
    return [Run(visible(name), log) for name, log in zip(names, logs, strict=True)]


def _parts(path: Path) -> list[str]:
    folders = [part for part in path.parent.parts if part not in ("/", "certify")]
    return [*folders, path.name.removesuffix(".tsv")]


def _in_run(log: Log) -> bool:
    return log.path.resolve().parent.name == "certify"


def _common(parts: Sequence[Sequence[str]]) -> int:
    """How many leading parts all have in common."""
    columns = zip(*parts, strict=False)
    return len(list(itertools.takewhile(lambda column: len(set(column)) == 1, columns)))


@dataclasses.dataclass(frozen=True)
class Difference:
    """How much more one run certifies than another on the same images.

    Attributes:
      first: the run that is subtracted from.
      second: the run that is subtracted.
      images: how many both certified.
      acr: difference of the average certified radii; None where one of them has none.
      certified: difference of certified accuracy by radius; None as above.
    """

    first: Run
    second: Run
    images: int
    acr: Estimate | None
    certified: dict[float, Estimate | None]


def paired_differences(runs: Sequence[Run], radii: Sequence[float]) -> list[Difference]:
    """Differences between every two runs that certified the same images, later minus earlier.

    Radii in different norms have no difference, and a run has none from its own copy.
    """
    return [
        difference
        for second, first in itertools.combinations(runs, 2)
        if not repeated(first, second)
        and (difference := _difference(first, second, radii)) is not None
    ]


def _difference(first: Run, second: Run, radii: Sequence[float]) -> Difference | None:
    if first.norm != second.norm:
        return None
    common, mine, theirs = np.intersect1d(first.idx, second.idx, return_indices=True)
    if not _same_images(first, second, len(common)) or not np.array_equal(
        first.labels[mine], second.labels[theirs]
    ):
        return None

    return Difference(
        first,
        second,
        len(common),
        None
        if first.acr is None or second.acr is None
        else mean_difference(first.radii[mine] - second.radii[theirs]),
        {
            r: None
            if first.certified(r) is None or second.certified(r) is None
            else paired_shares(
                first.correct[mine] & (first.radii[mine] >= r),
                second.correct[theirs] & (second.radii[theirs] >= r),
            )
            for r in radii
        },
    )


def paired_shares(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> Estimate:
    """Difference of two shares of the same images, first minus second, with its interval."""
    gained, lost = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    low = _least_difference(gained, lost, len(first))
    high = -_least_difference(lost, gained, len(first))
    return Estimate((gained - lost) / len(first), low, high)


@functools.cache
def _least_difference(gained: int, lost: int, total: int) -> float:
    """Lower end of Tango's score interval for the difference of two paired shares.

    The differences d at which (gained - lost - n d)^2 is no more than z^2 times its variance
    n (2 q + d (1 - d)), with q the likeliest share of images lost among those at which the share
    gained is q + d (Tango, Statistics in Medicine 1998). At the normal quantile of 95 % this covers
    as little as 93 %, where a few images differ; at that of 97 %, taken here, never less than
    95 % from ten images on, counted over all outcomes.
    """
    z = float(stats.norm.ppf((1 + _SCORE_CONFIDENCE) / 2))

    def excess(d: float) -> float:
        b = (2 * total - gained + lost) * d - gained - lost
        root = math.sqrt(max(b * b + 8 * total * lost * d * (1 - d), 0.0))
        q = (root - b) / (4 * total)
        variance = total * max(2 * q + d * (1 - d), 0.0)
        return float((gained - lost - total * d) ** 2 - z * z * variance)

    found = (gained - lost) / total
    if found == -1:
        return -1.0
    # Just below what was found: there the variance is not 0.
    return float(optimize.brentq(excess, -1.0, found - 1e-9, xtol=1e-12))


def _same_images(first: Run, second: Run, common: int) -> bool:
    """Whether equal idx mean equal images, as far as the logs tell."""
    if first.settings is None and second.settings is None:
        return common >= _FEWEST_COMMON
    if first.settings is None or second.settings is None:
        return False
    return common >= 2 and same_split(first, second) and not other_pixels(first, second)


def same_split(first: Run, second: Run) -> bool:
    """Whether both name one split of one dataset, of one size."""
    splits = [
        (run.settings.images.dataset, run.settings.images.split, run.settings.images.total)
        for run in (first, second)
        if run.settings is not None
    ]
    return splits[:1] == splits[1:]


@dataclasses.dataclass(frozen=True)
class Group:
    """Two or more runs that differ only in their seed, and their common name."""

    name: str
    runs: tuple[Run, ...]


def seed_groups(runs: Sequence[Run]) -> list[Group]:
    """Groups the runs that differ only in a seed.

    Those are logs of one model drawn with other seeds, and logs whose paths differ in nothing but
    a part like `seed1` and whose settings in nothing but the model. A copy of a log is no further
    seed.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_without_seed(run), []).append(run)
    distinct = (_without_copies(members) for members in groups.values())
    return [
        Group(_SEED.sub("", members[0].name).strip("/-_.") or members[0].name, tuple(members))
        for members in distinct
        if len(members) > 1
    ]


def _without_copies(runs: Sequence[Run]) -> list[Run]:
    copied = {id(each.run) for each in repetitions(runs)}
    return [run for run in runs if id(run) not in copied]


def _without_seed(run: Run) -> str:
    path = str(run.log.path.resolve()) + run.norm
    stripped = _SEED.sub("", path)
    if run.settings is None:
        return stripped
    fields = run.settings.fields()
    for field in ("seed", "environment", "warnings"):
        del fields[field]
    fields["norm"] = run.norm
    if stripped != path:
        return json.dumps([stripped, fields | {"model_digest": None}], sort_keys=True)
    return json.dumps(fields, sort_keys=True)
