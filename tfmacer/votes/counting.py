"""Votes counted in the graph: the one loop that certification and the exported signature share.

Draw j of a stream lies in block b = j // BLOCK; a block is drawn whole, by stateless Philox calls
keyed by (seed, b). The draws therefore depend on the seed and their index alone: not on how the
stream is cut into requests, nor on what else is computed at the same time.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import tensorflow as tf

from tfmacer.noise.random_numbers import GENERATORS
from tfmacer.noise.samplers import sampler
from tfmacer.noise.sampling import Draw
from tfmacer.records.runs import Smoothing

# Blocks in flight at once inside one graph call: as many as most machines have cores, and fewer
# where images are so large that the blocks under way would fill the memory. A layer is taken to
# have 64 float32 channels at the image's size, as the widest ones of the usual networks do.
MOST_PARALLEL_BLOCKS = 32
BYTES_IN_FLIGHT = 4 * 2**30


def count_votes(
    network: Callable[[tf.Tensor], tf.Tensor],
    smoothing: Smoothing,
    images: tf.Tensor,
    seeds: tf.Tensor,
    offsets: tf.Tensor,
    num_samples: tf.Tensor,
    beta: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Counts, in the graph, what `VoteSource.sample` describes.

    One flat loop over (row, block); every pass is one forward of exactly BLOCK rows, so that a
    vote does not depend on what else is asked. Only the sums are carried from pass to pass,
    so the executor runs the forwards of several passes at once.

    Args:
      network: noisy images float32 `[BLOCK, H, W, C]` to logits `[BLOCK, K]`, in inference mode.
      smoothing: what noise, how much of it.
      images: float32 `[B, H, W, C]`.
      seeds: int32 `[B, 2]`.
      offsets: int32 `[B]`.
      num_samples: int32 `[B]`.
      beta: float32 `[B]`.

    Returns:
      `counts` int64 `[B, K]`, adding up to `num_samples` unless logits were not finite; `sums`
      and `square_sums` float64 `[B, K]`.
    """
    block_size, classes = smoothing.block_size, smoothing.num_classes
    starts = tf.cast(offsets, tf.int64)
    stops = starts + tf.cast(num_samples, tf.int64)
    first = starts // block_size
    blocks = tf.where(num_samples > 0, -(-stops // block_size) - first, 0)
    ends = tf.cumsum(blocks)
    total = tf.reduce_sum(blocks)

    def one_block(
        t: tf.Tensor, counts: tf.Tensor, sums: tf.Tensor, square_sums: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        row = tf.searchsorted(ends, t[tf.newaxis], side="right")[0]
        block = first[row] + t - (ends[row] - blocks[row])
        with _outside_of_clusters():
            noisy = noisy_block(images[row], seeds[row], block, smoothing)
        logits = network(noisy)
        logits = tf.ensure_shape(tf.cast(logits, tf.float32), (block_size, classes))
        draws = block * block_size + tf.range(block_size, dtype=tf.int64)
        asked = (draws >= starts[row]) & (draws < stops[row])
        # A draw whose logits are not finite casts no vote; it is then missing from the counts.
        # (A check op here would be stateful, and stateful ops run the passes one after another.)
        counted = (asked & tf.reduce_all(tf.math.is_finite(logits), axis=-1))[:, tf.newaxis]
        votes = tf.one_hot(tf.argmax(logits, axis=-1), classes, on_value=True, off_value=False)
        soft = tf.cast(tf.nn.softmax(beta[row] * logits), tf.float64)
        soft = tf.where(counted, soft, 0.0)

        def add(total: tf.Tensor, part: tf.Tensor) -> tf.Tensor:
            summed = tf.reduce_sum(tf.cast(part, total.dtype), axis=0)
            return tf.tensor_scatter_nd_add(total, [[row]], summed[tf.newaxis])

        return t + 1, add(counts, votes & counted), add(sums, soft), add(square_sums, soft**2)

    shape = tf.stack([tf.shape(images)[0], classes])
    zeros = [tf.zeros(shape, dtype) for dtype in (tf.int64, tf.float64, tf.float64)]
    _, *votes = tf.while_loop(
        lambda t, *_: t < total,
        one_block,
        [tf.zeros((), tf.int64), *zeros],
        parallel_iterations=parallel_blocks(smoothing),
    )
    return tuple(votes)


def noisy_block(
    image: tf.Tensor, seed: tf.Tensor, block: tf.Tensor, smoothing: Smoothing
) -> tf.Tensor:
    """One block of an image under noise.

    Args:
      image: float32 `[H, W, C]` in [0, 1].
      seed: int32 `[2]`, of the stream.
      block: int64 scalar, number of the block.
      smoothing: what noise, by which generator, and the block's shape.

    Returns:
      float32 `[BLOCK, H, W, C]`.

    Raises:
      UserError: the noise family is not known.
    """
    draw = Draw(
        GENERATORS[smoothing.generator],
        (smoothing.block_size, *smoothing.input_shape),
        block_seed(seed, block),
        smoothing.sigma,
        smoothing.noise_params,
    )
    return sampler(smoothing.noise_family).noisy(image, draw)


def block_seed(seed: tf.Tensor, block: tf.Tensor) -> tf.Tensor:
    """Philox seed int64 `[2]` of one block of a stream.

    Folded in as int64: with int32 seeds `stateless_fold_in` keeps 32 bits only, and streams were
    seen to collide.
    """
    return tf.random.experimental.stateless_fold_in(tf.cast(seed, tf.int64), block)


def _outside_of_clusters() -> AbstractContextManager[None]:
    """Keeps ops out of the clusters that XLA forms where auto-clustering is switched on.

    XLA makes other normal numbers of the same random bits, and in which pass it begins to depends
    on when it has compiled a cluster: equal requests were seen to get unequal votes. A function
    with `jit_compile=True` is compiled whole all the same.
    """
    if tf.executing_eagerly():
        return nullcontext()
    scope: AbstractContextManager[None] = tf.xla.experimental.jit_scope(compile_ops=False)
    return scope


def parallel_blocks(smoothing: Smoothing) -> int:
    """How many blocks one graph call may have in flight, 1 to 32.

    With one (images of ImageNet's size), blocks no longer use the cores side by side: give more
    intra-op threads instead.
    """
    height, width, _ = smoothing.input_shape
    layer = smoothing.block_size * height * width * 64 * 4
    return max(1, min(MOST_PARALLEL_BLOCKS, BYTES_IN_FLIGHT // layer))


def inference(network: Callable[..., Any]) -> Callable[[tf.Tensor], tf.Tensor]:
    """The network as a function of the images alone, with training behaviour switched off."""
    import keras

    if isinstance(network, keras.Model):
        return lambda images: network(images, training=False)
    return network
