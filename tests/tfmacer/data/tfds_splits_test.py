"""TFDS datasets: read as stored, streamed where they are large, fetched where they are missing."""

import urllib.error
import urllib.request

import numpy as np
import pytest
import requests
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import downloader

from tfmacer.common.errors import UserError
from tfmacer.data import tfds_splits
from tfmacer.data.splits import ArraySplit
from tfmacer.data.tfds_splits import tfds_split


class Counted(tfds.core.GeneratorBasedBuilder):
    """Image i has the value i everywhere."""

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


def _counted(folder, num_shards):
    """The dataset on disk."""
    builder = Counted(data_dir=str(folder))
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            num_shards=num_shards, max_examples_per_split=None
        )
    )
    assert builder.info.splits["train"].num_shards == num_shards
    return builder


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """The folder of a dataset in one file, and its images and labels as TFDS itself reads them."""
    folder = tmp_path_factory.mktemp("tfds")
    examples = _counted(folder, num_shards=1).as_dataset(split="train", as_supervised=True)
    images, labels = zip(*examples.as_numpy_iterator(), strict=True)
    return str(folder), np.stack(images) / np.float32(255), [int(label) for label in labels]


def test_reads_what_is_stored_in_the_order_stored(stored):
    folder, expected, expected_labels = stored
    split = tfds_split("counted", "train", folder)
    assert (split.total, split.shape, split.num_classes) == (60, (2, 2, 1), 3)
    images, labels = split.take([0, 1, 59])
    np.testing.assert_array_equal(images, expected[[0, 1, 59]])
    assert labels.tolist() == [expected_labels[i] for i in (0, 1, 59)]


def test_slices_work(stored):
    folder, expected, _ = stored
    part = tfds_split("counted", "train[10:12]", folder)
    assert part.total == 2
    np.testing.assert_array_equal(part.take([0, 1])[0], expected[10:12])


@pytest.mark.parametrize("name", ["cifar10", "svhn_cropped"])
def test_small_tfds_images_are_kept_in_memory(name):
    with tfds.testing.mock_data(num_examples=7):
        split = tfds_split(name, "train")
    assert isinstance(split, ArraySplit)
    assert (split.total, split.shape, split.num_classes) == (7, (32, 32, 3), 10)
    images, _ = split.take(range(7))
    assert 0 <= images.min() < 0.1
    assert 0.9 < images.max() <= 1


def test_tfds_images_of_differing_sizes_are_streamed_and_centred():
    with tfds.testing.mock_data(num_examples=4):
        split = tfds_split("imagenet2012", "validation")
        assert isinstance(split, tfds_splits.StreamSplit)
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
    split = tfds_splits.StreamSplit.__new__(tfds_splits.StreamSplit)
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
    builder = _counted(tmp_path, num_shards=4)
    parts = [builder.as_dataset(split=f"train[{s}shard]") for s in range(4)]
    stored = [int(e["image"][0, 0, 0]) for part in parts for e in part.as_numpy_iterator()]
    images, _ = tfds_split("counted", "train", str(tmp_path)).take(range(60))
    assert np.rint(images[:, 0, 0, 0] * 255).astype(int).tolist() == stored


def test_a_streamed_split_is_read_once(tmp_path, monkeypatch):
    """However few images are asked for at a time; going back reads it again."""
    _counted(tmp_path, num_shards=2)
    monkeypatch.setattr(tfds_splits, "MEMORY_LIMIT", 0)
    split = tfds_split("counted", "train", str(tmp_path))
    whole, labels = split.take(range(60))
    read = []

    def count(image, label):
        tf.numpy_function(lambda: read.append(None) or np.int64(0), [], tf.int64)
        return image, label

    split._records = split._records.map(count)
    parts = [split.take(range(start, start + 15, 3)) for start in (0, 15, 30, 45)]
    assert 58 <= len(read) <= 60  # some may be read ahead
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts]), whole[::3])
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts]), labels[::3])
    again, _ = split.take([2, 1])
    np.testing.assert_array_equal(again, whole[[2, 1]])
    assert split.take([])[0].shape == (0, 2, 2, 1)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _short(path):
    """Whole records, but not all of them."""
    records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records[:-2]:
            writer.write(record)


@pytest.mark.parametrize("damage", [_cut, _flip, _short])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_damaged_file_is_one_line(tmp_path, monkeypatch, damage, streamed):
    """Kept in memory or streamed; missing images were whatever memory held."""
    _counted(tmp_path, num_shards=1)
    (path,) = tmp_path.glob("counted/*/*.tfrecord-*")
    damage(path)
    if streamed:
        monkeypatch.setattr(tfds_splits, "MEMORY_LIMIT", 0)
    with pytest.raises(UserError, match="dataset 'counted', split 'train': ") as caught:
        tfds_split("counted", "train", str(tmp_path)).take(range(60))
    assert "\n" not in str(caught.value)


def test_a_split_that_there_is_not(stored):
    with pytest.raises(UserError, match="split 'valid'"):
        tfds_split("counted", "valid", stored[0])


def test_what_is_no_image_classification():
    with (
        tfds.testing.mock_data(num_examples=2),
        pytest.raises(UserError, match="not an image-classification"),
    ):
        tfds_split("iris", "train")


def _offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def test_without_a_network_a_missing_dataset_is_one_clear_line(tmp_path, monkeypatch, capfd):
    """At once: TFDS, left alone, would retry for minutes and print a page."""
    _offline(monkeypatch)
    # The builder's own attempt fails as it would there.
    monkeypatch.setattr("requests.Session.send", _no_route)
    with pytest.raises(UserError, match="'mnist' cannot be loaded.*there is no network") as caught:
        tfds_split("mnist", "train", str(tmp_path))
    assert "\n" not in str(caught.value)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "downloading" not in captured.err
    assert downloader.MAX_RETRIES > 1


def _no_route(self, *args, **kwargs):
    raise requests.exceptions.ConnectionError("no route to host")


def test_a_dataset_put_in_place_by_hand_needs_no_network(tmp_path, monkeypatch):
    """Preparing is tried whatever the network says."""
    _offline(monkeypatch)
    asked = []

    def prepare(self, *args, **kwargs):
        asked.append(self.name)
        raise AssertionError("Manual directory is empty.\nMore about it.")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", prepare)
    with pytest.raises(UserError, match=r"AssertionError: Manual directory is empty\.$"):
        tfds_split("imagenet2012", "train", str(tmp_path))
    assert asked == ["imagenet2012"]


def test_what_may_not_be_downloaded_is_not_asked_for(tmp_path, monkeypatch):
    _counted(tmp_path, num_shards=1)
    asked = []
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: asked.append("the network"))
    monkeypatch.setattr(
        tfds.core.DatasetBuilder, "download_and_prepare", lambda *_, **__: asked.append("mnist")
    )
    with pytest.raises(UserError, match=f"'mnist' is not in {tmp_path}.*--dataset=mnist to down"):
        tfds_split("mnist", "train", str(tmp_path), download=False)
    assert not asked
    assert tfds_split("counted", "train", str(tmp_path), download=False).total == 60


def test_a_download_is_announced(tmp_path, monkeypatch, capsys):
    def answer(*args, **kwargs):
        raise urllib.error.HTTPError("url", 400, "Bad Request", None, None)

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", _no_route)
    with pytest.raises(UserError, match="'mnist' cannot be loaded"):
        tfds_split("mnist", "train", str(tmp_path))
    assert f"mnist: not in {tmp_path}" in capsys.readouterr().err
