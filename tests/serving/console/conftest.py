"""The console in front of a sidecar in this process."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import portpicker
import pytest
from fake_backend import SMOOTHING, FakeBackend
from starlette.testclient import TestClient

from serving.common import grpc_server
from serving.common.http_guard import Guard
from serving.console.app import make_app
from serving.console.bridge import Bridge
from serving.console.server import Console
from serving.sidecar.limits import Limits


@pytest.fixture
def client(start: Callable[..., Any], tmp_path) -> Iterator[Callable[..., TestClient]]:
    """Makes clients of the application alone, at 203.0.113.7; `client.sidecar` is behind it."""
    with contextlib.ExitStack() as stack:

        def make(
            *, max_body_bytes: int = 2**16, limits: Limits | None = None, **options: Any
        ) -> TestClient:
            address = f"unix:{tmp_path / 'grpc'}"
            sidecar = start(
                limits=limits,
                before_start=lambda server: grpc_server.bind(server, address, "http_port"),
                **options,
            )
            channel = stack.enter_context(grpc.insecure_channel(address))
            app = make_app(
                Bridge(channel, threads=8), limits or Limits(), max_body_bytes=max_body_bytes
            )
            made = TestClient(
                Guard(app, ("localhost", "[::1]"), max_body_bytes),
                base_url="http://localhost",
                raise_server_exceptions=False,
                client=("203.0.113.7", 5000),
            )
            made.sidecar = sidecar
            return stack.enter_context(made)

        yield make


@dataclasses.dataclass
class Served:
    """A console that listens."""

    url: str
    sidecar: Any
    console: Console


@pytest.fixture
def served(start: Callable[..., Any]) -> Iterator[Callable[..., Served]]:
    """Starts consoles that listen; `tls` goes to the console, the rest to the sidecar."""
    with contextlib.ExitStack() as stack:

        def make(*, tls: Any = None, **options: Any) -> Served:
            made: list[Console] = []

            def attach(server: grpc.Server) -> None:
                port = portpicker.pick_unused_port()
                made.append(
                    Console(
                        server, "127.0.0.1", port, limits=Limits(), max_body_bytes=2**20, tls=tls
                    )
                )

            sidecar = start(before_start=attach, **options)
            (console,) = made
            console.start()
            stack.callback(console.stop, 1)
            return Served(console.url.rstrip("/"), sidecar, console)

        yield make


@pytest.fixture
def digits(backend: FakeBackend) -> FakeBackend:
    """The backend with the shape of a digit model, in no hurry."""
    backend.smoothing = dataclasses.replace(
        SMOOTHING, num_classes=10, input_shape=(28, 28, 1), block_size=64
    )
    backend.probabilities = [0.01] * 3 + [0.91] + [0.01] * 6
    return backend
