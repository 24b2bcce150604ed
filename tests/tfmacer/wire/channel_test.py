"""Where channels go: never through a proxy to this machine, elsewhere only when asked to."""

import grpc
import portpicker
import pytest
from fake_backend import FakeBackend
from recording_proxy import proxied

from tfmacer.votes.endpoint import BackendError, Endpoint, served_model
from tfmacer.wire.channel import Transport, is_loopback

ELSEWHERE = "models.example:8500"


@pytest.fixture
def backend():
    fake = FakeBackend()
    fake.port = portpicker.pick_unused_port()
    fake.start(fake.port)
    yield fake
    fake.stop()


def _version(target: str, **how: bool) -> int:
    endpoint = Endpoint(target, transport=Transport(**how))
    try:
        return served_model(endpoint, "m", timeout=3).version
    finally:
        endpoint.close()


def test_a_channel_of_grpcs_own_would_ask_the_proxy(backend, monkeypatch) -> None:
    """So that the other tests can fail."""
    with (
        proxied(monkeypatch) as proxy,
        grpc.insecure_channel(f"127.0.0.1:{backend.port}") as channel,
    ):
        with pytest.raises(grpc.RpcError):
            channel.unary_unary("/a/b")(b"", timeout=2)
        assert proxy.asked


@pytest.mark.parametrize("use_proxy", [False, True])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "ipv4:127.0.0.1", "dns:///localhost"])
def test_no_proxy_stands_before_this_machine(backend, monkeypatch, host, use_proxy) -> None:
    with proxied(monkeypatch) as proxy:
        assert _version(f"{host}:{backend.port}", use_proxy=use_proxy) == 3
        assert proxy.asked == []


def test_elsewhere_the_proxy_is_used_when_asked_for(backend, monkeypatch) -> None:
    with proxied(monkeypatch, {ELSEWHERE: backend.port}) as proxy:
        monkeypatch.delenv("GRPC_ADDRESS_HTTP_PROXY")
        assert _version(ELSEWHERE, use_proxy=True) == 3
        assert proxy.asked[0] == f"CONNECT {ELSEWHERE} HTTP/1.1"
        proxy.asked.clear()
        with pytest.raises(BackendError):
            _version(ELSEWHERE)
        assert proxy.asked == []


@pytest.mark.parametrize(
    ("target", "here"),
    [
        ("localhost:1", True),
        ("127.8.9.1:1", True),
        ("[::1]:1", True),
        ("::1", True),
        ("unix:/a", True),
        ("unix-abstract:a", True),
        ("ipv6:[::1]:1", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("10.0.0.1:1", False),
        ("localhost.example:1", False),
        ("128.0.0.1", False),
    ],
)
def test_what_is_this_machine(target: str, here: bool) -> None:
    assert is_loopback(target) is here
