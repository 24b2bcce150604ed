"""Temporary files and folders beside what they become, which a kill leaves behind."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def held(make: Callable[[], Path]) -> Iterator[Path]:
    """Makes a file or folder that `remove_leftovers` of other processes leaves alone.

    Args:
      make: makes it, if it is not there, and says where; called again where another process has
        removed it before it was locked.

    Yields:
      Its path. It is kept until the end, or until this process ends.
    """
    while True:
        path = make()
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_at(path, descriptor):
            break
        os.close(descriptor)
    try:
        yield path
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Removes the files and folders, named as `Path.glob` takes it, that killed processes left."""
    for path in folder.glob(pattern):
        # Another process may remove it first, or may not have left it yet.
        with contextlib.suppress(OSError):
            # A pipe would wait for its other end.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not _is_at(path, descriptor):
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            finally:
                os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether what was opened is still at a path."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
