"""Tables of a report: what stands in them."""

import csv
import dataclasses
import io
import math
from collections.abc import Sequence

import numpy as np

from tfmacer.report.comparison import Difference, Group
from tfmacer.report.summary import Estimate, Run

# More columns do not fit on a page.
_MOST_RADII = 17
_STEPS = tuple(part * 10.0**power for power in range(-2, 6) for part in (1, 2.5, 5))
_USUAL_STEP = 0.25
ABSENT = DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"

_DECIDES = (
    " A run with stop=decide answers for one radius alone: it ends there, so an ACR of it would "
    "mean nothing."
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One value of a table.

    Attributes:
      text: as it is read.
      interval: its interval, smaller and beside it; empty where there is none.
      order: what a sorted column goes by; None goes last.
    """

    text: str
    interval: str = ""
    order: float | str | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table before it has a format.

    Attributes:
      title: one line.
      note: how to read it.
      header: names of the columns.
      rows: as many cells each.
    """

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


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
            _words(run.name),
            _integer(len(run.idx)),
            _acr(run.acr),
            _number(run.standard_error if run.acr else None, 3),
            *(_percent(run.certified(radius)) for radius in radii),
            _percent(run.abstention),
            _percent(run.clean),
            _integer(run.draws),
        )
        for run in runs
    ]
    return Table(
        "Certified accuracy",
        "Certified accuracy (%) is the share of images whose certified class is the true one with "
        "a certified radius of at least r; ACR is the mean of radius x correct. In brackets, 95 % "
        "intervals for the choice of images: Clopper-Pearson for shares, Student for ACR."
        + (_DECIDES if any(run.decides is not None for run in runs) else ""),
        (
            "run",
            "images",
            "ACR",
            "s.e.",
            *(f"r={radius:.{_decimals(radii)}f}" for radius in radii),
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
            _words(pair.first.name),
            _words(pair.second.name),
            _integer(pair.images),
            _signed(pair.acr, 3, 1),
            *(_signed(pair.certified[radius], 1, 100) for radius in radii),
        )
        for pair in pairs
    ]
    return Table(
        "Paired differences",
        "A run minus one named before it, on the images that both certified: ACR, and certified "
        "accuracy in percentage points. A paired 95 % interval (Student for ACR, Agresti-Min for "
        "shares) without 0 is a difference that the choice of images does not explain.",
        (
            "run",
            "minus",
            "images",
            "ACR",
            *(f"r={radius:.{_decimals(radii)}f}" for radius in radii),
        ),
        tuple(rows),
    )


def groups(found: Sequence[Group], radii: Sequence[float]) -> Table:
    """Mean and spread over runs that differ only in their seed."""
    rows = []
    for group in found:
        acrs = [run.acr.value for run in group.runs if run.acr is not None]
        rows.append(
            (
                _words(group.name),
                _integer(len(group.runs)),
                _spread(acrs, 3, 1),
                *(
                    _spread([e.value for r in group.runs if (e := r.certified(radius))], 1, 100)
                    for radius in radii
                ),
            )
        )
    return Table(
        "Over seeds",
        "Mean ± standard deviation over the runs that differ only in their seed.",
        ("runs named", "seeds", "ACR", *(f"r={radius:.{_decimals(radii)}f}" for radius in radii)),
        tuple(rows),
    )


def dataset_bounds(runs: Sequence[Run], radii: Sequence[float], risk: float = 0.001) -> Table:
    """Certified accuracy on exactly these images, whatever the luck of the noise was."""
    rows = []
    for run in runs:
        if run.settings is not None and len(run.radii):
            bounds = [run.dataset_bound(radius, risk) for radius in radii]
            rows.append(
                (
                    _words(run.name),
                    _integer(len(run.radii)),
                    Cell(f"{run.settings.alpha:g}", order=run.settings.alpha),
                    *(_number(None if b is None else 100 * b, 1) for b in bounds),
                )
            )
    return Table(
        "Dataset-level lower bound",
        "Each certificate is wrong with probability at most alpha. With probability "
        f"{1 - risk:.1%} over the noise, the smoothed classifier's certified accuracy (%) on "
        "exactly these images is at least this.",
        (
            "run",
            "images",
            "alpha",
            *(f"r={radius:.{_decimals(radii)}f}" for radius in radii),
        ),
        tuple(rows),
    )


