"""JSON as this project writes it, and nothing looser."""

import json
from collections.abc import Sequence
from typing import Any


def loads(text: str | bytes) -> Any:
    """Reads JSON in which no key is given twice and every number is finite.

    Python's own reader takes the last of two equal keys and the words NaN and Infinity, so that a
    text could say one thing to it and another to its next reader.

    Raises:
      ValueError: the text is not such JSON.
    """
    return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:200]!r} is given twice")
    return fields


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is not a finite number")
