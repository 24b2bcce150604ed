"""The certification sidecar: certified answers from a model that TensorFlow Serving holds.

Draws votes from the model through its signature `sample_under_noise`, and answers
`tfmacer.v1.Certifier` with what the library concludes from them. Prints `ready` when it listens;
its health service says NOT_SERVING while the model cannot be certified. SIGTERM drains: calls under
way finish, new ones are refused.
"""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from serving import certification_pb2, certification_pb2_grpc
from serving.common import grpc_server, tls
from serving.common.lifecycle import Stop
from serving.common.logs import log_json
from serving.sidecar import flags, tracing
from serving.sidecar.audit import AuditLog
from serving.sidecar.backend import Backend
from serving.sidecar.calls import Calls
from serving.sidecar.flags import FLAGS
from serving.sidecar.limits import Admission, FairSlots, Limits
from serving.sidecar.metrics import Metrics
from serving.sidecar.models import Models
from serving.sidecar.service import Certifier
from tfmacer.common import commandline
from tfmacer.votes.endpoint import BackendError, Endpoint

if TYPE_CHECKING:
    from serving.common.http_server import HttpServer
    from serving.console.server import Console

logger = logging.getLogger(__name__)

# Threads beyond the certifications' own, for calls that are only refused, described or checked.
SPARE_THREADS = 8
# A backend that is not there yet must not hold up the start.
FIRST_LOOK_SECONDS = 0.5
CERTIFIER = certification_pb2.DESCRIPTOR.services_by_name["Certifier"].full_name


def _main() -> None:
    flags.check()
    server_tls = flags.TLS.read(flags.HOST.value)
    transport = flags.BACKEND_TLS.read("backend", flags.BACKEND.value)
    stop = Stop()
    log_json()
    traces = tracing.start(flags.OTEL_ENDPOINT.value, use_proxy=transport.use_proxy)
    if flags.SEED.value is not None:
        logger.warning(
            "--seed=%d: every certificate has the same noise; tests only", flags.SEED.value
        )
    if not flags.AUDIT_LOG.value:
        logger.warning("no --audit_log: no certificate can be drawn again")

    endpoint = Endpoint(flags.BACKEND.value, transport=transport, wrap=traces.wrap)
    checks = _health()
    models = Models(
        endpoint,
        flags.MODEL_NAME.value,
        digest=flags.MODEL_DIGEST.value,
        on_health=_reporter(checks),
    )
    _first_look(models)
    parallelism = flags.PARALLELISM.value or os.cpu_count() or 1
    slots = FairSlots(parallelism)
    admission = Admission(flags.MAX_CERTIFICATIONS.value, flags.MAX_PER_CLIENT.value)
    metrics = Metrics(admission.inside, slots.waiting, models.available)
    audit = _audit(metrics) if flags.AUDIT_LOG.value else None
    limits = Limits(
        max_n0=flags.MAX_N0.value,
        max_n=flags.MAX_N.value,
        min_alpha=flags.MIN_ALPHA.value,
        max_seconds=flags.MAX_SECONDS.value,
    )
    certifier = Certifier(
        models,
        Backend(
            endpoint,
            models,
            slots,
            metrics,
            parallelism=parallelism,
            timeout=flags.BACKEND_TIMEOUT.value,
        ),
        Calls(admission, metrics, max_seconds=flags.MAX_SECONDS.value, tracing=traces),
        metrics,
        limits=limits,
        audit=audit,
        seed=flags.SEED.value,
        tracing=traces,
    )
    drain = grpc_server.Drain()
    server = _server(certifier, checks, drain, server_tls, traces, metrics)
    console = _console(server, limits, server_tls) if flags.HTTP_PORT.value else None
    scraped = _scraped(metrics) if flags.METRICS_PORT.value else None
    server.start()
    models.start(flags.POLL.value)
    if console:
        console.start()
    if scraped:
        scraped.start()
    stop.ready(
        f"gRPC{' with TLS' if server_tls else ''} on {flags.HOST.value}:{flags.PORT.value}, "
        f"backend {flags.BACKEND.value}{' with TLS' if transport.credentials else ''}"
        + (f", console at {console.url}" if console else "")
    )
    stop.wait()

    models.stop()
    checks.enter_graceful_shutdown()
    drain.drain(flags.GRACE.value)
    if console:
        console.stop(grpc_server.STOP_SECONDS)
    server.stop(grpc_server.STOP_SECONDS).wait()
    if scraped:
        scraped.stop(grpc_server.STOP_SECONDS)
    endpoint.close()
    if audit:
        audit.close()
    traces.stop()


