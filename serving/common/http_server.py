"""The HTTP server of both servers: on a thread of its own, with limits, drained before it stops."""

import asyncio
import errno
import logging
import math
import resource
import socket
import threading
from collections.abc import Collection
from typing import Any

import grpc
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving.common.http_guard import LOOPBACK, Guard, Refusal, described
from serving.common.tls import Tls, subject
from tfmacer.common.errors import UserError

logger = logging.getLogger(__name__)

# As google.rpc.Code has them.
HTTP_STATUS = {
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}
# Seconds that a request's first line and headers may take to arrive.
HEAD_SECONDS = 10.0
# Connections beyond these are answered with 503, and of one address more than half are closed.
MAX_CONNECTIONS = 256
# Connections that may wait to be accepted.
BACKLOG = 128
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
MAX_BODY_BYTES = 64 * 2**20
# Key of a request's state: the subject of the caller's certificate, under mutual TLS.
TLS_SUBJECT = "tls_subject"


class _Connection(H11Protocol):
    """A connection that is closed when it sends no request, or takes nothing of its answer.

    uvicorn has no time limit for a first request, nor for the rest of one that has begun, nor for
    an answer.
    """

    head_seconds: float
    max_per_address: int
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accepts the connection, unless its address has too many already."""
        super().connection_made(transport)
        if self.client is not None:  # asyncio does so for sockets that name their protocol alone
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._from_there() > self.max_per_address:
            transport.abort()
            return
        session = transport.get_extra_info("ssl_object")
        if session is not None and (name := subject(session.getpeercert())):
            self.app_state = {**self.app_state, TLS_SUBJECT: name}
        self._wait_for_a_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Handles what has arrived; a request under way has no time limit here."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._waiting is None:
            self._wait_for_a_head()

    def on_response_complete(self) -> None:
        """Waits for the next request, and where there will be none until the answer has left."""
        super().on_response_complete()
        if self.transport.is_closing() and self._waiting is None:
            self._wait_for_a_head()

    def _from_there(self) -> int:
        """Connections from this one's address, itself included; 0 for UNIX sockets."""
        if self.client is None:
            return 0
        peers = [getattr(connection, "client", None) for connection in self.connections]
        return sum(peer is not None and peer[0] == self.client[0] for peer in peers)

    def _wait_for_a_head(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        self._waiting = self.loop.call_later(self.head_seconds, self._waited, unsent)

    def _waited(self, unsent: int) -> None:
        if self.transport.get_write_buffer_size() < unsent:  # a large answer, over a slow line
            self._wait_for_a_head()
        else:
            self.transport.abort()

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class _Accepting:
    """Logs failures of the event loop; that file descriptors have run out, at most once a second.

    asyncio reports the latter for each waiting connection, and accepts again a second later.
    """

    def __init__(self) -> None:
        self._said = -math.inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _EXHAUSTED):
            loop.default_exception_handler(context)
        elif loop.time() - self._said >= 1:
            self._said = loop.time()
            logger.error("no further connection is accepted for now: %s", error)


class HttpServer:
    """Serves an ASGI application on a thread of its own, behind the guard.

    Attributes:
      url: of the server.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        flag: str,
        *,
        names: Collection[str] = (),
        max_body_bytes: int = MAX_BODY_BYTES,
        refusal: Refusal = described,
        tls: Tls | None = None,
        max_connections: int = MAX_CONNECTIONS,
        head_seconds: float = HEAD_SECONDS,
    ) -> None:
        """Binds the address.

        Args:
          app: what answers.
          host: address to listen on.
          port: TCP port.
          flag: which the message of a failure names.
          names: host names under which it is asked, besides `localhost`, `host` and any IP
            address.
          max_body_bytes: of a request; larger ones are refused.
          refusal: the JSON of what the guard refuses.
          tls: for HTTPS; None for HTTP.
          max_connections: more are answered with 503, and of one address more than half of them
            are closed; fewer where the process may not have four times as many descriptors.
          head_seconds: how long a connection may be open without a request's head.

        Raises:
          UserError: the address is taken or cannot be used, or the TLS files cannot.
        """
        max_connections = min(max_connections, _affordable_connections())
        host = host.strip("[]")  # as gRPC wants IPv6 addresses written
        bracketed = f"[{host}]" if ":" in host else host
        self.url = f"{'https' if tls else 'http'}://{bracketed}:{port}/"
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise UserError(f"--{flag}={port}: cannot listen on {host}:{port}: {error}") from error
        config = uvicorn.Config(
            Guard(app, {*LOOPBACK, bracketed, *names}, max_body_bytes, refusal),
            loop="asyncio",
            http=_connection(head_seconds, max_connections),
            ws="none",
            log_config=None,  # whatever the process logs with
            log_level="warning",
            access_log=False,
            lifespan="off",
            # A caller must not choose the address that it counts as.
            proxy_headers=False,
            server_header=False,
            limit_concurrency=max_connections,
            backlog=BACKLOG,
            **(tls.http_options() if tls else {}),
        )
        try:
            config.load()
        except OSError as error:  # of which ssl.SSLError is one
            self._socket.close()
            raise UserError(f"--{flag}={port}: the TLS files cannot be used: {error}") from error
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name=flag, daemon=True)

    def start(self) -> None:
        """Starts answering."""
        self._thread.start()

    def _run(self) -> None:
        async def serve() -> None:
            asyncio.get_running_loop().set_exception_handler(_Accepting())
            await self._server.serve([self._socket])

        asyncio.run(serve())

    def stop(self, grace: float) -> None:
        """Ends after the calls under way, or after `grace` seconds."""
        self._server.config.timeout_graceful_shutdown = max(1, int(grace))
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


def _affordable_connections() -> int:
    """A quarter of the file descriptors that this process may have, so that enough are left."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(2, soft // 4)


def _connection(head_seconds: float, max_connections: int) -> type[H11Protocol]:
    # Half: one address alone must not shut the others out, and a proxy must still get far.
    limits = {
        "head_seconds": head_seconds,
        "max_per_address": max(1, max_connections // 2),
    }
    return type("Connection", (_Connection,), limits)
