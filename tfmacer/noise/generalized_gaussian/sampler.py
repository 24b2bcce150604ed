"""Density |z|_2^-k exp(-|z|_2^2 / (2 sigma^2)), drawn inside a graph."""

import tensorflow as tf

from tfmacer.noise.sampling import Draw, Sampler


def noise(draw: Draw) -> tf.Tensor:
    """Exact; see `Sampler`.

    The direction is uniform and independent of the length, whose square is
    Gamma((d - k) / 2, scale 2 sigma^2).
    """
    length_seed, direction_seed = tf.unstack(tf.random.split(draw.seed, 2, alg="philox"))
    direction = draw.generator.normals(draw.shape, direction_seed, 1.0)
    dimension = tf.cast(tf.reduce_prod(tf.shape(direction)[-3:]), tf.float64)
    alpha = (dimension - draw.params["k"]) / 2
    square = 2 * draw.generator.gammas(tf.shape(direction)[:-3], length_seed, alpha)
    length = draw.sigma * tf.cast(tf.sqrt(square), tf.float32)
    norm = tf.sqrt(tf.reduce_sum(direction**2, axis=[-3, -2, -1]))
    return direction * (length / norm)[..., tf.newaxis, tf.newaxis, tf.newaxis]


SAMPLER = Sampler(noise)
