"""One HTML page with all of a report; nothing on it is fetched from elsewhere."""

import base64
import dataclasses
import importlib.resources
import json
from collections.abc import Sequence
from typing import Any

import jinja2
import numpy as np

from tfmacer.report.plots import Plot, colour, curves
from tfmacer.report.summary import Run
from tfmacer.report.tables import Table


@dataclasses.dataclass(frozen=True)
class _Figure:
    title: str
    note: str
    svg: str
    hover: str


def page(
    runs: Sequence[Run], tables: Sequence[Table], plots: Sequence[Plot], warnings: Sequence[str]
) -> str:
    """The report as HTML.

    Args:
      runs: what is reported.
      tables: in the order of the page.
      plots: likewise; `radius_accuracy` shows its values under the pointer.
      warnings: shown above everything else.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = importlib.resources.files("tfmacer.report").joinpath("page.html").read_text("utf-8")
    return environment.from_string(template).render(
        title="Certified robustness: " + ", ".join(run.name for run in runs[:4]) + _more(runs),
        runs=runs,
        tables=tables,
        figures=[_figure(plot, runs) for plot in plots],
        warnings=warnings,
        settings=settings_rows(runs),
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
    shown = {"log": str(run.log.path)}
    if run.settings is not None:
        fields = dataclasses.asdict(run.settings)
        del fields["warnings"]
        shown |= {name: _text(value) for name, value in fields.items()}
    return shown


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _more(runs: Sequence[Run]) -> str:
    return f" and {len(runs) - 4} more" if len(runs) > 4 else ""


def _figure(plot: Plot, runs: Sequence[Run]) -> _Figure:
    svg = base64.b64encode(plot.image("svg")).decode("ascii")
    hover = _hover(plot, runs) if plot.name == "radius_accuracy" else ""
    return _Figure(plot.title, plot.note, svg, hover)


def _hover(plot: Plot, runs: Sequence[Run]) -> str:
    """What the page shows under the pointer, and where the axes lie in the picture."""
    axes = plot.figure.axes[0]
    box = axes.get_position()
    found = curves(runs)
    return json.dumps(
        {
            "left": box.x0,
            "top": 1 - box.y1,
            "width": box.width,
            "height": box.height,
            "end": axes.get_xlim()[1],
            "radii": [round(float(radius), 4) for radius in found[0].radii],
            "runs": [
                {
                    "name": curve.run.name,
                    "colour": curve.colour,
                    "shares": np.stack([curve.shares, curve.low, curve.high], 1).round(4).tolist(),
                }
                for curve in found
            ],
        }
    )
