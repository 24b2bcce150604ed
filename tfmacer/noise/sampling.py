"""How each smoothing distribution is drawn inside a graph.

Draw j of a stream lies in block b = j // BLOCK; a block is drawn whole, by stateless Philox calls
keyed by (seed, b). The draws therefore depend on the seed and their index alone: not on how the
stream is cut into chunks, nor on what else is computed beside it.

A family is one function of `_FAMILIES`, over a generator of normal numbers. What certifies adds it
to an image block by block (`noisy_block`), by the generator of the model; training draws the same
noise for its batches (`NOISES`), always by the first one.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import tensorflow as tf

from tfmacer.common.errors import UserError
from tfmacer.noise import random_numbers as draws
from tfmacer.noise.mixed_norm import statistics
from tfmacer.noise.random_numbers import Generator
from tfmacer.noise.rounded_gaussian import rounding
from tfmacer.records.runs import Smoothing

_F = TypeVar("_F")

NoisyBlock = Callable[[tf.Tensor, tf.Tensor, tf.Tensor, Smoothing], tf.Tensor]
Noise = Callable[[tf.Tensor, tf.Tensor, float, Mapping[str, float]], tf.Tensor]


def gaussian_noise(
    draw: Generator,
    shape: tf.Tensor,
    seed: tf.Tensor,
    sigma: float,
    params: Mapping[str, float],
) -> tf.Tensor:
    """N(0, sigma^2 I), in float32 whatever the network computes in.

    Args:
      draw: makes normal numbers of bits.
      shape: int `[2 + 3]` or `[1 + 3]`, of what is drawn; the last three are one image's.
      seed: int64 `[2]`, of a Philox generator.
      sigma: scale of the noise, in units of pixels in [0, 1].
      params: the family's further parameters; none here.

    Returns:
      float32 of that shape.
    """
    return draw.normals(shape, seed, sigma)


def rounded_steps(shape: tf.Tensor, seed: tf.Tensor, sigma: float) -> tf.Tensor:
    """The whole numbers D of `rounded_gaussian.rounding`, int32; see `gaussian_noise`."""
    table = rounding.thresholds(sigma)
    bits = tf.random.stateless_uniform(
        shape, seed, minval=None, maxval=None, dtype=tf.int64, alg="philox"
    )
    passed = tf.searchsorted(table, tf.reshape(bits, [-1]), side="right")
    return tf.reshape(passed, shape) - rounding.reach(sigma)


def rounded_gaussian_noise(
    draw: Generator,
    shape: tf.Tensor,
    seed: tf.Tensor,
    sigma: float,
    params: Mapping[str, float],
) -> tf.Tensor:
    """Whole steps of 1/255, as a network in training meets them; see `gaussian_noise`."""
    return tf.cast(rounded_steps(shape, seed, sigma), tf.float32) / rounding.LEVELS


def generalized_gaussian_noise(
    draw: Generator,
    shape: tf.Tensor,
    seed: tf.Tensor,
    sigma: float,
    params: Mapping[str, float],
) -> tf.Tensor:
    """Density |z|^-k exp(-|z|^2 / (2 sigma^2)), exactly; see `gaussian_noise`.

    The direction is uniform and independent of the length, whose square is
    Gamma((d - k) / 2, scale 2 sigma^2).
    """
    length_seed, direction_seed = tf.unstack(tf.random.split(seed, 2, alg="philox"))
    direction = draw.normals(shape, direction_seed, 1.0)
    axes = [-3, -2, -1]
    dimension = tf.cast(tf.reduce_prod(tf.shape(direction)[-3:]), tf.float64)
    square = 2 * draw.gammas(tf.shape(direction)[:-3], length_seed, (dimension - params["k"]) / 2)
    length = sigma * tf.cast(tf.sqrt(square), tf.float32)
    norm = tf.sqrt(tf.reduce_sum(direction**2, axis=axes))
    return direction * (length / norm)[..., tf.newaxis, tf.newaxis, tf.newaxis]


def mixed_norm_noise(
    draw: Generator,
    shape: tf.Tensor,
    seed: tf.Tensor,
    sigma: float,
    params: Mapping[str, float],
) -> tf.Tensor:
    """Density |z|_inf^-k exp(-|z|_2^2 / (2 sigma^2)); see `gaussian_noise`.

    The largest coordinate first, then which it is, then the others, truncated by it: see
    `tfmacer.noise.mixed_norm.statistics.LargestCoordinate`.
    """
    largest_seed, sign_seed, face_seed, others_seed = tf.unstack(
        tf.random.split(seed, 4, alg="philox")
    )
    sides = draw.sides(shape, others_seed)
    dimension = math.prod(sides.shape[-3:])
    rows = tf.shape(sides)[:-3]
    share = tf.random.stateless_uniform(rows, largest_seed, dtype=tf.float64, alg="philox")
    distribution = statistics.largest_coordinate(dimension, params["k"])
    largest = _largest(share, distribution)[..., tf.newaxis]
    bound = tf.cast(largest, tf.float32)
    edge = tf.cast(tf.math.erfc(largest / math.sqrt(2)) / 2, tf.float32)
    others = draw.truncated(tf.reshape(sides, tf.concat([rows, [dimension]], axis=0)), edge)
    above = tf.random.stateless_uniform(rows, sign_seed, alg="philox") < 0.5
    signed = tf.where(above[..., tf.newaxis], bound, -bound)
    face = draw.choices(rows, face_seed, dimension)
    is_face = tf.one_hot(face, dimension, on_value=True, off_value=False)
    z = tf.where(is_face, signed, tf.clip_by_value(others, -bound, bound))
    return sigma * tf.reshape(z, tf.shape(sides))


def _largest(share: tf.Tensor, distribution: statistics.LargestCoordinate) -> tf.Tensor:
    """`LargestCoordinate.quantiles` in a graph; float64 of any shape."""
    found = tf.searchsorted(distribution.cumulative, tf.reshape(share, [-1]), side="right") - 1
    cell = tf.reshape(tf.clip_by_value(found, 0, len(distribution.rises) - 1), tf.shape(share))
    start, rise = tf.gather(distribution.cumulative, cell), tf.gather(distribution.rises, cell)
    width = tf.gather(distribution.cumulative, cell + 1) - start
    part = (share - start) / tf.maximum(width, 1e-300)
    level = tf.abs(rise) < 1e-6
    steep = tf.where(level, tf.ones_like(rise), rise)
    bent = tf.math.log1p(part * tf.math.expm1(steep)) / steep
    step = distribution.nodes[1] - distribution.nodes[0]
    return tf.exp(tf.gather(distribution.nodes, cell) + step * tf.where(level, part, bent))


def rounded_gaussian(
    image: tf.Tensor, seed: tf.Tensor, block: tf.Tensor, smoothing: Smoothing
) -> tf.Tensor:
    """One block of clip(255 x + D, -255 K, 255 (K + 1)) / 255; see `noisy_block`.

    All sums are of whole numbers, and the sum is clipped, not D: so the result is h's, see
    `RoundedGaussian`. The division is the first step of the network: it keeps different whole
    numbers different in float32.
    """
    steps = rounded_steps(_block_shape(smoothing), block_seed(seed, block), smoothing.sigma)
    levels = rounding.LEVELS
    lowest = -levels * rounding.overhang(smoothing.sigma)
    pixels = tf.cast(tf.round(image * levels), tf.int32)
    noisy = tf.clip_by_value(pixels[tf.newaxis] + steps, lowest, levels - lowest)
    return tf.cast(noisy, tf.float32) / levels


def block_seed(seed: tf.Tensor, block: tf.Tensor) -> tf.Tensor:
    """Philox seed int64 `[2]` of one block of a stream.

    Folded in as int64: with int32 seeds `stateless_fold_in` keeps 32 bits only, and streams were
    seen to collide.
    """
    return tf.random.experimental.stateless_fold_in(tf.cast(seed, tf.int64), block)


def _block_shape(smoothing: Smoothing) -> tuple[int, ...]:
    return (smoothing.block_size, *smoothing.input_shape)


def _add(image: tf.Tensor, seed: tf.Tensor, block: tf.Tensor, smoothing: Smoothing) -> tf.Tensor:
    """One block of an image under additive noise; see `noisy_block`."""
    drawn = find(_FAMILIES, smoothing.noise_family)(
        draws.GENERATORS[smoothing.generator],
        _block_shape(smoothing),
        block_seed(seed, block),
        smoothing.sigma,
        smoothing.noise_params,
    )
    return image[tf.newaxis] + drawn


_FAMILIES: Mapping[str, Callable[..., tf.Tensor]] = {
    "gaussian": gaussian_noise,
    "rounded_gaussian": rounded_gaussian_noise,
    "generalized_gaussian": generalized_gaussian_noise,
    "mixed_norm": mixed_norm_noise,
}

# What training and attacks draw. No certificate rests on it, so it stays as it was when a new
# generator comes: unfinished runs go on bit for bit.
NOISES: Mapping[str, Noise] = {
    family: functools.partial(draw, draws.PHILOX) for family, draw in _FAMILIES.items()
}


def noisy_block(smoothing: Smoothing) -> NoisyBlock:
    """The function that draws a block of an image under the smoothing's noise.

    It takes the image, float32 `[H, W, C]` in [0, 1]; the stream's seed, int32 `[2]`; the block's
    number, an int64 scalar; and the smoothing, for sigma, the block size and the generator. It
    returns float32 `[BLOCK, H, W, C]`.

    Raises:
      UserError: the family is not known.
    """
    find(_FAMILIES, smoothing.noise_family)
    return rounded_gaussian if smoothing.noise_family == "rounded_gaussian" else _add


def find(families: Mapping[str, _F], family: str) -> _F:
    """One family's entry of `NOISES`.

    Raises:
      UserError: the family is not known.
    """
    if family not in families:
        raise UserError(f"noise_family must be one of {', '.join(families)}, got {family!r}")
    return families[family]
