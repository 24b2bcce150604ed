"""A gRPC server as both of ours need one: bounded, on one address, failing clearly."""

import os
from concurrent.futures import ThreadPoolExecutor

import grpc

from tfmacer.errors import UserError


def make_server(*, threads: int, max_concurrent_rpcs: int, max_message_bytes: int) -> grpc.Server:
    """A server that is not bound yet.

    Args:
      threads: calls handled at once.
      max_concurrent_rpcs: calls beyond this are refused with RESOURCE_EXHAUSTED; those between
        `threads` and this wait.
      max_message_bytes: larger requests are refused with RESOURCE_EXHAUSTED.
    """
    return grpc.server(
        ThreadPoolExecutor(threads, thread_name_prefix="grpc"),
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
