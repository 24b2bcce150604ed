"""Gaussian noise in whole steps of 1/255, drawn inside a graph."""

from collections.abc import Mapping

import tensorflow as tf

from tfmacer.noise.random_numbers import Generator, bits
from tfmacer.noise.rounded_gaussian import rounding
from tfmacer.noise.sampling import Sampler


def steps(shape: tf.Tensor, seed: tf.Tensor, sigma: float) -> tf.Tensor:
    """The whole numbers D of `rounding`, int32; arguments as of `sampling.Noise`."""
    uniform = tf.reshape(bits(shape, seed, tf.int64), [-1])
    passed = tf.searchsorted(rounding.thresholds(sigma), uniform, side="right")
    return tf.reshape(passed, shape) - rounding.reach(sigma)


def noise(
    generator: Generator,
    shape: tf.Tensor,
    seed: tf.Tensor,
    sigma: float,
    params: Mapping[str, float],
) -> tf.Tensor:
    """D / 255, as a network in training meets it; see `sampling.Noise`."""
    return tf.cast(steps(shape, seed, sigma), tf.float32) / rounding.LEVELS


def add(
    image: tf.Tensor,
    generator: Generator,
    shape: tf.Tensor,
    seed: tf.Tensor,
    sigma: float,
    params: Mapping[str, float],
) -> tf.Tensor:
    """clip(255 x + D, -255 K, 255 (K + 1)) / 255; see `sampling.Sampler`.

    All sums are of whole numbers, and the sum is clipped, not D: so the result is h's, see
    `RoundedGaussian`. The division is the first step of the network: it keeps different whole
    numbers different in float32.
    """
    levels = rounding.LEVELS
    lowest = -levels * rounding.overhang(sigma)
    pixels = tf.cast(tf.round(image * levels), tf.int32)
    noisy = tf.clip_by_value(
        pixels[tf.newaxis] + steps(shape, seed, sigma), lowest, levels - lowest
    )
    return tf.cast(noisy, tf.float32) / levels


SAMPLER = Sampler(noise, add)