def results_csv(runs: Sequence[Run], radii: Sequence[float]) -> str:
    """All numbers of `results` for a program, shares as fractions; empty where there is none."""
    names = [f"certified_{radius:g}" for radius in radii]
    columns = ["acr", *names, "abstention", "clean_accuracy"]
    header = ["run", "log", "images", "acr_standard_error", "draws", "seconds"]
    header += [f"{name}{end}" for name in columns for end in ("", "_low", "_high")]
    lines = []
    for run in runs:
        estimates = [run.acr, *map(run.certified, radii), run.abstention, run.clean]
        error = run.standard_error if run.acr else None
        line = [run.name, str(run.log.path), str(len(run.idx)), _digits(error), _digits(run.draws)]
        lines.append([*line, _digits(run.seconds), *_ends(estimates)])
    return _csv(header, lines)


def differences_csv(pairs: Sequence[Difference], radii: Sequence[float]) -> str:
    """All numbers of `differences` for a program, shares as fractions."""
    columns = ["acr", *(f"certified_{radius:g}" for radius in radii)]
    header = ["first", "second", "images"]
    header += [f"{name}{end}" for name in columns for end in ("", "_low", "_high")]
    lines = [
        [
            pair.first.name,
            pair.second.name,
            str(pair.images),
            *_ends([pair.acr, *(pair.certified[radius] for radius in radii)]),
        ]
        for pair in pairs
    ]
    return _csv(header, lines)


def _csv(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    return text.getvalue()


def _ends(estimates: Sequence[Estimate | None]) -> list[str]:
    return [
        _digits(value)
        for e in estimates
        for value in ((None, None, None) if e is None else (e.value, e.low, e.high))
    ]


def _digits(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.5f}"


def _decimals(radii: Sequence[float]) -> int:
    """Decimals that tell the radii apart, two at least."""
    return next((d for d in range(2, 9) if all(abs(round(r, d) - r) < 1e-9 for r in radii)), 9)


def _words(text: str) -> Cell:
    return Cell(text, order=text)


def _integer(value: float | None) -> Cell:
    return Cell(ABSENT) if value is None else Cell(f"{value:,.0f}", order=value)


def _number(value: float | None, decimals: int) -> Cell:
    return Cell(ABSENT) if value is None else Cell(f"{value:.{decimals}f}", order=value)


def _acr(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell(ABSENT)
    interval = f"{estimate.low:.3f}{DASH}{estimate.high:.3f}"
    return Cell(f"{estimate.value:.3f}", interval, estimate.value)


def _percent(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell(ABSENT)
    interval = f"{100 * estimate.low:.1f}{DASH}{100 * estimate.high:.1f}"
    return Cell(f"{100 * estimate.value:.1f}", interval, estimate.value)


def _signed(estimate: Estimate | None, decimals: int, scale: float) -> Cell:
    if estimate is None:
        return Cell(ABSENT)
    value, low, high = (
        f"{scale * x:+.{decimals}f}".replace("-", MINUS)
        for x in (estimate.value, estimate.low, estimate.high)
    )
    return Cell(value, f"{low} to {high}", estimate.value)


def _spread(values: Sequence[float], decimals: int, scale: float) -> Cell:
    if len(values) < 2:
        return Cell(ABSENT)
    mean, deviation = scale * np.mean(values), scale * np.std(values, ddof=1)
    return Cell(f"{mean:.{decimals}f} ± {deviation:.{decimals}f}", order=float(mean))
