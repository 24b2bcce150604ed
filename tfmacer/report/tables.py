"""Tables of a report: what stands in them."""

import csv
import dataclasses
import io
import math
from collections.abc import Iterator, Sequence

import numpy as np

from tfmacer.common.decimals import Rounding, down, nearest, up
from tfmacer.common.text import csv_cell
from tfmacer.report.comparison import Difference, Group
from tfmacer.report.summary import NORMS, Estimate, Run

# More columns do not fit on a page.
_MOST_RADII = 17
_STEPS = tuple(part * 10.0**power for power in range(-2, 101) for part in (1, 2.5, 5))
_USUAL_STEP = 0.25
# Probability, over the noise, that a dataset-level bound is wrong.
RISK = 0.001
ABSENT = DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"

_DECIDES = (
    " A run with stop=decide answers for one radius alone: it ends there, so an ACR of it would "
    "mean nothing."
)
_CONVERTED = (
    " Runs marked l2 / sqrt(d) certify l2 balls; their radii here are those of the l-infinity "
    "balls inside."
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
            words_cell(run.name),
            _integer(len(run.idx)),
            acr_cell(run.acr),
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
            words_cell(pair.first.name),
            words_cell(pair.second.name),
            _integer(pair.images),
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
                words_cell(group.name),
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


def dataset_bounds(runs: Sequence[Run], radii: Sequence[float], risk: float = RISK) -> Table:
    """Certified accuracy on exactly these images, whatever the luck of the noise was."""
    rows = []
    for run in runs:
        if run.settings is not None and len(run.radii):
            bounds = [run.dataset_bound(radius, risk) for radius in radii]
            rows.append(
                (
                    words_cell(run.name),
                    _integer(len(run.radii)),
                    Cell(f"{run.settings.rule.alpha:g}", order=run.settings.rule.alpha),
                    *(_number(bound, 1, down, times=100) for bound in bounds),
                )
            )
    return Table(
        "Dataset-level lower bound",
        "Each certificate is wrong with probability at most alpha. With probability "
        f"{1 - risk:.1%} over the noise, the smoothed classifier's certified accuracy (%) on "
        "exactly these images is at least this, rounded down.",
        (
            "run",
            "images",
            "alpha",
            *(f"r={radius:.{_decimals(radii)}f}" for radius in radii),
        ),
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
                    _integer(len(attack.rows)),
                    _integer(len(attack.within)),
                    _integer(attack.allowed),
                    _number(_median([r.radius for r in found]), 3, down),
                    _number(_median([r.attack_radius for r in found]), 3, up),
                    _number(_median(ratios), 2, up),
                    _integer(len(attack.rows) - len(found)),
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


def results_csv(runs: Sequence[Run], radii: Sequence[float]) -> str:
    """All numbers of `results` and `dataset_bounds` for a program; empty where there is none.

    Shares are fractions.
    """
    names = [f"certified_{radius:g}" for radius in radii]
    columns = ["acr", *names, "abstention", "clean_accuracy"]
    header = ["run", "log", "norm", "images", "acr_standard_error", "draws", "seconds"]
    header += [f"{name}{end}" for name in columns for end in ("", "_low", "_high")]
    header += [f"dataset_bound_{radius:g}" for radius in radii]
    lines = []
    for run in runs:
        estimates = [run.acr, *map(run.certified, radii), run.abstention, run.clean]
        error = run.standard_error if run.acr else None
        line = [run.name, str(run.log.path), run.norm, str(len(run.idx)), _digits(error)]
        line += [_digits(run.draws), _digits(run.seconds), *_ends(estimates)]
        bounds = [run.dataset_bound(r, RISK) if len(run.radii) else None for r in radii]
        lines.append([*line, *(_digits(bound, down) for bound in bounds)])
    return _csv(header, lines)


def groups_csv(found: Sequence[Group], radii: Sequence[float]) -> str:
    """All numbers of `groups` for a program, shares as fractions."""
    columns = ["acr", *(f"certified_{radius:g}" for radius in radii)]
    header = ["runs", "norm", "seeds"]
    header += [f"{name}_{end}" for name in columns for end in ("mean", "deviation")]
    lines = []
    for group in found:
        line = [group.name, group.runs[0].norm, str(len(group.runs))]
        samples = [[run.acr.value for run in group.runs if run.acr is not None]]
        samples += [[e.value for r in group.runs if (e := r.certified(x))] for x in radii]
        for values in samples:
            many = len(values) > 1
            line.append(_digits(float(np.mean(values)) if many else None))
            line.append(_digits(float(np.std(values, ddof=1)) if many else None))
        lines.append(line)
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
            *_ends([pair.acr, *(pair.certified.get(radius) for radius in radii)]),
        ]
        for pair in pairs
    ]
    return _csv(header, lines)


