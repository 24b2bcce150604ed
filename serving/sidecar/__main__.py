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
from absl import flags
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from serving import certification_pb2, certification_pb2_grpc
from serving.common import grpc_server, tls
from serving.common.lifecycle import Stop
from serving.common.logs import log_json
from serving.sidecar import tracing
from serving.sidecar.audit import MAX_BYTES, AuditLog
from serving.sidecar.calls import Calls
from serving.sidecar.limits import Admission, FairSlots, Limits
from serving.sidecar.metrics import Metrics
from serving.sidecar.models import Models
from serving.sidecar.service import Backend, Certifier
from tfmacer.common import commandline
from tfmacer.common.errors import UserError
from tfmacer.votes.endpoint import BackendError, Endpoint
from tfmacer.wire.channel import ChannelFlags

if TYPE_CHECKING:
    from serving.common.http_server import HttpServer
    from serving.console.server import Console

logger = logging.getLogger(__name__)

FLAGS = flags.FlagValues()

_BACKEND = flags.DEFINE_string(
    "backend",
    None,
    "HOST:PORT (or unix:PATH) of the model server's gRPC.",
    required=True,
    flag_values=FLAGS,
)
_MODEL_NAME = flags.DEFINE_string(
    "model_name", None, "The model's name there.", required=True, flag_values=FLAGS
)
_MODEL_DIGEST = flags.DEFINE_string(
    "model_digest", "", "The only model digest to certify; empty for any.", flag_values=FLAGS
)
_BACKEND_TLS = ChannelFlags("backend_tls", "the backend", FLAGS, allow="backend_allow_plaintext")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.", flag_values=FLAGS)
_TLS = tls.ServerFlags(FLAGS)
_PORT = flags.DEFINE_integer("port", 8600, "TCP port for gRPC.", 1, 65535, flag_values=FLAGS)
_METRICS_HOST = flags.DEFINE_string(
    "metrics_host",
    "127.0.0.1",
    "Address for Prometheus metrics, in plain HTTP: let the scraper alone reach it.",
    flag_values=FLAGS,
)
_METRICS_PORT = flags.DEFINE_integer(
    "metrics_port",
    9464,
    "TCP port for Prometheus metrics; 0 for none.",
    0,
    65535,
    flag_values=FLAGS,
)
_HTTP_PORT = flags.DEFINE_integer(
    "http_port",
    0,
    "TCP port for the web console and its JSON endpoint; 0 for none.",
    0,
    65535,
    flag_values=FLAGS,
)
_HTTP_HOSTS = flags.DEFINE_list(
    "http_hosts",
    [],
    "Host names under which the console and the metrics are reached, besides localhost, --host and "
    "any IP address; requests to any other name are refused.",
    flag_values=FLAGS,
)
_PARALLELISM = flags.DEFINE_integer(
    "backend_parallelism",
    0,
    "Requests in flight at the backend, of all certifications together; its number of cores is "
    "right. 0 takes this machine's.",
    0,
    flag_values=FLAGS,
)
_BACKEND_TIMEOUT = flags.DEFINE_float(
    "backend_timeout",
    60,
    "Seconds that one answer of the backend may take, retries included.",
    0.1,
    flag_values=FLAGS,
)
_POLL = flags.DEFINE_float(
    "poll_seconds", 1, "Seconds between looks for a new model version.", 0.05, flag_values=FLAGS
)
_MAX_CERTIFICATIONS = flags.DEFINE_integer(
    "max_certifications",
    16,
    "Calls at once; more are refused with RESOURCE_EXHAUSTED.",
    1,
    flag_values=FLAGS,
)
_MAX_PER_CLIENT = flags.DEFINE_integer(
    "max_certifications_per_client",
    8,
    "Calls at once of one client (the certificate's subject, else the peer's address).",
    1,
    flag_values=FLAGS,
)
_MAX_N0 = flags.DEFINE_integer(
    "max_n0", Limits.max_n0, "Largest n0 of a request.", 1, flag_values=FLAGS
)
_MAX_N = flags.DEFINE_integer(
    "max_n", Limits.max_n, "Largest n of a request.", 1, 2_000_000_000, flag_values=FLAGS
)
_MIN_ALPHA = flags.DEFINE_float(
    "min_alpha", Limits.min_alpha, "Smallest alpha of a request.", 1e-300, 0.5, flag_values=FLAGS
)
_MAX_SECONDS = flags.DEFINE_float(
    "max_seconds",
    Limits.max_seconds,
    "Longest that a call may take, whatever its deadline.",
    0.1,
    flag_values=FLAGS,
)
_MAX_MESSAGE_BYTES = flags.DEFINE_integer(
    "max_message_bytes",
    4 * 2**20,
    "Largest request; larger ones are refused with RESOURCE_EXHAUSTED.",
    1024,
    flag_values=FLAGS,
)
_AUDIT_LOG = flags.DEFINE_string(
    "audit_log",
    "",
    "JSON-lines file that maps certificate ids to seeds, for drawing them again; empty for none. "
    "Each line carries the digest of the one before it.",
    flag_values=FLAGS,
)
_AUDIT_MAX_BYTES = flags.DEFINE_integer(
    "audit_max_bytes",
    MAX_BYTES,
    "Size at which the audit log is renamed to FILE.NUMBER, after its last entry, and begun anew.",
    1,
    flag_values=FLAGS,
)
_AUDIT_KEEP = flags.DEFINE_integer(
    "audit_keep",
    0,
    "Renamed files of the audit log that stay, the newest; older ones are deleted. 0 keeps all.",
    0,
    flag_values=FLAGS,
)
_AUDIT_PIXELS = flags.DEFINE_bool(
    "audit_pixels",
    True,
    "Keep the images in the audit log; without them drawing again needs them from elsewhere.",
    flag_values=FLAGS,
)
_OTEL_ENDPOINT = flags.DEFINE_string(
    "otel_endpoint",
    "",
    "URL of an OpenTelemetry collector's gRPC port (http://HOST:4317) to send traces to; empty "
    "takes OTEL_EXPORTER_OTLP_ENDPOINT from the environment, or sends none. Needs the extra otel.",
    flag_values=FLAGS,
)
_REFLECTION = flags.DEFINE_bool("reflection", True, "Serve gRPC reflection.", flag_values=FLAGS)
_SEED = flags.DEFINE_integer(
    "seed",
    None,
    "FOR TESTS ONLY: fixes the noise of every request to that of image 0 of an offline run with "
    "this seed. Callers could then look for images on which the noise is lucky.",
    flag_values=FLAGS,
)
_GRACE = flags.DEFINE_float(
    "drain_seconds",
    30,
    "How long calls under way may take to finish after SIGTERM.",
    0,
    flag_values=FLAGS,
)

