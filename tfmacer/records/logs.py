"""Certification logs as they are read.

`LOG.tsv` holds one row per image, `LOG.tsv.json` what the rows share. Rows are appended as images
finish, in any order.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from tfmacer.common.errors import UserError
from tfmacer.records import rows
from tfmacer.records.rows import Record
from tfmacer.records.runs import read_text
from tfmacer.records.settings import LogSettings
from tfmacer.records.tables import (
    altered,
    check_rows,
    gaps,
    read_lines,
    read_rows,
    read_settings,
    settings_path,
)

__all__ = [
    "Log",
    "LogSettings",
    "Record",
    "is_log",
    "read_log",
    "settings_path",
]

# Of all rows together: each keeps a number for every class, in a few columns.
_MOST_CLASSES = 2**28


@dataclasses.dataclass(frozen=True, eq=False)
class Log:
    """A log as read.

    Attributes:
      path: of the table.
      records: its rows, sorted by idx.
      settings: what they share; None for a log of another project.
    """

    path: Path
    records: tuple[Record, ...]
    settings: LogSettings | None

    @property
    def unfinished(self) -> str | None:
        """How many selected images have no row; None where none, or nothing tells the selection."""
        return None if self.settings is None else gaps(self.settings.indices, self.records)

    @property
    def altered(self) -> Record | None:
        """The first row whose digest does not fit it, or whose image was not selected."""
        return None if self.settings is None else altered(self.settings, self.records)

    def check(self) -> None:
        """Raises UserError where a row was altered; names the first, see `altered`."""
        if self.settings is not None:
            check_rows(self.path, self.settings, self.records)


def is_log(path: Path) -> bool:
    """Whether a file opens as a certification log does, ours or another project's."""
    start = "\t".join(rows.PUBLISHED_COLUMNS[:5]).encode()
    try:
        with open(path, "rb") as file:
            return file.read(len(start)) == start
    except (OSError, ValueError):
        return False


def read_log(path: Path) -> Log:
    """Reads a log of this project, or one of another project in the published format.

    A last line without a newline is a row that was never finished: a log of this project is read
    without it.

    Raises:
      UserError: the file cannot be read or is not such a log; names the line.
    """
    text = read_text(path)
    names = text.partition("\n")[0].rstrip("\r").split("\t")
    if names[:5] != list(rows.PUBLISHED_COLUMNS[:5]):
        raise UserError(
            f"{path}: not a certification log: its first line must begin with the columns "
            f"{' '.join(rows.PUBLISHED_COLUMNS[:5])}"
        )
    if not settings_path(path).exists():
        if "digest" in names:
            raise UserError(f"{path}: its settings, {settings_path(path).name}, are missing")
        return Log(path, _published_rows(path, text, names), None)
    settings = read_settings(path, LogSettings)
    classes = settings.classifier.num_classes
    if classes * text.count("\n") > _MOST_CLASSES:
        raise UserError(f"{path}: its rows with {classes} classes each do not fit into memory")
    return Log(path, read_rows(path, settings), settings)


def _published_rows(path: Path, text: str, names: Sequence[str]) -> tuple[Record, ...]:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}:1: the column {twice!r} is there twice")

    def read(line: str) -> Record:
        cells = [cell.strip(" ") for cell in line.split("\t")]
        if len(cells) != len(names):
            raise ValueError(f"{len(cells)} columns, not {len(names)}: {line!r}")
        return rows.from_published(dict(zip(names, cells, strict=True)))

    lines = enumerate(text.replace("\r\n", "\n").split("\n"), 1)
    return read_lines(path, ((i, line) for i, line in lines if i > 1 and line.strip()), read)
