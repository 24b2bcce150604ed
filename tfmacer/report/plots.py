"""Plots of a report, made for reading; each is None where no run has what it shows."""

from collections.abc import Sequence

import matplotlib.axes
import matplotlib.colors
import numpy as np
from scipy import special

from tfmacer.report.attack_plot import attack_radius
from tfmacer.report.drawing import (
    GREY,
    Curve,
    Plot,
    beside_names,
    colour,
    label,
    label_ends,
    line,
    lines_of,
    new_panels,
    radius_label,
    steps,
    styled,
)
from tfmacer.report.summary import NORMS, Floats, Run, share_interval

# Beyond this many runs a band hides more than it tells.
_MOST_BANDS = 6
_MOST_CLASSES = 20
_GRID = 400
_PROBABILITIES = (0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)


def curves(runs: Sequence[Run], norm: str = "l2") -> list[Curve]:
    """Certified accuracy by radius of every run in this norm that answers for all radii."""
    shown = _with_radii(runs, norm)
    grid = np.linspace(0.0, max((_end(run) for run in shown), default=0.0), _GRID)
    found = []
    for run in shown:
        certified = np.sort(run.radii[run.correct])
        counts = len(certified) - np.searchsorted(certified, grid, side="left")
        low, high = share_interval(counts, len(run.radii))
        shares = counts / len(run.radii)
        found.append(Curve(run, colour(runs, run), grid, shares, low, high))
    return found


def _with_radii(runs: Sequence[Run], norm: str) -> list[Run]:
    return [run for run in runs if run.norm == norm and run.decides is None and len(run.radii)]


@styled
def radius_accuracy(runs: Sequence[Run], norm: str = "l2") -> Plot | None:
    """Certified accuracy against radius, with bands for the choice of images; of one norm."""
    found = curves(runs, norm)
    if not found:
        return None
    figure, axes = beside_names(curve.run for curve in found)
    ends = []
    for curve in found:
        ends.append(steps(axes, curve.run, **line(runs, curve.run)))
        if len(found) <= _MOST_BANDS:
            band = {"color": curve.colour, "alpha": 0.13, "lw": 0}
            axes.fill_between(curve.radii, 100 * curve.low, 100 * curve.high, **band)
    axes.set_xlim(0, 1.03 * float(found[0].radii[-1]) or 1.0)
    axes.set_ylim(0, 100)
    axes.set_xlabel(radius_label(norm))
    axes.set_ylabel("certified accuracy (%)")
    _mark_largest(axes, [curve.run for curve in found])
    label_ends(axes, ends, [curve.run.name for curve in found], [c.colour for c in found])
    note = f"Radii in the {NORMS[norm]} norm."
    if len(found) <= _MOST_BANDS:
        note += " Bands: 95 % Clopper-Pearson intervals at each radius, for the choice of images."
    title = f"Certified accuracy against {NORMS[norm]} radius"
    return Plot(_named("radius_accuracy", norm), title, note, figure, tuple(found))


@styled
def p_true(runs: Sequence[Run]) -> Plot | None:
    """Share of images whose true class wins at least a share p of the noisy draws.

    From it follow the radii at any number of draws, and it does not reward easy images as the ACR
    does (Sun et al., ICML 2025, arXiv 2410.06895).
    """
    shown = [run for run in runs if len(run.p_true) and not run.converted]
    if not shown:
        return None
    figure, axes = beside_names(shown)
    ends = []
    for run in shown:
        # Half a vote from either end: on this axis 0 and 1 are infinitely far away.
        half = 0.5 / (run.draws or 1.0)
        places = np.sort(special.ndtri(np.clip(run.p_true, half, 1 - half)))
        shares = 100 * np.arange(len(places), 0, -1) / len(places)
        axes.step(places, shares, where="pre", **line(runs, run))
        ends.append((float(places[-1]), 100 * float(np.mean(places >= places[-1]))))
    low, high = axes.get_xlim()
    ticks = _spaced([p for p in _PROBABILITIES if low <= special.ndtri(p) <= high], high - low)
    axes.set_xticks(special.ndtri(ticks), [f"{p:g}" for p in ticks])
    axes.axvline(0.0, color=GREY, lw=0.8, ls=":")
    axes.set_ylim(0, 100)
    axes.set_xlabel("p: share of noisy draws that vote for the true class (normal quantile scale)")
    axes.set_ylabel("images with at least p (%)")
    label_ends(axes, ends, [run.name for run in shown], [colour(runs, run) for run in shown])
    note = (
        "What any number of draws would certify follows from this curve: one-sided certificates "
        "need p above 0.5 (dotted), and a radius r needs about p = Phi(r / sigma). Unlike the ACR, "
        "it does not reward easy images beyond measure."
    )
    title = "How the probability of the true class is distributed"
    return Plot("p_true", title, note, figure)


