"""How the noise of a family is drawn inside a graph."""

import importlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import tensorflow as tf

from tfmacer.noise import families, random_numbers


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


def sampler(family: str) -> Sampler:
    """How a family is drawn.

    Raises:
      UserError: it is not known.
    """
    families.check_family(family)
    found: Sampler = importlib.import_module(f"tfmacer.noise.{family}.sampler").SAMPLER
    return found


def training_noise(
    family: str,
) -> Callable[[tf.Tensor, tf.Tensor, float, Mapping[str, float]], tf.Tensor]:
    """The noise that training and attacks draw: (shape, seed, sigma, params) to noise, see `Draw`.

    No certificate rests on it, so its generator stays as it was when a new one comes: unfinished
    runs go on bit for bit.

    Raises:
      UserError: the family is not known.
    """
    noise = sampler(family).noise
    return lambda *drawn: noise(Draw(random_numbers.PHILOX, *drawn))
