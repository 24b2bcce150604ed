"""Logs that say again what another log says: copies of it, parts, and runs of the same draws.

They are no further evidence. What is compared is what stands in them: names, order of the rows and
times may differ.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from tfmacer.records.settings import LogSettings
from tfmacer.report.summary import Run

# Logs of other projects name neither model nor seed; fewer equal rows may be equal by chance.
_FEWEST_EQUAL = 20


@dataclasses.dataclass(frozen=True)
class Repetition:
    """A run that repeats `images` certificates of a run before it."""

    run: Run
    of: Run
    images: int


def repetitions(runs: Sequence[Run]) -> list[Repetition]:
    """Each run that repeats one before it, with the first of those."""
    found = []
    for place, run in enumerate(runs):
        for earlier in runs[:place]:
            if images := repeated(run, earlier):
                found.append(Repetition(run, earlier, images))
                break
    return found


def repeated(first: Run, second: Run) -> int:
    """On how many images two runs have the same certificates; 0 where they are two runs.

    Ours are the same where model, seed, rule and images are, whatever part of the images each
    holds. Another project's are the same where all rows that both hold are, at least 20 or all of
    one log.
    """
    if first.norm != second.norm or other_pixels(first, second):
        return 0
    mine, theirs = first.rows, second.rows
    common, left, right = np.intersect1d(mine["idx"], theirs["idx"], return_indices=True)
    if first.settings is not None and second.settings is not None:
        return len(common) if _drawn(first.settings) == _drawn(second.settings) else 0
    enough = len(common) >= min(_FEWEST_EQUAL, len(mine), len(theirs)) > 0
    return len(common) if enough and np.array_equal(mine[left], theirs[right]) else 0


def other_pixels(first: Run, second: Run) -> bool:
    """Whether an idx is another image in one log than in the other."""
    return any(second.pixels.get(idx, digest) != digest for idx, digest in first.pixels.items())


def _drawn(settings: LogSettings) -> str:
    """What determines the certificates of a log, whatever else its format version records."""
    return dataclasses.replace(settings, format_version=1).identity
