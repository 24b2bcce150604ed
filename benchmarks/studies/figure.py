"""A study's figure: certified accuracy against radius, and beside it what the ACR gains."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.axes
import matplotlib.colors
import numpy as np

from benchmarks.studies.comparison import measures
from benchmarks.studies.points import Study
from tfmacer.report.drawing import (
    COLOURS,
    GREY,
    Plot,
    label_ends,
    new_figure,
    radius_label,
    steps,
    styled,
)
from tfmacer.report.summary import Run

_INCHES = 3.1
# Of the axes in a panel of that height.
_AXES = 2.3
# Of matplotlib's viridis: its end is too light on white.
_LIGHTEST = 0.88
_THEIRS: Any = {"marker": "D", "ms": 6, "mfc": "none", "ls": "none"}


@styled
def figure(name: str, studies: Sequence[Study], runs: Mapping[str, Run]) -> Plot | None:
    """One row of panels for each study that has a run; None where none has.

    Args:
      name: of the table, and of the files.
      studies: in the order of the panels.
      runs: by the names of their rows, as many as there are.
    """
    shown = [s for s in studies if any(point.row in runs for point in s.points)]
    if not shown:
        return None
    drawing = new_figure(10.5, _INCHES * len(shown))
    drawing.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
    panels = drawing.subplots(len(shown), 2, squeeze=False, width_ratios=[1.9, 1])
    for study, (left, right) in zip(shown, panels, strict=True):
        colours = _colours(study)
        _draw_curves(left, study, runs, colours)
        _draw_differences(right, study, runs, colours)
    note = (
        "Left: certified accuracy against radius, with the ACR of each run; the thick curve is the "
        "default. Right: ACR minus that of the default on the same images, with its paired 95 % "
        "interval; open diamonds are the paper's differences at the same sigma, on its own data "
        "and network."
    )
    return Plot(name, f"Studies of {name}", note, drawing)


def _colours(study: Study) -> dict[str, str]:
    """By row: shades by value, since values have an order, or else a colour for each line."""
    shades = matplotlib.colormaps["viridis_r"](np.linspace(1 - _LIGHTEST, 1, len(study.values)))
    usual = {study.default.row: COLOURS[-1]} if study.apart else {}
    if len(study.lines) > 1:
        return {
            point.row: COLOURS[study.lines.index(point.line) % len(COLOURS)]
            for point in study.points
        }
    hexes = dict(zip(study.values, map(matplotlib.colors.to_hex, shades), strict=True))
    return {point.row: hexes[point.value] for point in study.points} | usual


def _draw_curves(
    axes: matplotlib.axes.Axes,
    study: Study,
    runs: Mapping[str, Run],
    colours: Mapping[str, str],
) -> None:
    ends, names, shades, reach = [], [], [], 0.0
    for point in study.drawn:
        run = runs.get(point.row)
        if run is None or run.acr is None:
            continue
        width = 2.4 if point == study.default else 1.3
        ends.append(steps(axes, run, color=colours[point.row], lw=width))
        names.append(f"{point.line or point.value}: ACR {run.acr.value:.3f}")
        shades.append(colours[point.row])
        reach = max(reach, float(run.radii.max()))
    fixed = f" (here at {study.axis} {study.curves_at})" if study.curves_at else ""
    axes.set_title(study.title + fixed, fontsize=10)
    axes.set_xlim(0, 1.03 * reach or 1.0)
    axes.set_ylim(0, 100)
    axes.set_xlabel(radius_label("l2"))
    axes.set_ylabel("certified accuracy (%)")
    label_ends(axes, ends, names, shades, _AXES)


def _draw_differences(
    axes: matplotlib.axes.Axes,
    study: Study,
    runs: Mapping[str, Run],
    colours: Mapping[str, str],
) -> None:
    for i, line in enumerate(study.lines):
        # Lines side by side, so that no interval hides another.
        shift = 0.11 * (i - (len(study.lines) - 1) / 2)
        drawn = []
        for point in (p for p in study.points if p.line == line):
            place = study.values.index(point.value) + shift
            acr = measures(study, point, runs)[0]
            if acr.theirs is not None and point != study.default:
                axes.plot(place, acr.theirs, color=colours[point.row] if line else GREY, **_THEIRS)
            if acr.ours is not None:
                if not (study.apart and point == study.default):
                    drawn.append((place, acr.ours.value))
                spread = [[acr.ours.value - acr.ours.low], [acr.ours.high - acr.ours.value]]
                size = 7 if point == study.default else 4
                look: Any = {"color": colours[point.row], "marker": "o", "ms": size}
                axes.errorbar(place, acr.ours.value, spread, **look)
        shade = colours[point.row] if line else "#999999"
        axes.plot([x for x, _ in drawn], [y for _, y in drawn], color=shade, lw=1, zorder=1)
    axes.axhline(0.0, color=GREY, lw=0.8, ls=":")
    axes.set_xticks(range(len(study.values)), list(study.values))
    axes.set_xlim(-0.5, len(study.values) - 0.5)
    axes.set_xlabel(study.axis)
    axes.set_ylabel(f"ACR minus {study.default.value if study.apart else 'default'}'s")
