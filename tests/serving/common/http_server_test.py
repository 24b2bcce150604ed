"""What a server of ours allows a connection that asks for nothing, or for one place too many."""

import asyncio
import contextlib
import errno
import http.client
import logging
import resource
import socket
import ssl
import time

import portpicker
import pytest
import trustme
from authority import issue

from serving.common.http_server import TLS_SUBJECT, HttpServer, _Accepting
from serving.common.tls import Tls

PATIENCE = 60.0
REQUEST = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


async def _app(scope, receive, send):
    """Answers at once, before the body, with the caller's name."""
    name = scope["state"].get(TLS_SUBJECT, "nobody").encode()
    headers = [(b"content-length", str(len(name)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": name})


@pytest.fixture
def served():
    """Starts servers and says on which port."""
    with contextlib.ExitStack() as stack:

        def make(app=_app, **options):
            port = portpicker.pick_unused_port()
            server = HttpServer(app, "127.0.0.1", port, "http_port", **options)
            server.start()
            stack.callback(server.stop, 1)
            return port

        yield make


def _connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def _answer(line):
    """The body that comes for one request; None where the server closes the connection."""
    answer = http.client.HTTPResponse(line)
    try:
        line.sendall(REQUEST)
        answer.begin()
    except (ConnectionResetError, BrokenPipeError):
        return None
    assert answer.status == 200
    return answer.read()


def _is_closed(line):
    """Waits for the other side to close."""
    try:
        while line.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True  # anything else is a TimeoutError


@pytest.mark.parametrize("begun", [b"", b"G", b"GET / HTTP/1.1\r\nhost: localh"])
def test_a_connection_that_does_not_ask_is_closed(served, begun) -> None:
    with _connect(served(head_seconds=0.2)) as line:
        line.sendall(begun)
        assert _is_closed(line)


def test_a_head_that_comes_byte_by_byte_is_too_slow(served) -> None:
    with _connect(served(head_seconds=0.3)) as line:
        limit = time.monotonic() + PATIENCE
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while line.send(b"x"):
                assert time.monotonic() < limit
                time.sleep(0.02)


@pytest.mark.parametrize("begun", [b"", b"GET / HT"])
def test_so_is_a_second_request_after_the_first(served, begun) -> None:
    with _connect(served(head_seconds=0.3)) as line:
        assert _answer(line) == b"nobody"
        line.sendall(begun)
        assert _is_closed(line)


def test_a_body_that_nobody_waits_for_holds_no_connection(served) -> None:
    with _connect(served(head_seconds=0.3)) as line:
        line.sendall(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n1")
        assert line.recv(4096).startswith(b"HTTP/1.1 200")
        line.sendall(b"2")
        assert _is_closed(line)


LARGE = 64 * 2**20


async def _large_app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(LARGE)})


def test_a_large_answer_may_take_longer_than_a_head(served) -> None:
    with _connect(served(app=_large_app, head_seconds=0.2)) as line:
        line.sendall(REQUEST)
        size, limit = 0, time.monotonic() + PATIENCE
        while size < LARGE and time.monotonic() < limit:
            size += len(line.recv(2**20))
            time.sleep(0.01)
        assert size >= LARGE


@pytest.mark.parametrize("more", [b"", b"connection: close\r\n"])
def test_who_does_not_take_an_answer_is_cut_off(served, more) -> None:
    with _connect(served(app=_large_app, head_seconds=0.2)) as line:
        line.sendall(REQUEST[:-2] + more + b"\r\n")
        time.sleep(2)
        size = 0
        with contextlib.suppress(ConnectionResetError):
            while part := line.recv(2**20):
                size += len(part)
        assert size < LARGE


def test_who_keeps_asking_stays(served) -> None:
    with _connect(served(head_seconds=1.0)) as line:
        begun = time.monotonic()
        while time.monotonic() < begun + 1.5:
            assert _answer(line) == b"nobody"
            time.sleep(0.05)


def test_one_address_gets_half_of_the_places(served) -> None:
    port = served(max_connections=8)
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(_connect(port)) for _ in range(5)]
        answers = [_answer(line) for line in lines]
        assert answers == [b"nobody"] * 4 + [None]
        # Linux answers at all of 127.0.0.0/8: another address of the same machine.
        other = stack.enter_context(
            socket.create_connection(
                ("127.0.0.1", port), timeout=PATIENCE, source_address=("127.0.0.2", 0)
            )
        )
        assert _answer(other) == b"nobody"
        lines[0].close()
        limit = time.monotonic() + PATIENCE
        while not _answer(stack.enter_context(_connect(port))):
            assert time.monotonic() < limit


def test_a_request_knows_the_subject_of_the_callers_certificate(served, tmp_path) -> None:
    authority = trustme.CA()
    server = issue(tmp_path, authority, "localhost", "server")
    caller = issue(tmp_path, authority, "someone@example.org", "caller")
    port = served(tls=Tls(server.cert, server.key, server.ca))
    context = ssl.create_default_context(cafile=server.ca)
    context.load_cert_chain(caller.cert, caller.key)
    with context.wrap_socket(_connect(port), server_hostname="localhost") as line:
        assert b"CN=someone@example.org" in _answer(line)
    with _connect(served()) as line:
        assert _answer(line) == b"nobody"


def test_answers_wait_for_no_acknowledgement() -> None:
    """Nagle's algorithm holds the second part of an answer back until the first is confirmed."""
    delays = []

    async def app(scope, receive, send):
        (transport,) = [c.transport for c in server._server.server_state.connections]
        option = transport.get_extra_info("socket").getsockopt
        delays.append(option(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0)
        await _app(scope, receive, send)

    port = portpicker.pick_unused_port()
    server = HttpServer(app, "127.0.0.1", port, "http_port")
    server.start()
    with _connect(port) as line:
        assert _answer(line) is not None
    server.stop(1)
    assert delays == [False]


def test_descriptors_that_run_out_are_said_once_a_second(caplog) -> None:
    handler, loop = _Accepting(), asyncio.new_event_loop()
    trouble = {"message": "out of system resource", "exception": OSError(errno.EMFILE, "too many")}
    with caplog.at_level(logging.ERROR):
        for _ in range(1000):
            handler(loop, trouble)
        assert len(caplog.records) == 1
        handler(loop, {"message": "another", "exception": ValueError("x")})
        assert len(caplog.records) == 2
    loop.close()


def test_fewer_places_where_descriptors_are_few(monkeypatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    port = portpicker.pick_unused_port()
    server = HttpServer(_app, "127.0.0.1", port, "http_port")
    server.start()
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop, 1)
        lines = [stack.enter_context(_connect(port)) for _ in range(9)]
        assert [_answer(line) for line in lines] == [b"nobody"] * 8 + [None]