def _console(server: grpc.Server, limits: Limits, server_tls: tls.Tls | None) -> "Console":
    """The web console; its framework is loaded only for it."""
    from serving.console.server import Console

    return Console(
        server,
        flags.HOST.value,
        flags.HTTP_PORT.value,
        limits=limits,
        max_body_bytes=flags.MAX_MESSAGE_BYTES.value,
        names=flags.HTTP_HOSTS.value,
        tls=server_tls,
    )


def _scraped(metrics: Metrics) -> "HttpServer":
    """The port of the metrics; what serves it is loaded only for it."""
    from serving.common.http_server import HttpServer

    host, port = flags.METRICS_HOST.value, flags.METRICS_PORT.value
    return HttpServer(metrics.app(), host, port, "metrics_port", names=flags.HTTP_HOSTS.value)


def _audit(metrics: Metrics) -> AuditLog:
    log = AuditLog(
        Path(flags.AUDIT_LOG.value),
        pixels=flags.AUDIT_PIXELS.value,
        max_bytes=flags.AUDIT_MAX_BYTES.value,
        keep=flags.AUDIT_KEEP.value,
        on_failure=metrics.audit_failures.inc,
    )
    metrics.follow_audit(lambda: log.head)
    return log


def _health() -> health.HealthServicer:
    """Alive from the start, able to certify once a model has been seen."""
    checks = health.HealthServicer(experimental_non_blocking=True)
    checks.set("", health_pb2.HealthCheckResponse.SERVING)
    checks.set(CERTIFIER, health_pb2.HealthCheckResponse.NOT_SERVING)
    return checks


def _reporter(checks: health.HealthServicer) -> Callable[[bool], None]:
    states = health_pb2.HealthCheckResponse

    def report(healthy: bool) -> None:
        checks.set(CERTIFIER, states.SERVING if healthy else states.NOT_SERVING)

    return report


def _first_look(models: Models) -> None:
    """Refuses a model that cannot be certified; waits for none that is not there yet."""
    try:
        models.refresh(timeout=FIRST_LOOK_SECONDS)
    except BackendError as error:
        if error.code is grpc.StatusCode.FAILED_PRECONDITION:
            raise
        logger.warning("starting without a model: %s", error)


def _server(
    certifier: Certifier,
    checks: health.HealthServicer,
    drain: grpc_server.Drain,
    server_tls: tls.Tls | None,
    traces: tracing.Tracing,
    metrics: Metrics,
) -> grpc.Server:
    threads = flags.MAX_CERTIFICATIONS.value + SPARE_THREADS
    server = grpc_server.make_server(
        threads=threads,
        max_concurrent_rpcs=threads,
        max_message_bytes=flags.MAX_MESSAGE_BYTES.value,
        drain=drain,
        interceptors=traces.interceptors,
        on_broken=metrics.broken,
    )
    certification_pb2_grpc.add_CertifierServicer_to_server(certifier, server)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    if flags.REFLECTION.value:
        names = (CERTIFIER, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    grpc_server.bind(
        server,
        f"{flags.HOST.value}:{flags.PORT.value}",
        "port",
        server_tls.server_credentials() if server_tls else None,
    )
    return server


main = commandline.command(_main, FLAGS, "python -m serving.sidecar", __doc__)


if __name__ == "__main__":
    sys.exit(main())
