"""Digests, JSON with a digest of itself, and dataclasses written as JSON and read from it.

The digests have no key: they reveal damage and edits by hand. Anyone who can write a file can
compute them anew, so the contents are verified by computing them again.
"""

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from tfmacer.common import strict_json

Built = TypeVar("Built")

# Integers read from files are used as sizes and in floating-point formulas.
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
    """The fields of JSON that `seal` wrote; raises ValueError where it is none, or was altered."""
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


def plain(instance: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON has them.

    Those of a dataclass inside it are at the same level as its own. A value whose class has
    `parse`, such as a stop rule, is written as text.
    """
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if hasattr(value, "parse"):
            fields[field.name] = str(value)
        elif dataclasses.is_dataclass(value):
            fields |= plain(value)
        else:
            fields[field.name] = dict(value) if isinstance(value, Mapping) else value
    return fields


def build(
    kind: type[Built], fields: Mapping[str, Any], *, optional: Iterable[str] | None = None
) -> Built:
    """Makes a dataclass of JSON values, as `plain` wrote them.

    Args:
      kind: the dataclass; its annotations say which values are accepted.
      fields: as read from JSON. Lists become tuples where those are declared; numbers stay as they
        are written, so that the same text can be written again.
      optional: the fields that may be missing; None for all that have a default.

    Raises:
      ValueError: a field is missing, unknown or of another type, or a value is out of range.
    """
    known = names(kind)
    if unknown := [name for name in fields if name not in known]:
        raise ValueError(f"the field {unknown[0]!r} is not known")
    built: Built = _built(kind, fields, optional)
    return built


def names(kind: Any) -> list[str]:
    """Names of the fields that `plain` writes for a dataclass."""
    hints = typing.get_type_hints(kind)
    found: list[str] = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        found += names(hint) if _is_flattened(hint) else [field.name]
    return found


def differences(
    mine: Mapping[str, Any], other: Mapping[str, Any], *, ignoring: Sequence[str] = ()
) -> list[str]:
    """Names and both values of the fields in which two mappings differ."""
    # Through JSON, where a tuple and a list are the same.
    ours, others = (_flat(json.loads(json.dumps(each))) for each in (mine, other))
    return [
        f"{name} is {ours.get(name)!r}, not {others.get(name)!r}"
        for name in dict.fromkeys([*ours, *others])
        if name.split(".")[0] not in ignoring and ours.get(name) != others.get(name)
    ]


def _built(kind: Any, fields: Mapping[str, Any], optional: Iterable[str] | None) -> Any:
    hints = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        name, hint = field.name, hints[field.name]
        if _is_flattened(hint):
            values[name] = _built(hint, fields, optional)
        elif name in fields:
            values[name] = _value(name, fields[name], hint)
        elif name not in optional if optional is not None else _has_no_default(field):
            raise ValueError(f"the field {name!r} is missing")
    return kind(**values)


def _is_flattened(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint) and not hasattr(hint, "parse")


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _value(name: str, value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        (wanted,) = (each for each in arguments if each is not type(None))
        return None if value is None else _value(name, value, wanted)
    if hasattr(hint, "parse") and isinstance(value, str):
        return hint.parse(value)
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
