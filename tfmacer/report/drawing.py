"""What the plots of a report share: style, colours, figures, steps and labels."""

import dataclasses
import functools
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
import matplotlib.axes
import matplotlib.figure
import numpy as np

from tfmacer.report.summary import NORMS, Floats, Run

# Okabe and Ito's palette, told apart by most colour-blind readers (yellow is left out, being too
# light on white); then three of Tol's muted ones.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000",
           "#882255", "#999933", "#332288")  # fmt: skip
GREY = "#555555"
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "svg.hashsalt": "tfmacer",
    "text.parse_math": False,  # a name may hold dollars
}


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """A run's certified accuracy at many radii.

    Attributes:
      run: whose.
      colour: as in the plots.
      radii: ascending, the same for all curves of a report.
      shares: certified accuracy at each of them.
      low: lower ends of its intervals.
      high: upper ends.
    """

    run: Run
    colour: str
    radii: Floats
    shares: Floats
    low: Floats
    high: Floats


@dataclasses.dataclass(frozen=True)
class Plot:
    """A drawn figure.

    Attributes:
      name: of its files.
      title: one line, also for readers who cannot see it.
      note: how to read it.
      figure: the drawing.
      curves: what its lines say, for those that a page shows under the pointer.
    """

    name: str
    title: str
    note: str
    figure: matplotlib.figure.Figure
    curves: tuple[Curve, ...] = ()

    def image(self, kind: str) -> bytes:
        """The figure as `png` or `svg`; the same bytes for the same logs."""
        file = io.BytesIO()
        with matplotlib.rc_context(_STYLE):
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            self.figure.savefig(file, format=kind, dpi=160, metadata=metadata)
        return file.getvalue()


def styled(draw: Callable[..., Plot | None]) -> Callable[..., Plot | None]:
    """Draws in the style of the report, whatever the process' own is."""

    @functools.wraps(draw)
    def wrapped(*arguments: object) -> Plot | None:
        with matplotlib.rc_context(_STYLE):
            return draw(*arguments)

    return wrapped


def colour(runs: Sequence[Run], run: Run) -> str:
    """The colour of a run in every plot of a report; a converted run has that of its log."""
    originals = [each for each in runs if not each.converted] or list(runs)
    place = next(i for i, each in enumerate(originals) if _is_of(run, each))
    return COLOURS[place % len(COLOURS)]


def _is_of(run: Run, original: Run) -> bool:
    return run is original or (run.converted and run.log.path == original.log.path)


def new_panels(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """A figure of so many inches, and its panels, which share their axes."""
    figure = new_figure(width, height)
    return figure, figure.subplots(rows, columns, sharex=True, sharey=True)


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches."""
    # Not through pyplot, which keeps every figure and may open a window.
    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def width_for(runs: Iterable[Run]) -> float:
    """Inches of a figure with the names of the runs beside its axes."""
    return min(6.4 + 0.085 * max(len(run.name) for run in runs), 12.0)


def radius_label(norm: str) -> str:
    """What stands along an axis of certified radii."""
    return f"certified {NORMS[norm]} radius (pixels in [0, 1])"


def steps(axes: matplotlib.axes.Axes, run: Run, **line: Any) -> tuple[float, float]:
    """Draws certified accuracy against radius.

    Args:
      axes: where.
      run: whose; it has images and answers for all radii.
      **line: how the line looks.

    Returns:
      The end of the line, for its label: the largest radius certified and the accuracy (%) there.
    """
    radii = np.sort(run.radii[run.correct])
    shares = 100 * np.arange(len(radii), -1, -1) / len(run.radii)
    last = float(radii[-1]) if len(radii) else 0.0
    # The share at r holds up to and with the radius of the next image.
    axes.step([0.0, *radii, last], [shares[0], *shares], where="pre", **line)
    return last, 100 * float(np.mean(run.correct & (run.radii >= last)))


def label_ends(
    axes: matplotlib.axes.Axes,
    ends: Sequence[tuple[float, float]],
    names: Sequence[str],
    colours: Sequence[str],
    gap: float = 0.055,
) -> None:
    """Writes each curve's name beside its end, in its colour, names kept apart.

    Args:
      axes: whose limits are set.
      ends: of the curves.
      names: of each.
      colours: of each.
      gap: least distance of two names, as a share of the height of the axes.
    """
    low, high = axes.get_ylim()
    gap *= high - low
    order = sorted(range(len(ends)), key=lambda i: ends[i][1])
    heights = _apart([ends[i][1] for i in order], gap, low + gap / 2, high - gap / 2)
    for i, height in zip(order, heights, strict=True):
        axes.annotate(
            names[i],
            ends[i],
            xytext=(1.02, (height - low) / (high - low)),
            textcoords="axes fraction",
            color=colours[i],
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": colours[i],
                "lw": 0.6,
                "shrinkA": 1,
                "relpos": (0.0, 0.5),
            },
        )


def _apart(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Ascending values moved as little as needed to lie `gap` apart, within the ends."""
    placed: list[float] = []
    for value in values:
        placed.append(max(value, low, placed[-1] + gap if placed else low))
    for i in reversed(range(len(placed))):
        limit = high if i == len(placed) - 1 else placed[i + 1] - gap
        placed[i] = min(placed[i], limit)
    return placed
