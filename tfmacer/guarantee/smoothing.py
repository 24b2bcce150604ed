"""The laws of the noise by name.

A law is what the theorem of its noise says. Adding one is one class with the attributes and
methods of `Law` and one line of `LAWS`.
"""

import decimal
from collections.abc import Mapping
from types import MappingProxyType

from tfmacer.common.errors import UserError
from tfmacer.guarantee import generators, mixed_norm
from tfmacer.guarantee.gaussian import Gaussian, RoundedGaussian
from tfmacer.guarantee.generalized_gaussian import GeneralizedGaussian
from tfmacer.guarantee.law import Law
from tfmacer.guarantee.linf import MixedNorm

__all__ = [
    "LAWS",
    "Gaussian",
    "GeneralizedGaussian",
    "Law",
    "MixedNorm",
    "RoundedGaussian",
    "caveat",
    "law",
]

LAWS: Mapping[str, type[Law]] = MappingProxyType(
    {known.family: known for known in (Gaussian, RoundedGaussian, GeneralizedGaussian, MixedNorm)}
)

# More than any image has; the tables of some families are made with floating-point numbers.
_MOST_NUMBERS = 2**31

_FAMILY_CAVEATS = {
    RoundedGaussian.family: (
        "the pixels are the multiples of 1/255 nearest to those given, and the noise is added in "
        "whole steps of 1/255, so rounding is covered for all pixels of 8 bits that the same "
        "network answers with the same arithmetic"
    ),
    MixedNorm.family: (
        "all radii of this noise rest on one table, which is wrong with probability "
        f"{mixed_norm.ERROR!r}, over draws of its own"
    ),
}


def caveat(family: str, *, generator: str, dimension: int) -> str:
    """What a certificate under this noise leaves open, or covers, beyond its probability.

    Args:
      family: key of `LAWS`.
      generator: what drew the noise.
      dimension: numbers in one image.
    """
    parts = []
    if missing := generators.left_out(generator, family, dimension):
        parts.append(
            "the noise is taken as exact: neither the rounding of floating-point numbers is "
            f"covered, nor what the generator {generator} never draws, at most "
            f"{_rounded_up(missing)} of the noise's probability in {dimension} dimensions"
        )
    if family in _FAMILY_CAVEATS:
        parts.append(_FAMILY_CAVEATS[family])
    return f"{'; '.join(parts)}."


def _rounded_up(value: float) -> str:
    """Two digits, not below the value."""
    context = decimal.Context(prec=2, rounding=decimal.ROUND_UP)
    return f"{context.create_decimal_from_float(value):.1e}"


def law(
    family: str,
    *,
    sigma: float,
    params: Mapping[str, float] | None = None,
    dimension: int,
    generator: str = generators.LATEST,
) -> Law:
    """Makes the law of a noise family.

    Args:
      family: key of `LAWS`.
      sigma: scale of the noise, in units of pixels in [0, 1]; > 0.
      params: the family's further parameters; None stands for none.
      dimension: numbers in one image, H x W x C; below 2^31.
      generator: what draws it, one of `tfmacer.guarantee.generators.GENERATORS`.

    Raises:
      UserError: the family or the generator is unknown, or a parameter is out of range.
    """
    if not 1 <= dimension < _MOST_NUMBERS:
        raise UserError(f"an image must have 1 to {_MOST_NUMBERS - 1} numbers, got {dimension}")
    if family not in LAWS:
        raise UserError(f"noise_family must be one of {', '.join(LAWS)}, got {family!r}")
    generators.check_generator(generator)
    return LAWS[family].build(
        sigma=sigma, params=params or {}, dimension=dimension, generator=generator
    )
