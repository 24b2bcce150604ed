"""Prometheus metrics of the sidecar."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from tfmacer.errors import UserError

RADIUS_BUCKETS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
SECONDS_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class Metrics:
    """What is counted. Labels come from the service itself, never from a caller."""

    def __init__(self, inside: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Takes the two gauges' sources: calls under way, and requests waiting for a place."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tfmacer_requests",
            "Calls by method and by how they ended: certified, abstain, predicted or a gRPC code.",
            ["method", "outcome"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "tfmacer_request_duration_seconds",
            "Time from a call's start to its end.",
            ["method"],
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.draws = Counter(
            "tfmacer_noise_samples",
            "Noisy draws asked of the backend and answered.",
            registry=self.registry,
        )
        self.radius = Histogram(
            "tfmacer_certified_radius",
            "Radius of each certificate handed out, 0 where abstaining.",
            buckets=RADIUS_BUCKETS,
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

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Answers scrapes on a thread of its own; returns what stops it.

        Raises:
          UserError: the address is taken or cannot be used.
        """
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise UserError(
                f"--metrics_port={port}: cannot listen on {host}:{port}: {error.strerror}"
            ) from error

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop
