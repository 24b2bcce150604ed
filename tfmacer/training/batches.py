"""Training batches as a function of the seed and the step, so that a run can be entered anywhere."""

import tensorflow as tf

from tfmacer.datasets import IndexedSplit
from tfmacer.votes.source import row_seed

ORDER = "order"


def training_batches(
    split: IndexedSplit, *, batch_size: int, seed: int, start: int = 0
) -> tf.data.Dataset:
    """Endless batches `(images float32 [B, H, W, C] in [0, 1], labels int64 [B])`.

    Every epoch is a permutation of the split of its own, without the incomplete last batch.
    """
    steps = split.total // batch_size
    base = tf.constant(row_seed(seed, ORDER, 0), tf.int64)

    def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        epoch, within = step // steps, step % steps
        index = within * batch_size + tf.range(batch_size, dtype=tf.int64)
        key = tf.random.experimental.stateless_fold_in(base, epoch)
        words = tf.random.stateless_uniform(
            [2], key, minval=None, maxval=None, dtype=tf.int32, alg="philox"
        )
        last = tf.constant(split.total - 1, tf.int64)
        positions = tf.random.experimental.index_shuffle(index, words, last)
        return split.gather(positions)

    numbers = tf.data.Dataset.range(start, tf.int64.max)
    return numbers.map(batch, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