def _csv(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    cells = ([csv_cell(cell) for cell in line] for line in [header, *lines])
    csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue()


def _ends(estimates: Sequence[Estimate | None]) -> list[str]:
    cells = []
    for e in estimates:
        value, low, high = (None, None, None) if e is None else (e.value, e.low, e.high)
        cells += [_digits(value), _digits(low, down), _digits(high, up)]
    return cells


def _digits(value: float | None, rounded: Rounding = nearest) -> str:
    return "" if value is None or math.isnan(value) else rounded(value, 5)


def _decimals(radii: Sequence[float]) -> int:
    """Decimals that tell the radii apart, two at least."""
    return next((d for d in range(2, 9) if all(abs(round(r, d) - r) < 1e-9 for r in radii)), 9)


def words_cell(text: str) -> Cell:
    """A text, which sorts as such."""
    return Cell(text, order=text)


def _integer(value: float | None) -> Cell:
    return Cell(ABSENT) if value is None else Cell(f"{value:,.0f}", order=value)


def _number(
    value: float | None, decimals: int, rounded: Rounding = nearest, *, times: int = 1
) -> Cell:
    if value is None:
        return Cell(ABSENT)
    return Cell(rounded(value, decimals, times=times), order=value)


def _ends_shown(
    estimate: Estimate, decimals: int, *, times: int = 1, signed: bool = False
) -> Iterator[str]:
    """An estimate to the nearest, and the ends of its interval outward."""
    values = (estimate.value, estimate.low, estimate.high)
    for rounded, value in zip((nearest, down, up), values, strict=True):
        yield rounded(value, decimals, times=times, signed=signed)


def acr_cell(estimate: Estimate | None) -> Cell:
    """An average certified radius and its interval."""
    if estimate is None:
        return Cell(ABSENT)
    return _estimate(estimate, 3)


def _percent(estimate: Estimate | None) -> Cell:
    return Cell(ABSENT) if estimate is None else _estimate(estimate, 1, times=100)


def _estimate(estimate: Estimate, decimals: int, *, times: int = 1) -> Cell:
    value, low, high = _ends_shown(estimate, decimals, times=times)
    return Cell(value, f"{low}{DASH}{high}", estimate.value)


def signed_cell(estimate: Estimate | None, decimals: int, times: int) -> Cell:
    """A difference and its interval, all of them so many times."""
    if estimate is None:
        return Cell(ABSENT)
    value, low, high = (
        text.replace("-", MINUS)
        for text in _ends_shown(estimate, decimals, times=times, signed=True)
    )
    return Cell(value, f"{low} to {high}", estimate.value)


def _spread(values: Sequence[float], decimals: int, scale: int) -> Cell:
    if len(values) < 2:
        return Cell(ABSENT)
    mean, deviation = scale * np.mean(values), scale * np.std(values, ddof=1)
    return Cell(f"{mean:.{decimals}f} ± {deviation:.{decimals}f}", order=float(mean))


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _norms(runs: Sequence[Run]) -> str:
    """The norms of the runs' radii, in words."""
    return " or ".join(NORMS[norm] for norm in sorted({run.norm for run in runs}))
