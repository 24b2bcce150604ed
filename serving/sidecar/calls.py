"""What every call of the service has: an id, a client, a deadline, a log line and a status."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator

import grpc

from serving.common.logs import FIELD, REQUEST_ID, safe_request_id
from serving.sidecar.limits import Admission, TooManyError
from serving.sidecar.metrics import Metrics
from serving.sidecar.tracing import OFF, Tracing
from tfmacer.common.errors import UserError
from tfmacer.votes.endpoint import BackendError

logger = logging.getLogger(__name__)

# The certificate's subject or the address of the console's caller, see `client_of`.
FORWARDED_CLIENT = "x-tfmacer-client"
# Subtracted from a caller's deadline, in seconds, so that the answer still arrives.
DEADLINE_MARGIN = 0.15


@dataclasses.dataclass
class Call:
    """One call under way.

    Attributes:
      method: its name.
      request_id: the caller's own, or a fresh one.
      client: for the limits of one client: the certificate's subject under mutual TLS, else the
        peer's address without its port.
      deadline: on `time.monotonic()`'s clock.
      outcome: how it ended, for log and metrics.
      notes: what else the log line says.
    """

    method: str
    request_id: str
    client: str
    deadline: float
    outcome: str = ""
    notes: dict[str, object] = dataclasses.field(default_factory=dict)

    def remaining(self) -> float:
        """Seconds until the deadline, 0 or more."""
        return max(0.0, self.deadline - time.monotonic())

    def out_of_time(self) -> bool:
        """Whether the deadline has come, by this clock or by that of a request that ended at it."""
        return time.monotonic() >= self.deadline - DEADLINE_MARGIN / 3


class Calls:
    """Opens and ends calls."""

    def __init__(
        self,
        admission: Admission,
        metrics: Metrics,
        *,
        max_seconds: float,
        tracing: Tracing = OFF,
    ) -> None:
        self._admission = admission
        self._metrics = metrics
        self._tracing = tracing
        self._max_seconds = max_seconds

    @contextlib.contextmanager
    def open(
        self, context: grpc.ServicerContext, method: str, *, draws: bool = True
    ) -> Iterator[Call]:
        """Runs the body as one call, admitted if it draws; what it raises becomes a gRPC status."""
        started = time.monotonic()
        remaining = context.time_remaining()
        seconds = self._max_seconds
        if remaining is not None:
            seconds = min(seconds, remaining - DEADLINE_MARGIN)
        call = Call(method, _request_id(context), client_of(context), started + seconds)
        context.send_initial_metadata(((REQUEST_ID, call.request_id),))
        failure: tuple[grpc.StatusCode, str] | None = None
        try:
            with self._admission.enter(call.client) if draws else contextlib.nullcontext():
                yield call
        except GeneratorExit:
            call.outcome = grpc.StatusCode.CANCELLED.name
            raise
        except Exception as error:
            failure = _status_of(error, call)
            call.outcome = failure[0].name
        finally:
            self._ended(call, time.monotonic() - started, failure)
        if failure is not None:
            context.abort(*failure)

    def _ended(
        self, call: Call, seconds: float, failure: tuple[grpc.StatusCode, str] | None
    ) -> None:
        self._metrics.requests.labels(call.method, call.outcome).inc()
        self._metrics.seconds.labels(call.method).observe(seconds)
        fields = {
            "request_id": call.request_id,
            "client": call.client,
            "method": call.method,
            "outcome": call.outcome,
            "seconds": round(seconds, 6),
            **call.notes,
        }
        self._tracing.note(fields)
        logger.info(failure[1] if failure else "answered", extra={FIELD: fields})


def client_of(context: grpc.ServicerContext) -> str:
    """The client that a call counts for: a certificate's subject, else an address."""
    auth = context.auth_context()
    for key in ("x509_subject", "x509_common_name"):
        values = list(auth.get(key, ()))
        if values and isinstance(values[0], bytes) and values[0]:
            return f"{key}:{values[0].decode(errors='replace')}"
    peer = context.peer()
    kind, _, address = peer.partition(":")
    if kind == "unix":
        # The only UNIX socket is the console's, in a folder that no other user can enter.
        return _metadata(context, FORWARDED_CLIENT) or peer
    return f"{kind}:{address.rpartition(':')[0]}"


def _request_id(context: grpc.ServicerContext) -> str:
    return safe_request_id(_metadata(context, REQUEST_ID))


def _metadata(context: grpc.ServicerContext, wanted: str) -> str | None:
    for key, value in context.invocation_metadata():
        if key == wanted and isinstance(value, str):
            return value
    return None


def _status_of(error: Exception, call: Call) -> tuple[grpc.StatusCode, str]:
    if isinstance(error, BackendError):
        return error.code, str(error)
    if isinstance(error, TooManyError):
        return grpc.StatusCode.RESOURCE_EXHAUSTED, str(error)
    if isinstance(error, UserError):
        return grpc.StatusCode.INVALID_ARGUMENT, str(error)
    logger.error("request %s failed", call.request_id, exc_info=error, extra={FIELD: call.notes})
    return grpc.StatusCode.INTERNAL, f"internal error; request id {call.request_id}"
