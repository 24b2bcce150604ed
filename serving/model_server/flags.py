"""The flags of `python -m serving.model_server`, most of them `tensorflow_model_server`'s own."""

import functools
from pathlib import Path

from absl import flags

from tfmacer.common.errors import UserError
from tfmacer.wire.channel import check_loopback

FLAGS = flags.FlagValues()
_bool = functools.partial(flags.DEFINE_bool, flag_values=FLAGS)
_float = functools.partial(flags.DEFINE_float, flag_values=FLAGS)
_integer = functools.partial(flags.DEFINE_integer, flag_values=FLAGS)
_list = functools.partial(flags.DEFINE_list, flag_values=FLAGS)
_string = functools.partial(flags.DEFINE_string, flag_values=FLAGS)

HOST = _string("host", "127.0.0.1", "Address to listen on, for gRPC and REST.")
PORT = _integer("port", 8500, "TCP port for gRPC; 0 for none.", 0, 65535)
SOCKET = _string("grpc_socket_path", "", "UNIX socket for gRPC; empty for none.")
SSL_CONFIG = _string(
    "ssl_config_file", "", "Text-format SSLConfig: TLS for gRPC. REST stays without."
)
ALLOW_PLAINTEXT = _bool(
    "allow_plaintext",
    False,
    "Listen without TLS on other addresses than loopback. Whoever reaches this server sees images "
    "and chooses the noise.",
)
REST_PORT = _integer("rest_api_port", 0, "TCP port for REST; 0 for none.", 0, 65535)
REST_TIMEOUT = _integer("rest_api_timeout_in_ms", 30_000, "Limit of one REST call.", 1)
HTTP_HOSTS = _list(
    "http_hosts",
    [],
    "Host names under which REST and metrics are reached, besides localhost, --host and any IP "
    "address; requests to any other name are refused.",
)
MODEL_NAME = _string("model_name", "default", "Name of the single model.")
BASE_PATH = _string(
    "model_base_path", "", "Directory of the single model's numbered version directories."
)
CONFIG_FILE = _string(
    "model_config_file",
    "",
    "Text-format ModelServerConfig, in place of --model_name and --model_base_path.",
)
CONFIG_POLL = _float(
    "model_config_file_poll_wait_seconds",
    0,
    "Seconds between readings of --model_config_file; 0 reads it once.",
    0,
)
POLL = _float(
    "file_system_poll_wait_seconds", 1, "Seconds between looks for new versions; 0 looks once.", 0
)
ALWAYS_PRESENT = _bool(
    "servable_versions_always_present", False, "Keep what is loaded when a base path turns empty."
)
LABELS = _bool(
    "allow_version_labels_for_unavailable_models",
    False,
    "Let a new label name a version that is not loaded, as every label at the start does.",
)
RETRIES = _integer("max_num_load_retries", 5, "Further attempts after a failed load.", 0)
RETRY_INTERVAL = _integer(
    "load_retry_interval_micros", 60_000_000, "Microseconds between attempts.", 0
)
WARMUP = _bool(
    "enable_model_warmup", True, "Replay assets.extra/tf_serving_warmup_requests at load."
)
ANY_OPS = _bool(
    "allow_any_ops",
    False,
    "Load graphs that do more than compute: such a graph reads and writes files, and runs code, as "
    "this process. Only for models of people whose programs you would run.",
)
INTRA = _integer(
    "tensorflow_intra_op_parallelism",
    1,
    "TensorFlow's threads within one operation; 0 leaves it to TensorFlow. Votes are repeatable "
    "for one value of this.",
    0,
)
INTER = _integer(
    "tensorflow_inter_op_parallelism",
    0,
    "TensorFlow's threads over operations; 0 takes the number of cores.",
    0,
)
SESSION = _integer(
    "tensorflow_session_parallelism", 0, "Sets both of the above where it is not 0.", 0
)
ENFORCE_TIMEOUT = _bool(
    "enforce_session_run_timeout", True, "Abort a run at the caller's deadline."
)
TENSOR_CONTENT = _bool(
    "enable_serialization_as_tensor_content",
    False,
    "Answer with tensor_content in place of the dtype's own field.",
)
MONITORING = _string(
    "monitoring_config_file",
    "",
    "Text-format MonitoringConfig; where it enables Prometheus, metrics are on the REST port.",
)
HEALTH = _bool("enable_grpc_healthcheck_service", True, "Serve grpc.health.v1.")
THREADS = _integer("grpc_max_threads", 0, "Calls handled at once; 0 takes 4 per core.", 0)
MAX_RPCS = _integer(
    "max_concurrent_rpcs",
    256,
    "Calls under way or waiting; more are refused with RESOURCE_EXHAUSTED.",
    1,
)
GRACE = _float("drain_seconds", 30, "How long calls under way may take to finish after SIGTERM.", 0)
METHOD_NAMES = _bool(
    "enable_signature_method_name_check",
    False,
    "Answer only signatures whose method name is TensorFlow Serving's for predict, classify or "
    "regress.",
)
BATCHING = _bool("enable_batching", False, "Not supported here; refused.")

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
            _name,
            None,
            "Accepted as by tensorflow_model_server; ignored.",
            flag_values=FLAGS,
        )


def ignored() -> list[str]:
    """Names of the flags given that are accepted and ignored."""
    names = [name for names in _UNUSED.values() for name in names]
    return [name for name in names if FLAGS[name].value is not None]


def check() -> None:
    """Raises UserError for what can be seen to be wrong without TensorFlow."""
    if BATCHING.value:
        raise UserError(
            "--enable_batching is not supported by the embedded server: use tensorflow_model_server"
        )
    if bool(CONFIG_FILE.value) == bool(BASE_PATH.value):
        raise UserError("give exactly one of --model_base_path and --model_config_file")
    for flag in (CONFIG_FILE, MONITORING, SSL_CONFIG):
        if flag.value and not Path(flag.value).is_file():
            raise UserError(f"--{flag.name}={flag.value}: there is no such file")
    if BASE_PATH.value and not Path(BASE_PATH.value).is_dir():
        raise UserError(f"--model_base_path={BASE_PATH.value}: there is no such directory")
    if MONITORING.value and not REST_PORT.value:
        raise UserError("--monitoring_config_file needs --rest_api_port")
    if not (PORT.value or SOCKET.value):
        raise UserError("--port=0: give a port, or --grpc_socket_path")
    if not ALLOW_PLAINTEXT.value:
        if PORT.value and not SSL_CONFIG.value:
            check_loopback("host", HOST.value, instead="--ssl_config_file")
        if REST_PORT.value:
            check_loopback("host", HOST.value, instead="no --rest_api_port")
