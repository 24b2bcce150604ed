"""Gaussian noise in whole steps of 1/255, drawn inside a graph."""

import tensorflow as tf

from tfmacer.noise.random_numbers import bits
from tfmacer.noise.rounded_gaussian import rounding
from tfmacer.noise.sampling import Draw, Sampler


def steps(shape: tf.Tensor, seed: tf.Tensor, sigma: float) -> tf.Tensor:
    """The whole numbers D of `rounding`, int32; arguments as of `Draw`."""
    uniform = tf.reshape(bits(shape, seed, tf.int64), [-1])
    passed = tf.searchsorted(rounding.thresholds(sigma), uniform, side="right")
    return tf.reshape(passed, shape) - rounding.reach(sigma)


def noise(draw: Draw) -> tf.Tensor:
    """D / 255, as a network in training meets it; see `Sampler`."""
    return tf.cast(steps(draw.shape, draw.seed, draw.sigma), tf.float32) / rounding.LEVELS


def add(image: tf.Tensor, draw: Draw) -> tf.Tensor:
    """clip(255 x + D, -255 K, 255 (K + 1)) / 255; see `Sampler`.

    All sums are of whole numbers, and the sum is clipped, not D: so the result is h's, see
    `RoundedGaussian`. The division is the first step of the network: it keeps different whole
    numbers different in float32.
    """
    levels = rounding.LEVELS
    lowest = -levels * rounding.overhang(draw.sigma)
    pixels = tf.cast(tf.round(image * levels), tf.int32)
    noisy = pixels[tf.newaxis] + steps(draw.shape, draw.seed, draw.sigma)
    return tf.cast(tf.clip_by_value(noisy, lowest, levels - lowest), tf.float32) / levels


SAMPLER = Sampler(noise, add)
