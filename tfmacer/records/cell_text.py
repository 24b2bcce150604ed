"""The text of values in the cells of a table: one spelling for each."""

import math
import re
import urllib.parse
from collections.abc import Callable, Sequence
from typing import TypeVar

# A cell for nothing.
ABSENT = "-"

_Number = TypeVar("_Number", int, float)
_TIME = re.compile(r"(?:(\d{1,9}) days?, )?(\d{1,9}):(\d\d):(\d\d(?:\.\d+)?)", re.ASCII)
# As numbers are written by anyone; Python itself also takes digits of other scripts, 1_000 and inf.
_INTEGER = re.compile(r"-?\d{1,18}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")


def number_text(value: float | None) -> str:
    """A number in Python's shortest form; `-` for None."""
    return ABSENT if value is None else repr(value)


def integer(name: str, text: str) -> int:
    """Reads a whole number; raises ValueError, naming the column, where it is none."""
    if not _INTEGER.fullmatch(text):
        raise ValueError(f"{name} is {text!r}, not a whole number")
    return int(text)


def number(name: str, text: str) -> float:
    """Reads a finite number; raises ValueError, naming the column, where it is none."""
    if not _DECIMAL.fullmatch(text) or not math.isfinite(value := float(text)):
        raise ValueError(f"{name} is {text!r}, not a finite number")
    return value


def sparse(values: Sequence[float] | None) -> str:
    """`class:value` joined by commas, ascending, without zeros; `-` where nothing is left."""
    if values is None:
        return ABSENT
    return ",".join(f"{k}:{value!r}" for k, value in enumerate(values) if value) or ABSENT


def dense(
    name: str, text: str, num_classes: int, read: Callable[[str, str], _Number]
) -> tuple[_Number, ...]:
    """Reads what `sparse` writes, `read` each value; raises ValueError where it cannot be read."""
    values = [read(name, "0")] * num_classes
    for part in text.split(",") if text != ABSENT else ():
        k, _, value = part.partition(":")
        if not 0 <= int(k) < num_classes:
            raise ValueError(f"class {k} is not one of {num_classes}")
        values[int(k)] = read(name, value)
    return tuple(values)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss.ffffff."""
    microseconds = round(seconds * 1e6)
    minutes, microseconds = divmod(microseconds, 60_000_000)
    hours, minutes = divmod(minutes, 60)
    whole, microseconds = divmod(microseconds, 1_000_000)
    return f"{hours}:{minutes:02d}:{whole:02d}.{microseconds:06d}"


def seconds_of(text: str) -> float:
    """Reads a clock as Python writes its `timedelta`, or plain seconds."""
    parts = _TIME.fullmatch(text)
    if parts is None:
        seconds = number("time", text)
        if seconds < 0:
            raise ValueError(f"time is {text!r}, less than 0")
        return seconds
    days, hours, minutes, rest = parts.groups()
    return 86400 * int(days or 0) + 3600 * int(hours) + 60 * int(minutes) + float(rest)


def sha256(name: str, text: str) -> str:
    """Reads a SHA-256; raises ValueError where it is none."""
    if not _SHA256.fullmatch(text):
        raise ValueError(f"{name} is {text[:80]!r}, no SHA-256 in hex digits")
    return text


def printable(name: str) -> str:
    """A name for one cell: what is not printable, and `%`, as `%` and hex digits, as in a URL."""
    if name == ABSENT:
        return "%2D"
    return "".join(
        each
        if each.isprintable() and each != "%"
        else urllib.parse.quote(each, safe="", errors="surrogateescape")
        for each in name
    )


def image_name(text: str) -> str | None:
    """Reads what `printable` wrote; None for `-`. Raises ValueError where it is not printable."""
    if not text or not text.isprintable():
        raise ValueError(f"name is {text!r}, which is not printable")
    return None if text == ABSENT else text
