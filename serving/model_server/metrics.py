"""Prometheus metrics under the names that TensorFlow Serving gives them."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from serving.model_server.status import StatusError, invalid

DEFAULT_PATH = "/monitoring/prometheus/metrics"
_PREFIX = ":tensorflow:serving:"
# Microseconds: 10 growing by 1.8, about 20 minutes in all.
_BUCKETS = tuple(10 * 1.8**power for power in range(33))


class _RequestCount(Collector):
    """The library's own Counter would put `_total` behind the name that dashboards ask for."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def add(self, model: str, status: str) -> None:
        with self._lock:
            self._counts[model, status] += 1

    def collect(self) -> Iterator[Metric]:
        name = f"{_PREFIX}request_count"
        metric = Metric(name, "The total number of requests.", "unknown")
        with self._lock:
            for (model, status), count in sorted(self._counts.items()):
                metric.add_sample(name, {"model_name": model, "status": status}, count)
        yield metric


class Metrics:
    """Counts requests and times them, in microseconds. Thread-safe."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = _RequestCount()
        self._registry.register(self._requests)
        self._request_latency = Histogram(
            f"{_PREFIX}request_latency",
            "Distribution of wall time (in microseconds) for Tensorflow Serving request.",
            ["model_name", "API", "entrypoint"],
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._runtime_latency = Histogram(
            f"{_PREFIX}runtime_latency",
            "Distribution of wall time (in microseconds) for Tensorflow runtime.",
            ["model_name", "API", "runtime"],
            buckets=_BUCKETS,
            registry=self._registry,
        )

    @contextmanager
    def request(self, model: str, api: str, entrypoint: str) -> Iterator[None]:
        """Counts one request by its status; times it where it succeeds.

        Args:
          model: its name; empty for one that is not served, or whoever asks for made-up names
            would fill the memory of this process and of whoever collects.
          api: such as `Predict`.
          entrypoint: `GRPC` or `REST`.
        """
        started = time.perf_counter()
        try:
            yield
        except StatusError as error:
            self._requests.add(model, error.code.name)
            raise
        self._requests.add(model, "OK")
        micros = 1e6 * (time.perf_counter() - started)
        self._request_latency.labels(model, api, entrypoint).observe(micros)

    def broken(self, method: str) -> None:
        """Counts a request that is no message, by the full name of its method."""
        if method.endswith("/Predict"):
            self._requests.add("", grpc.StatusCode.INVALID_ARGUMENT.name)

    def ran(self, model: str, seconds: float) -> None:
        """Times one run of the graph."""
        self._runtime_latency.labels(model, "Predict", "TF1").observe(1e6 * seconds)

    def text(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)


def monitoring_path(text: str) -> str | None:
    """Where a `--monitoring_config_file` wants the metrics; None where it leaves them off.

    Raises:
      StatusError: it is not a text-format MonitoringConfig.
    """
    config = _monitoring_config()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise invalid(f"Error parsing text-format MonitoringConfig: {error}") from error
    prometheus = config.prometheus_config
    return (prometheus.path or DEFAULT_PATH) if prometheus.enable else None


def _monitoring_config() -> Any:
    """An empty MonitoringConfig; `tensorflow-serving-api` ships without this message."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="serving/model_server/monitoring_config.proto",
        package="tfmacer.model_server",
        syntax="proto3",
    )
    prometheus = file.message_type.add(name="PrometheusConfig")
    prometheus.field.add(name="enable", number=1, type=field.TYPE_BOOL, label=field.LABEL_OPTIONAL)
    prometheus.field.add(name="path", number=2, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    monitoring = file.message_type.add(name="MonitoringConfig")
    monitoring.field.add(
        name="prometheus_config",
        number=1,
        type=field.TYPE_MESSAGE,
        type_name=".tfmacer.model_server.PrometheusConfig",
        label=field.LABEL_OPTIONAL,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    descriptor = pool.FindMessageTypeByName("tfmacer.model_server.MonitoringConfig")
    return message_factory.GetMessageClass(descriptor)()
