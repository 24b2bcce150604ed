"""The laws of the noise: from bounds on class probabilities to a radius.

A law is what the theorem of its noise says. Adding one is one class with the attributes and
methods of `Law` and one line of `LAWS`.
"""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Protocol, Self

from scipy import special

from tfmacer.errors import UserError

# SciPy's ndtri and ndtr, and each product here, are right to within a few units in the last place;
# results are moved outward by this relative amount, eight units.
_OUTWARD = 8 * math.ulp(1.0)


class Law(Protocol):
    """A noise distribution, as the theorem about it is used.

    Attributes:
      family: its key in `LAWS`.
      norm: the norm in which radii are measured.
    """

    family: ClassVar[str]
    norm: ClassVar[str]

    @property
    def sigma(self) -> float:
        """Scale of the noise, in units of pixels in [0, 1]."""
        ...

    @classmethod
    def build(cls, *, sigma: float, params: Mapping[str, float], dimension: int) -> Self:
        """Makes the law.

        Args:
          sigma: scale of the noise, > 0.
          params: the family's further parameters by name.
          dimension: numbers in one image, H x W x C.

        Raises:
          UserError: a parameter is missing, unknown or out of range.
        """
        ...

    def radius(self, p_lower: float, p_upper_second: float | None = None) -> float:
        """Radius within which the smoothed class cannot change.

        Args:
          p_lower: lower bound on the probability of the class, in [0, 1].
          p_upper_second: upper bound on that of every other class; None takes 1 - p_lower.

        Returns:
          Never more than the true value; 0 where nothing is certified.
        """
        ...

    def probability(self, radius: float) -> float:
        """Smallest `p_lower` that certifies `radius` > 0 without a bound on the other classes.

        Returns:
          Never less than the true value, and such that `radius(probability(r)) >= r`, unless it
          is 1: then no number of draws certifies the radius in floating point.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Isotropic Gaussian noise N(0, sigma^2 I); certifies l2 balls.

    Cohen, Rosenfeld & Kolter, ICML 2019, Theorem 1: radius sigma / 2 (Phi^-1(p_A) - Phi^-1(p_B)).
    """

    sigma: float
    family: ClassVar[str] = "gaussian"
    norm: ClassVar[str] = "l2"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise UserError(f"sigma must be positive and finite, got {self.sigma}")

    @classmethod
    def build(cls, *, sigma: float, params: Mapping[str, float], dimension: int) -> Self:
        """See `Law`; it has no further parameters, and its theorem does not ask the dimension."""
        if params:
            raise UserError(f"noise_params of gaussian must be empty, got {dict(params)}")
        return cls(sigma)

    def radius(self, p_lower: float, p_upper_second: float | None = None) -> float:
        """See `Law`: sigma Phi^-1(p_A), or the formula with p_B where a bound on it is given."""
        _check_probability("p_lower", p_lower)
        if p_upper_second is None:
            # Phi^-1(1 - p_A) = -Phi^-1(p_A): the two terms of the theorem are equal.
            quantiles = _down(float(special.ndtri(p_lower)))
        else:
            _check_probability("p_upper_second", p_upper_second)
            first, second = float(special.ndtri(p_lower)), float(special.ndtri(p_upper_second))
            # Where p_A = 0 or p_B = 1 nothing is known, and inf - inf would be no number.
            informed = p_lower > 0.0 and p_upper_second < 1.0
            quantiles = (_down(first) + _down(-second)) / 2 if informed else 0.0
        return max(_down(self.sigma * quantiles), 0.0)

    def probability(self, radius: float) -> float:
        """See `Law`: Phi(r / sigma)."""
        p = float(special.ndtr(radius / self.sigma))
        while p < 1.0 and self.radius(p) < radius:
            p = math.nextafter(p, 1.0)
        return p


def _check_probability(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise UserError(f"{name} must lie in [0, 1], got {value}")


def _down(value: float) -> float:
    """Moves a number down by `_OUTWARD` of its size."""
    return value - _OUTWARD * abs(value) if math.isfinite(value) else value


LAWS: Mapping[str, type[Law]] = MappingProxyType({Gaussian.family: Gaussian})


def law(
    family: str, *, sigma: float, params: Mapping[str, float] | None = None, dimension: int
) -> Law:
    """Makes the law of a noise family.

    Args:
      family: key of `LAWS`.
      sigma: scale of the noise, in units of pixels in [0, 1]; > 0.
      params: the family's further parameters; None stands for none.
      dimension: numbers in one image, H x W x C.

    Raises:
      UserError: the family is unknown, or a parameter is out of range.
    """
    if family not in LAWS:
        raise UserError(f"noise_family must be one of {', '.join(LAWS)}, got {family!r}")
    return LAWS[family].build(sigma=sigma, params=params or {}, dimension=dimension)