# Threads beyond the certifications' own, for calls that are only refused, described or checked.
SPARE_THREADS = 8
# A backend that is not there yet must not hold up the start.
FIRST_LOOK_SECONDS = 0.5
CERTIFIER = certification_pb2.DESCRIPTOR.services_by_name["Certifier"].full_name


def _main() -> None:
    if _MAX_PER_CLIENT.value > _MAX_CERTIFICATIONS.value:
        raise UserError(
            f"--max_certifications_per_client={_MAX_PER_CLIENT.value} is more than "
            f"--max_certifications={_MAX_CERTIFICATIONS.value}"
        )
    server_tls = _TLS.read(_HOST.value)
    transport = _BACKEND_TLS.read("backend", _BACKEND.value)
    stop = Stop()
    log_json()
    traces = tracing.start(_OTEL_ENDPOINT.value, use_proxy=transport.use_proxy)
    if _SEED.value is not None:
        logger.warning("--seed=%d: every certificate has the same noise; tests only", _SEED.value)
    if not _AUDIT_LOG.value:
        logger.warning("no --audit_log: no certificate can be drawn again")

    endpoint = Endpoint(_BACKEND.value, transport=transport, wrap=traces.wrap)
    checks = _health()
    models = Models(
        endpoint, _MODEL_NAME.value, digest=_MODEL_DIGEST.value, on_health=_reporter(checks)
    )
    _first_look(models)
    parallelism = _PARALLELISM.value or os.cpu_count() or 1
    slots = FairSlots(parallelism)
    admission = Admission(_MAX_CERTIFICATIONS.value, _MAX_PER_CLIENT.value)
    metrics = Metrics(admission.inside, slots.waiting, models.available)
    audit = _audit(metrics) if _AUDIT_LOG.value else None
    limits = Limits(
        max_n0=_MAX_N0.value,
        max_n=_MAX_N.value,
        min_alpha=_MIN_ALPHA.value,
        max_seconds=_MAX_SECONDS.value,
    )
    certifier = Certifier(
        models,
        Backend(endpoint, slots, metrics, parallelism=parallelism, timeout=_BACKEND_TIMEOUT.value),
        Calls(admission, metrics, max_seconds=_MAX_SECONDS.value, tracing=traces),
        metrics,
        limits=limits,
        audit=audit,
        seed=_SEED.value,
        tracing=traces,
    )
    drain = grpc_server.Drain()
    server = _server(certifier, checks, drain, server_tls, traces, metrics)
    console = _console(server, limits, server_tls) if _HTTP_PORT.value else None
    scraped = _scraped(metrics) if _METRICS_PORT.value else None
    server.start()
    models.start(_POLL.value)
    if console:
        console.start()
    if scraped:
        scraped.start()
    stop.ready(
        f"gRPC{' with TLS' if server_tls else ''} on {_HOST.value}:{_PORT.value}, "
        f"backend {_BACKEND.value}{' with TLS' if transport.credentials else ''}"
        + (f", console at {console.url}" if console else "")
    )
    stop.wait()

    models.stop()
    checks.enter_graceful_shutdown()
    drain.drain(_GRACE.value)
    if console:
        console.stop(grpc_server.LAST_WORDS)
    server.stop(grpc_server.LAST_WORDS).wait()
    if scraped:
        scraped.stop(grpc_server.LAST_WORDS)
    endpoint.close()
    if audit:
        audit.close()
    traces.stop()


