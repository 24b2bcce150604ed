"""What every gRPC port of ours does with bytes that are no request."""

import logging

import grpc
import portpicker
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from typing_extensions import override

from serving import certification_pb2 as pb
from serving import certification_pb2_grpc
from serving.common import grpc_server

BROKEN = b"\x0a\xff"  # a field of 127 bytes and more, of which none comes
LIMIT = 2**20


class _Certifier(certification_pb2_grpc.CertifierServicer):
    @override
    def Certify(self, request, context):
        return pb.Certificate(n=request.n)

    @override
    def CertifyStream(self, request, context):
        yield pb.Certificate(n=request.n)


@pytest.fixture
def broken():
    """The methods that were to be called with them."""
    return []


@pytest.fixture
def channel(broken):
    server = grpc_server.make_server(
        threads=4, max_concurrent_rpcs=8, max_message_bytes=LIMIT, on_broken=broken.append
    )
    certification_pb2_grpc.add_CertifierServicer_to_server(_Certifier(), server)
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    reflection.enable_server_reflection((reflection.SERVICE_NAME,), server)
    port = portpicker.pick_unused_port()
    grpc_server.bind(server, f"127.0.0.1:{port}", "port")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    server.stop(0).wait()


def _ask(channel, method, kind):
    call = getattr(channel, kind)(method)
    if kind == "unary_unary":
        return call(BROKEN, timeout=20)
    return list(call(iter([BROKEN]) if kind == "stream_stream" else BROKEN, timeout=20))


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("/tfmacer.v1.Certifier/Certify", "unary_unary"),
        ("/tfmacer.v1.Certifier/CertifyStream", "unary_stream"),
        ("/grpc.health.v1.Health/Check", "unary_unary"),
        ("/grpc.health.v1.Health/Watch", "unary_stream"),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "stream_stream"),
    ],
)
def test_broken_bytes_are_the_callers_fault(channel, broken, caplog, method, kind) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(grpc.RpcError) as caught:
        _ask(channel, method, kind)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "the request cannot be parsed"
    assert broken == [method]
    assert "Traceback" not in caplog.text


def test_whole_ones_are_answered(channel, broken) -> None:
    stub = certification_pb2_grpc.CertifierStub(channel)
    assert stub.Certify(pb.CertifyRequest(n=7), timeout=20).n == 7
    assert [each.n for each in stub.CertifyStream(pb.CertifyRequest(n=8), timeout=20)] == [8]
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    assert broken == []


def test_a_message_is_as_large_as_it_is_unpacked(channel) -> None:
    """A few kilobytes of gzip that become megabytes are refused before they are parsed."""
    call = channel.unary_unary("/tfmacer.v1.Certifier/Certify")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"\0" * 4 * LIMIT, timeout=20, compression=grpc.Compression.Gzip)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
