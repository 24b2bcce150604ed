"""Arrays as TensorFlow Serving writes them into an answer."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

Array = npt.NDArray[Any]

_FIELDS = {
    tf.float32: "float_val",
    tf.float64: "double_val",
    tf.int64: "int64_val",
    tf.bool: "bool_val",
    tf.uint32: "uint32_val",
    tf.uint64: "uint64_val",
    tf.string: "string_val",
    **dict.fromkeys((tf.int8, tf.int16, tf.int32, tf.uint8, tf.uint16), "int_val"),
}


def to_proto(array: Array, *, as_content: bool = False) -> Any:
    """The TensorProto of an array.

    Args:
      array: any dtype that TensorFlow knows.
      as_content: bytes in `tensor_content`; quicker, but TensorFlow Serving's default, which some
        clients rely on, is the dtype's own repeated field.
    """
    dtype = tf.as_dtype(array.dtype)
    if as_content or dtype not in _FIELDS:
        return tf.make_tensor_proto(array)
    proto = tensor_pb2.TensorProto(
        dtype=dtype.as_datatype_enum, tensor_shape=tf.TensorShape(array.shape).as_proto()
    )
    values = array.ravel().tolist()
    if dtype == tf.string:
        values = [value if isinstance(value, bytes) else str(value).encode() for value in values]
    getattr(proto, _FIELDS[dtype]).extend(values)
    return proto


def to_protos(outputs: Mapping[str, Array], *, as_content: bool = False) -> dict[str, Any]:
    """`to_proto` of every output."""
    return {
        alias: to_proto(np.asarray(array), as_content=as_content)
        for alias, array in outputs.items()
    }
