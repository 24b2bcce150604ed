"""What a noise distribution offers: from bounds on class probabilities to a radius."""

import abc
import dataclasses
import decimal
import math
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tfmacer.common.errors import UserError

# Far beyond any; radii are finite numbers with it.
_LARGEST_SIGMA = 1e6


@dataclasses.dataclass(frozen=True)
class NoiseDistribution(abc.ABC):
    """The noise of one family, as the theorem about it is used.

    A family is a subclass in its folder of `tfmacer.noise`; the fields that it adds are its
    parameters.

    Attributes:
      family: its name.
      norm: the norm in which radii are measured.
      levels: for certificates about images of whole steps alone, the steps from pixel value 0 to 1;
        None where they are about every image.
      note: what a certificate leaves open, or covers, beyond its probability and what the generator
        leaves out.
      tabulated: whether the first radius takes seconds, to make a table.
      sigma: scale of the noise, in units of pixels in [0, 1]; > 0.
      dimension: numbers in one image, H x W x C.
      generator: what draws the noise, one of `tfmacer.noise.generators.GENERATORS`. The theorem
        does not depend on it; what a certificate leaves open does.
    """

    family: ClassVar[str]
    norm: ClassVar[str]
    levels: ClassVar[int | None] = None
    note: ClassVar[str] = ""
    tabulated: ClassVar[bool] = False

    sigma: float
    dimension: int
    generator: str

    def __post_init__(self) -> None:
        check_sigma(self.sigma)
        if self.dimension < 1:
            raise UserError(f"dimension must be 1 or more, got {self.dimension}")

    def radius(self, p_lower: float, p_upper_second: float | None = None) -> float:
        """Radius within which the smoothed class cannot change.

        Args:
          p_lower: lower bound on the probability of the class, in [0, 1].
          p_upper_second: upper bound on that of every other class; None takes 1 - p_lower.

        Returns:
          Never more than the true value; 0 where nothing is certified.

        Raises:
          UserError: a probability is out of range.
        """
        for name, value in (("p_lower", p_lower), ("p_upper_second", p_upper_second)):
            if value is not None and not 0.0 <= value <= 1.0:
                raise UserError(f"{name} must lie in [0, 1], got {value}")
        return self._radius(p_lower, p_upper_second)

    @abc.abstractmethod
    def _radius(self, p_lower: float, p_upper_second: float | None) -> float:
        """See `radius`."""

    def probability(self, radius: float) -> float:
        """Smallest `p_lower` that certifies `radius` > 0 without a bound on the other classes.

        Returns:
          Never less than the true value, and such that `radius(probability(r)) >= r`, unless it
          is 1: then no number of draws certifies the radius in floating point.
        """
        p = self._probability(radius)
        while p < 1.0 and self.radius(p) < radius:
            p = math.nextafter(p, 1.0)
        return p

    @abc.abstractmethod
    def _probability(self, radius: float) -> float:
        """`probability` but for rounding."""

    @property
    @abc.abstractmethod
    def left_out(self) -> float:
        """Bound on the probability of one image's noise that is never drawn, rounding apart.

        At most so much may the probability of any event, hence of a class, differ by this.
        """

    def caveat(self) -> str:
        """What a certificate under this noise leaves open, or covers, beyond its probability."""
        parts = []
        if self.left_out:
            # Two digits, not below the value.
            context = decimal.Context(prec=2, rounding=decimal.ROUND_UP)
            parts.append(
                "the noise is taken as exact: neither the rounding of floating-point numbers is "
                f"covered, nor what the generator {self.generator} never draws, at most "
                f"{context.create_decimal_from_float(self.left_out):.1e} of the noise's "
                f"probability in {self.dimension} dimensions"
            )
        if self.note:
            parts.append(self.note)
        return f"{'; '.join(parts)}."

    def pixels(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The images that certificates are about, where these are given: the same, or rounded.

        Args:
          images: float32 `[..., H, W, C]` in [0, 1].

        Returns:
          The same shape. Given again, they stay as they are.

        Raises:
          UserError: the theorem is not about such images; names the first such pixel.
        """
        return images


def check_sigma(sigma: float) -> None:
    """Raises UserError unless `sigma` is positive and finite, and radii are with it."""
    if not 0 < sigma <= _LARGEST_SIGMA:
        raise UserError(
            f"sigma must be positive and finite, at most {_LARGEST_SIGMA:g}, got {sigma}"
        )
