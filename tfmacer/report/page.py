"""One HTML page with all of a report; nothing on it is fetched from elsewhere."""

import base64
import importlib.resources
import json
from collections.abc import Sequence
from typing import Any

import jinja2

from tfmacer.common.decimals import down, nearest, up
from tfmacer.common.text import visible
from tfmacer.report.cells import Table
from tfmacer.report.drawing import Plot, colour
from tfmacer.report.summary import NORMS, Run


def page(
    runs: Sequence[Run], tables: Sequence[Table], plots: Sequence[Plot], warnings: Sequence[str]
) -> str:
    """The report as HTML; plots with curves show their values under the pointer."""
    originals = [run for run in runs if not run.converted]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=_visible
    )
    template = importlib.resources.files("tfmacer.report").joinpath("page.html").read_text("utf-8")
    return environment.from_string(template).render(
        title=f"Certified robustness: {_names(originals)}",
        runs=originals,
        tables=tables,
        figures=[_figure(plot) for plot in plots],
        warnings=warnings,
        settings=settings_rows(originals),
        colours={run.name: colour(runs, run) for run in runs},
    )


def settings_rows(runs: Sequence[Run]) -> list[tuple[str, list[str], bool]]:
    """Name of each setting, its value in each run, and whether the runs differ in it."""
    columns = [_settings(run) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = []
    for name in names:
        values = [column.get(name, "unknown") for column in columns]
        rows.append((name, values, len(set(values)) > 1 and name != "log"))
    return rows


def _settings(run: Run) -> dict[str, str]:
    shown = {"log": str(run.log.path), "norm": NORMS[run.norm]}
    if run.settings is not None:
        fields = run.settings.fields()
        del fields["warnings"]
        shown |= {name: _text(value) for name, value in fields.items()}
    if run.attacks:
        shown["attacked in"] = ", ".join(str(attack.path) for attack in run.attacks)
    return shown


def _visible(value: Any) -> Any:
    """What the template writes, texts without what changes how others are shown."""
    return visible(value) if isinstance(value, str) else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _names(runs: Sequence[Run]) -> str:
    more = f" and {len(runs) - 4} more" if len(runs) > 4 else ""
    return ", ".join(run.name for run in runs[:4]) + more


def _figure(plot: Plot) -> dict[str, str]:
    svg = base64.b64encode(plot.image("svg")).decode("ascii")
    hover = _hover(plot) if plot.curves else ""
    return {"title": plot.title, "note": plot.note, "svg": svg, "hover": hover}


def _hover(plot: Plot) -> str:
    """What the page shows under the pointer, and where the axes lie in the picture."""
    axes = plot.figure.axes[0]
    box = axes.get_position()
    end = axes.get_xlim()[1]
    radii = [float(radius) for radius in plot.curves[0].radii]
    return json.dumps(
        {
            "left": box.x0,
            "top": 1 - box.y1,
            "width": box.width,
            "height": box.height,
            "places": [radius / end for radius in radii],
            "radii": [down(radius, 5 if end < 0.5 else 3) for radius in radii],
            "runs": [
                {
                    "name": visible(curve.run.name),
                    "colour": curve.colour,
                    "shares": [
                        f"{nearest(share, 1, times=100)} % ({down(low, 1, times=100)} to "
                        f"{up(high, 1, times=100)})"
                        for share, low, high in zip(
                            curve.shares, curve.low, curve.high, strict=True
                        )
                    ],
                }
                for curve in plot.curves
            ],
        }
    )
