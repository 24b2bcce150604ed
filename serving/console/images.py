"""Decodes an image file that a caller sent to the pixels that are certified."""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from tfmacer.common.errors import UserError

# Every further decoder is more code exposed to untrusted bytes.
FORMATS = ("PNG", "JPEG", "WEBP")
# Checked against the header, before anything is decoded.
MAX_PIXELS = 2**22
# Pillow's name by the number of channels of a model.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# What converts to those without unexpected loss; 16-bit files do not.
_READABLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


def decode(data: bytes, shape: Sequence[int], *, resize: bool) -> npt.NDArray[np.uint8]:
    """Decodes a file to pixels of a model's shape.

    Transparent parts become black, except where the model takes four channels.

    Args:
      data: the bytes of a file.
      shape: [H, W, C] of the model.
      resize: whether an image of another size is fitted whole into [H, W], with black margins.

    Returns:
      uint8 `[H, W, C]`.

    Raises:
      UserError: not an image of `FORMATS`, more than `MAX_PIXELS`, or of another size where it may
        not be resized.
    """
    height, width, channels = shape
    if channels not in _MODES:
        raise UserError(f"image: the model takes {channels} channels, files give 1, 3 or 4")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            _check(opened)
            upright = ImageOps.exif_transpose(opened)
            flat = upright.convert("RGBA") if channels == 4 else _on_black(upright, channels)
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(f"image: not a readable {', '.join(FORMATS)} file") from error
    except Exception as error:  # decoders raise anything on malformed files
        raise UserError(f"image: not readable: {error}") from error
    if flat.size != (width, height):
        if not resize:
            raise UserError(
                f"image: is {flat.width}x{flat.height} pixels, the model takes {width}x{height}; "
                "set resize to have it fitted"
            )
        flat = _fitted(flat, width, height)
    return np.asarray(flat, np.uint8).reshape(height, width, channels)


def _check(opened: Image.Image) -> None:
    """Looks at what the header says."""
    if opened.width * opened.height > MAX_PIXELS:
        raise UserError(
            f"image: has {opened.width}x{opened.height} pixels, at most {MAX_PIXELS} are accepted"
        )
    if opened.mode not in _READABLE:
        raise UserError(f"image: is of kind {opened.mode}, accepted are {', '.join(_READABLE)}")


def _on_black(image: Image.Image, channels: int) -> Image.Image:
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), rgba)
    return image.convert(_MODES[channels])


def _fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    """The whole image, as large as goes in, centred on black."""
    scale = min(width / image.width, height / image.height)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resized = image.resize(inner, Image.Resampling.LANCZOS)
    canvas = Image.new(image.mode, (width, height))
    canvas.paste(resized, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas
