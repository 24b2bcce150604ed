"""An embedded model server that speaks TensorFlow Serving's gRPC and REST contract.

For laptops, tests and small deployments, and where TensorFlow Serving's own binary does not run;
everything else belongs behind `tensorflow_model_server`, whose flags have the same names here.
Prints `ready` once every configured model can answer. SIGTERM drains: calls under way finish, new
ones are refused.
"""

import logging
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
from absl import flags

from serving.common import grpc_server
from serving.common.lifecycle import Stop, exit_at_once, log_lines
from tfmacer.common import commandline
from tfmacer.common.errors import UserError
from tfmacer.wire.channel import check_loopback

if TYPE_CHECKING:
    from serving.common.http_server import HttpServer
    from serving.model_server.registry import Registry
    from serving.model_server.services import Calls

logger = logging.getLogger(__name__)

FLAGS = flags.FlagValues()

_HOST = flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen on, for gRPC and REST.", flag_values=FLAGS
)
_PORT = flags.DEFINE_integer(
    "port", 8500, "TCP port for gRPC; 0 for none.", 0, 65535, flag_values=FLAGS
)
_SOCKET = flags.DEFINE_string(
    "grpc_socket_path", "", "UNIX socket for gRPC; empty for none.", flag_values=FLAGS
)
_SSL_CONFIG = flags.DEFINE_string(
    "ssl_config_file",
    "",
    "Text-format SSLConfig: TLS for gRPC. REST stays without.",
    flag_values=FLAGS,
)
_ALLOW_PLAINTEXT = flags.DEFINE_bool(
    "allow_plaintext",
    False,
    "Listen without TLS on other addresses than loopback. Whoever reaches this server sees images "
    "and chooses the noise.",
    flag_values=FLAGS,
)
_REST_PORT = flags.DEFINE_integer(
    "rest_api_port", 0, "TCP port for REST; 0 for none.", 0, 65535, flag_values=FLAGS
)
_REST_TIMEOUT = flags.DEFINE_integer(
    "rest_api_timeout_in_ms", 30_000, "Limit of one REST call.", 1, flag_values=FLAGS
)
_HTTP_HOSTS = flags.DEFINE_list(
    "http_hosts",
    [],
    "Host names under which REST and metrics are reached, besides localhost, --host and any IP "
    "address; requests to any other name are refused.",
    flag_values=FLAGS,
)
_MODEL_NAME = flags.DEFINE_string(
    "model_name", "default", "Name of the single model.", flag_values=FLAGS
)
_BASE_PATH = flags.DEFINE_string(
    "model_base_path",
    "",
    "Directory of the single model's numbered version directories.",
    flag_values=FLAGS,
)
_CONFIG_FILE = flags.DEFINE_string(
    "model_config_file",
    "",
    "Text-format ModelServerConfig, in place of --model_name and --model_base_path.",
    flag_values=FLAGS,
)
_CONFIG_POLL = flags.DEFINE_float(
    "model_config_file_poll_wait_seconds",
    0,
    "Seconds between readings of --model_config_file; 0 reads it once.",
    0,
    flag_values=FLAGS,
)
_POLL = flags.DEFINE_float(
    "file_system_poll_wait_seconds",
    1,
    "Seconds between looks for new versions; 0 looks once.",
    0,
    flag_values=FLAGS,
)
_ALWAYS_PRESENT = flags.DEFINE_bool(
    "servable_versions_always_present",
    False,
    "Keep what is loaded when a base path turns empty.",
    flag_values=FLAGS,
)
_LABELS = flags.DEFINE_bool(
    "allow_version_labels_for_unavailable_models",
    False,
    "Let a new label name a version that is not loaded, as every label at the start does.",
    flag_values=FLAGS,
)
_RETRIES = flags.DEFINE_integer(
    "max_num_load_retries", 5, "Further attempts after a failed load.", 0, flag_values=FLAGS
)
_RETRY_INTERVAL = flags.DEFINE_integer(
    "load_retry_interval_micros",
    60_000_000,
    "Microseconds between attempts.",
    0,
    flag_values=FLAGS,
)
_WARMUP = flags.DEFINE_bool(
    "enable_model_warmup",
    True,
    "Replay assets.extra/tf_serving_warmup_requests at load.",
    flag_values=FLAGS,
)
_ANY_OPS = flags.DEFINE_bool(
    "allow_any_ops",
    False,
    "Load graphs that do more than compute: such a graph reads and writes files, and runs code, as "
    "this process. Only for models of people whose programs you would run.",
    flag_values=FLAGS,
)
_INTRA = flags.DEFINE_integer(
    "tensorflow_intra_op_parallelism",
    1,
    "TensorFlow's threads within one operation; 0 leaves it to TensorFlow. Votes are repeatable "
    "for one value of this.",
    0,
    flag_values=FLAGS,
)
_INTER = flags.DEFINE_integer(
    "tensorflow_inter_op_parallelism",
    0,
    "TensorFlow's threads over operations; 0 takes the number of cores.",
    0,
    flag_values=FLAGS,
)
_SESSION = flags.DEFINE_integer(
    "tensorflow_session_parallelism",
    0,
    "Sets both of the above where it is not 0.",
    0,
    flag_values=FLAGS,
)
_ENFORCE_TIMEOUT = flags.DEFINE_bool(
    "enforce_session_run_timeout",
    True,
    "Abort a run at the caller's deadline.",
    flag_values=FLAGS,
)
_TENSOR_CONTENT = flags.DEFINE_bool(
    "enable_serialization_as_tensor_content",
    False,
    "Answer with tensor_content in place of the dtype's own field.",
    flag_values=FLAGS,
)
_MONITORING = flags.DEFINE_string(
    "monitoring_config_file",
    "",
    "Text-format MonitoringConfig; where it enables Prometheus, metrics are on the REST port.",
    flag_values=FLAGS,
)
_HEALTH = flags.DEFINE_bool(
    "enable_grpc_healthcheck_service", True, "Serve grpc.health.v1.", flag_values=FLAGS
)
_THREADS = flags.DEFINE_integer(
    "grpc_max_threads", 0, "Calls handled at once; 0 takes 4 per core.", 0, flag_values=FLAGS
)
_MAX_RPCS = flags.DEFINE_integer(
    "max_concurrent_rpcs",
    256,
    "Calls under way or waiting; more are refused with RESOURCE_EXHAUSTED.",
    1,
    flag_values=FLAGS,
)
_GRACE = flags.DEFINE_float(
    "drain_seconds",
    30,
    "How long calls under way may take to finish after SIGTERM.",
    0,
    flag_values=FLAGS,
)
_METHOD_NAMES = flags.DEFINE_bool(
    "enable_signature_method_name_check",
    False,
    "Answer only signatures whose method name is TensorFlow Serving's for predict, classify or "
    "regress.",
    flag_values=FLAGS,
)
_BATCHING = flags.DEFINE_bool(
    "enable_batching", False, "Not supported here; refused.", flag_values=FLAGS
)

