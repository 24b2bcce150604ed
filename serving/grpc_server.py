"""A gRPC server as both of ours need one: bounded, draining, on one address, failing clearly."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc

from tfmacer.errors import UserError

if TYPE_CHECKING:  # generic in the type stubs, not in the library
    Interceptor = grpc.ServerInterceptor[Any, Any]
else:
    Interceptor = grpc.ServerInterceptor

# Seconds left to health checks and the like after the drain.
LAST_WORDS = 0.5


class Drain(Interceptor):
    """Lets calls under way finish while it refuses new ones with UNAVAILABLE.

    `grpc.Server.stop` alone answers what comes in meanwhile with UNAVAILABLE or CANCELLED, as it
    happens. Health checks and other streams of requests are let through and not waited for.
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
        if handler is None or handler_call_details.method.startswith("/grpc.health."):
            return handler
        coders = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            one = handler.unary_unary

            def answer(request: Any, context: grpc.ServicerContext) -> Any:
                self._enter(context)
                return one(request, context)

            return grpc.unary_unary_rpc_method_handler(answer, **coders)
        if handler.unary_stream:
            many = handler.unary_stream

            def answers(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
                self._enter(context)
                yield from many(request, context)

            return grpc.unary_stream_rpc_method_handler(answers, **coders)
        return handler

    def _enter(self, context: grpc.ServicerContext) -> None:
        with self._changed:
            draining = self._draining
            self._inside += not draining
        if draining:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        if not context.add_callback(self._leave):
            self._leave()

    def _leave(self) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify_all()


def make_server(
    *,
    threads: int,
    max_concurrent_rpcs: int,
    max_message_bytes: int,
    drain: Drain | None = None,
    interceptors: Sequence[Interceptor] = (),
) -> grpc.Server:
    """A server that is not bound yet.

    Args:
      threads: calls handled at once.
      max_concurrent_rpcs: calls beyond this are refused with RESOURCE_EXHAUSTED; those between
        `threads` and this wait.
      max_message_bytes: larger requests are refused with RESOURCE_EXHAUSTED.
      drain: knows the calls under way, for an orderly end.
      interceptors: further ones, before it.
    """
    return grpc.server(
        ThreadPoolExecutor(threads, thread_name_prefix="grpc"),
        interceptors=[*interceptors, *([drain] if drain else [])],
        maximum_concurrent_rpcs=max_concurrent_rpcs,
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            # Otherwise a second server on a port in use would start and take half of its calls.
            ("grpc.so_reuseport", 0),
        ],
    )


def bind(
    server: grpc.Server,
    address: str,
    flag: str,
    credentials: grpc.ServerCredentials | None = None,
) -> int:
    """Binds the server to HOST:PORT or unix:PATH and returns the port.

    Raises:
      UserError: the address is taken or cannot be used; the message names `flag`.
    """
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if os.path.exists(path):
            raise UserError(f"--{flag}={path}: exists already; remove what a dead server left")
    try:
        if credentials is not None:
            return server.add_secure_port(address, credentials)
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise UserError(f"--{flag}: cannot listen on {address}: {error}") from error
