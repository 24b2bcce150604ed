"""The console as the sidecar runs it: a socket to the gRPC service, and an HTTP server."""

import tempfile
from collections.abc import Collection
from pathlib import Path

import grpc

from serving.common import grpc_server
from serving.common.http_server import MAX_CONNECTIONS, HttpServer
from serving.common.tls import Tls
from serving.console.app import make_app
from serving.console.bridge import Bridge
from serving.sidecar.limits import Limits
from tfmacer.wire.channel import open_channel

FLAG = "http_port"


class Console:
    """Serves the page of one sidecar.

    Attributes:
      url: where the page is.
    """

    def __init__(
        self,
        service: grpc.Server,
        host: str,
        port: int,
        *,
        limits: Limits,
        max_body_bytes: int,
        names: Collection[str] = (),
        tls: Tls | None = None,
    ) -> None:
        """Binds both addresses, or raises UserError; the service must not have been started yet."""
        # Only this user can enter the folder, so only this process connects through it.
        self._folder = tempfile.TemporaryDirectory(prefix="tfmacer-")
        address = f"unix:{Path(self._folder.name) / 'grpc'}"
        grpc_server.bind(service, address, FLAG)
        self._channel = open_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
                ("grpc.enable_retries", 0),
            ],
        )
        app = make_app(
            Bridge(self._channel, threads=MAX_CONNECTIONS), limits, max_body_bytes=max_body_bytes
        )
        self._server = HttpServer(
            app, host, port, FLAG, names=names, max_body_bytes=max_body_bytes, tls=tls
        )
        self.url = self._server.url

    def start(self) -> None:
        """Starts answering; the service must have been started."""
        self._server.start()

    def stop(self, grace: float) -> None:
        """Ends after the calls under way, or after `grace` seconds."""
        self._server.stop(grace)
        self._channel.close()
        self._folder.cleanup()
