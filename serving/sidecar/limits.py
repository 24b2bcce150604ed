"""Limits on one request, and on calls at the same time."""

import dataclasses
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager

from tfmacer.common.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on one request.

    Attributes:
      max_n0: draws that choose the class.
      max_n: draws that bound its probability; also those of a prediction.
      min_alpha: smallest chance of error.
      max_seconds: that one call may take, whatever its deadline.
    """

    max_n0: int = 100_000
    max_n: int = 1_000_000
    min_alpha: float = 1e-9
    max_seconds: float = 600.0


class TooManyError(UserError):
    """More calls at once than are allowed; to be tried again later."""


class Admission:
    """Limits the calls under way, of all clients together and of each one. Thread-safe."""

    def __init__(self, total: int, per_client: int) -> None:
        self._total = total
        self._per_client = per_client
        self._inside: Counter[str] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def enter(self, client: str) -> Iterator[None]:
        """Counts one call while it runs; raises TooManyError where the limit is reached."""
        with self._lock:
            for inside, limit, what in (
                (self._inside[client], self._per_client, "of this client"),
                (self._inside.total(), self._total, "in all"),
            ):
                if inside >= limit:
                    raise TooManyError(
                        f"certifications under way {what}: {inside}, the limit is {limit}; "
                        "try again later"
                    )
            self._inside[client] += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside[client] -= 1
                self._inside += Counter()  # drops zeros, or every client ever seen would stay

    def inside(self) -> int:
        """Calls under way."""
        with self._lock:
            return self._inside.total()


class FairSlots:
    """Slots for requests at the backend, given to the waiting clients in turn.

    A long certification sends many small requests, each of which waits here; so another client's
    short one gets every other free slot, however many requests were waiting before it.
    """

    def __init__(self, total: int) -> None:
        self._free = total
        self._waiting: OrderedDict[str, deque[threading.Event]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, client: str) -> "ClientSlots":
        """The slots as one client uses them."""
        return ClientSlots(self, client)

    def acquire(self, client: str, timeout: float | None) -> bool:
        """Waits for the client's turn; False where it did not come in `timeout` seconds."""
        granted = threading.Event()
        with self._lock:
            if self._free and not self._waiting:
                self._free -= 1
                return True
            self._waiting.setdefault(client, deque()).append(granted)
        if granted.wait(timeout):
            return True
        with self._lock:
            if granted.is_set():  # between the wait's end and the lock
                return True
            self._waiting[client].remove(granted)
            if not self._waiting[client]:
                del self._waiting[client]
            return False

    def release(self) -> None:
        """Gives the slot to the client whose turn it is."""
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            client, queue = next(iter(self._waiting.items()))
            queue.popleft().set()
            if queue:
                self._waiting.move_to_end(client)
            else:
                del self._waiting[client]

    def waiting(self) -> int:
        """Requests that wait for a slot."""
        with self._lock:
            return sum(map(len, self._waiting.values()))


@dataclasses.dataclass(frozen=True)
class ClientSlots:
    """`tfmacer.votes.remote.Slots` for one client."""

    slots: FairSlots
    client: str

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """See `FairSlots.acquire`."""
        return self.slots.acquire(self.client, timeout if blocking else 0)

    def release(self) -> None:
        """See `FairSlots.release`."""
        self.slots.release()
