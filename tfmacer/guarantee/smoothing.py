"""Smoothing distributions as laws."""

import dataclasses
from collections.abc import Mapping

from scipy import special


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """N(0, sigma^2 I)."""

    sigma: float
    family = "gaussian"
    norm = "l2"

    def radius(self, p_lower: float, p_upper_second: float | None = None) -> float:
        """Certified l2 radius."""
        return max(0.0, self.sigma * float(special.ndtri(p_lower)))


Law = Gaussian


def law(family: str, *, sigma: float, params: Mapping[str, float], dimension: int) -> Law:
    """The law of a family."""
    return Gaussian(sigma)
