"""Plots of a report, made for reading; each is None where no run has what it shows."""

import dataclasses
import functools
import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import matplotlib.axes
import matplotlib.figure
import numpy as np
from scipy import special

from tfmacer.report.summary import Estimate, Floats, Run

# Okabe and Ito's palette, told apart by most colour-blind readers; yellow is left out, being too
# light on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# Beyond this many runs a band hides more than it tells.
_MOST_BANDS = 6
_MOST_CLASSES = 20
_GRID = 400
_GREY = "#555555"
_PROBABILITIES = (0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)
_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "svg.hashsalt": "tfmacer",
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """A run's certified accuracy at many radii.

    Attributes:
      run: whose.
      colour: as in the plots.
      radii: ascending.
      shares: certified accuracy at each of them, with its interval.
    """

    run: Run
    colour: str
    radii: Floats
    shares: tuple[Estimate, ...]


@dataclasses.dataclass(frozen=True)
class Plot:
    """A drawn figure.

    Attributes:
      name: of its files.
      title: one line, also for readers who cannot see it.
      note: how to read it.
      figure: the drawing.
    """

    name: str
    title: str
    note: str
    figure: matplotlib.figure.Figure

    def image(self, kind: str) -> bytes:
        """The figure as `png` or `svg`; the same bytes for the same logs."""
        file = io.BytesIO()
        with matplotlib.rc_context(_STYLE):
            metadata = {"Date": None} if kind == "svg" else {"Software": None}
            self.figure.savefig(file, format=kind, dpi=160, metadata=metadata)
        return file.getvalue()


def _styled(draw: Callable[..., Plot | None]) -> Callable[..., Plot | None]:
    @functools.wraps(draw)
    def wrapped(*arguments: object) -> Plot | None:
        with matplotlib.rc_context(_STYLE):
            return draw(*arguments)

    return wrapped


def curves(runs: Sequence[Run]) -> list[Curve]:
    """Certified accuracy by radius of every run that answers for all radii."""
    shown = [run for run in runs if run.decides is None and len(run.radii)]
    end = max((_end(run) for run in shown), default=0.0)
    grid = np.linspace(0.0, end, _GRID)
    return [
        Curve(run, colour(runs, run), grid, tuple(s for r in grid if (s := run.certified(r))))
        for run in shown
    ]


def colour(runs: Sequence[Run], run: Run) -> str:
    """The colour of a run in every plot of a report."""
    return COLOURS[list(runs).index(run) % len(COLOURS)]


@_styled
def radius_accuracy(runs: Sequence[Run]) -> Plot | None:
    """Certified accuracy against radius, with bands for the choice of images."""
    found = curves(runs)
    if not found:
        return None
    figure, axes = _figure(8.0, 4.8)
    ends = []
    for curve in found:
        steps = np.sort(curve.run.radii[curve.run.correct])
        shares = 100 * np.arange(len(steps), -1, -1) / len(curve.run.radii)
        last = float(steps[-1]) if len(steps) else 0.0
        # The share at r holds up to and with the radius of the next image.
        axes.step([0.0, *steps, last], [shares[0], *shares], where="pre", color=curve.colour)
        if len(found) <= _MOST_BANDS:
            low = [100 * share.low for share in curve.shares]
            high = [100 * share.high for share in curve.shares]
            axes.fill_between(curve.radii, low, high, color=curve.colour, alpha=0.13, lw=0)
        ends.append((last, 100 * float(np.mean(curve.run.correct & (curve.run.radii >= last)))))
    axes.set_xlim(0, 1.03 * float(found[0].radii[-1]) or 1.0)
    axes.set_ylim(0, 100)
    axes.set_xlabel(_radius_label(runs))
    axes.set_ylabel("certified accuracy (%)")
    _mark_largest(axes, [curve.run for curve in found])
    _label_ends(axes, ends, [curve.run.name for curve in found], [c.colour for c in found])
    note = "Bands: 95 % Clopper-Pearson intervals at each radius, for the choice of images."
    return Plot("radius_accuracy", "Certified accuracy against radius", note, figure)


@_styled
def p_true(runs: Sequence[Run]) -> Plot | None:
    """Share of images whose true class wins at least a share p of the noisy draws.

    From it follow the radii at any number of draws, and it does not reward easy images as the ACR
    does (Sun et al., ICML 2025, arXiv 2410.06895).
    """
    shown = [run for run in runs if len(run.p_true)]
    if not shown:
        return None
    figure, axes = _figure(8.0, 4.8)
    ends = []
    for run in shown:
        # Half a vote from either end: on this axis 0 and 1 are infinitely far away.
        half = 0.5 / (run.draws or 1.0)
        places = np.sort(special.ndtri(np.clip(run.p_true, half, 1 - half)))
        shares = 100 * np.arange(len(places), 0, -1) / len(places)
        axes.step(places, shares, where="pre", color=colour(runs, run))
        ends.append((float(places[-1]), 100 * float(np.mean(places >= places[-1]))))
    low, high = axes.get_xlim()
    ticks = [p for p in _PROBABILITIES if low <= special.ndtri(p) <= high]
    axes.set_xticks(special.ndtri(ticks), [f"{p:g}" for p in ticks])
    axes.axvline(0.0, color=_GREY, lw=0.8, ls=":")
    axes.set_ylim(0, 100)
    axes.set_xlabel("p: share of noisy draws that vote for the true class (normal quantile scale)")
    axes.set_ylabel("images with at least p (%)")
    _label_ends(axes, ends, [run.name for run in shown], [colour(runs, run) for run in shown])
    note = (
        "What any number of draws would certify follows from this curve: one-sided certificates "
        "need p above 0.5 (dotted), and a radius r needs about p = Phi(r / sigma). Unlike the ACR, "
        "it does not reward easy images beyond measure."
    )
    title = "How the probability of the true class is distributed"
    return Plot("p_true", title, note, figure)


