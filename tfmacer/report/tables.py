"""Tables of a report: what stands in them."""

import math
from collections.abc import Sequence

import numpy as np

from tfmacer.common.decimals import down, up
from tfmacer.report.cells import (
    Cell,
    Table,
    acr_cell,
    integer_cell,
    number_cell,
    percent_cell,
    signed_cell,
    spread_cell,
    words_cell,
)
from tfmacer.report.comparison import Difference, Group
from tfmacer.report.summary import NORMS, Run

# More columns do not fit on a page.
_MOST_RADII = 17
_STEPS = tuple(part * 10.0**power for power in range(-2, 101) for part in (1, 2.5, 5))
_USUAL_STEP = 0.25
# Probability, over the noise, that a dataset-level bound is wrong.
RISK = 0.001

_DECIDES = (
    " A run with stop=decide answers for one radius alone: it ends there, so an ACR of it would "
    "mean nothing."
)
_CONVERTED = (
    " Runs marked l2 / sqrt(d) certify l2 balls; their radii here are those of the l-infinity "
    "balls inside."
)


def radii_of(runs: Sequence[Run]) -> list[float]:
    """Radii for the columns: from 0 to the largest that any image reaches, in round steps.

    The radii that `stop=decide` runs answer for are among them.
    """
    largest = max((float(run.radii.max()) for run in runs if len(run.radii)), default=0.0)
    fitting = [step for step in _STEPS if largest / step < _MOST_RADII]
    step = next(s for s in fitting if s >= _USUAL_STEP or largest < 2 * _USUAL_STEP)
    count = math.floor(largest / step * (1 + 1e-12)) + 1
    decided = {run.decides for run in runs if run.decides is not None}
    return sorted({round(i * step, 9) for i in range(count)} | decided)


def results(runs: Sequence[Run], radii: Sequence[float]) -> Table:
    """Certified accuracy by radius and ACR of each run."""
    rows = [
        (
            words_cell(run.name),
            integer_cell(len(run.idx)),
            acr_cell(run.acr),
            number_cell(run.standard_error if run.acr else None, 3),
            *(percent_cell(run.certified(radius)) for radius in radii),
            percent_cell(run.abstention),
            percent_cell(run.clean),
            integer_cell(run.draws),
        )
        for run in runs
    ]
    return Table(
        "Certified accuracy",
        "Certified accuracy (%) is the share of images whose certified class is the true one with "
        f"a certified {_norms(runs)} radius of at least r; ACR is the mean of radius x correct. "
        "The intervals are of 95 %, for the choice of images, their ends rounded outward: "
        "Clopper-Pearson for shares, Student's with two further values for ACR, which holds from "
        "10 images on."
        + (_DECIDES if any(run.decides is not None for run in runs) else "")
        + (_CONVERTED if any(run.converted for run in runs) else ""),
        (
            "run",
            "images",
            "ACR",
            "s.e.",
            *_columns(radii),
            "abstains",
            "clean",
            "draws",
        ),
        tuple(rows),
    )


def differences(pairs: Sequence[Difference], radii: Sequence[float]) -> Table:
    """Paired differences of every two runs on the same images."""
    rows = [
        (
            words_cell(pair.first.name),
            words_cell(pair.second.name),
            integer_cell(pair.images),
            signed_cell(pair.acr, 3, 1),
            *(signed_cell(pair.certified[radius], 1, 100) for radius in radii),
        )
        for pair in pairs
    ]
    return Table(
        "Paired differences",
        "A run minus one named before it, on the images that both certified: ACR, and certified "
        "accuracy in percentage points. A paired 95 % interval (Student's with two further values "
        "for ACR, which holds from 200 images on, Tango's score interval for shares) without 0 is "
        "a difference that the choice of images does not explain.",
        ("run", "minus", "images", "ACR", *_columns(radii)),
        tuple(rows),
    )


