"""The versions of one model: loaded, served, unloaded once no call uses them.

States and their order are TensorFlow Serving's: new versions are loaded before old ones go, the
highest first; an old one goes only once an aspired one is available, or when none is aspired; a
version whose load failed ends there and is not tried again while it stays aspired. One that is
refused for what it would do, which TensorFlow Serving never does, is tried once.
"""

import dataclasses
import enum
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from serving.model_server.servable import Servable
from serving.model_server.status import StatusError
from tfmacer.common.text import cut

logger = logging.getLogger(__name__)


class State(enum.IntEnum):
    """Numbers and names as in `ModelVersionStatus.State`."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclasses.dataclass(frozen=True)
class VersionStatus:
    """What GetModelStatus says of a version; `error` is None unless its load failed."""

    version: int
    state: State
    error: StatusError | None


@dataclasses.dataclass(eq=False)
class _Version:
    number: int
    path: Path
    state: State = State.START
    error: StatusError | None = None
    servable: Servable | None = None
    users: int = 0
    # Whether it has been unaspired since it was loaded: only then does END allow a new start.
    dropped: bool = False


@dataclasses.dataclass(frozen=True)
class LoadPolicy:
    """How a version is loaded, and how often it is retried."""

    load: Callable[[Path], Servable]
    retries: int
    retry_seconds: float


class Versions:
    """Keeps one model's versions as they are aspired to, on a thread of its own."""

    def __init__(
        self, name: str, policy: LoadPolicy, predecessor: "Versions | None" = None
    ) -> None:
        """Serves nothing yet; a predecessor, at another base path, answers until these can."""
        self.name = name
        self._policy = policy
        self._predecessor = predecessor
        self._versions: dict[int, _Version] = {}
        self._aspired: dict[int, Path] = {}
        # Guards all of the above; notified at every change of state, use or aspiration.
        self._changed = threading.Condition()
        self._stopping = False
        self._pending = False
        self._thread = threading.Thread(target=self._keep, name=f"versions-{name}", daemon=True)
        self._thread.start()

    def aspire(self, versions: dict[int, Path]) -> None:
        """Sets which versions there should be; returns at once."""
        with self._changed:
            if versions != self._aspired:
                self._aspired = dict(versions)
                self._drop_others()
                self._pending = True
                self._changed.notify_all()

    def give_way(self) -> "Versions":
        """Returns those that answer: these, or the predecessor's, and then these are stopped.

        So that no chain grows where one configuration after the other finds no version.
        """
        with self._changed:
            predecessor, self._predecessor = self._predecessor, None
        if predecessor is None:
            return self
        self.stop(timeout=0)
        return predecessor

    def stop(self, timeout: float | None = None) -> bool:
        """Unloads everything once the calls under way have ended; waits up to `timeout` seconds.

        Returns:
          Whether everything is unloaded.
        """
        with self._changed:
            self._aspired = {}
            self._drop_others()
            self._stopping = True
            self._changed.notify_all()
            predecessor, self._predecessor = self._predecessor, None
        self._thread.join(timeout)
        ended = not self._thread.is_alive()
        return ended if predecessor is None else predecessor.stop(timeout) and ended

    def statuses(self) -> list[VersionStatus]:
        """Every version ever seen, newest first; of two with one number, the one that answers."""
        with self._changed:
            found = {status.version: status for status in self._own_statuses()}
            if self._predecessor is not None:
                answering = [s for s in self._predecessor.statuses() if s.state is State.AVAILABLE]
                found |= {status.version: status for status in answering}
            return [found[number] for number in sorted(found, reverse=True)]

    def failures(self) -> list[VersionStatus]:
        """Versions whose load failed, newest first; not those of the predecessor."""
        with self._changed:
            return [status for status in self._own_statuses() if status.error is not None]

    def _own_statuses(self) -> list[VersionStatus]:
        ordered = sorted(self._versions.values(), key=lambda v: v.number, reverse=True)
        return [VersionStatus(v.number, v.state, v.error) for v in ordered]

    def available(self, version: int) -> bool:
        """Whether that version answers requests."""
        with self._changed:
            if self._predecessor is not None:
                return self._predecessor.available(version)
            return self._serving(version) is not None

    def wait_available(self, timeout: float | None = None) -> bool:
        """Waits for a first available version.

        Returns:
          True once there is one, False when every aspired version has failed to load, or after
          `timeout` seconds.
        """
        with self._changed:
            self._changed.wait_for(self.settled, timeout)
            return self._serving(None) is not None

    def settled(self) -> bool:
        """Whether a version is available, or every aspired one has failed to load."""
        with self._changed:
            aspired = [self._versions.get(number) for number in self._aspired]
            failed = bool(aspired) and all(v is not None and v.error for v in aspired)
            return failed or self._serving(None) is not None or self._stopping

    @contextmanager
    def use(self, version: int | None) -> Iterator[tuple[int, Servable]]:
        """Holds a version (None: the highest available one) while it answers.

        Raises:
          StatusError: NOT_FOUND, it is not available.
        """
        owner, held = self._hold(version)
        if held is None or held.servable is None:
            raise not_found(self.name, version)
        try:
            yield held.number, held.servable
        finally:
            owner._release(held)

    def _hold(self, number: int | None) -> "tuple[Versions, _Version | None]":
        """Counts a user of a version, or of the predecessor's while that answers."""
        with self._changed:
            if self._predecessor is not None:
                return self._predecessor._hold(number)
            if (held := self._serving(number)) is not None:
                held.users += 1
            return self, held

    def _release(self, held: _Version) -> None:
        with self._changed:
            held.users -= 1
            self._changed.notify_all()

    def _serving(self, number: int | None) -> _Version | None:
        available = [v for v in self._versions.values() if v.state is State.AVAILABLE]
        if number is None:
            return max(available, key=lambda v: v.number, default=None)
        return next((v for v in available if v.number == number), None)

    def _keep(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending or self._stopping)
                self._pending = False
                stopping = self._stopping
            for version in self._to_load():
                self._load(version)
            for version in self._to_unload():
                self._unload(version)
            if stopping:
                return

    def _to_load(self) -> list[_Version]:
        with self._changed:
            new = []
            for number, path in sorted(self._aspired.items(), reverse=True):
                known = self._versions.get(number)
                if known is not None and not (known.state is State.END and known.dropped):
                    continue
                self._versions[number] = _Version(number, path)
                new.append(self._versions[number])
            return new

    def _to_unload(self) -> list[_Version]:
        with self._changed:
            aspired = [self._serving(number) for number in self._aspired]
            if self._aspired and not any(aspired):
                return []
            return [
                version
                for version in self._versions.values()
                if version.number not in self._aspired and version.state is State.AVAILABLE
            ]

    def _drop_others(self) -> None:
        for version in self._versions.values():
            if version.number not in self._aspired:
                version.dropped = True

    def _load(self, version: _Version) -> None:
        if version.dropped:  # while another one was loaded
            self._set(version, State.END)
            return
        for attempt in range(1 + self._policy.retries):
            self._set(version, State.LOADING)
            logger.info("loading %s version %d", self.name, version.number)
            try:
                servable = self._policy.load(version.path)
            except Exception as error:
                # A broken export may raise anything; that must end this version, never this thread.
                failure = _as_status(error)
                logger.error(
                    "loading %s version %d failed (attempt %d): %s",
                    self.name,
                    version.number,
                    attempt + 1,
                    failure,
                )
            else:
                version.servable = servable
                self._set(version, State.AVAILABLE)
                self._retire_predecessor()
                logger.info("serving %s version %d", self.name, version.number)
                return
            last = failure.final or attempt == self._policy.retries
            if last or not self._wait_to_retry(version):
                break
        version.error = failure
        self._set(version, State.END)

    def _retire_predecessor(self) -> None:
        with self._changed:
            predecessor, self._predecessor = self._predecessor, None
        if predecessor is not None:
            predecessor.stop(timeout=0)

    def _wait_to_retry(self, version: _Version) -> bool:
        """Sleeps; returns False as soon as the version is no longer aspired."""
        with self._changed:
            return not self._changed.wait_for(
                lambda: version.number not in self._aspired, self._policy.retry_seconds
            )

    def _unload(self, version: _Version) -> None:
        self._set(version, State.UNLOADING)
        with self._changed:
            self._changed.wait_for(lambda: version.users == 0)
            servable, version.servable = version.servable, None
        if servable is not None:
            servable.close()
        self._set(version, State.END)
        logger.info("unloaded %s version %d", self.name, version.number)

    def _set(self, version: _Version, state: State) -> None:
        with self._changed:
            version.state = state
            self._changed.notify_all()


def not_found(name: str, version: int | None) -> StatusError:
    """TensorFlow Serving's answer where nothing can be served for a request."""
    name = cut(name)
    asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
    return StatusError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {asked}")


def _as_status(error: Exception) -> StatusError:
    if isinstance(error, StatusError):
        return error
    return StatusError(grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}")
