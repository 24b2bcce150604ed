"""The body of TensorFlow Serving's REST predict call, as tensors.

Its two formats are rows (`instances`) and columns (`inputs`).
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import numpy as np
import tensorflow as tf

from serving.model_server.encoding import to_proto
from serving.model_server.json_arrays import Array, is_object, numpy_dtype, quoted, to_array
from serving.model_server.status import StatusError, invalid
from tfmacer.common import strict_json
from tfmacer.common.text import cut

# Of a body, counted by its brackets and commas before it is read: each takes up to 90 bytes.
MAX_VALUES = 2**22


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
            f"JSON Value: {quoted(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    infos = inputs_of(signature)
    if not infos:
        raise invalid(f"Failed to get input map for signature: {cut(signature) or 'DEFAULT'}")
    if "instances" in document and "inputs" in document:
        raise invalid(
            f"JSON Value: {quoted(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    if "instances" in document:
        return signature, _rows(document, infos), True
    if "inputs" in document:
        return signature, _columns(document["inputs"], infos), False
    raise invalid("Missing 'inputs' or 'instances' key")


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
        raise invalid(f"JSON Value: {quoted(document)} Is not object")
    return document


def _rows(document: dict[str, Any], infos: Mapping[str, Any]) -> dict[str, Any]:
    instances = document["instances"]
    if not isinstance(instances, list):
        raise invalid(f"JSON Value: {quoted(document)} Excepting 'instances' to be an list/array")
    if not instances:
        raise invalid(f"JSON Value: {quoted(document)} No values in 'instances' array")
    if not isinstance(instances[0], dict) and len(infos) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    named = is_object(instances[0])
    stacks = {name: _Stack(info.dtype) for name, info in infos.items()}
    for number, item in enumerate(instances):
        for name, array in _row(item, number, named, infos).items():
            stacks[name].add(array)
    return {name: to_proto(stack.whole()) for name, stack in stacks.items()}


class _Stack:
    """Rows of one input, kept as their bytes: an array for each takes many times as much."""

    def __init__(self, data_type: int) -> None:
        self._dtype = numpy_dtype(tf.as_dtype(data_type))
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
        """All rows; raises StatusError where they are not of one shape."""
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


def _row(item: Any, number: int, named: bool, infos: Mapping[str, Any]) -> dict[str, Array]:
    where = f"Failed to process element: {number}"
    if not named:
        if is_object(item):
            raise invalid(f"Expecting value/list but got object at item {number} of input list")
        name = next(iter(infos))
        try:
            return {name: to_array(item, infos[name].dtype)}
        except StatusError as error:
            raise invalid(f"{where} of 'instances' list. Error: {_status(error)}") from error
    if not is_object(item):
        raise invalid(f"Expecting object but got list at item {number} of input list")
    row = {}
    for name, value in item.items():
        try:
            if name not in infos:
                raise invalid(f"JSON object: does not have named input: {cut(name)}")
            row[name] = to_array(value, infos[name].dtype)
        except StatusError as error:
            raise invalid(
                f"{where} key: {cut(name)} of 'instances' list. Error: {_status(error)}"
            ) from error
    if set(row) != set(infos):
        raise invalid(
            f"{where} of 'instances' list. JSON object: {quoted(item)} "
            f"keys must be equal to: {','.join(sorted(infos))}"
        )
    return row


def _columns(value: Any, infos: Mapping[str, Any]) -> dict[str, Any]:
    if not is_object(value):
        if len(infos) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        name = next(iter(infos))
        return {name: to_proto(to_array(value, infos[name].dtype))}
    for name in sorted(infos):
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: to_proto(to_array(value[name], infos[name].dtype)) for name in infos}


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _status(error: StatusError) -> str:
    return f"{error.code.name}: {error.message}"
