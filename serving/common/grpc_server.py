"""The gRPC server of both servers: with limits, bound to one address, drained before it stops."""

import functools
import os
import socket
import stat
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from tfmacer.common.errors import UserError

if TYPE_CHECKING:  # generic in the type stubs, not in the library
    Interceptor = grpc.ServerInterceptor[Any, Any]
else:
    Interceptor = grpc.ServerInterceptor

# Time limit for a connection's TLS handshake and HTTP/2 preface.
HANDSHAKE_MS = 10_000
# Grace period of `grpc.Server.stop` after the drain, for health checks and the like.
STOP_SECONDS = 0.5


class Drain(Interceptor):
    """Lets calls under way finish while it refuses new ones with UNAVAILABLE.

    `grpc.Server.stop` alone answers calls that arrive meanwhile with either UNAVAILABLE or
    CANCELLED. Health checks and other streams of requests are let through and not waited for.
    """

    def __init__(self) -> None:
        self._draining = False
        self._inside = 0
        self._changed = threading.Condition()

    def drain(self, seconds: float) -> None:
        """Refuses new calls, and returns when the others have ended or `seconds` have passed."""
        with self._changed:
            self._draining = True
            self._changed.wait_for(lambda: self._inside == 0, seconds)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Any],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps a call's handler."""
        handler = continuation(handler_call_details)
        health = handler_call_details.method.startswith("/grpc.health.")
        if handler is None or handler.request_streaming or health:
            return handler
        return _wrapped(handler, self._enter, handler.request_deserializer)

    def _enter(self, request: Any, context: grpc.ServicerContext) -> Any:
        with self._changed:
            draining = self._draining
            self._inside += not draining
        if draining:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        if not context.add_callback(self._leave):
            self._leave()
        return request

    def _leave(self) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()


class Parsing(Interceptor):
    """Answers requests that cannot be parsed with INVALID_ARGUMENT.

    grpc itself answers INTERNAL, as if the fault were the server's, and logs a traceback.
    """

    def __init__(self, on_broken: Callable[[str], None]) -> None:
        """Calls `on_broken` with the full name of a method that was asked so."""
        self._on_broken = on_broken

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Any],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps a call's handler."""
        handler = continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        parse = handler.request_deserializer

        def parse_or_note(data: bytes) -> Any:
            try:
                return parse(data)
            except DecodeError as error:
                return error

        def check(request: Any, context: grpc.ServicerContext) -> Any:
            if isinstance(request, DecodeError):
                self._on_broken(handler_call_details.method)
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request cannot be parsed")
            return request

        return _wrapped(handler, check, parse_or_note)


def _wrapped(
    handler: Any, before: Callable[[Any, grpc.ServicerContext], Any], parse: Callable[[bytes], Any]
) -> Any:
    """The handler of requests that `parse` reads and `before` passes on, or aborts."""
    streamed = "stream" if handler.request_streaming else "unary"
    kind = f"{streamed}_{'stream' if handler.response_streaming else 'unary'}"
    behavior = getattr(handler, kind)

    # Copies the marks of handlers that need no thread, which take one argument more.
    @functools.wraps(behavior)
    def answer(request: Any, context: grpc.ServicerContext, *more: Any) -> Any:
        if handler.request_streaming:
            return behavior((before(each, context) for each in request), context, *more)
        return behavior(before(request, context), context, *more)

    return getattr(grpc, f"{kind}_rpc_method_handler")(
        answer, request_deserializer=parse, response_serializer=handler.response_serializer
    )


def make_server(
    *,
    threads: int,
    max_concurrent_rpcs: int,
    max_message_bytes: int,
    drain: Drain | None = None,
    interceptors: Sequence[Interceptor] = (),
    on_broken: Callable[[str], None] = lambda method: None,
) -> grpc.Server:
    """A server that is not bound yet.

    Args:
      threads: calls handled at once.
      max_concurrent_rpcs: calls beyond this are refused with RESOURCE_EXHAUSTED; those between
        `threads` and this wait.
      max_message_bytes: larger requests are refused with RESOURCE_EXHAUSTED.
      drain: counts the calls under way, to wait for them at the end.
      interceptors: further ones, before it.
      on_broken: see `Parsing`.
    """
    return grpc.server(
        ThreadPoolExecutor(threads, thread_name_prefix="grpc"),
        interceptors=[Parsing(on_broken), *interceptors, *([drain] if drain else [])],
        maximum_concurrent_rpcs=max_concurrent_rpcs,
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            # Otherwise a second server on a port in use would start and take half of its calls.
            ("grpc.so_reuseport", 0),
            # A silent connection is closed after this time instead of two minutes.
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
        ],
    )


def _remove_stale_socket(path: str) -> bool:
    """Removes a UNIX socket on which no process listens; returns whether it was one."""
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        return False
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return True
    return False


def bind(
    server: grpc.Server,
    address: str,
    flag: str,
    credentials: grpc.ServerCredentials | None = None,
) -> int:
    """Binds the server to HOST:PORT or unix:PATH and returns the port.

    A UNIX socket that a killed server left behind is replaced.

    Raises:
      UserError: the address is taken or cannot be used; the message names `flag`.
    """
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if os.path.lexists(path) and not _remove_stale_socket(path):
            raise UserError(f"--{flag}={path}: exists already, and is no socket of a dead server")
    try:
        if credentials is not None:
            return server.add_secure_port(address, credentials)
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise UserError(f"--{flag}: cannot listen on {address}: {error}") from error
