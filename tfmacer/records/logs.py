"""Certification logs: read, opened or resumed, appended.

`LOG.tsv` holds one row per image, `LOG.tsv.json` what the rows share. Rows are appended as images
finish; their order means nothing.
"""

import dataclasses
from collections.abc import Callable, Iterable, KeysView, Sequence
from pathlib import Path
from types import TracebackType

from tfmacer.errors import UserError
from tfmacer.records import rows
from tfmacer.records.appending import LockedFile, take_up
from tfmacer.records.rows import Record
from tfmacer.records.settings import LogSettings

__all__ = [
    "Log",
    "LogSettings",
    "LogWriter",
    "Record",
    "check_rows",
    "is_log",
    "read_log",
    "read_text",
    "settings_path",
]


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
    def missing(self) -> list[int]:
        """The idx that were selected and have no row; empty where nothing tells the selection."""
        if self.settings is None:
            return []
        found = {record.idx for record in self.records}
        return [idx for idx in self.settings.indices if idx not in found]

    @property
    def altered(self) -> Record | None:
        """The first row whose digest does not fit it, or whose image was not selected."""
        if self.settings is None:
            return None
        identity, soft = self.settings.identity, self.settings.rule.soft
        for record in self.records:
            sealed = rows.sealed(record, identity, soft)
            if record.digest != sealed.digest or record.idx not in self.settings.indices:
                return record
        return None


def check_rows(log: Log) -> None:
    """Refuses a log of ours in which a row was altered; names the first.

    Raises:
      UserError: see `Log.altered`.
    """
    if (record := log.altered) is not None:
        raise UserError(
            f"{log.path}: the row of idx {record.idx} is corrupt or was altered: "
            "it does not match its digest, or the images that were selected"
        )


def settings_path(path: Path) -> Path:
    """Where the settings of a log stand."""
    return path.with_name(path.name + ".json")


def is_log(path: Path) -> bool:
    """Whether a file opens as a certification log does, ours or another project's."""
    start = "\t".join(rows.PUBLISHED_COLUMNS[:5]).encode()
    try:
        with open(path, "rb") as file:
            return file.read(len(start)) == start
    except OSError:
        return False


def read_log(path: Path) -> Log:
    """Reads a log of ours, or one of another project in the published format.

    A last line of ours without a newline is a row that was never finished, and is left out.

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
    settings = read_settings(path)
    return Log(path, _our_rows(path, text, settings), settings)


def read_settings(path: Path) -> LogSettings:
    """Reads what stands beside the log `path`.

    Raises:
      UserError: it is missing or cannot be used.
    """
    beside = settings_path(path)
    return LogSettings.from_json(read_text(beside), origin=str(beside))


class LogWriter:
    """Appends records to a log, each on disk when `append` returns; opens or resumes.

    One process at a time: the log is locked through `LOG.tsv.lock` until `close`.

    Attributes:
      path: of the table.
      records: what the log held when it was opened, and what was appended since.
    """

    def __init__(self, path: Path, settings: LogSettings) -> None:
        """Locks the log and makes it ready for the next row.

        Args:
          path: of the table; its folder is made where it is missing.
          settings: of this run.

        Raises:
          UserError: another process writes the log, it was made with other settings, a complete
            line of it is corrupt, or the disk refuses.
        """
        self.path = path
        self._settings = settings
        self._soft = settings.rule.soft
        self._table = LockedFile(path)
        try:
            self.records = self._resumed()
        except OSError as error:
            self._table.close()
            raise UserError(f"{path}: cannot be written: {error.strerror}") from error
        except BaseException:
            self._table.close()
            raise
        recorded = {record.idx for record in self.records}
        self._missing = dict.fromkeys(idx for idx in settings.indices if idx not in recorded)

    @property
    def missing(self) -> KeysView[int]:
        """The idx of the images still to be certified, ascending; shrinks as rows are appended."""
        return self._missing.keys()

    def append(self, record: Record) -> None:
        """Writes a row and waits until the disk has it.

        Raises:
          UserError: the disk refuses, e.g. because it is full; the log then ends with its last
            whole row.
          ValueError: the image is not one of the selection, or already has a row.
        """
        if record.idx not in self._missing:
            raise ValueError(f"idx {record.idx} is not one of the images still to be certified")
        record = rows.sealed(record, self._settings.identity, self._soft)
        self._table.append(rows.to_line(record, self._soft))
        self.records.append(record)
        del self._missing[record.idx]

    def close(self) -> None:
        """Closes the log and lets others write it."""
        self._table.close()

    def __enter__(self) -> "LogWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._table.check()
        finally:
            self.close()

    def _resumed(self) -> list[Record]:
        take_up(
            self.path,
            settings_path(self.path),
            self._settings.to_json(),
            lambda: read_settings(self.path).differences(self._settings),
        )
        if self._table.open("\t".join(rows.columns(self._soft))) is None:
            return []
        log = read_log(self.path)
        check_rows(log)
        return list(log.records)


def _our_rows(path: Path, text: str, settings: LogSettings) -> tuple[Record, ...]:
    soft = settings.rule.soft
    whole, _, _ = text.rpartition("\n")
    header, *lines = whole.split("\n")
    if header != "\t".join(rows.columns(soft)):
        raise UserError(f"{path}:1: the columns are not those of a log with these settings")
    return _read_rows(
        path, enumerate(lines, 2), lambda line: rows.from_line(line, soft, settings.num_classes)
    )


def _published_rows(path: Path, text: str, names: Sequence[str]) -> tuple[Record, ...]:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{path}:1: the column {twice!r} stands twice")

    def read(line: str) -> Record:
        cells = [cell.strip(" ") for cell in line.split("\t")]
        if len(cells) != len(names):
            raise ValueError(f"{len(cells)} columns, not {len(names)}: {line!r}")
        return rows.from_published(dict(zip(names, cells, strict=True)))

    lines = enumerate(text.replace("\r\n", "\n").split("\n"), 1)
    return _read_rows(path, ((i, line) for i, line in lines if i > 1 and line.strip()), read)


def _read_rows(
    path: Path, lines: Iterable[tuple[int, str]], read: Callable[[str], Record]
) -> tuple[Record, ...]:
    """The rows by idx; each line comes with its number, which errors name."""
    by_idx: dict[int, tuple[int, Record]] = {}
    for number, line in lines:
        try:
            record = read(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: corrupt line: {error}") from error
        before, _ = by_idx.setdefault(record.idx, (number, record))
        if before != number:
            raise UserError(
                f"{path}:{number}: idx {record.idx} stands twice, first in line {before}"
            )
    return tuple(by_idx[idx][1] for idx in sorted(by_idx))


def read_text(path: Path) -> str:
    """A file's text; raises UserError, naming it, where it cannot be read."""
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{path}: cannot be read: {reason}") from error
