"""How each smoothing distribution is drawn inside a graph.

Draw j of a stream lies in block b = j // BLOCK; a block is drawn whole, by one stateless Philox
call keyed by (seed, b). The draws therefore depend on the seed and their index alone: not on how
the stream is cut into chunks, nor on what else is computed beside it.
"""

from collections.abc import Callable

import tensorflow as tf

from tfmacer.errors import UserError
from tfmacer.records.runs import Smoothing

NoisyBlock = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, Smoothing], tf.Tensor]


def gaussian(
    image: tf.Tensor, seed: tf.Tensor, block: tf.Tensor, smoothing: Smoothing
) -> tf.Tensor:
    """One block of x + N(0, sigma^2 I), in float32 whatever the network computes in.

    Args:
      image: float32 `[H, W, C]` in [0, 1].
      seed: int32 `[2]`, the stream's.
      block: int64 scalar, the block's number.
      smoothing: gives sigma and the block size.

    Returns:
      float32 `[BLOCK, H, W, C]`.
    """
    shape = (smoothing.block_size, *smoothing.input_shape)
    noise = tf.random.stateless_normal(shape, block_seed(seed, block), alg="philox")
    return image[tf.newaxis] + smoothing.sigma * noise


def block_seed(seed: tf.Tensor, block: tf.Tensor) -> tf.Tensor:
    """Philox seed int64 `[2]` of one block of a stream.

    Folded in as int64: with int32 seeds `stateless_fold_in` keeps 32 bits only, and streams were
    seen to collide.
    """
    return tf.random.experimental.stateless_fold_in(tf.cast(seed, tf.int64), block)


NOISY_BLOCKS: dict[str, NoisyBlock] = {"gaussian": gaussian}


def noisy_block(smoothing: Smoothing) -> NoisyBlock:
    """The function that draws a block of the smoothing's family.

    Raises:
      UserError: the family is not known.
    """
    if smoothing.noise_family not in NOISY_BLOCKS:
        raise UserError(
            f"noise_family must be one of {', '.join(NOISY_BLOCKS)}, got {smoothing.noise_family!r}"
        )
    return NOISY_BLOCKS[smoothing.noise_family]
