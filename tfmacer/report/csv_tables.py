"""The numbers of a report's tables for a program."""

import csv
import io
import math
from collections.abc import Sequence

import numpy as np

from tfmacer.common.decimals import Rounding, down, nearest, up
from tfmacer.common.text import csv_cell
from tfmacer.report.comparison import Difference, Group
from tfmacer.report.summary import Estimate, Run
from tfmacer.report.tables import RISK


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
