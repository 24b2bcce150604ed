"""Time and memory of training relative to Gaussian training, beside what the papers print."""

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks.reproduce_rows import TABLES
from tfmacer.common.errors import UserError
from tfmacer.report.cells import ABSENT, Cell, Table, words_cell
from tfmacer.report.published import PublishedRow, published_rows

_NOTE = (
    "Seconds of the second epoch on MNIST with the LeNet, and peak memory of the whole process, "
    "TensorFlow and the data set included; *times* is over Gaussian training in the same column. "
    "The papers' are of CIFAR-10 with ResNet-110 on a GPU: MACER's Table 3 seconds an epoch at "
    "sigma 0.25, the consistency paper's Table 3 hours of the whole training (it states no epochs) "
    "and memory at sigma 0.5; their SmoothAdv attacks with 10 steps."
)


def read(folder: Path) -> dict[str, dict[str, float]]:
    """The measurements that there are, by objective.

    Raises:
      UserError: a file is none of `benchmarks.reproduce`.
    """
    found = {}
    for row in TABLES["cost"]:
        path = folder / f"{row.name}.json"
        if path.is_file():
            try:
                values = json.loads(path.read_text(encoding="utf-8"))
                found[row.training.objective] = {
                    name: float(values[name]) for name in ("seconds_per_epoch", "peak_memory_mib")
                }
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}: is no cost of a training: {error!r}") from error
    return found


def table(found: Mapping[str, Mapping[str, float]]) -> Table:
    """Every method of the table `cost`, with a dash where it has not been measured."""
    usual = found.get("gaussian", {})
    rows = []
    for row in TABLES["cost"]:
        objective = row.training.objective
        mine = found.get(objective, {})
        seconds, memory = mine.get("seconds_per_epoch"), mine.get("peak_memory_mib")
        rows.append(
            (
                words_cell(objective),
                _cell(seconds, 1),
                _times(seconds, usual.get("seconds_per_epoch")),
                _published("MACER", objective, "seconds_per_epoch"),
                _published("Consistency", objective, "hours"),
                _cell(memory, 0),
                _times(memory, usual.get("peak_memory_mib")),
                _published("Consistency", objective, "memory_gb"),
            )
        )
    header = ("method", "s an epoch", "times", "MACER", "Consistency", "MiB", "times",
              "Consistency")  # fmt: skip
    return Table("Time and memory of training", _NOTE, header, tuple(rows))


def _published(paper: str, objective: str, column: str) -> Cell:
    """The paper's figure over that of Gaussian training."""
    rows = {
        row.method: row
        for row in published_rows()
        if (row.paper, row.table, row.dataset) == (paper, "3", "cifar10")
    }
    return _times(_value(rows.get(objective), column), _value(rows.get("gaussian"), column))


def _value(row: PublishedRow | None, column: str) -> float | None:
    return None if row is None else getattr(row, column)


def _times(value: float | None, usual: float | None) -> Cell:
    return _cell(None if value is None or usual is None else value / usual, 2)


def _cell(value: float | None, decimals: int) -> Cell:
    return Cell(ABSENT) if value is None else Cell(f"{value:,.{decimals}f}", order=value)
