"""The laws of the noise by name.

A law is what the theorem of its noise says. Adding one is one class with the attributes and
methods of `Law` and one line of `LAWS`.
"""

from collections.abc import Mapping
from types import MappingProxyType

from tfmacer.errors import UserError
from tfmacer.guarantee import mixed_norm
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

_FLOATS = "the noise is taken as exact, so the rounding of floating-point sums is not covered"
_CAVEATS = {
    RoundedGaussian.family: (
        "the noise is added in whole steps of 1/255, so rounding is covered for all pixels of 8 "
        "bits that the same network answers with the same arithmetic"
    ),
    MixedNorm.family: (
        f"{_FLOATS}; all radii of this noise rest on one table, which is wrong with probability "
        f"{mixed_norm.ERROR!r}, over draws of its own"
    ),
}


def caveat(family: str) -> str:
    """What a certificate under this noise leaves open, or covers, beyond its probability."""
    return f"{_CAVEATS.get(family, _FLOATS)}."


def law(
    family: str, *, sigma: float, params: Mapping[str, float] | None = None, dimension: int
) -> Law:
    """Makes the law of a noise family.

    Args:
      family: key of `LAWS`.
      sigma: scale of the noise, in units of pixels in [0, 1]; > 0.
      params: the family's further parameters; None stands for none.
      dimension: numbers in one image, H x W x C; below 2^31.

    Raises:
      UserError: the family is unknown, or a parameter is out of range.
    """
    if not 1 <= dimension < _MOST_NUMBERS:
        raise UserError(f"an image must have 1 to {_MOST_NUMBERS - 1} numbers, got {dimension}")
    if family not in LAWS:
        raise UserError(f"noise_family must be one of {', '.join(LAWS)}, got {family!r}")
    return LAWS[family].build(sigma=sigma, params=params or {}, dimension=dimension)
