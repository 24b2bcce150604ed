"""What every distribution of the noise offers: from bounds on class probabilities to a radius."""

import bisect
import math
from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol, Self

import numpy as np
import numpy.typing as npt

from tfmacer.common.errors import UserError

# SciPy's ndtri and ndtr, and each product here, are right to within a few units in the last place;
# results are moved outward by this relative amount, eight units.
_OUTWARD = 8 * math.ulp(1.0)


class NoiseDistribution(Protocol):
    """A noise distribution, as the theorem about it is used.

    Attributes:
      family: its key in `tfmacer.noise.families.DISTRIBUTIONS`.
      norm: the norm in which radii are measured.
    """

    family: ClassVar[str]
    norm: ClassVar[str]

    @property
    def sigma(self) -> float:
        """Scale of the noise, in units of pixels in [0, 1]."""
        ...

    @property
    def dimension(self) -> int:
        """Numbers in one image, H x W x C."""
        ...

    @property
    def generator(self) -> str:
        """What draws the noise: the theorem does not ask it, what a certificate leaves open does.

        One of `tfmacer.noise.generators.GENERATORS`.
        """
        ...

    @classmethod
    def build(
        cls, *, sigma: float, params: Mapping[str, float], dimension: int, generator: str
    ) -> Self:
        """Makes the distribution.

        Args:
          sigma: scale of the noise, > 0.
          params: the family's further parameters by name.
          dimension: numbers in one image, H x W x C.
          generator: what draws the noise.

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

    def pixels(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The images that certificates are about, where these are given: the same, or rounded.

        Args:
          images: float32 `[..., H, W, C]` in [0, 1].

        Returns:
          The same shape. Given again, they stay as they are.

        Raises:
          UserError: the theorem is not about such images; names the first such pixel.
        """
        ...


def check_sigma(sigma: float) -> None:
    """Raises UserError unless `sigma` is positive and finite."""
    if not (math.isfinite(sigma) and sigma > 0):
        raise UserError(f"sigma must be positive and finite, got {sigma}")


def check_dimension(dimension: int) -> None:
    """Raises UserError unless `dimension` is 1 or more."""
    if dimension < 1:
        raise UserError(f"dimension must be 1 or more, got {dimension}")


def check_no_params(family: str, params: Mapping[str, float]) -> None:
    """Raises UserError if a family without further parameters is given one."""
    if params:
        raise UserError(f"noise_params of {family} must be empty, got {dict(params)}")


def check_probabilities(p_lower: float, p_upper_second: float | None) -> None:
    """Raises UserError unless both lie in [0, 1]; None is left alone."""
    for name, value in (("p_lower", p_lower), ("p_upper_second", p_upper_second)):
        if value is not None and not 0.0 <= value <= 1.0:
            raise UserError(f"{name} must lie in [0, 1], got {value}")


def outward(value: float) -> float:
    """Moves a number down by more than the rounding of the few operations that made it."""
    return value - _OUTWARD * abs(value) if math.isfinite(value) else value


def last_holding(holds: Callable[[int], bool], near: float, last: int) -> int:
    """The last index in 0 .. last where a falling condition holds, looking around a guess first.

    It is taken to hold at 0, and whatever is returned otherwise was seen to hold.
    """
    low, high = 0, last + 1
    guess, stride = round(min(max(near, 1.0), last)), 4
    while low < guess < high:
        if holds(guess):
            low, guess = guess, guess + stride
        else:
            high, guess = guess, guess - stride
        stride *= 2
    # From the two sides seen so far, halving.
    return low + bisect.bisect_left(range(low + 1, high), True, key=lambda i: not holds(i))
