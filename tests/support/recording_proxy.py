"""An HTTP proxy on loopback that records its requests and tunnels to given ports."""

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping

import pytest

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")


class RecordingProxy:
    """Answers CONNECT.

    Attributes:
      asked: the first line of every request.
      port: where it listens, on 127.0.0.1.
    """

    def __init__(self, ways: Mapping[str, int]) -> None:
        """Starts listening.

        Args:
          ways: port on this machine by HOST:PORT that a caller may ask for.
        """
        self.asked: list[str] = []
        self._ways = ways
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        with caller, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                if not (more := caller.recv(4096)):
                    return
                head += more
            first = head.split(b"\r\n")[0].decode()
            self.asked.append(first)
            if (port := self._ways.get(first.split()[1])) is None:
                caller.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
                return
            with socket.create_connection(("127.0.0.1", port)) as server:
                caller.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=_pump, args=(server, caller), daemon=True)
                back.start()
                _pump(caller, server)
                back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def proxied(
    monkeypatch: pytest.MonkeyPatch, ways: Mapping[str, int] | None = None
) -> Iterator[RecordingProxy]:
    """Sets every variable that sends connections through the proxy."""
    proxy = RecordingProxy(ways or {})
    for name in VARIABLES:
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{proxy.port}")
    monkeypatch.setenv("GRPC_ADDRESS_HTTP_PROXY", f"127.0.0.1:{proxy.port}")
    monkeypatch.setenv("GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES", "127.0.0.0/8,::1/128")
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    try:
        yield proxy
    finally:
        proxy.close()
