"""The sidecar as a process: start, health, reflection, drain; and its flags."""

import contextlib
import json
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import portpicker
import psutil
import pytest
import requests
from fake_backend import FakeBackend
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from processes import ROOT, serving
from recording_proxy import proxied

from serving import certification_pb2 as pb
from serving.certification_pb2_grpc import CertifierStub
from serving.sidecar import __main__ as sidecar
from tfmacer import verify
from tfmacer.wire.channel import open_channel

PIXELS = pb.Pixels(shape=[4, 4, 1], uint8=bytes(range(16)))
MEGABYTE = 10**6


@pytest.fixture
def backend():
    fake = FakeBackend()
    fake.port = portpicker.pick_unused_port()
    fake.start(fake.port)
    yield fake
    fake.stop()


def _flags(backend: FakeBackend, port: int, *more: str) -> list[str]:
    return [
        f"--backend=127.0.0.1:{backend.port}",
        "--model_name=m",
        f"--port={port}",
        "--metrics_port=0",
        "--poll_seconds=0.1",
        *more,
    ]


def _health(channel: grpc.Channel, service: str) -> str:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def _wait_health(channel: grpc.Channel, expected: str) -> None:
    limit = time.monotonic() + 60
    while _health(channel, "tfmacer.v1.Certifier") != expected:
        assert time.monotonic() < limit, expected
        time.sleep(0.02)


def test_a_life_in_full(backend, tmp_path: Path) -> None:
    port, metrics = portpicker.pick_unused_port(), portpicker.pick_unused_port()
    log, audit = tmp_path / "log", tmp_path / "audit"
    flags = _flags(backend, port, f"--audit_log={audit}", f"--metrics_port={metrics}", "--seed=4")
    with serving("serving.sidecar", *flags, stderr=log) as process:
        assert psutil.Process(process.pid).memory_info().rss < 200 * MEGABYTE
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = CertifierStub(channel)
            assert _health(channel, "") == "SERVING"
            assert _health(channel, "tfmacer.v1.Certifier") == "SERVING"
            assert stub.Certify(pb.CertifyRequest(pixels=PIXELS, n=300), timeout=60).n == 300
            assert {"tfmacer.v1.Certifier", "grpc.health.v1.Health"} <= _reflected(channel)
            text = requests.get(f"http://127.0.0.1:{metrics}/metrics", timeout=20).text
            assert 'tfmacer_requests_total{method="Certify",outcome="certified"} 1.0' in text

            # Health follows the backend, and a hot swap is noticed.
            backend.versions = {}
            _wait_health(channel, "NOT_SERVING")
            assert _health(channel, "") == "SERVING"
            backend.versions = {9: 30}
            _wait_health(channel, "SERVING")
            assert stub.GetModel(pb.GetModelRequest(), timeout=20).version == 9

            # SIGTERM: what is under way finishes, and is recorded; what is new is refused.
            backend.seconds = 0.1
            stream = stub.CertifyStream(pb.CertifyRequest(pixels=PIXELS, n=1000), timeout=60)
            first = next(stream)
            process.terminate()
            _wait_refused(stub)
            last = [first, *stream][-1]
            assert last.drawn == 1000
        assert process.wait(60) == 0
    records = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [record["certificate_id"] for record in records][-1] == last.certificate_id
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert any("tests only" in line["message"] for line in lines)
    answered = [line for line in lines if line.get("method") == "Certify"]
    assert answered[0]["outcome"] == "certified"
    assert len(answered[0]["request_id"]) == 32


def test_metrics_are_for_no_page_of_others(backend, tmp_path: Path) -> None:
    port, metrics = portpicker.pick_unused_port(), portpicker.pick_unused_port()
    flags = _flags(backend, port, f"--metrics_port={metrics}", "--http_hosts=scraped.example")
    url = f"http://127.0.0.1:{metrics}/metrics"
    with serving("serving.sidecar", *flags, stderr=tmp_path / "log"):
        for headers, status in (
            ({}, 200),
            ({"host": "scraped.example"}, 200),
            ({"host": f"10.1.2.3:{metrics}"}, 200),  # as a scrape by a pod's address
            ({"host": "evil.example"}, 403),
            ({"origin": "http://evil.example"}, 403),
        ):
            answer = requests.get(url, headers=headers, timeout=60)
            assert answer.status_code == status, headers
            assert ("tfmacer_model_available 1" in answer.text) == (status == 200)


def test_silent_connections_leave_descriptors_for_others(backend, tmp_path: Path) -> None:
    port, metrics, log = (
        portpicker.pick_unused_port(),
        portpicker.pick_unused_port(),
        tmp_path / "l",
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))  # the sidecar inherits it
        try:
            flags = _flags(backend, port, f"--metrics_port={metrics}")
            stack.enter_context(serving("serving.sidecar", *flags, stderr=log))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for number in range(243):
            source = (f"127.0.0.{2 + number % 8}", 0)
            where = ("127.0.0.1", metrics)
            line = socket.create_connection(where, timeout=60, source_address=source)
            stack.enter_context(line)
        time.sleep(1.0)
        channel = stack.enter_context(open_channel(f"127.0.0.1:{port}"))
        request = pb.CertifyRequest(pixels=PIXELS, n=500)
        assert CertifierStub(channel).Certify(request, timeout=60).n == 500
    assert log.stat().st_size < 20_000


