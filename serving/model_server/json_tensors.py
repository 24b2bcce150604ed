"""The JSON of TensorFlow Serving's REST predict call, to tensors and back.

Its two formats are rows (`instances` to `predictions`) and columns (`inputs` to `outputs`).
"""

import base64
import binascii
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from serving.model_server.encoding import to_proto
from serving.model_server.status import StatusError, invalid
from tfmacer.common import strict_json
from tfmacer.common.text import LONGEST_VALUE, cut

Array = npt.NDArray[Any]

# Of a body, counted by its brackets and commas before it is read: each takes up to 90 bytes.
MAX_VALUES = 2**22
MAX_RANK = 32  # TensorFlow knows no ops for more, NumPy no arrays beyond 64

_INT32 = (-(2**31), 2**31 - 1)
_INTEGERS = {
    tf.int8: _INT32,
    tf.int16: _INT32,
    tf.int32: _INT32,
    tf.uint8: _INT32,
    tf.int64: (-(2**63), 2**63 - 1),
    tf.uint32: (0, 2**32 - 1),
    tf.uint64: (0, 2**64 - 1),
}
_FLOATS = (tf.float32, tf.float64)
_JSON_NAMES = {bool: "Bool", str: "String", list: "Array", dict: "Object", type(None): "Null"}


