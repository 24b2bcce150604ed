"""Splits of TensorFlow Datasets (TFDS): found, fetched where they are missing, read."""

import contextlib
import itertools
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfmacer.common import commandline
from tfmacer.common.errors import UserError
from tfmacer.data.splits import ArraySplit, Images, Labels, Split, as_pixels

# A split of fixed-size images up to this many bytes is decoded once and kept in memory as uint8.
MEMORY_LIMIT = 2 * 1024**3

# Images of differing sizes are certified as the papers do ImageNet: shorter side, then centre.
RESIZED, CROPPED = 256, 224

# Where most of what TFDS fetches lies, and how long it may take to answer, in seconds.
HOST, PATIENCE = "https://storage.googleapis.com", 10


class StreamSplit(Split):
    """A TFDS split that is too large for memory, or of differing sizes: read in its own order.

    Attributes:
      feature: the builder's image feature, which decodes.
      of_one_size: whether all images are of `shape` as stored; if not, certification takes the
        centre of each, training a random window.
    """

    def __init__(self, dataset: str, name: str, builder: Any, records: tf.data.Dataset) -> None:
        """Makes a split of a prepared builder.

        Args:
          dataset: see `Split`.
          name: see `Split`.
          builder: a `tfds.core.DatasetBuilder`.
          records: `(encoded image, label)` in the order stored.
        """
        self._builder, self._records = builder, records
        self._reader, self._next = records.as_numpy_iterator(), 0
        self.feature = builder.info.features["image"]
        self.of_one_size = None not in self.feature.shape
        channels = self.feature.shape[-1]
        super().__init__(
            dataset,
            name,
            shape=self.feature.shape if self.of_one_size else (CROPPED, CROPPED, channels),
            num_classes=builder.info.features["label"].num_classes,
            total=int(records.cardinality()),
            class_names=builder.info.features["label"].names,
        )

    def take(self, positions: Sequence[int]) -> tuple[Images, Labels]:
        """See `Split.take`."""
        try:
            encoded, labels = self._read(positions)
            images = np.empty((len(encoded), *self.shape), np.float32)
            decoded = tf.data.Dataset.from_tensor_slices(encoded).map(self._centre)
            for place, image in enumerate(decoded.as_numpy_iterator()):
                images[place] = image
        except tf.errors.OpError as error:
            self._next = self.total  # where the reader stands is unknown: begin again
            raise UserError(
                f"dataset {self.dataset!r}, split {self.name!r}: cannot be read: "
                f"{_first_line(error)}"
            ) from error
        if len(images) != len(positions):
            raise UserError(
                f"dataset {self.dataset!r}, split {self.name!r}: some of its images are missing"
            )
        return images, labels

    def shuffled(self, seed: int, buffer: int = 8192) -> tf.data.Dataset:
        """`(encoded image, label)` in an order that `seed` determines."""
        import tensorflow_datasets as tfds

        config = tfds.ReadConfig(shuffle_seed=seed, try_autocache=False)
        records = _records(self._builder, self.name, shuffle_files=True, read_config=config)
        return records.shuffle(buffer, seed=seed, reshuffle_each_iteration=False)

    def _read(self, positions: Sequence[int]) -> tuple[tf.Tensor, Labels]:
        """Encoded images and labels; goes on where the last call stopped, unless that is too far.

        So a split that is read in order, a few images at a time, is read once.
        """
        encoded, labels = [], []
        for position in positions:
            if position < self._next:
                self._reader, self._next = self._records.as_numpy_iterator(), 0
            ahead = position - self._next
            for image, label in itertools.islice(self._reader, ahead, ahead + 1):
                encoded.append(image)
                labels.append(label)
            self._next = position + 1
        return tf.constant(encoded, tf.string), np.array(labels, np.int64)

    def _centre(self, encoded: tf.Tensor) -> tf.Tensor:
        image = self.feature.decode_example(encoded)
        if self.of_one_size:
            return as_pixels(image)
        size = tf.cast(tf.shape(image)[:2], tf.float32)
        size = tf.cast(tf.round(size * RESIZED / tf.reduce_min(size)), tf.int32)
        image = tf.image.resize(as_pixels(image), size, antialias=True)
        return tf.ensure_shape(
            tf.image.resize_with_crop_or_pad(image, CROPPED, CROPPED), self.shape
        )


