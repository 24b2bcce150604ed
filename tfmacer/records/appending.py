"""A table that grows by whole lines: locked, whole after a kill, on disk when `append` returns."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import filelock

from tfmacer.errors import UserError
from tfmacer.records.runs import write_atomically


def take_up(path: Path, beside: Path, text: str, differences: Callable[[], list[str]]) -> None:
    """Writes the settings of a new table beside it, or compares those of one that is there.

    Args:
      path: of the table, whose lock is held.
      beside: of its settings.
      text: of the settings that rows are to be appended under.
      differences: says how those that are there differ from them.

    Raises:
      UserError: the table was made with others, or has none.
    """
    if beside.exists():
        if differing := differences():
            raise UserError(
                f"{path}: was made with other settings: {'; '.join(differing)}; choose another file"
            )
    elif path.exists():
        raise UserError(
            f"{path}: exists without {beside.name}, so it cannot be resumed; choose another file"
        )
    else:
        write_atomically(beside, text)


class LockedTable:
    """One text file, held by one process at a time through `NAME.lock`."""

    def __init__(self, path: Path) -> None:
        """Takes the lock; the file itself is not touched yet.

        Args:
          path: of the table; its folder is made where it is missing.

        Raises:
          UserError: another process holds it, or the disk refuses.
        """
        self._path = path
        self._file: int | None = None
        self._lock = _locked(path)

    def open(self, header: str) -> bool:
        """Opens the file or makes it, and cuts off a line that a kill interrupted.

        Returns:
          Whether it was empty; it then begins with `header`.

        Raises:
          UserError: the header cannot be written.
          OSError: the disk refuses anything else.
        """
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        _drop_torn_line(self._file)
        empty = os.fstat(self._file).st_size == 0
        if empty:
            self.append(header)
        return empty

    def append(self, line: str) -> None:
        """Appends a line, all of it or nothing, and waits until the disk has it.

        Raises:
          UserError: the disk refuses, e.g. because it is full.
        """
        if self._file is None:
            raise ValueError("the table is not open")
        data = f"{line}\n".encode()
        size = os.fstat(self._file).st_size
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            # Should even this fail, the torn line is cut off when the table is opened again.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, size)
            raise UserError(
                f"{self._path}: cannot be written: {error.strerror}; "
                "the rows before are kept, the same command continues after them"
            ) from error

    def close(self) -> None:
        """Closes the file and lets others have it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        # While still held: who waits for the removed file finds it without a link and tries again.
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()


def _locked(path: Path) -> filelock.FileLock:
    lock = filelock.FileLock(path.with_name(path.name + ".lock"), timeout=0, thread_local=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(f"{path}: another process is writing this log") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error
    return lock


def _drop_torn_line(file: int) -> None:
    """Cuts off what stands after the last newline: a row that a kill interrupted."""
    size = os.fstat(file).st_size
    end = os.pread(file, size, 0).rfind(b"\n") + 1
    if end < size:
        os.ftruncate(file, end)
