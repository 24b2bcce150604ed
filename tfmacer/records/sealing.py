"""Texts that show when they were altered: digests, sealed JSON, and fields of the declared types.

The digests are without a key: they show what was damaged, or edited by hand. Who can write a file
can seal it again; what is said in it is then checked by computing it again.
"""

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmacer.common import strict_json

# Integers of files enter sizes and floating-point formulas.
_MOST = 2**63


def digest(text: str) -> str:
    """First 16 hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def pixels_digest(pixels: npt.NDArray[Any]) -> str:
    """SHA-256 (hex) of the pixels of an image.

    Args:
      pixels: `[H, W, C]`; their float32 values, little-endian, row-major, enter the digest.
    """
    return hashlib.sha256(np.ascontiguousarray(pixels, "<f4").tobytes()).hexdigest()


def canonical(fields: Mapping[str, Any]) -> str:
    """Fields as one JSON text, whatever their order."""
    return json.dumps(fields, sort_keys=True)


def seal(fields: Mapping[str, Any], *, indent: int | None = 2) -> str:
    """Fields as JSON with a digest of them last, and a final newline."""
    sealed = {**fields, "digest": digest(canonical(fields))}
    return json.dumps(sealed, indent=indent, allow_nan=False) + "\n"


def unseal(text: str | bytes) -> dict[str, Any]:
    """The fields of JSON that `seal` wrote, whatever its layout.

    Raises:
      ValueError: it is no such JSON, or was altered.
    """
    fields = json_object(text)
    if "digest" not in fields:
        raise ValueError("its digest is missing")
    if fields.pop("digest") != digest(canonical(fields)):
        raise ValueError("altered after it was written: its digest does not match")
    return fields


def check_version(fields: Mapping[str, Any], newest: int) -> None:
    """Raises ValueError unless the `format_version` of a file is one of 1 to `newest`."""
    version = fields.get("format_version")
    if type(version) is not int or not 1 <= version <= newest:
        raise ValueError(
            f"format_version is {version!r}, this version of tfmacer reads 1 to {newest}"
        )


def json_object(text: str | bytes) -> dict[str, Any]:
    """The fields of a JSON object; raises ValueError where it is anything else."""
    fields = strict_json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    return fields


def typed(kind: type, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a dataclass, of JSON values.

    Args:
      kind: the dataclass; its annotations say which values are accepted.
      fields: as read from JSON.

    Returns:
      The fields, lists as tuples where those are declared; numbers as they are written, so that
      the same text can be written again.

    Raises:
      ValueError: a field is missing, unknown or of another type, or a number is out of range.
    """
    known = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := [name for name in fields if name not in known]:
        raise ValueError(f"the field {unknown[0]!r} is not known")
    for name, field in known.items():
        optional = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        if name not in fields and not optional:
            raise ValueError(f"the field {name!r} is missing")
    hints = typing.get_type_hints(kind)
    return {name: _value(name, value, hints[name]) for name, value in fields.items()}


def differences(mine: Any, other: Any, *, besides: Sequence[str] = ()) -> list[str]:
    """Names and both values of the fields in which two dataclasses of one kind differ.

    Args:
      mine: one of them.
      other: the other.
      besides: fields that may differ.
    """
    # Through JSON, where a tuple and a list are the same.
    ours, others = (_flat(json.loads(json.dumps(dataclasses.asdict(x)))) for x in (mine, other))
    return [
        f"{name} is {ours.get(name)!r}, not {others.get(name)!r}"
        for name in dict.fromkeys([*ours, *others])
        if name.split(".")[0] not in besides and ours.get(name) != others.get(name)
    ]


def _value(name: str, value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        (wanted,) = (each for each in arguments if each is not type(None))
        return None if value is None else _value(name, value, wanted)
    if origin is tuple and isinstance(value, list):
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        if len(arguments) == len(value):
            return tuple(
                _value(name, each, one) for each, one in zip(value, arguments, strict=True)
            )
    elif origin is Mapping and isinstance(value, dict):
        return {key: _value(f"{name}.{key}", each, arguments[1]) for key, each in value.items()}
    elif _is_scalar(value, hint):
        return value
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
    raise ValueError(f"{name} must be {_NAMES.get(hint, hint)}, got {shown}")


_NAMES = {
    bool: "true or false",
    int: "an integer of less than 64 bits",
    float: "a finite number",
    str: "text",
}


def _is_scalar(value: Any, hint: Any) -> bool:
    if hint in (str, bool):
        return isinstance(value, hint)
    if isinstance(value, bool):
        return False
    if isinstance(value, int):
        return hint in (int, float) and -_MOST < value < _MOST
    return hint is float and isinstance(value, float) and math.isfinite(value)


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
