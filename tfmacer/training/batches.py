"""Training batches: a function of the seed and the step, so that a run can resume at any step."""

import dataclasses
import math
from collections.abc import Callable

import tensorflow as tf

from tfmacer.common.errors import UserError
from tfmacer.data.splits import IndexedSplit, Split
from tfmacer.data.tfds_splits import StreamSplit
from tfmacer.votes.source import row_seed

# Names of the streams.
ORDER, AUGMENT = "order", "augment"

PADDING = 4


@dataclasses.dataclass(frozen=True)
class Share:
    """A part of every batch, for one of several machines: its rows are what they are in the whole.

    Attributes:
      index: which part, from 0.
      count: of parts; divides the batch.
    """

    index: int
    count: int

    def of(self, whole: tf.Tensor, axis: int = 0) -> tf.Tensor:
        """This part of something drawn for the whole batch."""
        return tf.split(whole, self.count, axis=axis)[self.index]


WHOLE = Share(0, 1)

Augmentation = Callable[[tf.Tensor, tf.Tensor, Share], tf.Tensor]


def crop(images: tf.Tensor, seed: tf.Tensor, share: Share = WHOLE) -> tf.Tensor:
    """A random window of each image of `[B, H, W, C]` padded by 4 black pixels on every side."""
    return _windows(images, seed, share, tf.zeros([images.shape[0], 1], tf.bool))


def crop_flip(images: tf.Tensor, seed: tf.Tensor, share: Share = WHOLE) -> tf.Tensor:
    """`crop`, and half of the images of `[B, H, W, C]` mirrored."""
    crop_seed, flip_seed = tf.unstack(tf.random.split(seed, 2, alg="philox"))
    size = images.shape[0] * share.count
    coins = share.of(tf.random.stateless_uniform([size, 1], flip_seed, alg="philox"))
    return _windows(images, crop_seed, share, coins < 0.5)


def _windows(images: tf.Tensor, seed: tf.Tensor, share: Share, mirrored: tf.Tensor) -> tf.Tensor:
    """One window of each padded image; where `mirrored` (bool `[B, 1]`), from right to left."""
    size, height, width = images.shape[0] * share.count, images.shape[1], images.shape[2]
    padded = tf.pad(images, [[0, 0], [PADDING, PADDING], [PADDING, PADDING], [0, 0]])
    corners = tf.random.stateless_uniform(
        [2, size, 1], seed, 0, 2 * PADDING + 1, tf.int32, alg="philox"
    )
    top, left = tf.unstack(share.of(corners, axis=1))
    # Mirrored by counting columns backwards: reversing the pixels took four times as long.
    columns = tf.where(mirrored, tf.range(width)[::-1], tf.range(width))
    rows = tf.gather(padded, top + tf.range(height), axis=1, batch_dims=1)
    return tf.gather(rows, left + columns, axis=2, batch_dims=1)


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": lambda images, seed, share: images,
    "crop": crop,
    "crop_flip": crop_flip,
}
STREAMED = "resized_crop_flip"


