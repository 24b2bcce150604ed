"""Splits of datasets: images and labels by position."""

import abc
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfmacer.common.errors import UserError

Shape = tuple[int, int, int]
Images = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]


class Split(abc.ABC):
    """One split of a dataset.

    Attributes:
      dataset: the name by which it was loaded.
      name: of the split.
      shape: `(H, W, C)` of its images.
      num_classes: K; labels are 0 to K - 1, or -1 where there is no true label.
      total: how many images it has.
      class_names: what the dataset calls its classes; None where unknown.
    """

    def __init__(
        self,
        dataset: str,
        name: str,
        *,
        shape: Shape,
        num_classes: int,
        total: int,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.dataset = dataset
        self.name = name
        self.shape = shape
        self.num_classes = num_classes
        self.total = total
        self.class_names = None if class_names is None else tuple(class_names)

    @abc.abstractmethod
    def take(self, positions: Sequence[int]) -> tuple[Images, Labels]:
        """Images float32 `[N, H, W, C]` in [0, 1] and labels int64 `[N]`.

        Args:
          positions: 0-based positions in the split as stored, ascending.

        Raises:
          UserError: an image file that cannot be used.
        """

    def image_name(self, position: int) -> str | None:
        """The dataset's name of the image at a position; None where it has none."""
        return None


class IndexedSplit(Split):
    """A split whose images can be read in any order, inside a graph."""

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
        class_names: Sequence[str] | None = None,
    ) -> None:
        """Makes a split of arrays.

        Args:
          dataset: see `Split`.
          name: see `Split`.
          images: `[N, H, W, C]`, uint8, or float32 in [0, 1].
          labels: integers `[N]`, below K, -1 for none.
          num_classes: K.
          class_names: see `Split`.

        Raises:
          UserError: labels are out of range.
        """
        if wrong := [label for label in np.unique(labels) if not -1 <= label < num_classes]:
            raise UserError(
                f"dataset {dataset}: labels must be below {num_classes}, or -1 for none, "
                f"found {wrong[0]}"
            )
        height, width, channels = images.shape[1:]
        shape = (height, width, channels)
        super().__init__(
            dataset,
            name,
            shape=shape,
            num_classes=num_classes,
            total=len(images),
            class_names=class_names,
        )
        # As tensors, which a graph captures; arrays would be copied into it.
        with tf.device("cpu"):
            self._images = tf.constant(images)
            self._labels = tf.constant(labels, tf.int64)

    def gather(self, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See `IndexedSplit.gather`."""
        return as_pixels(tf.gather(self._images, positions)), tf.gather(self._labels, positions)


class FolderSplit(IndexedSplit):
    """Image files of one size, decoded on demand and never resized."""

    def __init__(
        self,
        dataset: str,
        name: str,
        paths: Sequence[Path],
        labels: Sequence[int],
        *,
        shape: Shape,
        num_classes: int,
        root: Path,
        class_names: Sequence[str] | None,
    ) -> None:
        super().__init__(
            dataset,
            name,
            shape=shape,
            num_classes=num_classes,
            total=len(paths),
            class_names=class_names,
        )
        self._names = [path.relative_to(root).as_posix() for path in paths]
        with tf.device("cpu"):
            self._paths = tf.constant([str(path) for path in paths])
            self._labels = tf.constant(labels, tf.int64)

    def gather(self, positions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """See `IndexedSplit.gather`."""
        spec = tf.TensorSpec(self.shape, tf.uint8)
        images = tf.map_fn(
            self._decode, tf.gather(self._paths, positions), fn_output_signature=spec
        )
        return as_pixels(images), tf.gather(self._labels, positions)

    def take(self, positions: Sequence[int]) -> tuple[Images, Labels]:
        """See `Split.take`."""
        try:
            return super().take(positions)
        except tf.errors.OpError as error:
            self.check()
            raise UserError(f"{self.dataset}: {_reason(error)}") from error

    def check(self) -> None:
        """Decodes every file once, a few at a time.

        Raises:
          UserError: one cannot be read, or is damaged; it is named.
        """
        # The maximum needs the pixels; without it nothing would be decoded.
        largest = tf.data.Dataset.from_tensor_slices(self._paths).map(
            lambda path: tf.reduce_max(self._decode(path)), num_parallel_calls=os.cpu_count()
        )
        read = 0
        try:
            for _ in largest:
                read += 1
        except tf.errors.OpError as error:
            raise UserError(f"{self.dataset}: {self._names[read]}: {_reason(error)}") from error

    def image_name(self, position: int) -> str:
        """The image's file, relative to the folder."""
        return self._names[position]

    def _decode(self, path: tf.Tensor) -> tf.Tensor:
        data = tf.io.read_file(path)
        image = tf.io.decode_image(data, channels=self.shape[-1], expand_animations=False)
        return tf.ensure_shape(image, self.shape)


def _reason(error: tf.errors.OpError) -> str:
    """What is wrong, without TensorFlow's place in a graph."""
    lines = [line for line in error.message.splitlines() if line.strip() and "[[{{" not in line]
    return re.sub(r"\{\{.*?\}\}\s*|Error in user-defined .*?Root::\w+: |\s*\[Op:.*", "", lines[-1])


def as_pixels(images: tf.Tensor) -> tf.Tensor:
    """Pixels in [0, 1] as float32: uint8 divided by 255, floating-point as they are."""
    return tf.cast(images, tf.float32) / 255 if images.dtype == tf.uint8 else images
