"""Bytes that are no request at all, as messages and straight onto the ports."""

import contextlib
import socket

import grpc
import pytest
from fuzzing import fuzz, times
from hypothesis import strategies as st

DEADLINE = 10.0
# How long a server may think about bytes that end; one that waits for more is left.
READ_SECONDS = 0.2
TRACES = (b"Traceback", b'File "')
METHODS = {
    "8600": [
        "/tfmacer.v1.Certifier/GetModel",
        "/tfmacer.v1.Certifier/Predict",
        "/tfmacer.v1.Certifier/Certify",
        "/tfmacer.v1.Certifier/Nothing",
        "/grpc.health.v1.Health/Check",
    ],
    "8500": [
        "/tensorflow.serving.PredictionService/Predict",
        "/tensorflow.serving.PredictionService/GetModelMetadata",
        "/tensorflow.serving.PredictionService/Classify",
        "/tensorflow.serving.ModelService/GetModelStatus",
        "/grpc.health.v1.Health/Check",
    ],
}
# Besides what well-formed requests may get: gRPC's own word for bytes that are no message.
UNREADABLE = "Exception deserializing request!"
CODES = {
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "UNIMPLEMENTED",
    "RESOURCE_EXHAUSTED",
}
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


@pytest.mark.parametrize("port", METHODS)
@times(20)
def test_messages(stack, port, count):
    def check(example):
        method, message = example
        call = channel.unary_unary(method).future(message, timeout=DEADLINE)
        code, text = call.code().name, call.details()
        unreadable = (code, text) == ("INTERNAL", UNREADABLE)
        assert unreadable or code in CODES, f"{method} {message!r}: {code} {text}"

    with grpc.insecure_channel(stack.address(port)) as channel:
        fuzz(st.tuples(st.sampled_from(METHODS[port]), st.binary(max_size=300)), count, check)
    stack.check_alive()


def _frames():
    """HTTP/2 after its preface: frames whose headers mean little."""
    frame = st.builds(
        lambda size, kind, flags, stream, body: (
            size.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body
        ),
        st.one_of(st.integers(0, 64), st.integers(0, 2**24 - 1)),
        st.integers(0, 12),
        st.integers(0, 255),
        st.one_of(st.sampled_from([0, 1, 3]), st.integers(0, 2**32 - 1)),
        st.binary(max_size=64),
    )
    return st.lists(frame, max_size=4).map(lambda frames: PREFACE + SETTINGS + b"".join(frames))


BYTES = st.one_of(
    st.binary(max_size=600),
    _frames(),
    # HTTP with what browsers do not send.
    st.binary(max_size=200).map(lambda junk: b"GET /v1/models/" + junk + b" HTTP/1.1\r\n\r\n"),
    st.binary(max_size=200).map(
        lambda junk: b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: " + junk + b"\r\n\r\n"
    ),
    st.binary(max_size=200).map(
        lambda junk: b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffff\r\n" + junk
    ),
    st.integers(1, 70_000).map(lambda size: b"GET / HTTP/1.1\r\nX: " + b"x" * size + b"\r\n\r\n"),
    # The first bytes of TLS.
    st.binary(max_size=200).map(
        lambda junk: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + junk
    ),
)


@pytest.mark.parametrize("port", ["8600", "8500", "8501", "8080", "9464"])
@times(8)
def test_ports(stack, port, count):
    def check(sent):
        answer = _exchange(stack.ports[port], sent)
        assert not any(trace in answer for trace in TRACES), answer

    fuzz(BYTES, count, check)
    stack.check_alive()


def _exchange(port, sent):
    """What comes back until the server ends the connection, or thinks too long."""
    answer = b""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as connection,
        # A server may hang up before it has read all: that is an answer too.
        contextlib.suppress(OSError),
    ):
        connection.sendall(sent)
        connection.settimeout(READ_SECONDS)
        connection.shutdown(socket.SHUT_WR)
        while chunk := connection.recv(65536):
            answer += chunk
    return answer
