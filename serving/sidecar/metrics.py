"""Prometheus metrics of the sidecar."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    make_asgi_app,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from serving import certification_pb2
from tfmacer.records.chain import Link
from tfmacer.votes.endpoint import ServedModel

CERTIFIER = certification_pb2.DESCRIPTOR.services_by_name["Certifier"]
RADIUS_BUCKETS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
SECONDS_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    """What is counted. Labels come from the service itself, never from a caller."""

    def __init__(
        self,
        inside: Callable[[], int],
        waiting: Callable[[], int],
        model: Callable[[], ServedModel | None],
    ) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(_ModelGauges(model))
        self.requests = Counter(
            "tfmacer_requests",
            "Calls by method and by how they ended: certified, abstain, predicted or a gRPC code.",
            ["method", "outcome"],
            registry=self.registry,
        )
        for method in CERTIFIER.methods:
            # Present from the start: a series that appears with its first count shows no increase,
            # so alerts would miss it.
            self.requests.labels(method.name, grpc.StatusCode.INTERNAL.name)
        self.seconds = Histogram(
            "tfmacer_request_duration_seconds",
            "Time from a call's start to its end.",
            ["method"],
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.draws = Counter(
            "tfmacer_noise_samples",
            "Noisy draws that the backend answered, as they come in.",
            registry=self.registry,
        )
        self.radius = Histogram(
            "tfmacer_certified_radius",
            "Radius of each certificate handed out, 0 where abstaining.",
            buckets=RADIUS_BUCKETS,
            registry=self.registry,
        )
        self.audit_failures = Counter(
            "tfmacer_audit_failures",
            "Certificates handed out whose entry could not be written to the audit log.",
            registry=self.registry,
        )
        Gauge("tfmacer_certify_inflight", "Calls under way.", registry=self.registry).set_function(
            inside
        )
        Gauge(
            "tfmacer_backend_queue",
            "Requests waiting for a place at the backend.",
            registry=self.registry,
        ).set_function(waiting)

    def broken(self, method: str) -> None:
        """Counts a request that is no message, by the full name of its method."""
        service, _, name = method.removeprefix("/").partition("/")
        if service == CERTIFIER.full_name:
            self.requests.labels(name, grpc.StatusCode.INVALID_ARGUMENT.name).inc()

    def app(self) -> Any:
        """What answers scrapes, at any path: an ASGI application."""
        return make_asgi_app(self.registry)

    def follow_audit(self, head: Callable[[], Link]) -> None:
        """Adds gauges of the audit log's newest entry, which `head` returns."""
        self.registry.register(_AuditGauges(head))


class _ModelGauges(Collector):
    """What is certified, as it is when a scrape asks."""

    def __init__(self, model: Callable[[], ServedModel | None]) -> None:
        self._model = model

    @override
    def collect(self) -> Iterator[GaugeMetricFamily]:
        """1 under the labels of the model, where there is one; and whether there is."""
        model = self._model()
        yield GaugeMetricFamily(
            "tfmacer_model_available", "Whether a model can be certified now.", int(bool(model))
        )
        info = GaugeMetricFamily(
            "tfmacer_model_info", "The model certified now.", labels=["model", "version", "digest"]
        )
        if model is not None:
            info.add_metric([model.name, str(model.version), model.smoothing.model_digest], 1)
        yield info


class _AuditGauges(Collector):
    """The end of the audit log's chain, as it is when a scrape asks."""

    def __init__(self, head: Callable[[], Link]) -> None:
        self._head = head

    @override
    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Number and digest of one and the same entry."""
        head = self._head()
        yield GaugeMetricFamily(
            "tfmacer_audit_entries", "Number of the audit log's newest entry.", head.number
        )
        info = GaugeMetricFamily(
            "tfmacer_audit_head_info", "Digest of the audit log's newest entry.", labels=["digest"]
        )
        info.add_metric([head.digest], 1)
        yield info
