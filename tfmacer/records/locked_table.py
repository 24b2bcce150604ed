"""A sealed table to which one process at a time appends rows."""

from collections.abc import KeysView
from pathlib import Path
from types import TracebackType
from typing import Generic, Self

from tfmacer.common.errors import UserError
from tfmacer.records.locked_file import LockedFile
from tfmacer.records.runs import read_text, write_atomically
from tfmacer.records.tables import (
    RowT,
    Settings,
    check_rows,
    read_rows,
    read_settings,
    settings_path,
)


class LockedTable(Generic[RowT]):
    """Appends rows to a table, each on disk when `append` returns; opens or resumes.

    One process at a time: the table is locked through `FILE.tsv.lock` until `close`.

    Attributes:
      path: of the table.
      rows: what the table held when it was opened, and what was appended since.
    """

    def __init__(self, path: Path, settings: Settings[RowT]) -> None:
        """Locks the table and makes it ready for the next row.

        Raises:
          UserError: another process writes the table, it was made with other settings, a complete
            line of it is corrupt or was altered, or it cannot be written.
        """
        self.path = path
        self._settings = settings
        self._file = LockedFile(path)
        try:
            self._write_or_compare_settings()
            fresh = self._file.open("\t".join(settings.columns)) is None
            self.rows = [] if fresh else list(read_rows(path, settings))
            check_rows(path, settings, self.rows)
        except OSError as error:
            self._file.close()
            raise UserError(f"{path}: cannot be written: {error.strerror}") from error
        except BaseException:
            self._file.close()
            raise
        found = {row.idx for row in self.rows}
        self._missing = dict.fromkeys(idx for idx in settings.indices if idx not in found)

    @property
    def missing(self) -> KeysView[int]:
        """The idx of the images still without a row, ascending; shrinks as rows are appended."""
        return self._missing.keys()

    def append(self, row: RowT) -> None:
        """Writes a row and waits until the disk has it.

        Raises:
          UserError: it cannot be written, e.g. because the disk is full, and the table ends with
            its last whole row; or the table was removed or changed.
          ValueError: the image is not one of the selection, or already has a row.
        """
        if row.idx not in self._missing:
            raise ValueError(f"idx {row.idx} is not one of the images still without a row")
        row = self._settings.sealed(row)
        self._file.append(self._settings.to_line(row))
        self.rows.append(row)
        del self._missing[row.idx]

    def check(self) -> None:
        """Raises UserError where the table or its settings were removed, replaced or changed."""
        self._file.check()
        if read_text(settings_path(self.path)) != self._text:
            raise UserError(
                f"{settings_path(self.path)}: was changed while {self.path} was written to"
            )

    def close(self) -> None:
        """Closes the table and lets others write it."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.check()
        finally:
            self.close()

    def _write_or_compare_settings(self) -> None:
        """Writes the settings of a new table, or compares those of one that exists."""
        settings = settings_path(self.path)
        if settings.exists():
            found = read_settings(self.path, type(self._settings))
            if differing := found.differences(self._settings):
                raise UserError(
                    f"{self.path}: was made with other settings: {'; '.join(differing)}; "
                    "choose another file"
                )
        elif self.path.exists():
            raise UserError(
                f"{self.path}: exists without {settings.name}, so it cannot be resumed; "
                "choose another file"
            )
        else:
            write_atomically(settings, self._settings.to_json())
        self._text = read_text(settings)
