"""The one exception that stands for a user's mistake."""


class UserError(ValueError):
    """A mistake of the user's: a flag, a field, a file or an array that cannot be accepted.

    The message is one line that names the flag, field or file, the value found and what is
    accepted. Commands print it and exit with status 1, without a stack trace; servers answer
    INVALID_ARGUMENT with it.
    """
