"""N(0, sigma^2 I), drawn inside a graph."""

import tensorflow as tf

from tfmacer.noise.sampling import Draw, Sampler


def noise(draw: Draw) -> tf.Tensor:
    """See `Sampler`."""
    return draw.generator.normals(draw.shape, draw.seed, draw.sigma)


SAMPLER = Sampler(noise)