# Of what comes in and of what goes out, once it is not compressed any more.
MAX_MESSAGE_BYTES = 2**28

# Of tensorflow_model_server: how it uses the machine, or what it logs, and not what it answers.
_UNUSED = {
    "bool": (
        "enable_per_model_metrics",
        "enable_profiler",
        "flush_filesystem_caches",
        "remove_unused_fields_from_bundle_metagraph",
        "skip_initialize_tpu",
    ),
    "integer": (
        "num_load_threads",
        "num_request_iterations_for_warmup",
        "num_unload_threads",
        "rest_api_num_threads",
        "tensorflow_gpu_memory_limit_mb",
    ),
    "float": ("per_process_gpu_memory_fraction",),
    "string": ("grpc_channel_arguments", "thread_pool_factory_config_file"),
}
for _kind, _names in _UNUSED.items():
    for _name in _names:
        getattr(flags, f"DEFINE_{_kind}")(
            _name, None, "Taken for tensorflow_model_server's sake; ignored.", flag_values=FLAGS
        )


def _check_flags() -> None:
    """Refuses what can be seen to be wrong without TensorFlow."""
    if _BATCHING.value:
        raise UserError(
            "--enable_batching is not supported by the embedded server: use tensorflow_model_server"
        )
    if bool(_CONFIG_FILE.value) == bool(_BASE_PATH.value):
        raise UserError("give exactly one of --model_base_path and --model_config_file")
    for flag in (_CONFIG_FILE, _MONITORING, _SSL_CONFIG):
        if flag.value and not Path(flag.value).is_file():
            raise UserError(f"--{flag.name}={flag.value}: there is no such file")
    if _BASE_PATH.value and not Path(_BASE_PATH.value).is_dir():
        raise UserError(f"--model_base_path={_BASE_PATH.value}: there is no such directory")
    if _MONITORING.value and not _REST_PORT.value:
        raise UserError("--monitoring_config_file needs --rest_api_port")
    if not (_PORT.value or _SOCKET.value):
        raise UserError("--port=0: give a port, or --grpc_socket_path")
    if not _ALLOW_PLAINTEXT.value:
        if _PORT.value and not _SSL_CONFIG.value:
            check_loopback("host", _HOST.value, instead="--ssl_config_file")
        if _REST_PORT.value:
            check_loopback("host", _HOST.value, instead="no --rest_api_port")


def _credentials() -> grpc.ServerCredentials | None:
    from serving.model_server.ssl_config import read_credentials

    return read_credentials(Path(_SSL_CONFIG.value)) if _SSL_CONFIG.value else None