def epoch_batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    augmentation: str = "none",
    share: Share = WHOLE,
) -> tf.data.Dataset:
    """The batches from step `start` to the end of its epoch, in an order of the epoch's own.

    Batches are `(images float32 [B, H, W, C] in [0, 1], labels int64 [B])`; the incomplete last
    one is left out.

    Args:
      split: where they come from.
      batch_size: B, at most the split's size.
      seed: of order and augmentation.
      start: steps taken so far, over all epochs.
      augmentation: a key of `AUGMENTATIONS`; `resized_crop_flip` for a split of differing sizes.
      share: which rows of each batch; only they are read and decoded.

    Raises:
      UserError: see `check_trainable`.
    """
    check_trainable(split, augmentation)
    if isinstance(split, StreamSplit):
        batches = _streamed(split, batch_size, seed, start, share)
    else:
        assert isinstance(split, IndexedSplit)
        batches = _indexed(split, batch_size, seed, start, share)
    steps = split.total // batch_size
    if augmentation in AUGMENTATIONS:
        key, augment = _key(seed, AUGMENT), AUGMENTATIONS[augmentation]
        numbers = tf.data.Dataset.range(start, (start // steps + 1) * steps)
        batches = tf.data.Dataset.zip(numbers, batches).map(
            lambda step, batch: (augment(batch[0], _fold(key, step), share), batch[1]),
            tf.data.AUTOTUNE,
        )
    options = tf.data.Options()
    # Its thread sleeps for up to a minute at a time, and an iterator is not freed before it wakes:
    # every epoch ended with a wait.
    options.autotune.enabled = False
    return batches.prefetch(tf.data.AUTOTUNE).with_options(options)


def _indexed(
    split: IndexedSplit, batch_size: int, seed: int, start: int, share: Share
) -> tf.data.Dataset:
    """Batches in an order computed index by index, which can start at any step at no cost."""
    epoch, within = divmod(start, split.total // batch_size)
    key = _fold(_key(seed, ORDER), epoch)

    def batch(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        index = number * batch_size + share.of(tf.range(batch_size, dtype=tf.int64))
        return split.gather(_shuffle(index, key, split.total))

    numbers = tf.data.Dataset.range(within, split.total // batch_size)
    return numbers.map(batch, tf.data.AUTOTUNE)


def _streamed(
    split: StreamSplit, batch_size: int, seed: int, start: int, share: Share
) -> tf.data.Dataset:
    """Batches in a shuffled order; what came before `start` is read, but not decoded."""
    epoch, within = divmod(start, split.total // batch_size)
    key = _fold(_key(seed, AUGMENT), epoch)
    first = _fold(_key(seed, ORDER), epoch)[0]
    records = split.shuffled(int(first) % 2**31).enumerate().skip(within * batch_size)
    size = batch_size // share.count
    if share.count > 1:
        records = records.filter(lambda index, _: index % batch_size // size == share.index)

    def example(index: tf.Tensor, record: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, ...]:
        image = split.feature.decode_example(record[0])
        if split.of_one_size:
            return tf.cast(image, tf.float32) / 255, record[1]
        return resized_crop_flip(image, _fold(key, index), split.shape), record[1]

    # The last batch has as many as the split leaves it, which may end within this share.
    batches = records.map(example, tf.data.AUTOTUNE).batch(size, drop_remainder=True)
    return batches.take(split.total // batch_size - within)


def resized_crop_flip(image: tf.Tensor, seed: tf.Tensor, shape: tuple[int, int, int]) -> tf.Tensor:
    """A random window of an image, resized, and mirrored half of the time.

    Args:
      image: uint8 `[h, w, C]`.
      seed: int64 `[2]`.
      shape: `(H, W, C)` of the result.

    Returns:
      float32 `[H, W, C]` in [0, 1].
    """
    crop_seed, flip_seed = tf.unstack(tf.random.split(seed, 2, alg="philox"))
    top, left, height, width = tf.unstack(random_window(tf.shape(image)[:2], crop_seed))
    window = tf.cast(image[top : top + height, left : left + width], tf.float32) / 255
    resized = tf.image.resize(window, shape[:2], antialias=True)
    resized = tf.image.stateless_random_flip_left_right(resized, flip_seed)
    return tf.clip_by_value(tf.ensure_shape(resized, shape), 0.0, 1.0)


def random_window(size: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """A window as torchvision's RandomResizedCrop, and so the papers' code, chooses it.

    Its share of the area is uniform from 8 to 100 %, the logarithm of width / height uniform from
    3:4 to 4:3; the first of ten tries that fits the image, else the largest centred window whose
    sides are in that range.

    Args:
      size: int32 `[2]`, height and width of the image.
      seed: int64 `[2]`.

    Returns:
      int32 `[4]`: top, left, height, width.
    """
    draws = tf.random.stateless_uniform([4, 10], seed, alg="philox")
    height, width = tf.unstack(tf.cast(size, tf.float32))
    area = height * width * (0.08 + 0.92 * draws[0])
    ratio = tf.exp((2 * draws[1] - 1) * math.log(4 / 3))
    heights, widths = tf.round(tf.sqrt(area / ratio)), tf.round(tf.sqrt(area * ratio))
    fits = (heights <= height) & (widths <= width) & (heights >= 1) & (widths >= 1)
    tops = tf.floor(draws[2] * (height - heights + 1))
    lefts = tf.floor(draws[3] * (width - widths + 1))
    first = tf.stack([tops, lefts, heights, widths])[:, tf.argmax(fits)]
    high = tf.minimum(height, tf.round(width * 4 / 3))
    wide = tf.minimum(width, tf.round(height * 4 / 3))
    centre = tf.stack([(height - high) // 2, (width - wide) // 2, high, wide])
    return tf.cast(tf.where(tf.reduce_any(fits), first, centre), tf.int32)


def check_trainable(split: Split, augmentation: str) -> None:
    """Refuses images without labels, and an augmentation that is not one for them."""
    if isinstance(split, IndexedSplit) and not split.labelled:
        raise UserError(f"--dataset={split.dataset} has images without labels: only to certify")
    of_one_size = not isinstance(split, StreamSplit) or split.of_one_size
    known = list(AUGMENTATIONS) if of_one_size else [STREAMED]
    if augmentation not in known:
        raise UserError(
            f"--augmentation must be one of {', '.join(known)} for {split.dataset}, "
            f"got {augmentation!r}"
        )


def _shuffle(index: tf.Tensor, key: tf.Tensor, total: int) -> tf.Tensor:
    """Where a permutation of 0 to total - 1 puts each index; never held in memory as a whole."""
    words = tf.random.stateless_uniform([2], key, None, None, tf.int32, alg="philox")
    last = tf.constant(total - 1, tf.int64)
    return tf.random.experimental.index_shuffle(index, words, last)


def _key(seed: int, stream: str) -> tf.Tensor:
    return tf.constant(row_seed(seed, stream, 0), tf.int64)


def _fold(key: tf.Tensor, number: tf.Tensor | int) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(key, tf.cast(number, tf.int64), alg="philox")
