"""Density |z|_inf^-k exp(-|z|_2^2 / (2 sigma^2)), drawn inside a graph."""

import math

import tensorflow as tf

from tfmacer.noise.mixed_norm.largest_coordinate import LargestCoordinate, largest_coordinate
from tfmacer.noise.sampling import Draw, Sampler


def noise(draw: Draw) -> tf.Tensor:
    """See `Sampler`.

    The largest coordinate first, then which it is, then the others, truncated by it: see
    `LargestCoordinate`.
    """
    largest_seed, sign_seed, face_seed, others_seed = tf.unstack(
        tf.random.split(draw.seed, 4, alg="philox")
    )
    sides = draw.generator.sides(draw.shape, others_seed)
    dimension = math.prod(sides.shape[-3:])
    rows = tf.shape(sides)[:-3]
    share = tf.random.stateless_uniform(rows, largest_seed, dtype=tf.float64, alg="philox")
    largest = _quantiles(largest_coordinate(dimension, draw.params["k"]), share)[..., tf.newaxis]
    bound = tf.cast(largest, tf.float32)
    edge = tf.cast(tf.math.erfc(largest / math.sqrt(2)) / 2, tf.float32)
    others = draw.generator.truncated(
        tf.reshape(sides, tf.concat([rows, [dimension]], axis=0)), edge
    )
    above = tf.random.stateless_uniform(rows, sign_seed, alg="philox") < 0.5
    signed = tf.where(above[..., tf.newaxis], bound, -bound)
    face = draw.generator.choices(rows, face_seed, dimension)
    is_face = tf.one_hot(face, dimension, on_value=True, off_value=False)
    z = tf.where(is_face, signed, tf.clip_by_value(others, -bound, bound))
    return draw.sigma * tf.reshape(z, tf.shape(sides))


def _quantiles(table: LargestCoordinate, share: tf.Tensor) -> tf.Tensor:
    """`LargestCoordinate.quantiles` in a graph; float64 of any shape."""
    found = tf.searchsorted(table.cumulative, tf.reshape(share, [-1]), side="right") - 1
    cell = tf.reshape(tf.clip_by_value(found, 0, len(table.rises) - 1), tf.shape(share))
    start, rise = tf.gather(table.cumulative, cell), tf.gather(table.rises, cell)
    width = tf.gather(table.cumulative, cell + 1) - start
    part = (share - start) / tf.maximum(width, 1e-300)
    level = tf.abs(rise) < 1e-6
    steep = tf.where(level, tf.ones_like(rise), rise)
    bent = tf.math.log1p(part * tf.math.expm1(steep)) / steep
    step = table.nodes[1] - table.nodes[0]
    return tf.exp(tf.gather(table.nodes, cell) + step * tf.where(level, part, bent))


SAMPLER = Sampler(noise)
