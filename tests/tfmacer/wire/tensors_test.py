"""Tensors against TensorFlow's own reading and writing of them."""

import numpy as np
import pytest

from tfmacer.wire import serving_pb2 as wire
from tfmacer.wire import tensors

ARRAYS = {
    wire.DT_FLOAT: np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32),
    wire.DT_DOUBLE: np.array([[0.1, np.inf]]),
    wire.DT_INT32: np.array([-(2**31), 2**31 - 1], np.int32),
    wire.DT_INT64: np.array([-(2**63), 2**63 - 1]),
}


@pytest.mark.parametrize("data_type", ARRAYS)
def test_tensorflow_reads_what_we_write(data_type) -> None:
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    array = ARRAYS[data_type]
    proto = tensor_pb2.TensorProto.FromString(tensors.from_numpy(array).SerializeToString())
    read = tf.make_ndarray(proto)
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize("data_type", ARRAYS)
def test_we_read_what_tensorflow_writes(data_type) -> None:
    import tensorflow as tf

    array = ARRAYS[data_type]
    for proto in (
        tf.make_tensor_proto(array),
        tf.make_tensor_proto(array.ravel()[0], shape=array.shape),  # one value for all
    ):
        ours = wire.TensorProto.FromString(proto.SerializeToString())
        np.testing.assert_array_equal(
            tensors.to_numpy(ours, data_type, array.shape), tf.make_ndarray(proto)
        )


def test_strings() -> None:
    tensor = wire.TensorProto(dtype=wire.DT_STRING, string_val=[b"a", b"b"])
    tensor.tensor_shape.dim.add(size=2)
    assert tensors.to_numpy(tensor, wire.DT_STRING, (2,)).tolist() == [b"a", b"b"]


def test_another_byte_order_is_turned() -> None:
    array = np.array([1.5, -2.0], ">f4")
    read = tensors.to_numpy(tensors.from_numpy(array), wire.DT_FLOAT, (2,))
    np.testing.assert_array_equal(read, array)


def test_no_values_at_all_are_zeros() -> None:
    tensor = wire.TensorProto(dtype=wire.DT_INT64)
    tensor.tensor_shape.dim.add(size=3)
    assert tensors.to_numpy(tensor, wire.DT_INT64, (3,)).tolist() == [0, 0, 0]


def test_a_scalar() -> None:
    tensor = wire.TensorProto(dtype=wire.DT_DOUBLE, double_val=[2.5])
    assert tensors.to_numpy(tensor, wire.DT_DOUBLE, ()) == 2.5


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dtype": wire.DT_INT32}, r"expected DT_FLOAT \[2\], got dtype 3 \[2\]"),
        ({"tensor_content": b"1234567"}, r"7 bytes for \[2\]"),
        ({"float_val": [1, 2, 3], "tensor_content": b""}, r"3 values for \[2\]"),
    ],
)
def test_contradictions_are_refused(change, text: str) -> None:
    tensor = tensors.from_numpy(np.zeros(2, np.float32))
    tensor.MergeFrom(wire.TensorProto(**change))
    for field, value in change.items():
        if value == b"":
            tensor.ClearField(field)
    with pytest.raises(ValueError, match=text):
        tensors.to_numpy(tensor, wire.DT_FLOAT, (2,))


def test_a_shape_is_compared_before_anything_is_allocated() -> None:
    tensor = wire.TensorProto(dtype=wire.DT_FLOAT, float_val=[0.0])
    tensor.tensor_shape.dim.add(size=2**60)
    with pytest.raises(ValueError, match="expected DT_FLOAT"):
        tensors.to_numpy(tensor, wire.DT_FLOAT, (2,))
