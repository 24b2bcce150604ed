"""An embedded model server that speaks TensorFlow Serving's gRPC and REST contract.

For laptops, tests and small deployments, and where TensorFlow Serving's own binary does not run;
everything else belongs behind `tensorflow_model_server`, whose flags have the same names here.
Prints `ready` once every configured model can answer. SIGTERM drains: calls under way finish, new
ones are refused.
"""

import functools
import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from serving.common import grpc_server
from serving.common.lifecycle import Stop, exit_at_once
from serving.common.logs import log_lines
from serving.model_server import flags
from serving.model_server.flags import FLAGS
from tfmacer.common import commandline
from tfmacer.common.errors import UserError

if TYPE_CHECKING:
    from serving.common.http_server import HttpServer
    from serving.model_server.registry import Registry
    from serving.model_server.services import Calls

logger = logging.getLogger(__name__)

# Of requests and of answers, uncompressed.
MAX_MESSAGE_BYTES = 2**28


def _credentials() -> grpc.ServerCredentials | None:
    from serving.model_server.ssl_config import read_credentials

    return read_credentials(Path(flags.SSL_CONFIG.value)) if flags.SSL_CONFIG.value else None


def _main() -> None:
    flags.check()
    credentials = _credentials()
    stop = Stop()
    # After the flags were checked, because it takes seconds.
    commandline.load_tensorflow()
    log_lines()
    # Its loader warns of its own deprecation, which operators cannot change.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    for name in flags.ignored():
        logger.warning("--%s is accepted and ignored: it changes no answer", name)
    from serving.model_server.metrics import Metrics
    from serving.model_server.services import Calls
    from serving.model_server.status import StatusError

    try:
        metrics_path = _metrics_path()
        registry = _registry()
        registry.start()
        registry.configure(_config())
    except StatusError as error:
        raise UserError(
            f"Failed to start server. Error: {error.code.name}: {error.message}"
        ) from error
    calls = Calls(registry, Metrics(), tensor_content=flags.TENSOR_CONTENT.value)
    drain = grpc_server.Drain()
    server, health = _grpc(calls, drain, credentials)
    rest = _rest(calls, metrics_path)
    server.start()
    if rest:
        rest.start()
    reloads = threading.Event()
    _poll_config(registry, reloads)
    stop.ready(_addresses())
    stop.wait()

    reloads.set()
    if health:
        health.enter_graceful_shutdown()
    drain.drain(flags.GRACE.value)
    server.stop(grpc_server.STOP_SECONDS).wait()
    if rest:
        rest.stop(flags.GRACE.value)
    registry.stop(timeout=grpc_server.STOP_SECONDS)


def _config() -> Any:
    from serving.model_server import configuration

    if flags.CONFIG_FILE.value:
        return configuration.read_config_file(Path(flags.CONFIG_FILE.value))
    return configuration.single_model(
        flags.MODEL_NAME.value, os.path.abspath(flags.BASE_PATH.value)
    )


def _registry() -> "Registry":
    from serving.model_server.registry import Registry
    from serving.model_server.servable import Servable, Threads
    from serving.model_server.versions import LoadPolicy

    threads = Threads(
        intra_op=flags.SESSION.value or flags.INTRA.value,
        inter_op=flags.SESSION.value or flags.INTER.value or os.cpu_count() or 1,
    )

    def load(path: Path) -> Servable:
        if flags.ANY_OPS.value:
            logger.warning("--allow_any_ops: %s is loaded whatever it does", path)
        servable = Servable(
            path, threads, any_ops=flags.ANY_OPS.value, check_method_name=flags.METHOD_NAMES.value
        )
        if flags.WARMUP.value:
            try:
                servable.warm_up(path)
            except BaseException:
                servable.close()
                raise
        return servable

    return Registry(
        LoadPolicy(load, flags.RETRIES.value, flags.RETRY_INTERVAL.value / 1e6),
        poll_seconds=flags.POLL.value,
        versions_always_present=flags.ALWAYS_PRESENT.value,
        labels_for_unavailable=flags.LABELS.value,
    )


def _grpc(
    calls: "Calls", drain: grpc_server.Drain, credentials: grpc.ServerCredentials | None
) -> tuple[Any, Any]:
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

    from serving.model_server.services import ModelService, PredictionService

    server = grpc_server.make_server(
        threads=flags.THREADS.value or 4 * (os.cpu_count() or 1),
        max_concurrent_rpcs=flags.MAX_RPCS.value,
        max_message_bytes=MAX_MESSAGE_BYTES,
        drain=drain,
        on_broken=calls.metrics.broken,
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(calls, enforce_timeout=flags.ENFORCE_TIMEOUT.value), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(calls), server)
    checks = None
    if flags.HEALTH.value:
        checks = health.HealthServicer(experimental_non_blocking=True)
        # Without their packages, as TensorFlow Serving names them.
        for service in ("", "ModelService", "PredictionService"):
            checks.set(service, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    if flags.PORT.value:
        grpc_server.bind(server, f"{flags.HOST.value}:{flags.PORT.value}", "port", credentials)
    if flags.SOCKET.value:
        grpc_server.bind(server, f"unix:{flags.SOCKET.value}", "grpc_socket_path")
    return server, checks


def _metrics_path() -> str | None:
    from serving.model_server.metrics import monitoring_path
    from tfmacer.records.runs import read_text

    return (
        monitoring_path(read_text(Path(flags.MONITORING.value))) if flags.MONITORING.value else None
    )


def _rest(calls: "Calls", metrics_path: str | None) -> "HttpServer | None":
    if not flags.REST_PORT.value:
        return None
    from serving.common.http_server import HttpServer
    from serving.model_server.rest import make_app, refusal

    app = make_app(calls, timeout_ms=flags.REST_TIMEOUT.value, metrics_path=metrics_path)
    return HttpServer(
        app,
        flags.HOST.value,
        flags.REST_PORT.value,
        "rest_api_port",
        names=flags.HTTP_HOSTS.value,
        refusal=refusal,
    )


def _poll_config(registry: "Registry", stopped: threading.Event) -> None:
    """Reads the configuration file again and again, where asked to."""
    from serving.model_server.status import StatusError

    def asked_for(config: Any) -> bool:
        return not stopped.is_set() and bool(_config() == config)

    def poll() -> None:
        while not stopped.wait(flags.CONFIG_POLL.value):
            try:
                config = _config()
                # Waits for versions only as long as the file asks for them: its next text may mend
                # what this one got wrong.
                registry.configure(config, wanted=functools.partial(asked_for, config))
            except (StatusError, OSError) as error:
                logger.error("%s not taken over: %s", flags.CONFIG_FILE.value, error)

    if flags.CONFIG_FILE.value and flags.CONFIG_POLL.value:
        threading.Thread(target=poll, name="config", daemon=True).start()


def _addresses() -> str:
    grpc_at = [f"{flags.HOST.value}:{flags.PORT.value}"] if flags.PORT.value else []
    grpc_at += [f"unix:{flags.SOCKET.value}"] if flags.SOCKET.value else []
    rest_at = (
        f", REST on {flags.HOST.value}:{flags.REST_PORT.value}" if flags.REST_PORT.value else ""
    )
    with_tls = " with TLS" if flags.SSL_CONFIG.value and flags.PORT.value else ""
    return f"gRPC{with_tls} on {' and '.join(grpc_at)}{rest_at}"


main = commandline.command(_main, FLAGS, "python -m serving.model_server", __doc__)


if __name__ == "__main__":
    exit_at_once(main)
