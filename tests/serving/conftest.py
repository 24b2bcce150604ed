"""A sidecar in this process, in front of a backend that may misbehave."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import portpicker
import pytest
from fake_backend import FakeBackend

from serving import certification_pb2 as pb
from serving import certification_pb2_grpc
from serving.common import grpc_server
from serving.sidecar.audit import AuditLog
from serving.sidecar.backend import Backend
from serving.sidecar.calls import Calls
from serving.sidecar.limits import Admission, FairSlots, Limits
from serving.sidecar.metrics import Metrics
from serving.sidecar.models import Models
from serving.sidecar.service import Certifier
from serving.sidecar.tracing import OFF, Tracing
from tfmacer.votes.endpoint import BackendError, Endpoint

IMAGE = np.random.default_rng(1).random((4, 4, 1)).astype(np.float32)


@dataclasses.dataclass
class Sidecar:
    """What a test may look at."""

    backend: FakeBackend
    target: str
    stub: certification_pb2_grpc.CertifierStub
    models: Models
    metrics: Metrics
    admission: Admission
    slots: FairSlots
    audit_path: Path
    audit_log: AuditLog
    server: grpc.Server

    def audit(self) -> list[dict[str, Any]]:
        """The audit log's records; waits for the calls under way."""
        self.server.stop(30).wait()
        self.audit_log.close()
        return [json.loads(line) for line in self.audit_path.read_text().splitlines()]


@pytest.fixture
def backend() -> Iterator[FakeBackend]:
    fake = FakeBackend()
    fake.port = portpicker.pick_unused_port()
    fake.start(fake.port)
    yield fake
    fake.stop()


@pytest.fixture
def start(backend: FakeBackend, tmp_path: Path) -> Iterator[Callable[..., Sidecar]]:
    """Starts sidecars; arguments override what is set here."""
    opened: list[Callable[[], Any]] = []

    def make(
        *,
        parallelism: int = 2,
        limits: Limits | None = None,
        seed: int | None = None,
        total: int = 8,
        per_client: int = 8,
        timeout: float = 20.0,
        digest: str = "",
        max_message_bytes: int = 2**20,
        credentials: grpc.ServerCredentials | None = None,
        audit_pixels: bool = True,
        traces: Tracing = OFF,
        before_start: Callable[[grpc.Server], None] = lambda server: None,
    ) -> Sidecar:
        endpoint = Endpoint(f"127.0.0.1:{backend.port}", wrap=traces.wrap)
        models = Models(endpoint, "m", digest=digest)
        with contextlib.suppress(BackendError):  # as the sidecar, which starts without a model
            models.refresh()
        slots = FairSlots(parallelism)
        admission = Admission(total, per_client)
        metrics = Metrics(admission.inside, slots.waiting, models.available)
        limits = limits or Limits()
        audit_path = tmp_path / f"audit_{len(opened)}.jsonl"
        audit = AuditLog(audit_path, pixels=audit_pixels, on_failure=metrics.audit_failures.inc)
        metrics.follow_audit(lambda: audit.head)
        certifier = Certifier(
            models,
            Backend(endpoint, models, slots, metrics, parallelism=parallelism, timeout=timeout),
            Calls(admission, metrics, max_seconds=limits.max_seconds, tracing=traces),
            metrics,
            limits=limits,
            audit=audit,
            seed=seed,
            tracing=traces,
        )
        server = grpc_server.make_server(
            threads=12,
            max_concurrent_rpcs=12,
            max_message_bytes=max_message_bytes,
            interceptors=traces.interceptors,
        )
        certification_pb2_grpc.add_CertifierServicer_to_server(certifier, server)
        port = portpicker.pick_unused_port()
        grpc_server.bind(server, f"127.0.0.1:{port}", "port", credentials)
        before_start(server)
        server.start()
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")

        def close() -> None:
            channel.close()
            server.stop(5).wait()
            endpoint.close()
            audit.close()

        opened.append(close)
        return Sidecar(
            backend,
            f"127.0.0.1:{port}",
            certification_pb2_grpc.CertifierStub(channel),
            models,
            metrics,
            admission,
            slots,
            audit_path,
            audit,
            server,
        )

    yield make
    for close in opened:
        close()


@pytest.fixture
def sidecar(start: Callable[..., Sidecar]) -> Sidecar:
    return start()


@pytest.fixture
def pixels() -> pb.Pixels:
    return pb.Pixels(shape=IMAGE.shape, float32=IMAGE.astype("<f4").tobytes())
