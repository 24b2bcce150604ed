"""Density |z|_2^-k exp(-|z|_2^2 / (2 sigma^2)), drawn inside a graph."""

from collections.abc import Mapping

import tensorflow as tf

from tfmacer.noise.random_numbers import Generator
from tfmacer.noise.sampling import Sampler


def noise(
    generator: Generator,
    shape: tf.Tensor,
    seed: tf.Tensor,
    sigma: float,
    params: Mapping[str, float],
) -> tf.Tensor:
    """Exact; see `sampling.Noise`.

    The direction is uniform and independent of the length, whose square is
    Gamma((d - k) / 2, scale 2 sigma^2).
    """
    length_seed, direction_seed = tf.unstack(tf.random.split(seed, 2, alg="philox"))
    direction = generator.normals(shape, direction_seed, 1.0)
    dimension = tf.cast(tf.reduce_prod(tf.shape(direction)[-3:]), tf.float64)
    alpha = (dimension - params["k"]) / 2
    square = 2 * generator.gammas(tf.shape(direction)[:-3], length_seed, alpha)
    length = sigma * tf.cast(tf.sqrt(square), tf.float32)
    norm = tf.sqrt(tf.reduce_sum(direction**2, axis=[-3, -2, -1]))
    return direction * (length / norm)[..., tf.newaxis, tf.newaxis, tf.newaxis]


SAMPLER = Sampler(noise)