def _spaced(probabilities: Sequence[float], width: float) -> list[float]:
    """Those of the probabilities whose labels do not touch, on an axis of so many quantiles."""
    kept: list[float] = []
    for p in sorted(probabilities, key=lambda p: abs(special.ndtri(p))):
        if all(abs(special.ndtri(p) - special.ndtri(other)) > 0.09 * width for other in kept):
            kept.append(p)
    return sorted(kept)


@styled
def log_gap(runs: Sequence[Run]) -> Plot | None:
    """Distribution over the images of the log-ratio of probabilities, true class to best other."""
    shown = [run for run in runs if len(run.log_gap) and not run.converted]
    if not shown:
        return None
    titles = [
        f"{label(run.name)}, by {run.scores}: median {np.median(run.log_gap):.1f}" for run in shown
    ]
    height = sum(1.1 + 0.15 * lines_of(title) for title in titles)
    figure, panels = new_panels(7.5, 0.8 + height, len(shown))
    ends = [f(run.log_gap) for run in shown for f in (np.min, np.max)]
    bins = np.linspace(min(*ends, 0.0) - 0.5, max(ends) + 0.5, 50)
    for run, title, axes in zip(shown, titles, np.ravel(panels), strict=True):
        weights = np.full(len(run.log_gap), 100 / len(run.log_gap))
        axes.axvspan(bins[0], 0.0, color="#000000", alpha=0.06, lw=0)
        axes.hist(run.log_gap, bins, weights=weights, color=colour(runs, run), alpha=0.85)
        axes.axvline(float(np.median(run.log_gap)), color="#000000", lw=1.0)
        axes.set_title(title, color=colour(runs, run), fontsize=10)
    axes.set_xlim(bins[0], bins[-1])
    axes.set_xlabel("log probability of the true class minus that of the best other class")
    figure.supylabel("images (%)", fontsize=10)
    note = (
        "Each image counts once: the probabilities are those of the smoothed classifier, estimated "
        "by votes (half a vote added to both) or, in soft runs, by the mean softmax. Left of 0 "
        "(shaded) another class wins; where all draws agreed, the gap shown is the largest that so "
        "many can show. This is not "
        "Figure 1 of Jeong and Shin (NeurIPS 2020), which shows, for one image, how the gap of the "
        "network's own log-softmax varies over the noise: logs keep votes, not logits."
    )
    return Plot("log_probability_gap", "Log-probability gap, image by image", note, figure)


