"""Spans: what there is one for, how they hang together, and that there are none unasked."""

import logging
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from processes import ROOT
from recording_proxy import proxied

from serving import certification_pb2 as pb
from serving.sidecar import tracing
from tfmacer.common.errors import UserError

PREDICT = "/tensorflow.serving.PredictionService/Predict"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(start, spans):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return start(traces=tracing.traced(provider), parallelism=2)


def _finished(traced, spans) -> dict[str, list[ReadableSpan]]:
    """Spans by name, once every call has ended."""
    traced.server.stop(30).wait()
    found: dict[str, list[ReadableSpan]] = {}
    for span in spans.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    return found


def test_a_call_its_requests_and_its_bounds_are_one_trace(traced, backend, pixels, spans) -> None:
    certificate = traced.stub.Certify(pb.CertifyRequest(pixels=pixels, n=500))
    found = _finished(traced, spans)
    (call,) = found["/tfmacer.v1.Certifier/Certify"]
    assert call.kind is SpanKind.SERVER
    assert call.attributes["tfmacer.outcome"] == "certified"
    assert call.attributes["tfmacer.certificate_id"] == certificate.certificate_id
    # One for each request with draws, and for each look whether the model is still the same.
    requests, bounds = found[PREDICT], found["bound"]
    assert len(requests) == len(backend.requests) + len(bounds)
    assert all(span.kind is SpanKind.CLIENT for span in requests)
    for span in (*requests, *bounds):
        assert span.context.trace_id == call.context.trace_id
        assert span.parent.span_id == call.context.span_id
        assert call.start_time <= span.start_time < span.end_time <= call.end_time


def test_a_stream_has_a_bound_for_each_message(traced, pixels, spans) -> None:
    messages = list(traced.stub.CertifyStream(pb.CertifyRequest(pixels=pixels, n=2000)))
    found = _finished(traced, spans)
    (call,) = found["/tfmacer.v1.Certifier/CertifyStream"]
    assert len(found["bound"]) == len(messages)
    assert {span.parent.span_id for span in found["bound"]} == {call.context.span_id}


def test_the_callers_trace_is_continued(traced, pixels, spans) -> None:
    parent = f"00-{0xABC:032x}-{0xDEF:016x}-01"
    request = pb.PredictRequest(pixels=pixels)
    traced.stub.Predict(request, metadata=[("traceparent", parent)])
    (call,) = _finished(traced, spans)["/tfmacer.v1.Certifier/Predict"]
    assert call.context.trace_id == 0xABC
    assert call.parent.span_id == 0xDEF


def test_refusals_are_errors_with_their_status(traced, pixels, spans) -> None:
    with pytest.raises(grpc.RpcError):
        traced.stub.Certify(pb.CertifyRequest(pixels=pixels, n=-1))
    (call,) = _finished(traced, spans)["/tfmacer.v1.Certifier/Certify"]
    assert call.attributes["tfmacer.outcome"] == "INVALID_ARGUMENT"
    assert call.attributes["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]


def test_failures_of_the_backend_are_errors(traced, backend, pixels, spans) -> None:
    backend.spoil = lambda outputs: outputs | {"counts": outputs["counts"] * 0}
    with pytest.raises(grpc.RpcError):
        traced.stub.Certify(pb.CertifyRequest(pixels=pixels, n=500))
    (call,) = _finished(traced, spans)["/tfmacer.v1.Certifier/Certify"]
    assert call.status.status_code is StatusCode.ERROR


def test_spans_say_nothing_of_the_noise_or_the_image(traced, pixels, spans) -> None:
    traced.stub.Certify(pb.CertifyRequest(pixels=pixels, n=500))
    (record,) = traced.audit()
    secrets = {str(value) for name in ("select_seed", "estimate_seed") for value in record[name]}
    said = {str(v) for span in spans.get_finished_spans() for v in span.attributes.values()}
    assert said
    assert not any(secret in text for secret in secrets for text in said)
    names = {name for span in spans.get_finished_spans() for name in span.attributes}
    assert not any("pixel" in name or "seed" in name or "count" in name for name in names)


def test_looks_for_new_versions_leave_no_spans(traced, spans) -> None:
    traced.models.refresh()
    assert spans.get_finished_spans() == ()


def test_the_environment_or_the_flag_turns_it_on(monkeypatch) -> None:
    assert tracing.start("") is tracing.OFF
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    for on in (tracing.start(""), tracing.start("http://127.0.0.1:1")):
        assert on.interceptors
        on.stop()


def test_without_the_extra(monkeypatch, caplog) -> None:
    monkeypatch.setattr(tracing, "_PACKAGES", ("opentelemetry.no_such", "no_such.package"))
    with pytest.raises(UserError, match=r"--otel_endpoint=http://h:1: .* pip install 'tfmacer"):
        tracing.start("http://h:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h:1")
    with caplog.at_level(logging.WARNING):
        assert tracing.start("") is tracing.OFF
    assert "OTEL_EXPORTER_OTLP_ENDPOINT is ignored" in caplog.text


def test_an_endpoint_that_is_no_url() -> None:
    with pytest.raises(UserError, match="--otel_endpoint=h:4317: must begin with http:// or https"):
        tracing.start("h:4317")


def test_nothing_of_it_is_imported_unasked() -> None:
    code = (
        "import sys; from serving.sidecar import __main__, tracing; "
        "tracing.start(''); print([m for m in sys.modules if 'opentelemetry' in m])"
    )
    environment = {"PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("way", ["flag", "environment"])
def test_spans_go_to_a_collector_here_through_no_proxy(monkeypatch, way: str) -> None:
    received = threading.Event()

    def export(request: bytes, context: grpc.ServicerContext) -> bytes:
        received.set()
        return b""

    collector = grpc.server(ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(export)
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    collector.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {"Export": handler}),)
    )
    url = f"http://127.0.0.1:{collector.add_insecure_port('127.0.0.1:0')}"
    collector.start()
    with proxied(monkeypatch) as proxy:
        if way == "environment":
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", url)
        traces = tracing.start(url if way == "flag" else "")
        with traces.bound():
            pass
        traces.stop()
        assert received.is_set()
        assert proxy.asked == []
    collector.stop(0).wait()