def _console(server: grpc.Server, limits: Limits, server_tls: tls.Tls | None) -> "Console":
    """The web console; its framework is loaded only for it."""
    from serving.console.server import Console

    return Console(
        server,
        _HOST.value,
        _HTTP_PORT.value,
        limits=limits,
        max_body_bytes=_MAX_MESSAGE_BYTES.value,
        names=_HTTP_HOSTS.value,
        tls=server_tls,
    )


def _scraped(metrics: Metrics) -> "HttpServer":
    """The port of the metrics; what serves it is loaded only for it."""
    from serving.common.http_server import HttpServer

    host, port = _METRICS_HOST.value, _METRICS_PORT.value
    return HttpServer(metrics.app(), host, port, "metrics_port", names=_HTTP_HOSTS.value)


def _audit(metrics: Metrics) -> AuditLog:
    log = AuditLog(
        Path(_AUDIT_LOG.value),
        pixels=_AUDIT_PIXELS.value,
        max_bytes=_AUDIT_MAX_BYTES.value,
        keep=_AUDIT_KEEP.value,
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
    threads = _MAX_CERTIFICATIONS.value + SPARE_THREADS
    server = grpc_server.make_server(
        threads=threads,
        max_concurrent_rpcs=threads,
        max_message_bytes=_MAX_MESSAGE_BYTES.value,
        drain=drain,
        interceptors=traces.interceptors,
        on_broken=metrics.broken,
    )
    certification_pb2_grpc.add_CertifierServicer_to_server(certifier, server)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    if _REFLECTION.value:
        names = (CERTIFIER, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    grpc_server.bind(
        server,
        f"{_HOST.value}:{_PORT.value}",
        "port",
        server_tls.server_credentials() if server_tls else None,
    )
    return server


main = commandline.command(_main, FLAGS, "python -m serving.sidecar", __doc__)


if __name__ == "__main__":
    sys.exit(main())