def tfds_split(
    name: str, split: str, data_dir: str | None = None, *, download: bool = True
) -> Split:
    """A TFDS image-classification dataset, downloaded where it is missing unless told otherwise."""
    import tensorflow_datasets as tfds

    builder = _prepared(name, data_dir, download)
    features = builder.info.features
    # One shard after the other, so that positions are those of the split as stored.
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    try:
        records = _records(builder, split, shuffle_files=False, read_config=config)
    except (ValueError, AssertionError) as error:
        raise UserError(f"dataset {name!r}, split {split!r}: {_first_line(error)}") from error
    shape, total = features["image"].shape, int(records.cardinality())
    if None in shape or total * int(np.prod(shape)) > MEMORY_LIMIT:
        return StreamSplit(name, split, builder, records)
    images, labels = np.empty((total, *shape), np.uint8), np.empty(total, np.int64)
    decoded = records.map(
        lambda image, label: (features["image"].decode_example(image), label),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
    start = 0
    try:
        for batch in decoded.batch(1024).as_numpy_iterator():
            stop = start + len(batch[1])
            images[start:stop], labels[start:stop] = batch
            start = stop
    except (tf.errors.OpError, ValueError) as error:
        raise UserError(
            f"dataset {name!r}, split {split!r}: cannot be read after {start} images: "
            f"{_first_line(error)}"
        ) from error
    if start != total:
        raise UserError(f"dataset {name!r}, split {split!r}: has {start} of its {total} images")
    return ArraySplit(
        name, split, images, labels, features["label"].num_classes, features["label"].names
    )


def _prepared(name: str, data_dir: str | None, download: bool) -> Any:
    """The builder of a TFDS dataset, its data on disk."""
    import tensorflow_datasets as tfds

    online = True
    try:
        with _errors_only("absl"):
            builder = tfds.builder(name, data_dir=data_dir)
            _check_kind(name, builder.info)
            if builder.is_prepared():
                return builder
        if not download:
            raise UserError(
                f"dataset {name!r} is not in {builder.data_dir}, and what a record names is not "
                f"downloaded on its word: give --data_dir, or --dataset={name} to download it"
            )
        online = _online()
        if online:
            commandline.note(f"{name}: not in {builder.data_dir}, downloading")
        with contextlib.nullcontext() if online else _without_retries():
            builder.download_and_prepare()
    except UserError:
        raise
    # Whatever a builder or the network raises, the user's remedy is the same.
    except Exception as error:
        raise UserError(
            f"dataset {name!r} cannot be loaded (data_dir: {data_dir or 'the default'}): "
            + ("" if online else "it is not there, and there is no network: ")
            + f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    return builder


def _check_kind(name: str, info: Any) -> None:
    """Before anything is fetched."""
    if info.supervised_keys != ("image", "label") or info.features["image"].np_dtype != np.uint8:
        raise UserError(f"dataset {name!r} is not an image-classification dataset of 8-bit images")


def _online() -> bool:
    try:
        urllib.request.urlopen(HOST, timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return True  # An answer, if not a friendly one.
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _without_retries() -> Iterator[None]:
    """Makes a download without a network fail at once: TFDS would retry ten times, for minutes.

    It is attempted all the same, because archives that were put in place by hand need no network.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    retries, downloader.MAX_RETRIES = downloader.MAX_RETRIES, 0
    tfds.disable_progress_bar()
    try:
        with (
            open(os.devnull, "w") as devnull,
            contextlib.redirect_stdout(devnull),
            _errors_only("absl", "urllib3.connectionpool"),
        ):
            yield
    finally:
        downloader.MAX_RETRIES = retries
        tfds.enable_progress_bar()


@contextlib.contextmanager
def _errors_only(*names: str) -> Iterator[None]:
    """Loggers of these names keep warnings to themselves."""
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _records(builder: Any, split: str, **options: Any) -> tf.data.Dataset:
    """`(encoded image, label)` of a split."""
    import tensorflow_datasets as tfds

    decoders = {"image": tfds.decode.SkipDecoding()}
    return builder.as_dataset(split=split, decoders=decoders, as_supervised=True, **options)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:160]
