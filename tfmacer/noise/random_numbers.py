"""How random bits become the numbers that noise is made of, in each version of the generator.

All bits are Philox's. What a version draws never changes: it is kept with a model, and the noise
of every certificate ever made is to be drawn again. What each leaves out of the noise is in
`tfmacer.noise.generators`.

All seeds are int64 `[2]`. `sigma` scales normal numbers.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import tensorflow as tf

from tfmacer.noise import generators

# Proposals for one gamma variable, each taken with probability 0.95 or more: none of 16 is with
# probability below 2^-69.
_PROPOSALS = 16


class Generator(NamedTuple):
    """One version.

    Attributes:
      normals: (shape `[2 + 3]` or `[1 + 3]`, seed, sigma) to float32 N(0, sigma^2) of that shape;
        the last three dimensions are one image's.
      gammas: (shape, seed, alpha) to float64 Gamma(alpha, 1) of that shape; alpha > 0 is a scalar.
      sides: (shape, seed) to what `truncated` takes.
      truncated: (sides, edge) to float32 N(0, 1) within +-M, of the shape of `sides`; edge is
        P(N(0, 1) > M), of a shape that broadcasts.
      choices: (shape, seed, n) to uniform integers in [0, n).
    """

    normals: Callable[[tf.Tensor, tf.Tensor, float], tf.Tensor]
    gammas: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
    sides: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    truncated: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
    choices: Callable[[tf.Tensor, tf.Tensor, int], tf.Tensor]


def _stateless_normals(shape: tf.Tensor, seed: tf.Tensor, sigma: float) -> tf.Tensor:
    return sigma * tf.random.stateless_normal(shape, seed, alg="philox")


def _stateless_gammas(shape: tf.Tensor, seed: tf.Tensor, alpha: tf.Tensor) -> tf.Tensor:
    return tf.random.stateless_gamma(shape, seed, alpha, dtype=tf.float64)


def _stateless_sides(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    return tf.random.stateless_uniform(shape, seed, -1.0, 1.0, alg="philox")


def _truncated_by_uniforms(sides: tf.Tensor, edge: tf.Tensor) -> tf.Tensor:
    # By the lower tail, where probabilities keep their digits, and mirrored.
    return -tf.sign(sides) * tf.math.ndtri(0.5 - tf.abs(sides) * (0.5 - edge))


def _choices_of_32_bits(shape: tf.Tensor, seed: tf.Tensor, n: int) -> tf.Tensor:
    return tf.random.stateless_uniform(shape, seed, 0, n, dtype=tf.int32, alg="philox")


def bits(shape: tf.Tensor, seed: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Integers uniform over all of their type, int32 or int64."""
    return tf.random.stateless_uniform(shape, seed, None, None, dtype, alg="philox")


