"""A file that grows by whole lines: locked, whole after a kill, on disk when `append` returns."""

import contextlib
import os
import stat
from pathlib import Path
from types import TracebackType

import filelock

from tfmacer.common.errors import UserError

# Read at a time while the last lines of a file are looked for.
_CHUNK = 1 << 16


class LockedFile:
    """One text file, held by one process at a time through `NAME.lock`.

    What was appended stays: a line that a kill interrupted is cut off when the file is opened
    again, and a file that somebody removes, replaces or writes to meanwhile is noticed.
    """

    def __init__(self, path: Path, *, fsync: bool = True, mode: int = 0o666) -> None:
        """Takes the lock; the file itself is not touched yet.

        Args:
          path: of the file; its folder is made where it is missing.
          fsync: whether `append` waits until the disk has the line. Without, a line survives the
            end of this process, but may not survive that of the machine.
          mode: permissions of a file that is made, before the umask.

        Raises:
          UserError: another process holds it, it is no regular file, or the disk refuses.
        """
        self.path = path
        self._fsync, self._mode = fsync, mode
        self._file: int | None = None
        self._size = 0
        self._lock = _locked(path)

    def open(self, header: str | None = None) -> str | None:
        """Opens the file or makes it, and cuts off a line that a kill interrupted.

        Once more where it is open: whatever is at the path now is what lines are appended to.

        Args:
          header: first line of a file that was empty; None for one without a header.

        Returns:
          The last line that was there, without its newline; None where there was none.

        Raises:
          UserError: the disk refuses.
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
          UserError: the disk refuses, e.g. because it is full; the file is not the one that was
            opened any more.
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
        """Bytes of all lines."""
        return self._size

    def rotate(self, to: Path) -> None:
        """Renames the file and goes on in a new one at its path.

        Args:
          to: its new name, in the same folder, which nothing may have yet.

        Raises:
          UserError: something has that name, or the disk refuses.
        """
        if os.path.lexists(to):
            raise UserError(f"{to}: is there already")
        try:
            os.rename(self.path, to)
        except OSError as error:
            raise _refusal(to, error) from error
        self.open()

    def check(self) -> None:
        """Makes sure that the path still leads to what was written.

        Raises:
          UserError: the file was removed, replaced or written to by another program.
        """
        if self._file is None:
            return
        opened = os.fstat(self._file)
        try:
            there = self.path.stat()
        except OSError as error:
            raise UserError(
                f"{self.path}: is gone ({error.strerror}): it was removed while it was written to"
            ) from error
        if (there.st_dev, there.st_ino) != (opened.st_dev, opened.st_ino):
            raise UserError(f"{self.path}: another file took its place while it was written to")
        if opened.st_size != self._size:
            raise UserError(
                f"{self.path}: another program wrote to it meanwhile: it has "
                f"{opened.st_size} bytes instead of {self._size}"
            )

    def close(self) -> None:
        """Closes the file and lets others have it."""
        self._close_file()
        # While still held: who waits for the removed file finds it without a link and tries again.
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
    """Cuts off what stands after the last newline; returns the line before it."""
    size = os.fstat(file).st_size
    end = _last_newline(file, size) + 1
    if end < size:
        os.ftruncate(file, end)
    if end == 0:
        return None
    start = _last_newline(file, end - 1) + 1
    return os.pread(file, end - 1 - start, start).decode()


def _last_newline(file: int, before: int) -> int:
    """Place of the last newline before a place; -1 where there is none."""
    while before > 0:
        start = max(before - _CHUNK, 0)
        place = os.pread(file, before - start, start).rfind(b"\n")
        if place >= 0:
            return start + place
        before = start
    return -1