def parse_request(
    body: bytes, inputs_of: Callable[[str], Mapping[str, Any]]
) -> tuple[str, dict[str, Any], bool]:
    """Reads the body of a predict call.

    Args:
      body: JSON text; NaN, Infinity and -Infinity are taken for numbers.
      inputs_of: TensorInfo by alias, of the signature with the given name.

    Returns:
      The signature's name ("" where the body names none), TensorProto by alias, and whether the
      format is rows.

    Raises:
      StatusError: what TensorFlow Serving would answer.
    """
    document = _parse(body)
    signature = document.get("signature_name", "")
    if not isinstance(signature, str):
        raise invalid(
            f"JSON Value: {_quoted(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    infos = inputs_of(signature)
    if not infos:
        raise invalid(f"Failed to get input map for signature: {cut(signature) or 'DEFAULT'}")
    if "instances" in document and "inputs" in document:
        raise invalid(
            f"JSON Value: {_quoted(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    if "instances" in document:
        return signature, _rows(document, infos), True
    if "inputs" in document:
        return signature, _columns(document["inputs"], infos), False
    raise invalid("Missing 'inputs' or 'instances' key")


def format_response(outputs: Mapping[str, Array], *, rows: bool) -> str:
    """The body of the answer: one output alone drops its name.

    Raises:
      StatusError: rows were asked for, and an output has no first dimension or another one.
    """
    names = sorted(outputs)
    texts = {name: _Writer(name, outputs[name].dtype).text for name in names}
    if not rows:
        columns = {name: texts[name](outputs[name].tolist()) for name in names}
        return '{\n    "outputs": ' + _single_or_object(columns) + "\n}"
    batch = None
    for name in names:
        if outputs[name].ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if batch not in (None, len(outputs[name])):
            raise invalid(
                f"Tensor name: {name} has inconsistent batch size: {len(outputs[name])} "
                f"expecting: {batch}"
            )
        batch = len(outputs[name])
    lists = {name: outputs[name].tolist() for name in names}
    items = [
        _single_or_object({name: texts[name](lists[name][row]) for name in names})
        for row in range(batch or 0)
    ]
    return '{\n    "predictions": [' + ", ".join(items) + "\n    ]\n}"


def _parse(body: bytes) -> dict[str, Any]:
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    values = sum(map(body.count, (b",", b"[", b"{")))
    if values > MAX_VALUES:
        raise StatusError(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            f"the body has some {values} values, at most {MAX_VALUES} are read",
        )
    try:
        document = json.loads(body, object_pairs_hook=strict_json.single_keys)
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: {error.msg} at offset: {error.pos}") from error
    # Of a key given twice, or a number with more digits than Python reads.
    except (ValueError, RecursionError) as error:
        raise invalid(f"JSON Parse error: {error}") from error
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {_quoted(document)} Is not object")
    return document


def _rows(document: dict[str, Any], infos: Mapping[str, Any]) -> dict[str, Any]:
    instances = document["instances"]
    if not isinstance(instances, list):
        raise invalid(f"JSON Value: {_quoted(document)} Excepting 'instances' to be an list/array")
    if not instances:
        raise invalid(f"JSON Value: {_quoted(document)} No values in 'instances' array")
    if not isinstance(instances[0], dict) and len(infos) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    named = _is_object(instances[0])
    stacks = {name: _Stack(info.dtype) for name, info in infos.items()}
    for number, item in enumerate(instances):
        for name, array in _row(item, number, named, infos).items():
            stacks[name].add(array)
    return {name: to_proto(stack.whole()) for name, stack in stacks.items()}


class _Stack:
    """Rows of one input, kept as their bytes: an array for each takes many times as much."""

    def __init__(self, data_type: int) -> None:
        self._dtype = _numpy_dtype(tf.as_dtype(data_type))
        self._shape: tuple[int, ...] | None = None
        self._rows = 0
        self._bytes = bytearray()
        self._objects: list[Any] = []
        self._other: Array | None = None

    def add(self, array: Array) -> None:
        """One row more."""
        if self._shape is None:
            self._shape = array.shape
        if array.shape != self._shape:
            self._other = self._other if self._other is not None else array
        elif self._dtype == np.dtype(object):
            self._objects.extend(array.ravel())
        else:
            self._bytes += array.tobytes()
        self._rows += 1

    def whole(self) -> Array:
        """All rows.

        Raises:
          StatusError: they are not of one shape.
        """
        shape = self._shape or ()
        if (other := self._other) is not None:
            size = math.prod(shape)
            if other.size != size:
                raise invalid(f"Expecting tensor size: {size} but got: {other.size}")
            raise invalid(f"Expecting shape {_shape(shape)} but got: {_shape(other.shape)}")
        if self._dtype == np.dtype(object):
            flat = np.empty(len(self._objects), object)
            flat[:] = self._objects
        else:
            flat = np.frombuffer(self._bytes, self._dtype)
        return flat.reshape(self._rows, *shape)


def _numpy_dtype(dtype: Any) -> np.dtype[Any]:
    return np.dtype(object if dtype == tf.string else dtype.as_numpy_dtype)


def _row(item: Any, number: int, named: bool, infos: Mapping[str, Any]) -> dict[str, Array]:
    where = f"Failed to process element: {number}"
    if not named:
        if _is_object(item):
            raise invalid(f"Expecting value/list but got object at item {number} of input list")
        name = next(iter(infos))
        try:
            return {name: _array(item, infos[name].dtype)}
        except StatusError as error:
            raise invalid(f"{where} of 'instances' list. Error: {_status(error)}") from error
    if not _is_object(item):
        raise invalid(f"Expecting object but got list at item {number} of input list")
    row = {}
    for name, value in item.items():
        try:
            if name not in infos:
                raise invalid(f"JSON object: does not have named input: {cut(name)}")
            row[name] = _array(value, infos[name].dtype)
        except StatusError as error:
            raise invalid(
                f"{where} key: {cut(name)} of 'instances' list. Error: {_status(error)}"
            ) from error
    if set(row) != set(infos):
        raise invalid(
            f"{where} of 'instances' list. JSON object: {_quoted(item)} "
            f"keys must be equal to: {','.join(sorted(infos))}"
        )
    return row


def _columns(value: Any, infos: Mapping[str, Any]) -> dict[str, Any]:
    if not _is_object(value):
        if len(infos) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        name = next(iter(infos))
        return {name: to_proto(_array(value, infos[name].dtype))}
    for name in sorted(infos):
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: to_proto(_array(value[name], infos[name].dtype)) for name in infos}


def _array(value: Any, data_type: int) -> Array:
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
    array = np.empty(len(leaves), _numpy_dtype(dtype))
    with np.errstate(over="ignore"):  # beyond the largest float is infinity
        array[:] = leaves
    return array.reshape(shape)


def _flatten(value: Any, level: int, shape: list[int], dtype: Any, leaves: list[Any]) -> None:
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid(
                f"JSON Value: {_quoted(value)} found at incorrect level: {level + 1} "
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
    if isinstance(value, dict):
        if dtype != tf.string:
            raise _type_error(value, dtype)
        return _from_base64(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if dtype in _FLOATS:
        if not number:
            raise _type_error(value, dtype)
        return _float(value)
    if dtype in _INTEGERS:
        low, high = _INTEGERS[dtype]
        if not number or not isinstance(value, int) or not low <= value <= high:
            raise _type_error(value, dtype)
        limits = np.iinfo(dtype.as_numpy_dtype)
        if not limits.min <= value <= limits.max:  # narrower than the JSON reader's own check
            raise _type_error(value, dtype)
        return value
    if dtype == tf.bool:
        if not isinstance(value, bool):
            raise _type_error(value, dtype)
        return value
    if dtype == tf.string:
        if not isinstance(value, str):
            raise _type_error(value, dtype)
        return value.encode()
    raise StatusError(
        grpc.StatusCode.UNIMPLEMENTED,
        f"Conversion of JSON Value: {_quoted(value)} to type: {_name(dtype)}",
    )


def _float(value: float) -> float:
    """A number as the nearest that the dtype has, infinity where it has none so large."""
    try:
        return float(value)
    except OverflowError as error:
        raise invalid(f"JSON Parse error: {_quoted(value)} is too large a number") from error


def _from_base64(value: dict[str, Any]) -> bytes:
    if not _is_base64(value):
        raise invalid(f"JSON Value: {_quoted(value)} not formatted correctly for base64 data")
    text = value["b64"].rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid("Unable to base64 decode") from error


class _Writer:
    """Writes the values of one output."""

    def __init__(self, name: str, dtype: np.dtype[Any]) -> None:
        self._as_bytes = name.endswith("_bytes")
        self._dtype = dtype

    def text(self, value: Any) -> str:
        if isinstance(value, list):
            return "[" + ", ".join(map(self.text, value)) + "]"
        if isinstance(value, bytes) and self._as_bytes:
            return json.dumps({"b64": base64.b64encode(value).decode()})
        if isinstance(value, bytes):
            return json.dumps(value.decode(errors="replace"), ensure_ascii=False)
        if isinstance(value, float):
            return self._decimal(value)
        return json.dumps(value)

    def _decimal(self, value: float) -> str:
        if not math.isfinite(value):
            return json.dumps(value)
        text = f"{value:g}"
        if self._dtype.type(text) != value:
            text = f"{value:.9g}" if self._dtype.itemsize <= 4 else f"{value:.17g}"
        return text if "." in text or "e" in text else text + ".0"


def _single_or_object(texts: Mapping[str, str]) -> str:
    if len(texts) == 1:
        return next(iter(texts.values()))
    return "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, text in texts.items()) + "}"


def _quoted(value: Any) -> str:
    """The beginning of a value's JSON; the rest is not even written."""
    text = ""
    for part in json.JSONEncoder().iterencode(value):
        text += part[: LONGEST_VALUE + 1]
        if len(text) > LONGEST_VALUE:
            break
    return cut(text)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and list(value) == ["b64"] and isinstance(value["b64"], str)


def _type_error(value: Any, dtype: Any) -> StatusError:
    kind = _JSON_NAMES.get(type(value), "Number")
    if isinstance(value, bool):
        kind = str(value)
    return invalid(
        f"JSON Value: {_quoted(value)} Type: {kind} is not of expected type: {_name(dtype)}"
    )


def _name(dtype: Any) -> str:
    return {tf.float32: "float", tf.float64: "double"}.get(dtype, str(dtype.name))


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _status(error: StatusError) -> str:
    return f"{error.code.name}: {error.message}"
