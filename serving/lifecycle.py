"""How a server process says that it is ready, and how it ends."""

import signal
import threading
from types import FrameType


class Stop:
    """Turns SIGTERM and SIGINT into an orderly end; make it in the main thread, before any work.

    A signal before `ready` ends the process at once with status 0: there is nothing to drain.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
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
        self._asked.wait()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._asked.set()
        if not self._ready:
            raise SystemExit(0)
