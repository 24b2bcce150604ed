"""A call that ends in a gRPC status, on whichever surface it came in."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
import tensorflow as tf

# TensorFlow Serving cuts longer texts and says so.
_MAX_CHARS = 1024
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class StatusError(Exception):
    """A refusal or failure: the gRPC status code and TensorFlow Serving's text for it.

    `final` says that another attempt would end alike.
    """

    def __init__(self, code: grpc.StatusCode, message: str, *, final: bool = False) -> None:
        if len(message) > _MAX_CHARS:
            message = message[:_MAX_CHARS] + "...TRUNCATED"
        super().__init__(message)
        self.code = code
        self.message = message
        self.final = final


def invalid(message: str) -> StatusError:
    """The error of a request that cannot be right, whatever the server's state."""
    return StatusError(grpc.StatusCode.INVALID_ARGUMENT, message)


@contextmanager
def runtime_errors() -> Iterator[None]:
    """Turns TensorFlow's own errors into `StatusError` with the same code and text."""
    try:
        yield
    except tf.errors.OpError as error:
        raise StatusError(_CODES[error.error_code], error.message) from error


def abort(context: grpc.ServicerContext, error: StatusError) -> NoReturn:
    """Ends a gRPC call with the error's status."""
    ended: Any = context.abort(error.code, error.message)
    raise AssertionError(f"abort returned {ended}")
