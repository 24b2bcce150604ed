"""Forwards an HTTP request to the sidecar's gRPC service, and its answer or cancellation back.

Going through gRPC, over a UNIX socket of this process, means that admission, fairness, limits,
deadlines, metrics and the audit log are those of every other caller.
"""

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import quote

import anyio
import anyio.to_thread
import grpc
from google.protobuf.message import Message
from starlette.requests import Request

from serving import certification_pb2 as pb
from serving.certification_pb2_grpc import CertifierStub
from serving.common.http_server import TLS_SUBJECT
from serving.common.logs import REQUEST_ID
from serving.sidecar.calls import FORWARDED_CLIENT

T = TypeVar("T")


class RefusedError(Exception):
    """A gRPC status other than OK.

    Attributes:
      code: the status.
      message: for the caller.
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Bridge:
    """Calls the service. Belongs to one event loop."""

    def __init__(self, channel: grpc.Channel, *, threads: int) -> None:
        """Up to `threads` calls may be waited for at once."""
        self._stub = CertifierStub(channel)
        self._limiter = anyio.CapacityLimiter(threads)

    async def answer(self, request: Request, method: str, message: Message) -> Any:
        """What `Certifier` answers by a method that does not stream."""
        call = getattr(self._stub, method).future(message, metadata=_metadata(request))
        with _cancelled_on_disconnect(request, call):
            return await self._wait(call, call.result)

    async def model(self, request: Request) -> pb.Model:
        """See `Certifier.GetModel`."""
        found: pb.Model = await self.answer(request, "GetModel", pb.GetModelRequest())
        return found

    async def certify_stream(
        self, request: Request, message: pb.CertifyRequest
    ) -> AsyncGenerator[pb.Certificate]:
        """See `Certifier.CertifyStream`; returns when the first certificate is there.

        The call ends when the iterator is closed.
        """
        call: Any = self._stub.CertifyStream(message, metadata=_metadata(request))
        with _cancelled_on_disconnect(request, call):
            first = await self._wait(call, lambda: next(call, None))

        async def certificates() -> AsyncGenerator[pb.Certificate]:
            certificate = first
            try:
                while certificate is not None:
                    yield certificate
                    certificate = await self._wait(call, lambda: next(call, None))
            finally:
                call.cancel()

        return certificates()

    async def _wait(self, call: Any, blocking: Callable[[], T]) -> T:
        """Runs `blocking` on a thread; cancellation ends the call, and with it the thread."""
        try:
            return await anyio.to_thread.run_sync(
                blocking, abandon_on_cancel=True, limiter=self._limiter
            )
        except grpc.FutureCancelledError as error:
            raise RefusedError(grpc.StatusCode.CANCELLED, "the caller has gone") from error
        except grpc.RpcError as error:
            raise RefusedError(call.code(), call.details() or "") from error
        except asyncio.CancelledError:
            call.cancel()
            raise


@contextlib.contextmanager
def _cancelled_on_disconnect(request: Request, call: Any) -> Iterator[None]:
    """Cancels the call when the caller closes the connection meanwhile."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        call.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()


def _metadata(request: Request) -> tuple[tuple[str, str], ...]:
    return (REQUEST_ID, request.state.request_id), (FORWARDED_CLIENT, client_of(request))


def client_of(request: Request) -> str:
    """The browser's certificate or else its address, written as gRPC has it of a direct caller."""
    if name := getattr(request.state, TLS_SUBJECT, None):
        return f"x509_subject:{name}"
    host = request.client.host if request.client else ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"http:{quote(host)}"
    return f"ipv4:{host}" if address.version == 4 else f"ipv6:{quote(f'[{host}]', safe=':')}"
