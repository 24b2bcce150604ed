"""A frozen dataclass whose fields are flags: defined, checked and written by absl."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from absl import flags

from tfmacer.common import commandline
from tfmacer.common.errors import UserError

_T = TypeVar("_T")

_DEFINE: dict[Any, Callable[..., Any]] = {
    str: flags.DEFINE_string,
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
}


def described(help: str, **known: Any) -> dict[str, Any]:
    """Metadata of a field.

    Args:
      help: what `--help` says.
      **known: `lower_bound` and `upper_bound` of a number; `positive`, whether it must be above 0;
        `option`, the option of an objective that the field sets; `free`, whether it may change
        when a run is resumed, since it does not change what is trained.
    """
    return {"help": help, **known}


def flag(default: _T, help: str, **known: Any) -> _T:
    """A field with a default; see `described`."""
    found: _T = dataclasses.field(default=default, metadata=described(help, **known))
    return found


class Field(NamedTuple):
    """A field: its name and type in Python, its default, and what else is known of it."""

    name: str
    kind: Any
    default: Any
    known: Mapping[str, Any]

    @property
    def flag_name(self) -> str:
        """On the command line; as a field, a keyword of Python's ends with an underscore."""
        return self.name.removesuffix("_")


@functools.cache
def fields_of(kind: type) -> tuple[Field, ...]:
    """All fields of a dataclass, in order; types without None."""
    hints = get_type_hints(kind)
    kinds = {
        name: get_args(hint)[0] if type(None) in get_args(hint) else hint
        for name, hint in hints.items()
    }
    return tuple(
        Field(each.name, kinds[each.name], each.default, each.metadata)
        for each in dataclasses.fields(kind)
    )


def define(kind: type, values: flags.FlagValues) -> None:
    """Defines a flag for every field."""
    commandline.define_import(values)
    for field in fields_of(kind):
        default = None if field.default is dataclasses.MISSING else field.default
        known = {"help": field.known["help"], "flag_values": values}
        if field.kind in (int, float):
            known |= {name: field.known.get(name) for name in ("lower_bound", "upper_bound")}
        if get_origin(field.kind) is Literal:
            flags.DEFINE_enum(field.flag_name, default, get_args(field.kind), **known)
        elif field.kind in _DEFINE:
            _DEFINE[field.kind](field.flag_name, default, **known)
        elif field.name != "import_":
            flags.DEFINE_list(field.flag_name, [], **known)


def parse(kind: type, arguments: Sequence[str]) -> flags.FlagValues:
    """The flags of a dataclass with the values that `arguments` give them.

    Raises:
      absl.flags.Error: one is unknown, or its value is not one that it can have.
    """
    values = flags.FlagValues()
    define(kind, values)
    values(["", *arguments])
    return values


def fields_from(kind: type, values: flags.FlagValues) -> dict[str, Any]:
    """The fields that parsed flags describe, each in its own type.

    Raises:
      UserError: a flag is missing or out of range.
    """
    return {field.name: _value(field, values[field.flag_name].value) for field in fields_of(kind)}


def _value(field: Field, value: Any) -> Any:
    name, known = f"--{field.flag_name}", field.known
    if value is None and field.default is dataclasses.MISSING:
        raise UserError(f"{name} must be given")
    if isinstance(value, float) and known.get("positive") and not 0 < value < math.inf:
        raise UserError(f"{name} must be positive and finite, got {value}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} must be finite, got {value}")
    if field.kind == tuple[int, ...]:
        if not all(text.isdecimal() and len(text) < 19 and int(text) for text in value):
            raise UserError(f"{name} must be positive integers, got {','.join(value)!r}")
        return tuple(map(int, value))
    if field.kind == Mapping[str, float]:
        try:
            pairs = [text.split("=") for text in value]
            return {key.strip(): float(number) for key, number in pairs}
        except ValueError as error:
            given = ",".join(value)
            raise UserError(f"{name} must be NAME=NUMBER,..., got {given!r}") from error
    return tuple(value) if isinstance(value, list) else value


def arguments_of(config: Any) -> list[str]:
    """The arguments that say the same as a configuration."""
    given: list[str] = []
    kind: type = type(config)
    for field in fields_of(kind):
        value = getattr(config, field.name)
        texts = list(value) if field.name == "import_" else [] if value is None else [_text(value)]
        given += [f"--{field.flag_name}={text}" for text in texts]
    return given


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        value = [f"{name}={str(number).removesuffix('.0')}" for name, number in value.items()]
    if isinstance(value, str | Path) or not isinstance(value, Iterable):
        return str(value)
    return ",".join(map(str, value))


def arguments_in(text: str) -> list[str]:
    """The arguments of the text of a flag file.

    Raises:
      UserError: it leads to another file.
    """
    lines = [line.strip() for line in text.splitlines()]
    if included := [line for line in lines if line.lstrip("-").startswith("flagfile")]:
        raise UserError(f"{included[0]!r} leads to another file")
    return [line for line in lines if line and not line.startswith("#")]
