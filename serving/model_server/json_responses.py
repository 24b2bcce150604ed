"""The answer of TensorFlow Serving's REST predict call: `predictions` or `outputs`."""

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from serving.model_server.json_arrays import Array
from serving.model_server.status import invalid


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
