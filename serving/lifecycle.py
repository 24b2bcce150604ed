"""How a server process says that it is ready, and how it ends."""

import signal
import time
from types import FrameType

# Python runs a handler in the main thread alone, but the signal may reach another thread, which
# does not wake it: so it looks by itself.
_LOOK_SECONDS = 0.1


class Stop:
    """Turns SIGTERM and SIGINT into an orderly end; make it in the main thread, before any work.

    A signal before `ready` ends the process at once with status 0: there is nothing to drain.
    """

    def __init__(self) -> None:
        self._asked = False
        self._ready = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def ready(self, message: str) -> None:
        """Prints `message` and then the line `ready`; from now on a signal only ends `wait`."""
        self._ready = True
        print(message, flush=True)
        print("ready", flush=True)

    def wait(self) -> None:
        """Returns when a signal has come."""
        while not self._asked:
            time.sleep(_LOOK_SECONDS)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._asked = True
        if not self._ready:
            raise SystemExit(0)
