"""Splits of TensorFlow Datasets (TFDS): found, fetched where they are missing, read."""

import contextlib
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
        wanted = tf.constant(list(positions), tf.int64)
        records = self._records.enumerate().take(max(positions, default=-1) + 1)
        found = records.filter(lambda position, _: tf.reduce_any(position == wanted))
        decoded = found.map(lambda _, record: (self._centre(record[0]), record[1]))
        try:
            pairs = list(decoded.as_numpy_iterator())
        except tf.errors.OpError as error:
            raise UserError(
                f"dataset {self.dataset!r}, split {self.name!r}: cannot be read: "
                f"{_first_line(error)}"
            ) from error
        if len(pairs) != len(positions):
            raise UserError(
                f"dataset {self.dataset!r}, split {self.name!r}: has not all of its images"
            )
        images = np.array([image for image, _ in pairs], np.float32).reshape(-1, *self.shape)
        return images, np.array([label for _, label in pairs], np.int64)

    def shuffled(self, seed: int, buffer: int = 8192) -> tf.data.Dataset:
        """`(encoded image, label)` in an order that `seed` determines."""
        import tensorflow_datasets as tfds

        config = tfds.ReadConfig(shuffle_seed=seed, try_autocache=False)
        records = _records(self._builder, self.name, shuffle_files=True, read_config=config)
        return records.shuffle(buffer, seed=seed, reshuffle_each_iteration=False)

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
        with contextlib.nullcontext() if online else _at_once_and_quietly():
            builder.download_and_prepare()
    except UserError:
        raise
    # Whatever a builder or the network raises, the user's remedy is the same.
    except Exception as error:
        raise UserError(
            f"dataset {name!r} cannot be had (data_dir: {data_dir or 'the default'}): "
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
def _at_once_and_quietly() -> Iterator[None]:
    """For what can only fail, unless it needs no network: TFDS waits out ten retries, in minutes.

    Tried all the same, because archives that were put in place by hand need none.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    retries, downloader.MAX_RETRIES = downloader.MAX_RETRIES, 0
    tfds.disable_progress_bar()
    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
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
