"""Each row of a study against its default, and whether that goes the way of the paper."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from benchmarks.studies.points import Point, Study
from tfmacer.report.cells import ABSENT, MINUS, Cell, Table, acr_cell, signed_cell, words_cell
from tfmacer.report.comparison import paired_differences
from tfmacer.report.published import PublishedRow
from tfmacer.report.summary import Estimate, Run

SAME = "same"
OPPOSITE = "not the same"
UNRESOLVED = "not resolved"
READING = (
    "*Minus* is the row minus the default on the same images, with its paired 95 % interval for "
    "the choice of images; certified accuracy is in percentage points. *Paper's* is the same "
    "difference in the paper's table at the same sigma, on its own data and network, and whether "
    f"ours has its direction: `{SAME}`, `{OPPOSITE}`, or `{UNRESOLVED}` where our interval holds 0."
)
# Closer than this the paper's own rows, printed to three digits, are equal.
_EQUAL = 5e-4


@dataclasses.dataclass(frozen=True)
class Measure:
    """One figure of a row minus that of the default.

    Attributes:
      ours: measured, paired by image; None where a log is missing.
      theirs: the paper's; None where it prints none.
      below: whether the paper says in words that it is negative.
    """

    ours: Estimate | None
    theirs: float | None
    below: bool = False

    @property
    def direction(self) -> str:
        """Whether the signs agree; unresolved where our interval holds 0."""
        theirs = -1.0 if self.below else self.theirs
        if self.ours is None or theirs is None or abs(theirs) < _EQUAL:
            return ABSENT
        if self.ours.low <= 0 <= self.ours.high:
            return UNRESOLVED
        return SAME if (self.ours.value > 0) == (theirs > 0) else OPPOSITE


def measures(study: Study, point: Point, runs: Mapping[str, Run]) -> tuple[Measure, ...]:
    """ACR, and certified accuracy at 0 and at the study's large radius, minus the default's.

    Args:
      study: that the point is of.
      point: of its points; the default differs by 0 from itself.
      runs: by the names of their rows, as many as there are.
    """
    radii = (0.0, study.large)
    difference = None
    if point.row in runs and study.default.row in runs:
        pair = [runs[study.default.row], runs[point.row]]
        difference = next(iter(paired_differences(pair, radii)), None)
    mine, usual = study.published(point), study.published(study.default)
    figures: list[tuple[Estimate | None, Callable[[PublishedRow], float | None]]] = [
        (difference.acr if difference else None, lambda row: row.acr)
    ]
    for radius in radii:
        ours = difference.certified[radius] if difference else None
        figures.append((ours, lambda row, radius=radius: _share(row, radius)))  # type: ignore[misc]
    return tuple(
        Measure(ours, _minus(mine, usual, figure), study.apart) for ours, figure in figures
    )


def _share(row: PublishedRow, radius: float) -> float | None:
    percent = row.certified.get(radius)
    return None if percent is None else percent / 100


def _minus(
    mine: PublishedRow | None,
    usual: PublishedRow | None,
    figure: Callable[[PublishedRow], float | None],
) -> float | None:
    if mine is None or usual is None:
        return None
    first, second = figure(mine), figure(usual)
    return None if first is None or second is None else first - second


def table(study: Study, runs: Mapping[str, Run]) -> Table:
    """The study's rows, each minus the default, ours and the paper's, and whether they agree."""
    rows, directions = [], []
    for point in study.points:
        run = runs.get(point.row)
        name = words_cell(point.label + (" (default)" if point == study.default else ""))
        cells = [name, acr_cell(run.acr if run else None)]
        if point == study.default:
            cells += [Cell("")] * 6
        else:
            found = measures(study, point, runs)
            cells += [cell for measure in found for cell in _cells(measure, measure is found[0])]
            directions += [measure.direction for measure in found]
        rows.append(tuple(cells))
    heads = ("ACR", "certified at 0", f"certified at {study.large:g}")
    columns = [column for head in heads for column in (f"{head}, minus", "paper's")]
    note = _note(study, directions)
    return Table(study.title, note, (study.axis, "ACR", *columns), tuple(rows))


def _cells(measure: Measure, is_acr: bool) -> tuple[Cell, Cell]:
    decimals, scale = (3, 1) if is_acr else (1, 100)
    theirs = "below" if measure.below else ABSENT
    if measure.theirs is not None:
        theirs = f"{scale * measure.theirs:+.{decimals}f}".replace("-", MINUS)
    judged = measure.direction if measure.direction != ABSENT else ""
    return signed_cell(measure.ours, decimals, scale), Cell(theirs, judged)


def _note(study: Study, directions: Sequence[str]) -> str:
    if not study.paper:
        return study.claim
    counts = ", ".join(f"{directions.count(word)} {word}" for word in (SAME, OPPOSITE, UNRESOLVED))
    return f"{study.paper} says: {study.claim} Directions here: {counts}."
