"""Traces over OpenTelemetry: a span for each call, each request to the backend, and each bound.

Off by default; the packages of the extra `otel` are imported only if it is on. Spans carry what
the log line of a call has; no pixels, no seeds, no votes.
"""

import contextlib
import dataclasses
import importlib.util
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import grpc

from serving.common.grpc_server import Interceptor
from tfmacer.common.errors import UserError
from tfmacer.wire.channel import proxy_options

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

SERVICE = "tfmacer-sidecar"
# Where the OpenTelemetry SDK itself looks for an endpoint.
_ENVIRONMENT = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PACKAGES = (
    "opentelemetry.sdk",
    "opentelemetry.exporter.otlp.proto.grpc",
    "opentelemetry.instrumentation.grpc",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tracing:
    """How spans are made; by default none are.

    Attributes:
      interceptors: of the gRPC server; a span for each call, under the caller's own if it sent one.
      wrap: makes a channel whose requests have spans.
      bound: entered around the computation of a certificate.
      note: adds attributes to the span under way.
      stop: sends what is left.
    """

    interceptors: Sequence[Interceptor] = ()
    wrap: Callable[[grpc.Channel], grpc.Channel] = lambda channel: channel
    bound: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    note: Callable[[Mapping[str, object]], None] = lambda attributes: None
    stop: Callable[[], None] = lambda: None


OFF = Tracing()


def start(endpoint: str, *, use_proxy: bool = False) -> Tracing:
    """Sends spans to an OTLP collector over gRPC.

    Args:
      endpoint: its URL; empty takes OTEL_EXPORTER_OTLP_ENDPOINT and its like from the environment,
        and makes no spans where there is none.
      use_proxy: go there through the proxy that the environment names, where it is elsewhere.

    Raises:
      UserError: the endpoint is no URL, or the extra that it needs is not installed.
    """
    if endpoint and not endpoint.startswith(("http://", "https://")):
        raise UserError(f"--otel_endpoint={endpoint}: must begin with http:// or https://")
    if not endpoint and not any(map(os.getenv, _ENVIRONMENT)):
        return OFF
    if not all(map(_installed, _PACKAGES)):
        needed = "sending traces needs the extra otel: pip install 'tfmacer[otel]'"
        if endpoint:
            raise UserError(f"--otel_endpoint={endpoint}: {needed}")
        # The environment may be meant for others on the machine.
        logger.warning("OTEL_EXPORTER_OTLP_ENDPOINT is ignored: %s", needed)
        return OFF
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.getenv("OTEL_SERVICE_NAME", SERVICE)
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    # As the exporter itself finds it: the first has precedence.
    found = endpoint or next(filter(None, map(os.getenv, _ENVIRONMENT)))
    options: Any = tuple(proxy_options(urlsplit(found).netloc or found, use_proxy))
    exporter = OTLPSpanExporter(endpoint or None, channel_options=options)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return traced(provider)


def traced(provider: "TracerProvider") -> Tracing:
    """Makes spans at a provider."""
    from opentelemetry import trace
    from opentelemetry.instrumentation import grpc as instrumentation
    from opentelemetry.instrumentation.grpc import filters, grpcext

    from serving import certification_pb2

    service = certification_pb2.DESCRIPTOR.services_by_name["Certifier"].full_name
    tracer = provider.get_tracer(__name__)
    # Looks for new versions come every second and belong to no call.
    client = instrumentation.client_interceptor(
        provider, filter_=lambda call: trace.get_current_span().is_recording()
    )
    server = instrumentation.server_interceptor(provider, filter_=filters.service_name(service))

    def note(attributes: Mapping[str, object]) -> None:
        for key, value in attributes.items():
            if isinstance(value, bool | int | float | str):
                trace.get_current_span().set_attribute(f"tfmacer.{key}", value)

    return Tracing(
        interceptors=(server,),
        wrap=lambda channel: grpcext.intercept_channel(channel, client),
        bound=lambda: tracer.start_as_current_span("bound"),
        note=note,
        stop=provider.shutdown,
    )


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the package that it lies in
        return False