def uniforms(whole: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Numbers in (0, 1] whose digits do not end near 0, of int64 bits.

    |b| / 2^63 is a real uniform number rounded to 63 bits; rounded once more, to a float, it keeps
    all the digits of a float however small it is. 0 stands for [0, 2^-64), and becomes its end.
    The sign of b is independent of it.
    """
    return tf.maximum(tf.abs(tf.cast(whole, dtype)), 0.5) * 2.0**-63


def box_muller(lengths: tf.Tensor, angles: tf.Tensor, sigma: float) -> tf.Tensor:
    """Two independent normal numbers from each two integers (Box & Muller, 1958).

    The length is sigma sqrt(-2 ln U), in float64, which keeps short ones apart too, and then
    rounded to float32: U has bits for every float32 up to 7 sigma, is coarser beyond (the k-th last
    length is 1 / (9 k) from the next one), and ends at 9.42 sigma. The angle is a multiple of
    pi / 2^31, in float32. For sigma = 1 either number is within 5e-7 times the length, and 1.1e-8,
    of what real arithmetic makes of the same bits.

    Args:
      lengths: int64 `[..., P]`, uniform over the type.
      angles: int32 `[..., P]`, likewise.
      sigma: scale.

    Returns:
      float32 `[..., 2 P]`: the cosines' numbers, then the sines'.
    """
    logs = tf.math.log(uniforms(lengths, tf.float64))
    length = tf.cast(tf.sqrt(logs * (-2.0 * sigma**2)), tf.float32)
    angle = tf.cast(angles, tf.float32) * (math.pi / 2**31)
    return tf.concat([length * tf.cos(angle), length * tf.sin(angle)], axis=-1)


def _normals(shape: tuple[int, ...], seed: tf.Tensor, sigma: float) -> tf.Tensor:
    """Both numbers of a pair are in one image, so that images share no bits."""
    dimension = math.prod(shape[-3:])
    pairs = (*shape[:-3], (dimension + 1) // 2)
    return tf.reshape(_pairs(pairs, seed, sigma)[..., :dimension], shape)


def _pairs(shape: tf.Tensor, seed: tf.Tensor, sigma: float) -> tf.Tensor:
    length_seed, angle_seed = tf.unstack(tf.random.split(seed, 2, alg="philox"))
    lengths, angles = bits(shape, length_seed, tf.int64), bits(shape, angle_seed, tf.int32)
    return box_muller(lengths, angles, sigma)


def _gammas(shape: tf.Tensor, seed: tf.Tensor, alpha: tf.Tensor) -> tf.Tensor:
    """By Marsaglia & Tsang (ACM TOMS 2000), who for alpha < 1 multiply by U^(1 / alpha).

    d (1 + c x)^3 of a normal x is taken with probability exp(x^2 / 2 + d - d v + d ln v), where
    v = (1 + c x)^3; all proposals are made at once.
    """
    normal_seed, uniform_seed, power_seed = tf.unstack(tf.random.split(seed, 3, alg="philox"))
    small = alpha < 1
    d = tf.where(small, alpha + 1, alpha) - 1 / 3
    halves = tf.concat([shape, [_PROPOSALS // 2]], axis=0)
    x = tf.cast(_pairs(halves, normal_seed, 1.0), tf.float64)
    chances = bits(tf.concat([shape, [_PROPOSALS]], axis=0), uniform_seed, tf.int64)
    v = (1 + x / tf.sqrt(9 * d)) ** 3
    logs = tf.math.log(tf.maximum(v, 1e-300))
    taken = tf.math.log(uniforms(chances, tf.float64)) < x**2 / 2 + d * (1 - v + logs)
    first = tf.one_hot(
        tf.argmax(tf.cast(taken & (v > 0), tf.int32), axis=-1),
        _PROPOSALS,
        on_value=True,
        off_value=False,
    )
    drawn = d * tf.reduce_sum(tf.where(first, v, 0.0), axis=-1)
    powers = tf.math.log(uniforms(bits(shape, power_seed, tf.int64), tf.float64)) / alpha
    return tf.where(small, drawn * tf.exp(powers), drawn)


def _sides(shape: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    return bits(shape, seed, tf.int64)


def _truncated(sides: tf.Tensor, edge: tf.Tensor) -> tf.Tensor:
    # From the edge inward: probabilities keep their digits in the tail.
    tails = tf.math.ndtri(edge + uniforms(sides, tf.float32) * (0.5 - edge))
    return tf.where(sides < 0, tails, -tails)


def _choices(shape: tf.Tensor, seed: tf.Tensor, n: int) -> tf.Tensor:
    return tf.random.stateless_uniform(shape, seed, 0, n, dtype=tf.int64, alg="philox")


# TensorFlow's own normals; training draws by these too.
PHILOX = Generator(
    _stateless_normals,
    _stateless_gammas,
    _stateless_sides,
    _truncated_by_uniforms,
    _choices_of_32_bits,
)
BOX_MULLER = Generator(_normals, _gammas, _sides, _truncated, _choices)

GENERATORS: Mapping[str, Generator] = {
    generators.PHILOX: PHILOX,
    generators.BOX_MULLER: BOX_MULLER,
}
