"""PredictionService and ModelService over gRPC, on the registry."""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from typing_extensions import override

from serving.model_server import encoding
from serving.model_server.metrics import Metrics
from serving.model_server.registry import Registry
from serving.model_server.servable import DEFAULT_SIGNATURE
from serving.model_server.status import StatusError, abort, invalid
from tfmacer.common.text import cut

SIGNATURE_DEF = "signature_def"
MAX_SECONDS = 1e6
# That a reload waits for the versions of its models, whatever the caller's patience.
RELOAD_SECONDS = 300.0


class Calls:
    """What both the gRPC services and the REST paths do. Raises `StatusError`."""

    def __init__(
        self, registry: Registry, metrics: Metrics, *, tensor_content: bool = False
    ) -> None:
        self.registry = registry
        self.metrics = metrics
        self._tensor_content = tensor_content
        self._reloading = threading.Lock()

    def measured(self, model: str, api: str, entrypoint: str) -> AbstractContextManager[None]:
        """Counts what its body does as one request; see `Metrics.request`."""
        known = model if self.registry.serves(model) else ""
        return self.metrics.request(known, api, entrypoint)

    def predict(self, request: Any, *, timeout_ms: int) -> Any:
        """PredictResponse to a PredictRequest; the run is aborted after `timeout_ms` (0 never)."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        spec = request.model_spec
        with self.registry.use(spec) as (version, servable):
            started = time.perf_counter()
            outputs = servable.predict(
                spec.signature_name, request.inputs, request.output_filter, timeout_ms=timeout_ms
            )
            self.metrics.ran(spec.name, time.perf_counter() - started)
        response = predict_pb2.PredictResponse(
            outputs=encoding.to_protos(outputs, as_content=self._tensor_content)
        )
        response.model_spec.name = spec.name
        response.model_spec.version.value = version
        response.model_spec.signature_name = spec.signature_name or DEFAULT_SIGNATURE
        return response

    def metadata(self, request: Any) -> Any:
        """GetModelMetadataResponse: the signatures of a version."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != SIGNATURE_DEF:
                raise invalid(f"Metadata field {cut(field)} is not supported")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        signatures = get_model_metadata_pb2.SignatureDefMap()
        with self.registry.use(request.model_spec) as (version, servable):
            for name, signature in servable.signature_defs.items():
                signatures.signature_def[name].CopyFrom(signature)
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = version
        response.metadata[SIGNATURE_DEF].Pack(signatures)
        return response

    def status(self, request: Any) -> Any:
        """GetModelStatusResponse: the state of one version or of all."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        response = get_model_status_pb2.GetModelStatusResponse()
        for found in self.registry.statuses(request.model_spec):
            status = response.model_version_status.add(
                version=found.version, state=int(found.state)
            )
            status.status.error_code = found.error.code.value[0] if found.error else 0
            status.status.error_message = found.error.message if found.error else ""
        return response

    def reload(self, request: Any, *, timeout: float | None, wanted: Callable[[], bool]) -> Any:
        """ReloadConfigResponse: another configuration, loaded before this returns.

        Args:
          request: a ReloadConfigRequest.
          timeout: seconds to wait for versions, and no more than `RELOAD_SECONDS`.
          wanted: whether the caller still waits.
        """
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported"
            )
        if not self._reloading.acquire(blocking=False):
            # Each would wait on a thread that other calls need.
            raise StatusError(grpc.StatusCode.UNAVAILABLE, "another configuration is being loaded")
        try:
            limit = RELOAD_SECONDS if timeout is None else min(timeout, RELOAD_SECONDS)
            self.registry.configure(request.config, timeout=limit, wanted=wanted)
        finally:
            self._reloading.release()
        return model_management_pb2.ReloadConfigResponse()


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):  # type: ignore[misc]
    """Predict and GetModelMetadata; the rest of the service answers UNIMPLEMENTED."""

    def __init__(self, calls: Calls, *, enforce_timeout: bool = True) -> None:
        self._calls = calls
        self._enforce_timeout = enforce_timeout

    @override
    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        """See `Calls.predict`; the caller's deadline aborts the run."""
        remaining = _remaining(context) if self._enforce_timeout else None
        timeout_ms = 0 if remaining is None else max(1, int(1000 * remaining))
        measured = self._calls.measured(request.model_spec.name, "Predict", "GRPC")
        return _answer(
            context, lambda: self._calls.predict(request, timeout_ms=timeout_ms), measured
        )

    @override
    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        """See `Calls.metadata`."""
        return _answer(context, lambda: self._calls.metadata(request))


class ModelService(model_service_pb2_grpc.ModelServiceServicer):  # type: ignore[misc]
    """GetModelStatus and HandleReloadConfigRequest."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    @override
    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:
        """See `Calls.status`."""
        return _answer(context, lambda: self._calls.status(request))

    @override
    def HandleReloadConfigRequest(self, request: Any, context: grpc.ServicerContext) -> Any:
        """See `Calls.reload`."""
        timeout = _remaining(context)
        return _answer(
            context,
            lambda: self._calls.reload(request, timeout=timeout, wanted=context.is_active),
        )


def _remaining(context: grpc.ServicerContext) -> float | None:
    """Seconds until the caller's deadline; None where there is none."""
    remaining = context.time_remaining()
    # A call without a deadline may say so with a time far beyond any.
    return None if remaining is None or remaining > MAX_SECONDS else remaining


def _answer(
    context: grpc.ServicerContext,
    call: Callable[[], Any],
    within: AbstractContextManager[None] | None = None,
) -> Any:
    try:
        with within or nullcontext():
            return call()
    except StatusError as error:
        abort(context, error)
