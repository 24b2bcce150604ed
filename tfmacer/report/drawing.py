"""What the plots of a report share: style, colours, figures, steps and labels."""

import dataclasses
import functools
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
import matplotlib.axes
import matplotlib.figure
import matplotlib.font_manager
import numpy as np

from tfmacer.report.formats import broken
from tfmacer.report.summary import NORMS, Floats, Run

# Okabe and Ito's palette, told apart by most colour-blind readers (yellow is left out, being too
# light on white); then three of Tol's muted ones.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000",
           "#882255", "#999933", "#332288")  # fmt: skip
# For as many runs again, in the same colours.
DASHES = ("-", "--", ":", "-.")
GREY = "#555555"
# Of a run's name: longer ones are cut in their middle, and broken into lines.
_LONGEST_NAME = 100
_COLUMNS = 36
# Inches: the longest line of a name; the height of a line, of the space between two names, and of
# what a figure has besides its axes.
_WIDEST = 3.0
_LINE, _BETWEEN, _BESIDE = 0.167, 0.05, 0.8
# More dots than 2^16 a side matplotlib does not draw.
_MOST_DOTS = 60_000
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
            dpi = min(160.0, _MOST_DOTS / max(self.figure.get_size_inches()))
            self.figure.savefig(file, format=kind, dpi=dpi, metadata=metadata)
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
    return COLOURS[_place(runs, run) % len(COLOURS)]


def line(runs: Sequence[Run], run: Run) -> dict[str, Any]:
    """How the line of a run looks; dashes tell apart those that share a colour."""
    dashes = DASHES[_place(runs, run) // len(COLOURS) % len(DASHES)]
    return {"color": colour(runs, run), "ls": dashes}


def _place(runs: Sequence[Run], run: Run) -> int:
    originals = [each for each in runs if not each.converted] or list(runs)
    return next(i for i, each in enumerate(originals) if _is_of(run, each))


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


@functools.cache
def label(name: str) -> str:
    """A run's name as it is drawn: in lines of so many inches, in characters of the font."""
    if len(name) > _LONGEST_NAME:
        half = _LONGEST_NAME // 2
        name = f"{name[:half]}\N{HORIZONTAL ELLIPSIS}{name[-half:]}"
    font = _font()
    name = "".join(c if font.get_char_index(ord(c)) else ascii(c)[1:-1] for c in name)
    ways = (broken(name, columns) for columns in range(_COLUMNS, 0, -1))
    return next(text for text in ways if _width(text) <= _WIDEST)


@functools.cache
def _font() -> Any:
    default = matplotlib.font_manager.FontProperties(family=["DejaVu Sans"])
    return matplotlib.font_manager.get_font(matplotlib.font_manager.findfont(default))


def lines_of(text: str) -> int:
    """How many lines a text has."""
    return text.count("\n") + 1


def beside_names(runs: Iterable[Run]) -> tuple[Any, Any]:
    """A figure with room for the names of the runs beside its axes, and the axes."""
    labels = [label(run.name) for run in runs]
    widest = max(map(_width, labels))
    height = _BESIDE + sum(map(_height, labels))
    return new_panels(6.6 + widest, max(4.8, height))


def _width(text: str) -> float:
    """Inches of the longest line of a text."""
    font = _font()
    font.set_size(_STYLE["font.size"], 72)
    widths = []
    for part in text.split("\n"):
        font.set_text(part, 0.0)
        widths.append(float(font.get_width_height()[0]) / 64 / 72)
    return max(widths)


def _height(text: str) -> float:
    """Inches that a label takes among others."""
    return _LINE * lines_of(text) + _BETWEEN


def radius_label(norm: str) -> str:
    """What stands along an axis of certified radii."""
    return f"certified {NORMS[norm]} radius (pixels in [0, 1])"


def steps(axes: matplotlib.axes.Axes, run: Run, **line: Any) -> tuple[float, float]:
    """Draws certified accuracy against radius; returns the end of the line, for its label."""
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
    inches: float | None = None,
) -> None:
    """Writes each curve's name beside its end, in its colour, names kept apart.

    Where colours come again, a sample of each line is beside its name instead.
    """
    labels = [label(name) for name in names]
    if len(names) > len(COLOURS):
        axes.legend(
            axes.get_lines()[: len(names)],
            labels,
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            borderaxespad=0.0,
            labelspacing=0.3,
            frameon=False,
        )
        return
    low, high = axes.get_ylim()
    whole: Any = axes.get_figure(root=True)
    inches = inches or whole.get_figheight() - _BESIDE
    order = sorted(range(len(ends)), key=lambda i: ends[i][1])
    sizes = [_height(labels[i]) / inches * (high - low) for i in order]
    heights = _apart([ends[i][1] for i in order], sizes, low, high)
    for i, height in zip(order, heights, strict=True):
        axes.annotate(
            labels[i],
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


def _apart(values: Sequence[float], sizes: Sequence[float], low: float, high: float) -> list[float]:
    """Ascending middles moved as little as needed for their `sizes` to fit, from `low` upward."""
    placed: list[float] = []
    least = low
    for value, size in zip(values, sizes, strict=True):
        placed.append(max(value, least + size / 2))
        least = placed[-1] + size / 2
    most = max(high, low + sum(sizes))
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], most - sizes[i] / 2)
        most = placed[i] - sizes[i] / 2
    return placed
