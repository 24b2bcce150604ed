"""A TensorFlow Serving endpoint: its channel, its failures, and what it says of a model."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from tfmacer import wire
from tfmacer.common.errors import UserError
from tfmacer.records.runs import Smoothing
from tfmacer.wire import serving_pb2, tensors
from tfmacer.wire.channel import DIRECT, Transport, open_channel

MAX_MESSAGE_BYTES = 64 * 2**20
INFO_SECONDS = 10.0

# A call may be repeated because a request names its seeds: the second answer equals the first. Some
# four seconds in all (3.16 to 4.74: gRPC spreads each wait by a fifth), enough for a server that is
# restarted or drops a connection, and less than any caller's deadline for a status, so that the
# failure is reported and not the deadline.
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [
                {"service": path.split("/")[1]} for path in (wire.PREDICT, wire.GET_MODEL_STATUS)
            ],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2.5,
                # A server answers CANCELLED to calls that its shutdown cuts off; calls that are
                # cancelled here are not repeated.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ]
}


class BackendError(UserError):
    """The endpoint gave no votes that could be used.

    Attributes:
      code: what a server in front of it should answer: UNAVAILABLE (down or full, after retries),
        DEADLINE_EXCEEDED (slow), NOT_FOUND (no such model), FAILED_PRECONDITION (a model that
        cannot be certified), ABORTED (the version was exchanged midway), CANCELLED (by
        `RemoteVotes.cancel`), INTERNAL (an answer that makes no sense, or a refusal).
    """

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Endpoint:
    """A channel to a TensorFlow Serving endpoint and the methods asked of it."""

    def __init__(
        self,
        target: str,
        *,
        transport: Transport = DIRECT,
        wrap: Callable[[grpc.Channel], grpc.Channel] = lambda channel: channel,
    ) -> None:
        """Connects when it is first asked; `wrap` puts interceptors in front of the channel."""
        self.target = target
        options = [
            ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 200),
            # With its spread, less than the repetitions take: one of them reaches the server again.
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        self._channel = open_channel(target, transport, options)
        channel = wrap(self._channel)
        self.predict = channel.unary_unary(
            wire.PREDICT,
            request_serializer=serving_pb2.PredictRequest.SerializeToString,
            response_deserializer=serving_pb2.PredictResponse.FromString,
        )
        self._get_model_status = channel.unary_unary(
            wire.GET_MODEL_STATUS,
            request_serializer=serving_pb2.GetModelStatusRequest.SerializeToString,
            response_deserializer=serving_pb2.GetModelStatusResponse.FromString,
        )

    def available_versions(self, model_name: str, *, timeout: float = INFO_SECONDS) -> list[int]:
        """The versions of a model that the endpoint serves, ascending.

        Raises:
          BackendError: it cannot be reached or does not know the model.
        """
        request = serving_pb2.GetModelStatusRequest(
            model_spec=serving_pb2.ModelSpec(name=model_name)
        )
        try:
            answer = self._get_model_status(request, timeout=timeout)
        except grpc.RpcError as error:
            raise self.explain(error, f"model {model_name}") from error
        return sorted(
            status.version
            for status in answer.model_version_status
            if status.state == serving_pb2.ModelVersionStatus.AVAILABLE
        )

    def watch(self, changed: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """Calls `changed`, on another thread, at every change of the connection until it closes."""
        self._channel.subscribe(changed)

    def close(self) -> None:
        """Closes the channel; what is in flight is cancelled."""
        self._channel.close()

    def explain(self, error: Any, asked: str) -> BackendError:
        """The failure of one call, as an error for the caller that asked for votes."""
        code, text = error.code(), str(error.details())
        meanings = {
            grpc.StatusCode.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.CANCELLED: grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.RESOURCE_EXHAUSTED: grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
            grpc.StatusCode.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
        }
        meaning = meanings.get(code, grpc.StatusCode.INTERNAL)
        return BackendError(meaning, f"backend {self.target}: {asked}: {code.name}: {text}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedModel:
    """One version of a model at an endpoint, and what it smooths."""

    name: str
    version: int
    smoothing: Smoothing


def served_model(
    endpoint: Endpoint,
    model_name: str,
    *,
    version: int | None = None,
    timeout: float = INFO_SECONDS,
) -> ServedModel:
    """Asks a model for its own description, through its signature `tfmacer_info`.

    Raises:
      BackendError: no answer, no such model, or a model that does not describe itself.
    """
    request = predict_request(model_name, version, "tfmacer_info", {"probe": np.zeros(1, np.int32)})
    asked = f"model {model_name}" + ("" if version is None else f" version {version}")
    try:
        answer = endpoint.predict(request, timeout=timeout)
    except grpc.RpcError as error:
        if "tfmacer_info" in str(error.details()):
            raise BackendError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"backend {endpoint.target}: {asked} has no signature tfmacer_info: only models "
                "exported by `python -m export.saved_model` can be certified",
            ) from error
        raise endpoint.explain(error, asked) from error
    found = answer.model_spec.version.value
    origin = f"backend {endpoint.target}: model {model_name} version {found}"
    try:
        text = tensors.to_numpy(answer.outputs["smoothing"], serving_pb2.DT_STRING, (1,))[0]
        smoothing = Smoothing.from_json(text.decode(), origin=origin)
    except (ValueError, UserError) as error:
        raise BackendError(
            grpc.StatusCode.FAILED_PRECONDITION, f"{origin}: tfmacer_info: {error}"
        ) from error
    return ServedModel(name=model_name, version=found, smoothing=smoothing)


def check_served(endpoint: Endpoint, model: ServedModel, *, timeout: float = INFO_SECONDS) -> None:
    """Asks whether a version number still means the model that votes were drawn from.

    Raises:
      BackendError: ABORTED, it does not; or the endpoint cannot be asked.
    """
    found: ServedModel | None = None
    try:
        found = served_model(endpoint, model.name, version=model.version, timeout=timeout)
    except BackendError as error:
        if error.code is not grpc.StatusCode.NOT_FOUND:
            raise
    if found != model:
        raise BackendError(
            grpc.StatusCode.ABORTED,
            f"backend {endpoint.target}: model {model.name} version {model.version} was "
            "taken away or exchanged for another one midway; ask again",
        )


def predict_request(
    model_name: str,
    version: int | None,
    signature: str,
    inputs: Mapping[str, npt.NDArray[Any]],
) -> serving_pb2.PredictRequest:
    """A call of one signature; `version` None lets the server take its newest."""
    request = serving_pb2.PredictRequest(
        model_spec=serving_pb2.ModelSpec(name=model_name, signature_name=signature),
        inputs={name: tensors.from_numpy(values) for name, values in inputs.items()},
    )
    if version is not None:
        request.model_spec.version.value = version
    return request
