"""How a server process announces that it is ready, and ends."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from tfmacer.common import commandline

# Python runs signal handlers in the main thread only, but a signal that reaches another thread does
# not wake the main thread: so it polls.
_LOOK_SECONDS = 0.1


def exit_at_once(main: Callable[[], int]) -> NoReturn:
    """Ends the process with what `main` returns, without shutting the interpreter down.

    TensorFlow aborts (SIGABRT) if the interpreter shuts down while another thread loads a model.
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
    """Turns SIGTERM, SIGINT and SIGHUP into an orderly end; create it first, in the main thread.

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
