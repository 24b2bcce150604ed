"""Files become pixels, or are refused before they cost anything."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from serving.client import read_pixels
from serving.console import images
from tfmacer.common.errors import UserError

RANDOM = np.random.default_rng(0)


def _file(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _grey(height: int = 5, width: int = 7) -> np.ndarray:
    return RANDOM.integers(0, 256, (height, width), np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "1", "CMYK"])
def test_pixels_are_those_that_the_client_decodes(tmp_path, channels, mode) -> None:
    rgb = Image.fromarray(RANDOM.integers(0, 256, (5, 7, 3), np.uint8)).convert(mode)
    kind = "JPEG" if mode == "CMYK" else "PNG"
    (tmp_path / "file").write_bytes(_file(rgb, kind))
    shape = (5, 7, channels)
    found = images.decode(_file(rgb, kind), shape, resize=False)
    assert (found.shape, found.dtype) == (shape, np.uint8)
    np.testing.assert_array_equal(found, read_pixels(tmp_path / "file", shape))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_named_format_is_read(kind) -> None:
    flat = Image.new("RGB", (7, 5), (120, 120, 120))
    found = images.decode(_file(flat, kind), (5, 7, 1), resize=False)
    assert np.abs(found.astype(int) - 120).max() <= 2


def test_transparent_parts_are_black_but_for_four_channels() -> None:
    image = Image.new("RGBA", (7, 5), (200, 100, 50, 0))
    image.putpixel((2, 1), (200, 100, 50, 255))
    found = images.decode(_file(image), (5, 7, 3), resize=False)
    assert found[1, 2].tolist() == [200, 100, 50]
    assert found.sum() == 350
    kept = images.decode(_file(image), (5, 7, 4), resize=False)
    assert kept[0, 0].tolist() == [200, 100, 50, 0]


def test_a_camera_that_was_held_sideways() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter to the right
    values = _grey()
    found = images.decode(_file(Image.fromarray(values), exif=exif), (7, 5, 1), resize=False)
    np.testing.assert_array_equal(found[..., 0], np.rot90(values, -1))


def test_resizing_keeps_the_proportions() -> None:
    wide = Image.new("L", (40, 20), 255)
    found = images.decode(_file(wide), (8, 8, 1), resize=True)[..., 0]
    np.testing.assert_array_equal(found[2:6], 255)
    assert found[:2].sum() == found[6:].sum() == 0


@pytest.mark.parametrize("shape", [(1, 2000), (2000, 1)])
def test_a_thin_line_keeps_a_pixel(shape) -> None:
    line = Image.fromarray(np.full(shape, 255, np.uint8))
    found = images.decode(_file(line), (8, 8, 1), resize=True)[..., 0]
    assert found.sum() == 8 * 255


def _bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header promises side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(side + 1)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [2049, 12_000, 60_000])
def test_large_pictures_are_refused_by_their_header(side, monkeypatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(UserError, match=r"pixels, at most 4194304|exceeds limit"):
        images.decode(_bomb(side), (28, 28, 1), resize=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a readable PNG, JPEG, WEBP file"),
        (b"hello", "not a readable PNG, JPEG, WEBP file"),
        (_file(Image.new("L", (5, 5)), "GIF"), "not a readable PNG, JPEG, WEBP file"),
        (_file(Image.new("L", (5, 5)), "BMP"), "not a readable PNG, JPEG, WEBP file"),
        (_file(Image.new("L", (5, 5)), "TIFF"), "not a readable PNG, JPEG, WEBP file"),
        (_file(Image.fromarray(_grey(400, 400)))[:-2000], "not readable"),
        (_file(Image.new("I;16", (5, 5))), "is of kind I;16"),
        (_file(Image.new("L", (5, 5))), "is 5x5 pixels, the model takes 28x28"),
    ],
)
def test_what_is_refused(data, message) -> None:
    with pytest.raises(UserError, match=message) as raised:
        images.decode(data, (28, 28, 1), resize=False)
    assert "\n" not in str(raised.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP"]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=4),
    st.integers(0, 400),
)
def test_broken_files_are_refused_or_read(kind, changes, cut) -> None:
    data = bytearray(_file(Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10)), kind))
    for position, value in changes:
        data[position % len(data)] = value
    with contextlib.suppress(UserError):
        found = images.decode(bytes(data[: len(data) - cut // 10]), (10, 10, 1), resize=True)
        assert found.shape == (10, 10, 1)


def test_a_model_of_other_channels_takes_no_files() -> None:
    with pytest.raises(UserError, match="takes 2 channels"):
        images.decode(_file(Image.new("L", (5, 5))), (5, 5, 2), resize=False)
