"""How a server process logs, says that it is ready, and ends."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

from tfmacer.common import commandline
from tfmacer.common.text import visible

# Python runs a handler in the main thread alone, but the signal may reach another thread, which
# does not wake it: so it looks by itself.
_LOOK_SECONDS = 0.1


class LineFormatter(logging.Formatter):
    """One line for each record, whatever names callers gave; tracebacks keep their lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line, every character of it visible."""
        return visible(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """The traceback, likewise."""
        return "\n".join(map(visible, super().formatException(ei).split("\n")))


def log_lines(level: int = logging.INFO) -> None:
    """Sends every logger's records to standard error, as lines."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter("%(asctime)s %(levelname)s %(message)s"))
    # Whatever was imported may have set up its own before.
    logging.basicConfig(level=level, handlers=[handler], force=True)


def exit_at_once(main: Callable[[], int]) -> NoReturn:
    """Ends the process with what `main` returns, without taking the interpreter down first.

    TensorFlow ends by SIGABRT where that is done while another thread loads a version in it.
    """
    try:
        status = main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


class Stop:
    """Turns SIGTERM, SIGINT and SIGHUP into an orderly end; make it first, in the main thread.

    A signal before `ready` ends the process at once with status 0: there is nothing to drain.
    """

    def __init__(self) -> None:
        self._asked = False
        self._ready = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._handle)

    def ready(self, message: str) -> None:
        """Prints `message` and then the line `ready`; from now on a signal only ends `wait`."""
        self._ready = True
        commandline.say(message, "ready")

    def wait(self) -> None:
        """Returns when a signal has come."""
        while not self._asked:
            time.sleep(_LOOK_SECONDS)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._asked = True
        if not self._ready:
            raise SystemExit(0)
