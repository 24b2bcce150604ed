"""The gRPC surface, asked with the real stubs of tensorflow-serving-api."""

import time

import grpc
import numpy as np
import portpicker
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.common import grpc_server
from serving.model_server.configuration import single_model
from serving.model_server.metrics import Metrics
from serving.model_server.registry import Registry
from serving.model_server.services import Calls, ModelService


@pytest.fixture(scope="module")
def prediction(channel: grpc.Channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def service(channel: grpc.Channel):
    return model_service_pb2_grpc.ModelServiceStub(channel)


def _predict(spec: str, **inputs: list[float]) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    if spec:
        text_format.Parse(spec, request.model_spec)
    for name, values in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(np.array(values, np.float32)))
    return request


@pytest.mark.parametrize("spec", ["name: 'halves'", "name: 'halves' version { value: 7 }"])
def test_predict_echoes_the_resolved_model(prediction, spec: str) -> None:
    answer = prediction.Predict(_predict(spec, x=[2.0, 4.0]))
    assert list(answer.outputs["y"].float_val) == [3.0, 4.0]
    assert answer.model_spec.name == "halves"
    assert answer.model_spec.version.value == 7
    assert answer.model_spec.signature_name == "serving_default"


@pytest.mark.parametrize(
    ("spec", "code", "text"),
    [
        ("", "INVALID_ARGUMENT", "Missing ModelSpec"),
        ("signature_name: 'x'", "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        ("name: 'no'", "NOT_FOUND", "Servable not found for request: Latest(no)"),
        (
            "name: 'halves' version { value: 8 }",
            "NOT_FOUND",
            "Servable not found for request: Specific(halves, 8)",
        ),
        (
            "name: 'halves' version {}",
            "NOT_FOUND",
            "Servable not found for request: Specific(halves, 0)",
        ),
        (
            "name: 'halves' version_label: 'canary'",
            "INVALID_ARGUMENT",
            "Unrecognized servable version label: canary",
        ),
        (
            "name: 'halves' signature_name: 's'",
            "FAILED_PRECONDITION",
            'Serving signature key "s" not found.',
        ),
    ],
)
def test_predict_refusals(prediction, spec: str, code: str, text: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        prediction.Predict(_predict(spec, x=[1.0]))
    assert (caught.value.code().name, caught.value.details()) == (code, text)


def test_long_error_texts_are_cut(prediction) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        prediction.Predict(_predict(f"name: 'halves' signature_name: '{'s' * 3000}'", x=[1.0]))
    assert caught.value.details() == f'Serving signature key "{"s" * 199}…" not found.'


def test_the_deadline_reaches_the_run(prediction) -> None:
    request = _predict("name: 'halves' signature_name: 'spin'", x=[1.0])
    request.inputs["steps"].CopyFrom(tf.make_tensor_proto(np.array([2**31 - 1], np.int32)))
    with pytest.raises(grpc.RpcError) as caught:
        prediction.Predict(request, timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # The run was aborted, not only abandoned: with four such runs going on, this would never end.
    for _ in range(4):
        with pytest.raises(grpc.RpcError):
            prediction.Predict(request, timeout=0.05)
    assert prediction.Predict(_predict("name: 'halves'", x=[2.0]), timeout=30).outputs


def test_metadata_are_the_signatures(prediction) -> None:
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "halves"
    answer = prediction.GetModelMetadata(request)
    assert answer.model_spec.version.value == 7
    signatures = get_model_metadata_pb2.SignatureDefMap()
    answer.metadata["signature_def"].Unpack(signatures)
    assert {"serving_default", "two"} < set(signatures.signature_def)
    two = signatures.signature_def["two"]
    assert sorted(two.inputs) == ["m", "x"]
    assert two.inputs["m"].dtype == tf.float32.as_datatype_enum


@pytest.mark.parametrize(
    ("request_text", "text"),
    [
        ("metadata_field: 'signature_def'", "Missing ModelSpec"),
        (
            "model_spec { name: 'halves' }",
            "GetModelMetadataRequest must specify at least one metadata_field",
        ),
        (
            "model_spec { name: 'halves' } metadata_field: 'size'",
            "Metadata field size is not supported",
        ),
    ],
)
def test_metadata_refusals(prediction, request_text: str, text: str) -> None:
    request = text_format.Parse(request_text, get_model_metadata_pb2.GetModelMetadataRequest())
    with pytest.raises(grpc.RpcError) as caught:
        prediction.GetModelMetadata(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == text


def test_status(service) -> None:
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "halves"
    (status,) = service.GetModelStatus(request).model_version_status
    assert (status.version, status.state, status.status.error_code) == (7, 30, 0)
    request.model_spec.version.value = 8
    with pytest.raises(grpc.RpcError) as caught:
        service.GetModelStatus(request)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "Could not find version 8 of model halves"


def test_reloading_takes_a_list_only(service) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        service.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == (
        "ServerModelConfig type not supported by HandleReloadConfigRequest. "
        "Only ModelConfigList is currently supported"
    )


def test_the_rest_of_the_service_is_unimplemented(prediction) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        prediction.Classify(classification_pb2.ClassificationRequest())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_requests_are_counted_by_status_under_tensorflow_servings_names(prediction, calls) -> None:
    prediction.Predict(_predict("name: 'halves'", x=[2.0]))
    with pytest.raises(grpc.RpcError):
        prediction.Predict(_predict("name: 'made up'", x=[2.0]))
    lines = calls.metrics.text().decode().splitlines()
    names = {line.split("{")[0] for line in lines if not line.startswith("#")}
    assert ":tensorflow:serving:request_count" in names
    assert ":tensorflow:serving:request_latency_bucket" in names
    assert ":tensorflow:serving:runtime_latency_count" in names
    assert any('request_count{model_name="halves",status="OK"}' in line for line in lines)
    # Nor where the request is wrong before the model is looked for.
    with pytest.raises(grpc.RpcError) as caught:
        prediction.Predict(_predict("name: 'made up' version_label: 'x'", x=[2.0]))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "made up" not in calls.metrics.text().decode()


def test_reloads_that_wait_hold_nothing_up(calls, tmp_path) -> None:
    """For versions that never come: one at a time, and no longer than somebody waits for it."""
    server = grpc_server.make_server(threads=2, max_concurrent_rpcs=16, max_message_bytes=2**20)
    registry = Registry(calls.registry._policy, poll_seconds=0)
    mine = Calls(registry, Metrics())
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(mine), server)
    port = portpicker.pick_unused_port()
    grpc_server.bind(server, f"127.0.0.1:{port}", "port")
    server.start()
    request = model_management_pb2.ReloadConfigRequest(
        config=single_model("nothing", str(tmp_path))
    )
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        waiting = [stub.HandleReloadConfigRequest.future(request) for _ in range(8)]
        states = get_model_status_pb2.GetModelStatusRequest()
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetModelStatus(states, timeout=30)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # and so was answered
        for call in waiting:
            call.cancel()
        limit = time.monotonic() + 30
        while mine._reloading.locked():
            assert time.monotonic() < limit
            time.sleep(0.02)
        with pytest.raises(grpc.RpcError) as caught:
            stub.HandleReloadConfigRequest(request, timeout=0.5)
        # Taken up and given up in time: whichever of the two sides is first says so.
        assert caught.value.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNKNOWN)
    server.stop(0).wait()
    registry.stop()
