"""The flags of `python -m serving.sidecar`."""

import functools

from absl import flags

from serving.common import tls
from serving.sidecar.audit import MAX_BYTES
from serving.sidecar.limits import Limits
from tfmacer.common.errors import UserError
from tfmacer.wire.channel import ChannelFlags

FLAGS = flags.FlagValues()
_bool = functools.partial(flags.DEFINE_bool, flag_values=FLAGS)
_float = functools.partial(flags.DEFINE_float, flag_values=FLAGS)
_integer = functools.partial(flags.DEFINE_integer, flag_values=FLAGS)
_list = functools.partial(flags.DEFINE_list, flag_values=FLAGS)
_string = functools.partial(flags.DEFINE_string, flag_values=FLAGS)

BACKEND = _string(
    "backend", None, "HOST:PORT (or unix:PATH) of the model server's gRPC.", required=True
)
MODEL_NAME = _string("model_name", None, "The model's name there.", required=True)
MODEL_DIGEST = _string("model_digest", "", "The only model digest to certify; empty for any.")
BACKEND_TLS = ChannelFlags("backend_tls", "the backend", FLAGS, allow="backend_allow_plaintext")
HOST = _string("host", "127.0.0.1", "Address to listen on.")
TLS = tls.ServerFlags(FLAGS)
PORT = _integer("port", 8600, "TCP port for gRPC.", 1, 65535)
METRICS_HOST = _string(
    "metrics_host",
    "127.0.0.1",
    "Address for Prometheus metrics, in plain HTTP: let the scraper alone reach it.",
)
METRICS_PORT = _integer(
    "metrics_port", 9464, "TCP port for Prometheus metrics; 0 for none.", 0, 65535
)
HTTP_PORT = _integer(
    "http_port", 0, "TCP port for the web console and its JSON endpoint; 0 for none.", 0, 65535
)
HTTP_HOSTS = _list(
    "http_hosts",
    [],
    "Host names under which the console and the metrics are reached, besides localhost, --host and "
    "any IP address; requests to any other name are refused.",
)
PARALLELISM = _integer(
    "backend_parallelism",
    0,
    "Requests in flight at the backend, of all certifications together; its number of cores is "
    "right. 0 takes this machine's.",
    0,
)
BACKEND_TIMEOUT = _float(
    "backend_timeout", 60, "Seconds that one answer of the backend may take, retries included.", 0.1
)
POLL = _float("poll_seconds", 1, "Seconds between looks for a new model version.", 0.05)
MAX_CERTIFICATIONS = _integer(
    "max_certifications", 16, "Calls at once; more are refused with RESOURCE_EXHAUSTED.", 1
)
MAX_PER_CLIENT = _integer(
    "max_certifications_per_client",
    8,
    "Calls at once of one client (the certificate's subject, else the peer's address).",
    1,
)
MAX_N0 = _integer("max_n0", Limits.max_n0, "Largest n0 of a request.", 1)
MAX_N = _integer("max_n", Limits.max_n, "Largest n of a request.", 1, 2_000_000_000)
MIN_ALPHA = _float("min_alpha", Limits.min_alpha, "Smallest alpha of a request.", 1e-300, 0.5)
MAX_SECONDS = _float(
    "max_seconds", Limits.max_seconds, "Longest that a call may take, whatever its deadline.", 0.1
)
MAX_MESSAGE_BYTES = _integer(
    "max_message_bytes",
    4 * 2**20,
    "Largest request; larger ones are refused with RESOURCE_EXHAUSTED.",
    1024,
)
AUDIT_LOG = _string(
    "audit_log",
    "",
    "JSON-lines file that maps certificate ids to seeds, for drawing them again; empty for none. "
    "Each line carries the digest of the one before it.",
)
AUDIT_MAX_BYTES = _integer(
    "audit_max_bytes",
    MAX_BYTES,
    "Size at which the audit log is renamed to FILE.NUMBER, after its last entry, and begun anew.",
    1,
)
AUDIT_KEEP = _integer(
    "audit_keep",
    0,
    "Renamed files of the audit log that stay, the newest; older ones are deleted. 0 keeps all.",
    0,
)
AUDIT_PIXELS = _bool(
    "audit_pixels",
    True,
    "Keep the images in the audit log; without them drawing again needs them from elsewhere.",
)
OTEL_ENDPOINT = _string(
    "otel_endpoint",
    "",
    "URL of an OpenTelemetry collector's gRPC port (http://HOST:4317) to send traces to; empty "
    "takes OTEL_EXPORTER_OTLP_ENDPOINT from the environment, or sends none. Needs the extra otel.",
)
REFLECTION = _bool("reflection", True, "Serve gRPC reflection.")
SEED = _integer(
    "seed",
    None,
    "FOR TESTS ONLY: fixes the noise of every request to that of image 0 of an offline run with "
    "this seed. Callers could then look for images on which the noise is lucky.",
)
GRACE = _float("drain_seconds", 30, "How long calls under way may take to finish after SIGTERM.", 0)


def check() -> None:
    """Raises UserError for flags that do not go together."""
    if MAX_PER_CLIENT.value > MAX_CERTIFICATIONS.value:
        raise UserError(
            f"--max_certifications_per_client={MAX_PER_CLIENT.value} is more than "
            f"--max_certifications={MAX_CERTIFICATIONS.value}"
        )
