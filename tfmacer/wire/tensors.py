"""Tensors on the wire, to NumPy and back, without TensorFlow."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmacer.wire import serving_pb2 as wire

Array = npt.NDArray[Any]

_FIELDS: dict[wire.DataType.ValueType, tuple[str, np.dtype[Any]]] = {
    wire.DT_FLOAT: ("float_val", np.dtype("<f4")),
    wire.DT_DOUBLE: ("double_val", np.dtype("<f8")),
    wire.DT_INT32: ("int_val", np.dtype("<i4")),
    wire.DT_INT64: ("int64_val", np.dtype("<i8")),
    wire.DT_STRING: ("string_val", np.dtype(object)),
}
_DATA_TYPES = {dtype: data_type for data_type, (_, dtype) in _FIELDS.items()}


def from_numpy(array: Array) -> wire.TensorProto:
    """A tensor of the array's dtype (float32, float64, int32 or int64) and shape."""
    little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
    dims = [wire.TensorShapeProto.Dim(size=size) for size in array.shape]
    return wire.TensorProto(
        dtype=_DATA_TYPES[little.dtype],
        tensor_shape=wire.TensorShapeProto(dim=dims),
        tensor_content=little.tobytes(),
    )


def to_numpy(
    tensor: wire.TensorProto, data_type: wire.DataType.ValueType, shape: tuple[int, ...]
) -> Array:
    """The tensor's values as an array.

    As in TensorFlow, a typed field may hold fewer values than the shape says: the last one fills
    up, zeros where there is none.

    Args:
      tensor: as received.
      data_type: what it must be.
      shape: what it must have; checked before anything is allocated.

    Raises:
      ValueError: another dtype or shape, or values that do not fill it.
    """
    field, dtype = _FIELDS[data_type]
    found = tuple(dim.size for dim in tensor.tensor_shape.dim)
    if tensor.dtype != data_type or found != shape:
        raise ValueError(
            f"expected {wire.DataType.Name(data_type)} {list(shape)}, "
            f"got dtype {tensor.dtype} {list(found)}"
        )
    size = math.prod(shape)
    if tensor.tensor_content and data_type != wire.DT_STRING:
        if len(tensor.tensor_content) != size * dtype.itemsize:
            raise ValueError(f"{len(tensor.tensor_content)} bytes for {list(shape)} of {dtype}")
        return np.frombuffer(tensor.tensor_content, dtype).reshape(shape)
    values = np.array(getattr(tensor, field), dtype)
    if values.size > size:
        raise ValueError(f"{values.size} values for {list(shape)}")
    filling = values[-1] if values.size else (b"" if data_type == wire.DT_STRING else 0)
    filled = np.full(size, filling, dtype)
    filled[: values.size] = values
    return filled.reshape(shape)
