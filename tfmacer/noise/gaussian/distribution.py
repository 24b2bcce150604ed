"""The distribution of isotropic Gaussian noise."""

import dataclasses
from typing import ClassVar

from scipy import special

from tfmacer.guarantee.distribution import NoiseDistribution
from tfmacer.noise import generators
from tfmacer.noise.radii import outward


@dataclasses.dataclass(frozen=True)
class Gaussian(NoiseDistribution):
    """Isotropic Gaussian noise N(0, sigma^2 I); certifies l2 balls.

    Cohen, Rosenfeld & Kolter, ICML 2019, Theorem 1: radius sigma / 2 (Phi^-1(p_A) - Phi^-1(p_B)).
    """

    family: ClassVar[str] = "gaussian"
    norm: ClassVar[str] = "l2"
    generator: str = generators.LATEST

    def _radius(self, p_lower: float, p_upper_second: float | None) -> float:
        if p_upper_second is None:
            # Phi^-1(1 - p_A) = -Phi^-1(p_A): the two terms of the theorem are equal.
            quantiles = outward(float(special.ndtri(p_lower)))
        else:
            first, second = float(special.ndtri(p_lower)), float(special.ndtri(p_upper_second))
            # Where p_A = 0 or p_B = 1 nothing is known, and inf - inf would be no number.
            informed = p_lower > 0.0 and p_upper_second < 1.0
            quantiles = (outward(first) + outward(-second)) / 2 if informed else 0.0
        return max(outward(self.sigma * quantiles), 0.0)

    def _probability(self, radius: float) -> float:
        return float(special.ndtr(radius / self.sigma))

    @property
    def left_out(self) -> float:
        """See `generators.left_out`."""
        return generators.left_out(self.generator, self.dimension)
