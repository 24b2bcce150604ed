"""N(0, sigma^2 I), drawn inside a graph."""

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
    """See `sampling.Noise`."""
    return generator.normals(shape, seed, sigma)


SAMPLER = Sampler(noise)
