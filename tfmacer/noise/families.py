"""The families of noise by name.

A family is a folder of this package, of its name: `distribution.py` has the theorem, a subclass of
`NoiseDistribution`; `sampler.py` draws the noise in a graph, by its `SAMPLER`. A new one is a
folder and its class in `DISTRIBUTIONS`.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from tfmacer.common.errors import UserError
from tfmacer.guarantee.distribution import NoiseDistribution
from tfmacer.noise import generators
from tfmacer.noise.gaussian.distribution import Gaussian
from tfmacer.noise.generalized_gaussian.distribution import GeneralizedGaussian
from tfmacer.noise.mixed_norm.distribution import MixedNorm
from tfmacer.noise.rounded_gaussian.distribution import RoundedGaussian

DISTRIBUTIONS: Mapping[str, type[NoiseDistribution]] = MappingProxyType(
    {
        known.family: known
        for known in (
            Gaussian,
            RoundedGaussian,
            GeneralizedGaussian,
            MixedNorm,
        )
    }
)

# More than any image has; the tables of some families are made with floating-point numbers.
_MOST_NUMBERS = 2**31


def check_family(family: str) -> None:
    """Raises UserError unless there is a noise family of that name."""
    if family not in DISTRIBUTIONS:
        raise UserError(f"noise_family must be one of {', '.join(DISTRIBUTIONS)}, got {family!r}")


def noise_distribution(
    family: str,
    *,
    sigma: float,
    params: Mapping[str, float] | None = None,
    dimension: int,
    generator: str = generators.LATEST,
) -> NoiseDistribution:
    """Makes the distribution of a noise family.

    Args:
      family: key of `DISTRIBUTIONS`.
      sigma: scale of the noise, in units of pixels in [0, 1]; > 0.
      params: the family's further parameters; None stands for none.
      dimension: numbers in one image, H x W x C; below 2^31.
      generator: what draws it, one of `tfmacer.noise.generators.GENERATORS`.

    Raises:
      UserError: the family or the generator is unknown, or a parameter is out of range.
    """
    if not 1 <= dimension < _MOST_NUMBERS:
        raise UserError(f"an image must have 1 to {_MOST_NUMBERS - 1} numbers, got {dimension}")
    check_family(family)
    generators.check_generator(generator)
    found = DISTRIBUTIONS[family]
    own = {field.name for field in dataclasses.fields(found)}
    own -= {field.name for field in dataclasses.fields(NoiseDistribution)}
    if set(params or {}) != own:
        expected = f"{', '.join(sorted(own))} alone" if own else "empty"
        raise UserError(f"noise_params of {family} must be {expected}, got {dict(params or {})}")
    numbers = {name: float(value) for name, value in (params or {}).items()}
    return found(sigma=sigma, dimension=dimension, generator=generator, **numbers)
