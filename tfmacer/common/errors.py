"""The exception for a user's mistake, and the warning that commands show."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from tfmacer.common.text import one_line

# Refusals to read or write a file that are no fault of the program.
_REFUSALS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EISDIR,
    errno.ENOTDIR,
)


class UserError(ValueError):
    """A mistake of the user's: a flag, a field, a file or an array that cannot be accepted.

    The message is one line that names the flag, field or file, the value found and what is
    accepted; `tfmacer.common.text.one_line` removes control characters from it and cuts long
    values. Commands print it and exit with status 1, without a stack trace; servers answer
    INVALID_ARGUMENT with it.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class Notice(UserWarning):
    """A warning about a file or model that is used nevertheless.

    The message is one line, as in `UserError`. Commands print it once on standard error.
    """


@contextlib.contextmanager
def naming(file: object) -> Iterator[None]:
    """Gives an error of the system that names no file, as those of writing, this one's name."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(file)
        raise


def refusal(error: BaseException) -> str | None:
    """What the operating system refused, e.g. because a disk is full; None for any other error.

    Libraries in C, those of TensorFlow and of HDF5, raise errors that only quote the system.
    """
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return ": ".join(filter(None, (str(error.filename or ""), error.strerror)))
    if isinstance(error, OSError) or type(error).__module__.startswith("tensorflow."):
        # TensorFlow puts the op before and after it.
        text = re.sub(r"^\{\{.*?\}\} | \[Op:\w+\]", "", str(error))
        if any(os.strerror(number) in text for number in _REFUSALS):
            return text
    return None