def _main() -> None:
    _check_flags()
    credentials = _credentials()
    stop = Stop()
    # Late, because it takes seconds: a wrong flag is answered before.
    commandline.load_tensorflow()
    log_lines()
    # Its loader's deprecation is no news to whoever runs a server.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    for name in (name for names in _UNUSED.values() for name in names):
        if FLAGS[name].value is not None:
            logger.warning("--%s is taken and ignored: it changes no answer", name)
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
    calls = Calls(registry, Metrics(), tensor_content=_TENSOR_CONTENT.value)
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
    drain.drain(_GRACE.value)
    server.stop(grpc_server.LAST_WORDS).wait()
    if rest:
        rest.stop(_GRACE.value)
    registry.stop(timeout=grpc_server.LAST_WORDS)


def _config() -> Any:
    from serving.model_server import configuration

    if _CONFIG_FILE.value:
        return configuration.read_config_file(Path(_CONFIG_FILE.value))
    return configuration.single_model(_MODEL_NAME.value, os.path.abspath(_BASE_PATH.value))


def _registry() -> "Registry":
    from serving.model_server.registry import Registry
    from serving.model_server.servable import Servable, Threads
    from serving.model_server.versions import LoadPolicy

    threads = Threads(
        intra_op=_SESSION.value or _INTRA.value,
        inter_op=_SESSION.value or _INTER.value or os.cpu_count() or 1,
    )

    def load(path: Path) -> Servable:
        if _ANY_OPS.value:
            logger.warning("--allow_any_ops: %s is loaded whatever it does", path)
        servable = Servable(
            path, threads, any_ops=_ANY_OPS.value, check_method_name=_METHOD_NAMES.value
        )
        if _WARMUP.value:
            try:
                servable.warm_up(path)
            except BaseException:
                servable.close()
                raise
        return servable

    return Registry(
        LoadPolicy(load, _RETRIES.value, _RETRY_INTERVAL.value / 1e6),
        poll_seconds=_POLL.value,
        versions_always_present=_ALWAYS_PRESENT.value,
        labels_for_unavailable=_LABELS.value,
    )


def _grpc(
    calls: "Calls", drain: grpc_server.Drain, credentials: grpc.ServerCredentials | None
) -> tuple[Any, Any]:
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

    from serving.model_server.services import ModelService, PredictionService

    server = grpc_server.make_server(
        threads=_THREADS.value or 4 * (os.cpu_count() or 1),
        max_concurrent_rpcs=_MAX_RPCS.value,
        max_message_bytes=MAX_MESSAGE_BYTES,
        drain=drain,
        on_broken=calls.metrics.broken,
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(calls, enforce_timeout=_ENFORCE_TIMEOUT.value), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(calls), server)
    checks = None
    if _HEALTH.value:
        checks = health.HealthServicer(experimental_non_blocking=True)
        # Without their packages, as TensorFlow Serving names them.
        for service in ("", "ModelService", "PredictionService"):
            checks.set(service, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    if _PORT.value:
        grpc_server.bind(server, f"{_HOST.value}:{_PORT.value}", "port", credentials)
    if _SOCKET.value:
        grpc_server.bind(server, f"unix:{_SOCKET.value}", "grpc_socket_path")
    return server, checks


def _metrics_path() -> str | None:
    from serving.model_server.metrics import monitoring_path

    return monitoring_path(Path(_MONITORING.value).read_text()) if _MONITORING.value else None


def _rest(calls: "Calls", metrics_path: str | None) -> "HttpServer | None":
    if not _REST_PORT.value:
        return None
    from serving.common.http_server import HttpServer
    from serving.model_server.rest import make_app, refusal

    app = make_app(calls, timeout_ms=_REST_TIMEOUT.value, metrics_path=metrics_path)
    return HttpServer(
        app,
        _HOST.value,
        _REST_PORT.value,
        "rest_api_port",
        names=_HTTP_HOSTS.value,
        refusal=refusal,
    )


def _poll_config(registry: "Registry", stopped: threading.Event) -> None:
    """Reads the configuration file again and again, where asked to."""
    from serving.model_server.status import StatusError

    def poll() -> None:
        while not stopped.wait(_CONFIG_POLL.value):
            try:
                registry.configure(_config())
            except (StatusError, OSError) as error:
                logger.error("%s not taken over: %s", _CONFIG_FILE.value, error)

    if _CONFIG_FILE.value and _CONFIG_POLL.value:
        threading.Thread(target=poll, name="config", daemon=True).start()


def _addresses() -> str:
    grpc_at = [f"{_HOST.value}:{_PORT.value}"] if _PORT.value else []
    grpc_at += [f"unix:{_SOCKET.value}"] if _SOCKET.value else []
    rest_at = f", REST on {_HOST.value}:{_REST_PORT.value}" if _REST_PORT.value else ""
    with_tls = " with TLS" if _SSL_CONFIG.value and _PORT.value else ""
    return f"gRPC{with_tls} on {' and '.join(grpc_at)}{rest_at}"


main = commandline.command(_main, FLAGS, "python -m serving.model_server", __doc__)


if __name__ == "__main__":
    exit_at_once(main)
