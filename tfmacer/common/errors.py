"""The exception for a user's mistake, and the warning that commands show."""

from tfmacer.common.text import one_line


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
