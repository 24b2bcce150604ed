"""Our messages and TensorFlow Serving's are the same bytes."""

import pytest
from google.protobuf import descriptor

from tfmacer import wire
from tfmacer.wire import serving_pb2

REAL = {
    "DataType": "tensorflow.DataType",
    "TensorShapeProto": "tensorflow.TensorShapeProto",
    "TensorProto": "tensorflow.TensorProto",
    "ModelSpec": "tensorflow.serving.ModelSpec",
    "PredictRequest": "tensorflow.serving.PredictRequest",
    "PredictResponse": "tensorflow.serving.PredictResponse",
    "GetModelStatusRequest": "tensorflow.serving.GetModelStatusRequest",
    "ModelVersionStatus": "tensorflow.serving.ModelVersionStatus",
    "GetModelStatusResponse": "tensorflow.serving.GetModelStatusResponse",
}


@pytest.fixture(scope="module")
def pool():
    """The descriptors of the real stubs, in one process with ours."""
    from google.protobuf import descriptor_pool
    from tensorflow_serving.apis import (  # noqa: F401
        get_model_status_pb2,
        model_service_pb2,
        predict_pb2,
        prediction_service_pb2,
    )

    return descriptor_pool.Default()


def _same(ours: descriptor.FieldDescriptor, theirs: descriptor.FieldDescriptor) -> bool:
    return (ours.number, ours.type, ours.is_repeated, ours.is_packed) == (
        theirs.number,
        theirs.type,
        theirs.is_repeated,
        theirs.is_packed,
    )


def _check_messages(ours: descriptor.Descriptor, theirs: descriptor.Descriptor) -> None:
    for field in ours.fields:
        real = theirs.fields_by_name[field.name]
        assert _same(field, real), field.full_name
        if field.enum_type is not None:
            _check_enums(field.enum_type, real.enum_type)
    for nested in ours.nested_types:
        _check_messages(nested, theirs.nested_types_by_name[nested.name])


def _check_enums(ours: descriptor.EnumDescriptor, theirs: descriptor.EnumDescriptor) -> None:
    for value in ours.values:
        assert theirs.values_by_name[value.name].number == value.number, value.name


def test_every_top_level_type_is_checked() -> None:
    file = serving_pb2.DESCRIPTOR
    assert set(REAL) == {*file.message_types_by_name, *file.enum_types_by_name}


@pytest.mark.parametrize("name", REAL)
def test_fields_have_the_same_numbers_and_types(pool, name: str) -> None:
    file = serving_pb2.DESCRIPTOR
    if name in file.enum_types_by_name:
        _check_enums(file.enum_types_by_name[name], pool.FindEnumTypeByName(REAL[name]))
    else:
        _check_messages(file.message_types_by_name[name], pool.FindMessageTypeByName(REAL[name]))


def test_method_paths_are_the_real_services(pool) -> None:
    for path in (wire.PREDICT, wire.GET_MODEL_STATUS):
        _, service, method = path.split("/")
        assert method in pool.FindServiceByName(service).methods_by_name


def test_a_request_survives_the_real_stubs(pool) -> None:
    import numpy as np
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    from tfmacer.votes.endpoint import predict_request

    image = np.random.default_rng(0).random((1, 3, 2, 1)).astype(np.float32)
    ours = predict_request("m", 0, "s", {"images": image, "n": np.array([7], np.int32)})
    real = predict_pb2.PredictRequest.FromString(ours.SerializeToString())
    np.testing.assert_array_equal(tf.make_ndarray(real.inputs["images"]), image)
    assert tf.make_ndarray(real.inputs["n"]).tolist() == [7]
    assert (real.model_spec.name, real.model_spec.signature_name) == ("m", "s")
    assert real.model_spec.WhichOneof("version_choice") == "version"  # 0 is a version, not none
    assert predict_request("m", None, "s", {}).model_spec.HasField("version") is False
