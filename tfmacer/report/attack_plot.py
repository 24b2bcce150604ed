"""Certified radii against what attacks found."""

from collections.abc import Sequence
from typing import Any

import matplotlib.axes

from tfmacer.records.falsifications import Falsification
from tfmacer.report.drawing import GREY, Plot, colour, label, new_figure, styled
from tfmacer.report.summary import NORMS, Run


@styled
def attack_radius(runs: Sequence[Run]) -> Plot | None:
    """Certified radius of each image against the smallest change found to flip it."""
    shown = [(run, attack) for run in runs for attack in run.attacks if attack.rows]
    if not shown:
        return None
    columns = min(len(shown), 2)
    rows = -(-len(shown) // columns)
    figure = new_figure(1.0 + 3.9 * columns, 4.4 * rows)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    panels = figure.subplots(rows, columns, squeeze=False)
    for (run, attack), axes in zip(shown, panels.flat, strict=False):
        _draw_attack(axes, attack, colour(runs, run))
        found = f"{len(attack.within)} flipped within, alpha allows {attack.allowed}"
        axes.set_title(f"{label(run.name)}\n{found}", color=colour(runs, run), fontsize=10)
    for axes in list(panels.flat)[len(shown) :]:
        axes.set_axis_off()
    note = (
        "Each point is an image. Below the line (shaded) a change smaller than the certified "
        "radius flips the answer, which refutes the certificate; far above it the certificate, the "
        "attack or both fall short of the true radius. Open triangles: no flip was found up to "
        "there. Axes are in the norm of the certificates."
    )
    title = "Certified radius against smallest flip found"
    return Plot("attack_radius", title, note, figure)


def _draw_attack(axes: matplotlib.axes.Axes, attack: Falsification, shade: str) -> None:
    kinds = {
        "flipped beyond": ([r for r in attack.rows if r.attack_radius and not r.flipped_within]),
        "never flipped": ([r for r in attack.rows if r.attack_radius is None]),
        "flipped within": attack.within,
    }
    marks: dict[str, dict[str, Any]] = {
        "flipped beyond": {"s": 16, "color": shade, "alpha": 0.6, "lw": 0},
        "never flipped": {"s": 22, "marker": "^", "facecolors": "none", "edgecolors": GREY},
        "flipped within": {"s": 36, "marker": "x", "color": "#C00000"},
    }
    for name, rows in kinds.items():
        if rows:
            certified = [row.radius for row in rows]
            reached = [row.attack_radius or row.searched for row in rows]
            label = f"{name}: {len(rows)}"
            axes.scatter(certified, reached, label=label, zorder=3, **marks[name])
    right = 1.06 * max(row.radius for row in attack.rows)
    top = 1.06 * max(right, *(row.attack_radius or row.searched for row in attack.rows))
    axes.fill_between([0.0, right], [0.0, right], color="#000000", alpha=0.06, lw=0)
    axes.plot([0.0, right], [0.0, right], color="#000000", lw=1.0)
    axes.set_xlim(0.0, right)
    axes.set_ylim(0.0, top)
    norm = NORMS[attack.settings.norm]
    axes.set_xlabel(f"certified {norm} radius")
    axes.set_ylabel(f"smallest flip found by {attack.settings.attack}, {norm}")
    axes.legend(loc="best", fontsize=8, frameon=True, framealpha=0.9, edgecolor="none")