def groups(found: Sequence[Group], radii: Sequence[float]) -> Table:
    """Mean and spread over runs that differ only in their seed."""
    rows = []
    for group in found:
        acrs = [run.acr.value for run in group.runs if run.acr is not None]
        rows.append(
            (
                words_cell(group.name),
                integer_cell(len(group.runs)),
                spread_cell(acrs, 3, 1),
                *(
                    spread_cell([e.value for r in group.runs if (e := r.certified(radius))], 1, 100)
                    for radius in radii
                ),
            )
        )
    return Table(
        "Over seeds",
        "Mean ± standard deviation over the runs that differ only in their seed.",
        ("runs named", "seeds", "ACR", *_columns(radii)),
        tuple(rows),
    )


def dataset_bounds(runs: Sequence[Run], radii: Sequence[float], risk: float = RISK) -> Table:
    """Certified accuracy on exactly these images, whatever the luck of the noise was."""
    rows = []
    for run in runs:
        if run.settings is not None and len(run.radii):
            bounds = [run.dataset_bound(radius, risk) for radius in radii]
            rows.append(
                (
                    words_cell(run.name),
                    integer_cell(len(run.radii)),
                    Cell(f"{run.settings.rule.alpha:g}", order=run.settings.rule.alpha),
                    *(number_cell(bound, 1, down, times=100) for bound in bounds),
                )
            )
    return Table(
        "Dataset-level lower bound",
        "Each certificate is wrong with probability at most alpha. With probability "
        f"{1 - risk:.1%} over the noise, the smoothed classifier's certified accuracy (%) on "
        "exactly these images is at least this, rounded down.",
        ("run", "images", "alpha", *_columns(radii)),
        tuple(rows),
    )


def attacks(runs: Sequence[Run]) -> Table:
    """What attacks on the certificates of each run found."""
    rows = []
    for run in runs:
        for attack in run.attacks:
            found = [r for r in attack.rows if r.attack_radius is not None]
            ratios = [r.attack_radius / r.radius for r in found if r.attack_radius is not None]
            settings = attack.settings
            rows.append(
                (
                    words_cell(run.name),
                    words_cell(
                        f"{settings.attack} ({NORMS[settings.norm]}), {settings.steps} steps, "
                        f"{settings.num_noise} copies" + (", clipped" if settings.clip else "")
                    ),
                    integer_cell(len(attack.rows)),
                    integer_cell(len(attack.within)),
                    integer_cell(attack.allowed),
                    number_cell(_median([r.radius for r in found]), 3, down),
                    number_cell(_median([r.attack_radius for r in found]), 3, up),
                    number_cell(_median(ratios), 2, up),
                    integer_cell(len(attack.rows) - len(found)),
                )
            )
    return Table(
        "Certified against attack",
        "Each certificate was attacked within its radius and beyond it; a flip is a change of the "
        "image to which PREDICT, with fresh noise, confidently answers another class. Sound "
        "certificates leave no more than `allowed` flips within, except with probability 0.1 %. "
        "Medians, of the images flipped, are of the certified radius, of the norm of the smallest "
        "flip found, which the true radius does not exceed, and of their ratio; attacks that find "
        "nothing prove nothing.",
        (
            "run",
            "attack",
            "images",
            "flipped within",
            "allowed",
            "certified",
            "smallest flip",
            "ratio",
            "never flipped",
        ),
        tuple(rows),
    )


def _columns(radii: Sequence[float]) -> list[str]:
    """A column's name for each radius, with decimals that tell them apart, two at least."""
    exact = (d for d in range(2, 9) if all(abs(round(r, d) - r) < 1e-9 for r in radii))
    decimals = next(exact, 9)
    return [f"r={radius:.{decimals}f}" for radius in radii]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _norms(runs: Sequence[Run]) -> str:
    """The norms of the runs' radii, in words."""
    return " or ".join(NORMS[norm] for norm in sorted({run.norm for run in runs}))
