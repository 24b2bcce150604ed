"""The operator's audit log: which noise is behind which certificate.

One JSON object a line, a chain of digests, written after the answer has left and by a thread of its
own: so no reader of the log knows the noise of a certificate before it is given, and no call waits
for the disk.
"""

import logging
import os
import queue
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import grpc

from serving.common.logs import FIELD
from tfmacer.common.errors import UserError
from tfmacer.records import chain
from tfmacer.records.audit_entries import AuditEntry
from tfmacer.records.chain import BEGINNING, Link
from tfmacer.records.locked_file import LockedFile

logger = logging.getLogger(__name__)

MAX_BYTES = 100 * 2**20
# Between two log lines with the newest digest, if there are new entries.
HEAD_SECONDS = 60.0
# How every entry begins, of whatever version.
_BEGINNING = b'{"certificate_id": "'
# Entries that may wait for a slow disk; more are lost, and counted. Each holds an image.
_MOST_WAITING = 256


class AuditLog:
    """Appends entries to a chain, over files of a limited size. Thread-safe.

    Attributes:
      head: the newest entry's number and digest. A copy of it kept elsewhere shows later whether
        anything before it was changed or removed.
    """

    def __init__(
        self,
        path: Path,
        *,
        pixels: bool,
        max_bytes: int = MAX_BYTES,
        keep: int = 0,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """Locks the file for this process, and continues its chain.

        Args:
          path: the file; an incomplete last line is removed.
          pixels: whether to keep the images themselves.
          max_bytes: a file that would become larger is renamed, and a new one begun.
          keep: how many of the newest renamed files are kept; 0 for all.
          on_failure: called when an entry could not be written; the answer has left by then.

        Raises:
          UserError: another process has it, it is no regular file or no audit log, or it cannot
            be written.
        """
        self._path = path
        self._pixels = pixels
        self._max_bytes = max_bytes
        self._keep = keep
        self._on_failure = on_failure
        try:
            if path.is_symlink():  # renaming it would rename the link
                raise UserError(f"{path}: a symbolic link, name the file itself")
            self._file = LockedFile(path, mode=0o600)
            try:
                self.head = self._taken_up()
            except BaseException:
                self._file.close()
                raise
        except UserError as error:
            raise UserError(f"--audit_log={error}") from error
        except OSError as error:
            raise UserError(f"--audit_log={path}: cannot be written: {error.strerror}") from error
        self._tell("continues" if self.head.number else "begins")
        self._waiting: queue.Queue[AuditEntry | None] = queue.Queue(_MOST_WAITING)
        self._lock = threading.Lock()
        self._closed = False
        self._ready = True  # the open file ends with the head
        self._thread = threading.Thread(target=self._write_all, name="audit", daemon=True)
        self._thread.start()

    def after(self, context: grpc.ServicerContext, entry: AuditEntry) -> None:
        """Appends the entry once the call has ended."""
        if not context.add_callback(lambda: self._hand_over(entry)):
            self._hand_over(entry)  # it has ended already

    def close(self) -> None:
        """Writes what waits, closes the file and unlocks it; calls should have ended."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._waiting.put(None)
        self._thread.join()
        self._file.close()
        self._tell("ends")

    def _hand_over(self, entry: AuditEntry) -> None:
        with self._lock:
            if self._closed:  # a call that outlived the drain
                self._lost(entry, "the log is closed")
                return
            try:
                self._waiting.put_nowait(entry)
            except queue.Full:
                self._lost(entry, f"{_MOST_WAITING} entries wait for the disk")

    def _write_all(self) -> None:
        told, due = self.head, time.monotonic() + HEAD_SECONDS
        while True:
            try:
                entry = self._waiting.get(timeout=max(due - time.monotonic(), 0.001))
                if entry is None:
                    return
                self._write(entry)
            except queue.Empty:
                pass
            if time.monotonic() >= due:
                if self.head != told:
                    self._tell("goes on")
                told, due = self.head, time.monotonic() + HEAD_SECONDS

    def _write(self, entry: AuditEntry) -> None:
        try:
            line, link = chain.to_line(entry.fields(pixels=self._pixels), self.head)
            if self._file.size and self._file.size + len(line) >= self._max_bytes:
                self._rotate()
            self._append(line, link)
            self.head = link
        except Exception as error:  # such as a full disk; the next entry may succeed
            self._lost(entry, error)

    def _append(self, line: str, link: Link) -> None:
        if self._ready:
            try:
                self._file.append(line)
                return
            except ValueError as error:  # it may have been moved, or end in an incomplete line
                logger.warning("%s; it is opened again", error)
        self._ready = False
        last = self._opened()
        found = self.head if last is None else _link(self._path, last)
        if found not in (self.head, link):
            raise UserError(
                f"{self._path}: does not end with entry {self.head.number}: "
                "another program wrote to it"
            )
        self._ready = True
        if found != link:  # else the line is whole, only the disk did not confirm it
            self._file.append(line)

    def _lost(self, entry: AuditEntry, why: object) -> None:
        logger.error("certificate %s is not in the audit log: %s", entry.certificate_id, why)
        self._on_failure()

    def _tell(self, does: str) -> None:
        number, digest = self.head.number, self.head.digest
        logger.info(
            f"audit log {self._path} {does}: entry {number}, digest {digest}",
            extra={FIELD: {"audit_entry": number, "audit_digest": digest}},
        )

    def _taken_up(self) -> Link:
        """Opens the file; returns the last link of the chain."""
        last = self._opened()
        if last is not None:
            return _link(self._path, last)
        if older := chain.rotated(self._path):  # killed before the new file had an entry
            with open(older[-1], "rb") as lines:
                ends = deque(lines, maxlen=1)
            return _link(older[-1], b"".join(ends).decode(errors="replace").rstrip("\n"))
        return BEGINNING

    def _opened(self) -> str | None:
        _check_begins(self._path)
        last = self._file.open()
        # Also of a file that another program made, but only of a regular file.
        file = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if stat.S_ISREG(os.fstat(file).st_mode):
                os.fchmod(file, 0o600)
        finally:
            os.close(file)
        return last

    def _rotate(self) -> None:
        try:
            self._file.rotate(chain.rotated_name(self._path, self.head))
            self._tell("begins a new file")
            if self._keep:
                rotated = chain.rotated(self._path)
                ours = [each for each in rotated if _BEGINNING.startswith(_start(each))]
                for old in ours[: -self._keep]:
                    old.unlink()
        except (UserError, OSError) as error:
            logger.error("audit log %s cannot be rotated: %s", self._path, error)


def _check_begins(path: Path) -> None:
    """Refuses a file of another kind, before its incomplete end would be removed."""
    if path.exists() and not _BEGINNING.startswith(start := _start(path)):
        raise UserError(f"{path}: begins with {start!r}, it is no audit log; choose another")


def _start(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(len(_BEGINNING))


def _link(path: Path, line: str) -> Link:
    """The link that the last line of a file is."""
    try:
        place = AuditEntry.from_line(line).place
    except ValueError as error:
        raise UserError(f"{path}: its last line is not an audit entry: {error}") from error
    return BEGINNING if place is None else place.link
