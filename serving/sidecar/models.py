"""Follows which version of the model the backend serves."""

import logging
import threading
from collections.abc import Callable

import grpc

from tfmacer.common.errors import UserError
from tfmacer.votes.endpoint import BackendError, Endpoint, ServedModel, check_served, served_model

logger = logging.getLogger(__name__)

# Time limit of one request about the model, in seconds: short, since it is sent again soon.
POLL_TIMEOUT = 5.0


class Models:
    """Follows the newest available version of one model at an endpoint.

    A failed request keeps the known version: the call that uses it retries, and reports what is
    wrong if that does not help. It is forgotten only where the backend answers that it has none.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        model_name: str,
        *,
        digest: str = "",
        on_health: Callable[[bool], None] = lambda healthy: None,
    ) -> None:
        """Asks nothing yet. An empty `digest` accepts any; `on_health` is told after every poll."""
        self._endpoint = endpoint
        self._model_name = model_name
        self._digest = digest
        self._on_health = on_health
        self._current: ServedModel | None = None
        self._error: BackendError | None = None
        self._look = threading.Event()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def current(self) -> ServedModel:
        """The version to use now; raises BackendError where none can be certified."""
        if self._current is None:
            raise self._error or BackendError(
                grpc.StatusCode.UNAVAILABLE, f"backend {self._endpoint.target}: not asked yet"
            )
        return self._current

    def available(self) -> ServedModel | None:
        """The version that certificates are drawn from; None where the last look failed."""
        return self._current if self._error is None else None

    def refresh(self, timeout: float = POLL_TIMEOUT) -> None:
        """Asks the backend once; each of the two requests may take `timeout` seconds.

        Raises:
          BackendError: the backend cannot be reached, or what it serves cannot be certified.
        """
        try:
            versions = self._endpoint.available_versions(self._model_name, timeout=timeout)
            if not versions:
                self._current = None  # or every call would find out after its draws
                raise BackendError(
                    grpc.StatusCode.UNAVAILABLE,
                    f"backend {self._endpoint.target}: no version of model {self._model_name} "
                    "is available",
                )
            # Every time: a restarted server may have another model under the same number.
            found = self._describe(versions[-1], timeout)
            if self._current != found:
                self._current = found
                logger.info("certifying %s version %d", self._model_name, versions[-1])
            self._error = None
        except BackendError as error:
            if error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
                # The deadline of the request made here, not of the call that this error will reach.
                error.code = grpc.StatusCode.UNAVAILABLE
            self._error = error
            if error.code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND):
                self._current = None  # never certify another version than the one served
            raise
        finally:
            self._on_health(self._error is None)

    def check_unchanged(self, used: ServedModel, *, timeout: float = POLL_TIMEOUT) -> None:
        """See `check_served`."""
        check_served(self._endpoint, used, timeout=timeout)

    def start(self, poll_seconds: float) -> None:
        """Polls the backend on a thread of its own."""

        def poll() -> None:
            while not self._stopped.is_set():
                self._look.wait(poll_seconds)
                self._look.clear()
                before = self._error
                try:
                    self.refresh()
                except BackendError as error:
                    if before is None or str(before) != str(error):
                        logger.warning("%s", error)

        self._endpoint.watch(self._connection)
        self._thread = threading.Thread(target=poll, name="models", daemon=True)
        self._thread.start()

    def _connection(self, state: grpc.ChannelConnectivity) -> None:
        """Reports a dead backend at once; a poll would retry for seconds."""
        if state is grpc.ChannelConnectivity.IDLE:
            self.look_now()  # which connects again, or fails to
        elif state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            self._on_health(False)

    def look_now(self) -> None:
        """Polls now, because something suggests that the version has changed."""
        self._look.set()

    def stop(self) -> None:
        """Stops polling and reporting health."""
        self._on_health = lambda healthy: None
        self._stopped.set()
        self._look.set()
        if self._thread is not None:
            self._thread.join(2 * POLL_TIMEOUT)

    def _describe(self, version: int, timeout: float) -> ServedModel:
        model = served_model(self._endpoint, self._model_name, version=version, timeout=timeout)
        found = model.smoothing
        origin = f"backend {self._endpoint.target}: model {model.name} version {version}"
        if self._digest and found.model_digest != self._digest:
            raise BackendError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"{origin} has digest {found.model_digest}, --model_digest is {self._digest}",
            )
        try:
            _ = found.distribution  # made here, once, or refused
        except UserError as error:
            raise BackendError(grpc.StatusCode.FAILED_PRECONDITION, f"{origin}: {error}") from error
        return model