def test_a_backend_on_this_machine_is_asked_through_no_proxy(
    backend, tmp_path: Path, monkeypatch
) -> None:
    port = portpicker.pick_unused_port()
    with (
        proxied(monkeypatch) as proxy,
        serving("serving.sidecar", *_flags(backend, port), stderr=tmp_path / "log"),
        open_channel(f"127.0.0.1:{port}") as channel,
    ):
        request = pb.CertifyRequest(pixels=PIXELS, n=500)
        assert CertifierStub(channel).Certify(request, timeout=60).n == 500
        assert proxy.asked == []


def test_the_audit_log_outlives_a_kill_and_admits_no_second_sidecar(
    backend, tmp_path: Path, capsys
) -> None:
    port, metrics = portpicker.pick_unused_port(), portpicker.pick_unused_port()
    log, audit = tmp_path / "log", tmp_path / "audit"
    flags = _flags(backend, port, f"--audit_log={audit}", f"--metrics_port={metrics}")
    flags += ["--audit_max_bytes=4000", "--audit_keep=9"]
    for life in (1, 2):
        with (
            serving("serving.sidecar", *flags, stderr=log) as process,
            grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            for _ in range(3):
                CertifierStub(channel).Certify(pb.CertifyRequest(pixels=PIXELS, n=300), timeout=60)
            _wait_metric(metrics, f"tfmacer_audit_entries {3.0 * life}")
            if life == 1:
                other = _flags(backend, portpicker.pick_unused_port(), f"--audit_log={audit}")
                done = subprocess.run(
                    [sys.executable, "-m", "serving.sidecar", *other],
                    cwd=ROOT,
                    capture_output=True,
                    text=True,
                    timeout=120,
                )
                assert done.returncode == 1
                last = done.stderr.splitlines()[-1]
                assert f"--audit_log={audit}: another process is writing this file" in last
                process.kill()
                process.wait(60)
                with open(audit, "a") as file:
                    file.write('{"certificate_id": "0')
            else:
                process.terminate()
                assert process.wait(60) == 0
    told = [json.loads(line) for line in log.read_text().splitlines()][-1]
    assert told["message"].startswith(f"audit log {audit} ends: entry 6, digest ")
    head = told["audit_digest"]
    assert verify.main([f"--audit_log={audit}", f"--audit_head={head}"]) == 0
    assert f"begins with entry 1 and ends with entry 6, digest {head}" in capsys.readouterr().out


def _wait_metric(port: int, line: str) -> None:
    limit = time.monotonic() + 60
    while line not in requests.get(f"http://127.0.0.1:{port}/metrics", timeout=20).text:
        assert time.monotonic() < limit, line
        time.sleep(0.02)


def _reflected(channel: grpc.Channel) -> set[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=20)
    return {service.name for service in answer.list_services_response.service}


def _wait_refused(stub: CertifierStub) -> None:
    """Waits until calls end, and checks with what."""
    limit = time.monotonic() + 60
    code = grpc.StatusCode.OK
    while code is grpc.StatusCode.OK:
        assert time.monotonic() < limit
        call = stub.GetModel.future(pb.GetModelRequest(), timeout=20)
        code = call.code()
        time.sleep(0.02)
    assert code is grpc.StatusCode.UNAVAILABLE


def test_it_starts_before_its_backend(backend, tmp_path: Path) -> None:
    backend.stop()
    port = portpicker.pick_unused_port()
    with (
        serving("serving.sidecar", *_flags(backend, port), stderr=tmp_path / "log"),
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        assert _health(channel, "") == "SERVING"
        assert _health(channel, "tfmacer.v1.Certifier") == "NOT_SERVING"
        backend.start(backend.port)
        _wait_health(channel, "SERVING")
        stub = CertifierStub(channel)
        assert stub.Certify(pb.CertifyRequest(pixels=PIXELS, n=300), timeout=60).n == 300


@pytest.mark.parametrize(
    ("flags", "status", "text"),
    [
        (["--model_name=m"], 2, "--backend"),
        (["--backend=b:1", "--model_name=m", "--port=0"], 2, "port"),
        (["--backend=b:1", "--model_name=m", "--max_n=0"], 2, "max_n"),
        (["--backend=b:1", "--model_name=m", "--what=1"], 2, "what"),
        (
            ["--backend=b:1", "--model_name=m", "--max_certifications=2"],
            1,
            "--max_certifications_per_client=8 is more than --max_certifications=2",
        ),
        (["--backend=b:1", "--model_name=m", "--audit_keep=-1"], 2, "audit_keep"),
        (["--backend=b:1", "--model_name=m", "--audit_max_bytes=0"], 2, "audit_max_bytes"),
    ],
)
def test_bad_flags_are_one_clear_line(capsys, flags, status, text) -> None:
    assert sidecar.main(flags) == status
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_a_model_that_cannot_be_certified_ends_the_start(backend, tmp_path: Path) -> None:
    backend.signatures = ("serving_default",)
    done = subprocess.run(
        [sys.executable, "-m", "serving.sidecar", *_flags(backend, portpicker.pick_unused_port())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "has no signature tfmacer_info" in done.stderr.splitlines()[-1]


def test_seeds_are_int32_pairs_of_the_operating_system() -> None:
    from serving.sidecar.drawing import fresh_seed

    seeds = np.stack([fresh_seed() for _ in range(1000)])
    assert (seeds.shape, seeds.dtype) == ((1000, 2), np.int32)
    assert len(np.unique(seeds, axis=0)) == 1000
    # 64,000 fair bits: 6 standard deviations are 759 of them.
    ones = np.unpackbits(seeds.view(np.uint8)).sum()
    assert abs(int(ones) - 32_000) < 760
