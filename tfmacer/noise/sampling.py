"""How the noise of a family is drawn inside a graph."""

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from tfmacer.noise import families, random_numbers
from tfmacer.noise.random_numbers import Generator

# As `Noise`, with the generator chosen already.
TrainingNoise = Callable[[tf.Tensor, tf.Tensor, float, Mapping[str, float]], tf.Tensor]


class Noise(Protocol):
    """Draws noise."""

    def __call__(
        self,
        generator: Generator,
        shape: tf.Tensor,
        seed: tf.Tensor,
        sigma: float,
        params: Mapping[str, float],
    ) -> tf.Tensor:
        """Draws noise, in float32 whatever the network computes in.

        Args:
          generator: makes numbers of random bits.
          shape: int `[2 + 3]` or `[1 + 3]`, of what is drawn; the last three are one image's.
          seed: int64 `[2]`, of Philox.
          sigma: scale of the noise, in units of pixels in [0, 1].
          params: the family's further parameters.

        Returns:
          float32 of that shape.
        """
        ...


class Sampler(NamedTuple):
    """How one family is drawn: `SAMPLER` of the `sampler.py` in its folder.

    Attributes:
      noise: see `Noise`.
      add: for noise that is not simply added: (image, arguments of `noise`) to noisy copies of an
        image float32 `[H, W, C]` in [0, 1], of the shape drawn.
    """

    noise: Noise
    add: Callable[..., tf.Tensor] | None = None

    def noisy(self, image: tf.Tensor, *drawn: Any) -> tf.Tensor:
        """Noisy copies of an image; `drawn` are the arguments of `noise`, the rest as in `add`."""
        return self.add(image, *drawn) if self.add else image[tf.newaxis] + self.noise(*drawn)


def sampler(family: str) -> Sampler:
    """How a family is drawn.

    Raises:
      UserError: it is not known.
    """
    families.check_family(family)
    found: Sampler = importlib.import_module(f"tfmacer.noise.{family}.sampler").SAMPLER
    return found


def training_noise(family: str) -> TrainingNoise:
    """The noise that training and attacks draw.

    No certificate rests on it, so its generator stays as it was when a new one comes: unfinished
    runs go on bit for bit.

    Raises:
      UserError: the family is not known.
    """
    return functools.partial(sampler(family).noise, random_numbers.PHILOX)