@styled
def radius_by_class(runs: Sequence[Run], norm: str = "l2") -> Plot | None:
    """Histogram of certified radii for each class, as a row of shades; a panel for each run."""
    shown = [run for run in _with_radii(runs, norm) if not run.converted]
    classes = sorted({int(label) for run in shown for label in run.labels})
    if not shown or not 2 <= len(classes) <= _MOST_CLASSES:
        return None
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    lines = max(lines_of(label(run.name)) for run in shown)
    height = 1.05 + 0.15 * lines + 0.22 * len(classes)
    figure, panels = new_panels(1.2 + 3.1 * columns, rows * height, rows, columns)
    bins = np.linspace(0.0, max(float(run.radii.max()) for run in shown) or 1.0, 17)
    edges = np.concatenate([[-1.5 * bins[1]], bins])
    for run, axes in zip(shown, np.ravel(panels), strict=False):
        shares = np.stack([_shares(run, label, bins) for label in classes])
        white_to_colour = matplotlib.colors.LinearSegmentedColormap.from_list(
            run.name, ["#ffffff", colour(runs, run)]
        )
        axes.pcolormesh(
            edges,
            np.arange(len(classes) + 1) - 0.5,
            100 * shares,
            cmap=white_to_colour,
            norm=matplotlib.colors.PowerNorm(0.5, 0, 50, clip=True),
        )
        axes.axvline(0.0, color="#000000", lw=0.8)
        axes.set_title(label(run.name), color=colour(runs, run), fontsize=10)
        axes.set_yticks(range(len(classes)), [str(label) for label in classes])
        axes.grid(visible=False)
    np.ravel(panels)[0].invert_yaxis()  # of all panels, which share it
    for axes in np.ravel(panels)[len(shown) :]:
        axes.set_axis_off()
    figure.supxlabel(radius_label(norm), fontsize=10)
    figure.supylabel("class", fontsize=10)
    note = (
        "Each row is the histogram of one class: the darker, the more of its images have such a "
        "radius (full colour: half of them or more; half the colour: an eighth). Left of the line: "
        "wrong or abstained."
    )
    title = f"Certified {NORMS[norm]} radii by class"
    return Plot(_named("radius_by_class", norm), title, note, figure)


def _shares(run: Run, label: int, bins: Floats) -> Floats:
    """Share of a class that is not certified, then of each bin of radii; nan without images."""
    mine = run.labels == label
    if not mine.any():
        return np.full(len(bins), np.nan)
    certified = run.radii[mine & run.correct]
    counts = np.array([mine.sum() - len(certified), *np.histogram(certified, bins)[0]])
    shares: Floats = counts / mine.sum()
    return shares


def draw_all(runs: Sequence[Run]) -> list[Plot]:
    """Every plot that the runs have something for; radii of different norms stand apart."""
    drawn = [
        *(radius_accuracy(runs, norm) for norm in NORMS),
        attack_radius(runs),
        p_true(runs),
        log_gap(runs),
        *(radius_by_class(runs, norm) for norm in NORMS),
    ]
    return [plot for plot in drawn if plot is not None]


def _end(run: Run) -> float:
    return max(float(run.radii.max()), run.largest_radius or 0.0)


def _named(name: str, norm: str) -> str:
    """A plot's name, which tells the norm unless it is the usual one."""
    return name if norm == "l2" else f"{name}_{norm}"


def _mark_largest(axes: matplotlib.axes.Axes, runs: Sequence[Run]) -> None:
    """Marks the radius that a run certifies where all of its draws agree."""
    marks: dict[float, set[int]] = {}
    for run in runs:
        if run.largest_radius is not None and run.settings is not None:
            close = 0.02 * axes.get_xlim()[1]
            near = (other for other in marks if abs(other - run.largest_radius) < close)
            marks.setdefault(next(near, run.largest_radius), set()).add(run.settings.rule.n)
    for radius, draws in marks.items():
        axes.axvline(radius, color=GREY, lw=0.8, ls="--")
        # Above the curves or below them: on easy images they end high.
        shares = [np.mean(run.radii >= 0.9 * radius) for run in runs]
        below = np.mean(shares) > 0.5
        axes.annotate(
            f"largest certifiable, {' and '.join(f'{n:,}' for n in sorted(draws))} draws",
            (radius, 0.02 if below else 0.98),
            xycoords=("data", "axes fraction"),
            xytext=(-3, 0),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="bottom" if below else "top",
            fontsize=8,
            color=GREY,
            bbox={"facecolor": "white", "alpha": 0.7, "lw": 0, "pad": 1.0},
        )