@_styled
def vote_gap(runs: Sequence[Run]) -> Plot | None:
    """Distribution over the images of the log-ratio of votes, true class against best other."""
    shown = [run for run in runs if len(run.vote_gap)]
    if not shown:
        return None
    figure, axes = _figure(8.0, 4.8)
    bins = np.linspace(
        min(float(run.vote_gap.min()) for run in shown) - 0.5,
        max(float(run.vote_gap.max()) for run in shown) + 0.5,
        40,
    )
    for run in shown:
        weights = np.full(len(run.vote_gap), 100 / len(run.vote_gap))
        style = {"color": colour(runs, run), "label": run.name}
        axes.hist(run.vote_gap, bins, weights=weights, histtype="step", lw=1.6, **style)
    axes.axvspan(axes.get_xlim()[0], 0.0, color="#000000", alpha=0.05, lw=0)
    axes.set_xlim(bins[0], bins[-1])
    axes.set_xlabel("log of votes for the true class over votes for the best other class")
    axes.set_ylabel("images (%)")
    axes.legend(frameon=False, loc="upper left")
    note = "Left of 0 (shaded), another class wins. Half a vote is added to both counts."
    return Plot("vote_gap", "Gap between the true class and the best other", note, figure)


@_styled
def radius_by_class(runs: Sequence[Run]) -> Plot | None:
    """Histogram of certified radii for each class; at 0, what is not certified."""
    shown = [run for run in runs if run.decides is None and len(run.radii)]
    classes = sorted({int(label) for run in shown for label in run.labels})
    if not shown or not 2 <= len(classes) <= _MOST_CLASSES:
        return None
    columns = 5
    rows = -(-len(classes) // columns)
    figure, panels = _figure(10.0, 0.6 + 1.7 * rows, rows, columns)
    bins = np.linspace(0, max(float(run.radii.max()) for run in shown) or 1.0, 13)
    for label, axes in zip(classes, np.ravel(panels), strict=False):
        for run in shown:
            radii = run.radii[run.labels == label]
            if len(radii):
                weights = np.full(len(radii), 100 / len(radii))
                style = {"color": colour(runs, run), "label": run.name}
                axes.hist(radii, bins, weights=weights, histtype="step", lw=1.4, **style)
        axes.set_title(f"class {label}", fontsize=9)
    for axes in np.ravel(panels)[len(classes) :]:
        axes.set_axis_off()
    figure.supxlabel(_radius_label(runs) + "", fontsize=10)
    figure.supylabel("images of the class (%)", fontsize=10)
    handles, names = np.ravel(panels)[0].get_legend_handles_labels()
    if len(shown) > 1:
        figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False)
    note = "At 0 stand the images that are wrong or abstained on."
    return Plot("radius_by_class", "Certified radii by class", note, figure)


def draw_all(runs: Sequence[Run]) -> list[Plot]:
    """Every plot that the runs have something for."""
    drawn = (draw(runs) for draw in (radius_accuracy, p_true, vote_gap, radius_by_class))
    return [plot for plot in drawn if plot is not None]


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    # Not through pyplot, which keeps every figure and may open a window.
    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, sharex=True, sharey=True)


def _end(run: Run) -> float:
    return max(float(run.radii.max()), run.largest_radius or 0.0)


def _radius_label(runs: Sequence[Run]) -> str:
    norms = {run.settings.law.norm for run in runs if run.settings is not None}
    norm = f"{norms.pop()} " if len(norms) == 1 else ""
    return f"certified {norm}radius (pixels in [0, 1])"


def _mark_largest(axes: matplotlib.axes.Axes, runs: Sequence[Run]) -> None:
    """Marks the radius that a run certifies where all of its draws agree."""
    marks: dict[float, int] = {}
    for run in runs:
        if run.largest_radius is not None and run.settings is not None:
            marks[round(run.largest_radius, 4)] = run.settings.n
    for radius, n in marks.items():
        axes.axvline(radius, color=_GREY, lw=0.8, ls="--")
        axes.annotate(
            f"largest certifiable, {n:,} draws",
            (radius, 0.98),
            xycoords=("data", "axes fraction"),
            xytext=(-3, 0),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="top",
            fontsize=8,
            color=_GREY,
        )


def _label_ends(
    axes: matplotlib.axes.Axes,
    ends: Sequence[tuple[float, float]],
    names: Sequence[str],
    colours: Sequence[str],
) -> None:
    """Writes each curve's name beside its end, in its colour, names kept apart."""
    low, high = axes.get_ylim()
    gap = 0.055 * (high - low)
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
            arrowprops={"arrowstyle": "-", "color": colours[i], "lw": 0.6, "shrinkA": 1},
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
