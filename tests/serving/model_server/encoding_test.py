"""Answers must be readable by TensorFlow's own decoder, in the fields that clients read."""

import numpy as np
import pytest
import tensorflow as tf

from serving.model_server.encoding import to_proto

ARRAYS = [
    (np.array([[1.5, -2.0], [np.inf, 0.1]], np.float32), "float_val"),
    (np.array([1 / 3]), "double_val"),
    (np.arange(-3, 3, dtype=np.int32).reshape(2, 3), "int_val"),
    (np.array([-(2**63), 2**63 - 1]), "int64_val"),
    (np.array([True, False]), "bool_val"),
    (np.array([7], np.uint8), "int_val"),
    (np.array([2**32 - 1], np.uint32), "uint32_val"),
    (np.array([2**64 - 1], np.uint64), "uint64_val"),
    (np.array([b"a", b"\xff"], object), "string_val"),
]


@pytest.mark.parametrize(("array", "field"), ARRAYS, ids=[a[1] + str(a[0].dtype) for a in ARRAYS])
def test_values_lie_in_the_dtypes_own_field(array, field) -> None:
    proto = to_proto(array)
    assert len(getattr(proto, field)) == array.size
    assert not proto.tensor_content
    np.testing.assert_array_equal(tf.make_ndarray(proto), array)


def test_content_on_request() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    proto = to_proto(array, as_content=True)
    assert proto.tensor_content == array.tobytes()
    assert not proto.float_val
    np.testing.assert_array_equal(tf.make_ndarray(proto), array)


def test_rarer_dtypes_still_come_through() -> None:
    array = np.array([1 + 2j], np.complex64)
    np.testing.assert_array_equal(tf.make_ndarray(to_proto(array)), array)


def test_empty_arrays_keep_their_shape() -> None:
    assert tf.make_ndarray(to_proto(np.zeros((0, 3), np.int64))).shape == (0, 3)
