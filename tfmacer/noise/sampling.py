"""What the sampler of a noise family is given, and what it offers."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import tensorflow as tf

from tfmacer.noise import random_numbers


class Draw(NamedTuple):
    """Noise to be drawn.

    Attributes:
      generator: makes numbers of random bits.
      shape: int `[2 + 3]` or `[1 + 3]`; the last three are one image's.
      seed: int64 `[2]`, of Philox.
      sigma: scale of the noise, in units of pixels in [0, 1].
      params: the family's further parameters.
    """

    generator: random_numbers.Generator
    shape: tf.Tensor
    seed: tf.Tensor
    sigma: float
    params: Mapping[str, float]


class Sampler(NamedTuple):
    """How one family is drawn: `SAMPLER` of the `sampler.py` in its folder.

    Attributes:
      noise: to noise of the draw's shape, in float32 whatever the network computes in.
      add: for noise that is not simply added: to noisy copies, of the draw's shape, of an image
        float32 `[H, W, C]` in [0, 1].
    """

    noise: Callable[[Draw], tf.Tensor]
    add: Callable[[tf.Tensor, Draw], tf.Tensor] | None = None

    def noisy(self, image: tf.Tensor, draw: Draw) -> tf.Tensor:
        """Noisy copies of an image; see `add`."""
        return self.add(image, draw) if self.add else image[tf.newaxis] + self.noise(draw)
