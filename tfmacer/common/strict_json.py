"""JSON without repeated keys and without NaN or infinity, as this project writes it."""

import collections
import json
import math
from collections.abc import Sequence
from typing import Any


def loads(text: str | bytes) -> Any:
    """Reads JSON in which no key is given twice and every number is finite.

    Python's own reader takes the last of two equal keys, so that two readers may understand one
    text differently; it accepts NaN and Infinity, reads 1e400 as infinity, and fails with
    RecursionError where brackets are nested by the thousand.

    Raises:
      ValueError: the text is not such JSON.
    """
    try:
        return json.loads(
            text, object_pairs_hook=single_keys, parse_constant=_refuse, parse_float=_finite
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def single_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of a JSON object; raises ValueError where a key is given twice."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice, _ = collections.Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {twice[:200]!r} is given twice")
    return fields


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text[:200])


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is not a finite number")
