"""How each noise family is drawn inside a graph."""

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType

import tensorflow as tf

from tfmacer.noise import random_numbers
from tfmacer.noise.families import DISTRIBUTIONS, check_family
from tfmacer.noise.sampling import Draw, Sampler

_SAMPLERS: Mapping[str, Sampler] = MappingProxyType(
    {
        family: importlib.import_module(f"tfmacer.noise.{family}.sampler").SAMPLER
        for family in DISTRIBUTIONS
    }
)


def sampler(family: str) -> Sampler:
    """How a family is drawn.

    Raises:
      UserError: it is not known.
    """
    check_family(family)
    return _SAMPLERS[family]


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
