"""An HTTP server as both of ours need one: on a thread of its own, draining, failing clearly."""

import socket
import threading

import grpc
import uvicorn
from starlette.types import ASGIApp

from serving.tls import Tls
from tfmacer.errors import UserError

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


class HttpServer:
    """Serves an ASGI application on a thread of its own."""

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        flag: str,
        *,
        tls: Tls | None = None,
        max_connections: int | None = None,
    ) -> None:
        """Binds the address.

        Args:
          app: what answers.
          host: address to listen on.
          port: TCP port.
          flag: which the message of a failure names.
          tls: for HTTPS; None for HTTP.
          max_connections: more are answered with 503; None for no limit.

        Raises:
          UserError: the address is taken or cannot be used, or the TLS files cannot.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise UserError(f"--{flag}={port}: cannot listen on {host}:{port}: {error}") from error
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            log_config=None,  # whatever the process logs with
            log_level="warning",
            access_log=False,
            lifespan="off",
            # A caller must not choose the address that it counts as.
            proxy_headers=False,
            server_header=False,
            limit_concurrency=max_connections,
            **(tls.http_options() if tls else {}),
        )
        try:
            config.load()
        except OSError as error:  # of which ssl.SSLError is one
            self._socket.close()
            raise UserError(f"--{flag}={port}: the TLS files cannot be used: {error}") from error
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name=flag, daemon=True
        )

    def start(self) -> None:
        """Starts answering."""
        self._thread.start()

    def stop(self, grace: float) -> None:
        """Ends after the calls under way, or after `grace` seconds."""
        self._server.config.timeout_graceful_shutdown = max(1, int(grace))
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()
