"""JSON values as arrays of a dtype, checked as TensorFlow Serving checks them."""

import base64
import binascii
import json
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from serving.model_server.status import StatusError, invalid
from tfmacer.common.text import LONGEST_VALUE, cut

Array = npt.NDArray[Any]

MAX_RANK = 32  # TensorFlow knows no ops for more, NumPy no arrays beyond 64

_INTEGERS = (tf.int8, tf.int16, tf.int32, tf.uint8, tf.int64, tf.uint32, tf.uint64)
_FLOATS = (tf.float32, tf.float64)
_JSON_NAMES = {bool: "Bool", str: "String", list: "Array", dict: "Object", type(None): "Null"}


def to_array(value: Any, data_type: int) -> Array:
    """A dense array from nested lists; every leaf is checked against the dtype."""
    dtype = tf.as_dtype(data_type)
    shape: list[int] = []
    first = value
    while isinstance(first, list):
        shape.append(len(first))
        first = first[0] if first else None
    if len(shape) > MAX_RANK:
        raise invalid(f"Encountered list at unexpected level: {MAX_RANK} expected < {MAX_RANK}")
    leaves: list[Any] = []
    _flatten(value, 0, shape, dtype, leaves)
    array = np.empty(len(leaves), numpy_dtype(dtype))
    with np.errstate(over="ignore"):  # beyond the largest float is infinity
        array[:] = leaves
    return array.reshape(shape)


def _flatten(value: Any, level: int, shape: list[int], dtype: Any, leaves: list[Any]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {quoted(value)} found at incorrect level: {level + 1} "
                f"in the JSON DOM. Expected at level: {len(shape)}"
            )
        leaves.append(_leaf(value, dtype))
        return
    if level >= len(shape):
        raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for item in value:
        _flatten(item, level + 1, shape, dtype, leaves)


def _leaf(value: Any, dtype: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if dtype == tf.string and isinstance(value, dict):
        return _from_base64(value)
    if dtype == tf.string and isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:  # half of a pair of surrogates, as an escape
            raise invalid(f"JSON Value: {quoted(value)} is no Unicode text") from error
    if dtype in _FLOATS and number:
        return _float(value)
    if dtype in _INTEGERS and number and isinstance(value, int):
        limits = np.iinfo(dtype.as_numpy_dtype)
        if limits.min <= value <= limits.max:
            return value
    if dtype == tf.bool and isinstance(value, bool):
        return value
    if isinstance(value, dict) or dtype in (*_FLOATS, *_INTEGERS, tf.bool, tf.string):
        raise _type_error(value, dtype)
    raise StatusError(
        grpc.StatusCode.UNIMPLEMENTED,
        f"Conversion of JSON Value: {quoted(value)} to type: {_name(dtype)}",
    )


def _float(value: float) -> float:
    """A number as the nearest that the dtype has, infinity where it has none so large."""
    try:
        return float(value)
    except OverflowError as error:
        raise invalid(f"JSON Parse error: {quoted(value)} is too large a number") from error


def _from_base64(value: dict[str, Any]) -> bytes:
    if not _is_base64(value):
        raise invalid(f"JSON Value: {quoted(value)} not formatted correctly for base64 data")
    text = value["b64"].rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid("Unable to base64 decode") from error


def numpy_dtype(dtype: Any) -> np.dtype[Any]:
    """NumPy's dtype for a TensorFlow dtype; strings are objects."""
    return np.dtype(object if dtype == tf.string else dtype.as_numpy_dtype)


def quoted(value: Any) -> str:
    """The beginning of a value's JSON; the rest is not even written."""
    text = ""
    for part in json.JSONEncoder().iterencode(value):
        text += part[: LONGEST_VALUE + 1]
        if len(text) > LONGEST_VALUE:
            break
    return cut(text)


def is_object(value: Any) -> bool:
    """Whether a JSON value is an object, and not base64 bytes."""
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str)


def _type_error(value: Any, dtype: Any) -> StatusError:
    kind = _JSON_NAMES.get(type(value), "Number")
    if isinstance(value, bool):
        kind = str(value)
    return invalid(
        f"JSON Value: {quoted(value)} Type: {kind} is not of expected type: {_name(dtype)}"
    )


def _name(dtype: Any) -> str:
    return {tf.float32: "float", tf.float64: "double"}.get(dtype, str(dtype.name))
