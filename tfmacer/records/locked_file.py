"""A locked text file to which whole lines are appended, each on disk when `append` returns."""

import contextlib
import os
import stat
from pathlib import Path
from types import TracebackType

import filelock

from tfmacer.common.errors import UserError

# Bytes read at a time while the last line of a file is looked for.
_CHUNK = 1 << 16


class LockedFile:
    """One text file, held by one process at a time through `NAME.lock`.

    Appended lines are kept: a line that a kill interrupted is cut off when the file is opened
    again, and an error is raised where another program removes, replaces or writes to the file.
    """

    def __init__(self, path: Path, *, fsync: bool = True, mode: int = 0o666) -> None:
        """Takes the lock; the file itself is not touched yet.

        Args:
          path: of the file; its folder is created where it is missing.
          fsync: whether `append` waits until the disk has the line. Otherwise a line survives a
            crash of this process, but perhaps not one of the machine.
          mode: permissions of a file that is created, before the umask.

        Raises:
          UserError: another process holds it, it is not a regular file, or it cannot be written.
        """
        self.path = path
        self._fsync, self._mode = fsync, mode
        self._file: int | None = None
        self._size = 0
        self._lock = _locked(path)

    def open(self, header: str | None = None) -> str | None:
        """Opens or creates the file, and cuts off a line that a kill interrupted.

        A file that is open already is opened again: lines go to what is at the path now.

        Args:
          header: first line of a file that was empty; None for one without a header.

        Returns:
          The last line that was there, without its newline; None where there was none.

        Raises:
          UserError: the file cannot be opened or written.
        """
        self._close_file()
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, self._mode)
            if not stat.S_ISREG(os.fstat(self._file).st_mode):
                raise UserError(f"{self.path}: not a regular file")
            last = _drop_torn_line(self._file)
            self._size = os.fstat(self._file).st_size
        except (OSError, UnicodeDecodeError) as error:
            raise _refusal(self.path, error) from error
        if header is not None and last is None:
            self.append(header)
        return last

    def append(self, line: str) -> None:
        """Appends a line, all of it or nothing.

        Raises:
          UserError: it cannot be written, e.g. because the disk is full; or it is no longer the
            file that was opened.
        """
        self.check()
        if self._file is None:
            raise ValueError("the file is not open")
        data = f"{line}\n".encode()
        size = self._size + len(data)
        try:
            while data:
                data = data[os.write(self._file, data) :]
            if self._fsync:
                os.fsync(self._file)
        except OSError as error:
            # Should even this fail, the torn line is cut off when the file is opened again.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise UserError(
                f"{self.path}: cannot be written: {error.strerror}; "
                "the rows before are kept, the same command continues after them"
            ) from error
        self._size = size

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return self._size

    def rotate(self, to: Path) -> None:
        """Renames the file and opens a new one at its path.

        Args:
          to: its new name, in the same folder; must not exist.

        Raises:
          UserError: `to` exists, or the file cannot be renamed.
        """
        if os.path.lexists(to):
            raise UserError(f"{to}: exists already")
        try:
            os.rename(self.path, to)
        except OSError as error:
            raise _refusal(to, error) from error
        self.open()

    def check(self) -> None:
        """Raises UserError where another program removed, replaced or wrote to the file."""
        if self._file is None:
            return
        opened = os.fstat(self._file)
        try:
            there = self.path.stat()
        except OSError as error:
            raise UserError(
                f"{self.path}: was removed while it was written to ({error.strerror})"
            ) from error
        if (there.st_dev, there.st_ino) != (opened.st_dev, opened.st_ino):
            raise UserError(f"{self.path}: was replaced by another file while it was written to")
        if opened.st_size != self._size:
            raise UserError(
                f"{self.path}: was changed by another program: it has "
                f"{opened.st_size} bytes instead of {self._size}"
            )

    def close(self) -> None:
        """Closes the file and releases the lock."""
        self._close_file()
        # While the lock is held: a process that waits for the removed file notices and tries again.
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> "LockedFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _locked(path: Path) -> filelock.FileLock:
    lock = filelock.FileLock(path.with_name(path.name + ".lock"), timeout=0, thread_local=False)
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: not a regular file")
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(f"{path}: another process is writing this file") from error
    except UserError:
        raise
    except (OSError, ValueError) as error:  # of which the latter a path with NUL
        raise _refusal(path, error) from error
    return lock


def _refusal(path: Path, error: OSError | ValueError) -> UserError:
    reason = error.strerror if isinstance(error, OSError) else error
    if isinstance(error, UnicodeDecodeError):
        reason = "its last line is not UTF-8 text"
    return UserError(f"{path}: cannot be written: {reason}")


def _drop_torn_line(file: int) -> str | None:
    """Cuts off what follows the last newline; returns the line before it."""
    size = os.fstat(file).st_size
    end = _last_newline(file, size) + 1
    if end < size:
        os.ftruncate(file, end)
    if end == 0:
        return None
    start = _last_newline(file, end - 1) + 1
    return os.pread(file, end - 1 - start, start).decode()


def _last_newline(file: int, before: int) -> int:
    """Offset of the last newline before an offset; -1 where there is none."""
    while before > 0:
        start = max(before - _CHUNK, 0)
        place = os.pread(file, before - start, start).rfind(b"\n")
        if place >= 0:
            return start + place
        before = start
    return -1
