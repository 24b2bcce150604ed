"""What tests send to the console, and how they read its answers."""

import base64
import io
import json
from typing import Any

import numpy as np
from PIL import Image

PIXELS = np.random.default_rng(5).integers(0, 256, (4, 4, 1), np.uint8)
BODY = {"pixels": {"shape": [4, 4, 1], "uint8": base64.b64encode(PIXELS.tobytes()).decode()}}


def png(pixels: np.ndarray, **options: Any) -> str:
    """Base64 of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "PNG", **options)
    return base64.b64encode(file.getvalue()).decode()


def events(text: str) -> list[tuple[str, Any]]:
    """Kind and data of each server-sent event."""
    found = []
    for block in text.strip().split("\n\n"):
        kind, data = block.split("\n")
        found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found
