"""The distribution of isotropic Gaussian noise."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy import special

from tfmacer.guarantee.distribution import (
    check_dimension,
    check_no_params,
    check_probabilities,
    check_sigma,
    outward,
)
from tfmacer.noise import generators


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Isotropic Gaussian noise N(0, sigma^2 I); certifies l2 balls.

    Cohen, Rosenfeld & Kolter, ICML 2019, Theorem 1: radius sigma / 2 (Phi^-1(p_A) - Phi^-1(p_B)).
    """

    sigma: float
    dimension: int
    generator: str = generators.LATEST
    family: ClassVar[str] = "gaussian"
    norm: ClassVar[str] = "l2"

    def __post_init__(self) -> None:
        check_sigma(self.sigma)
        check_dimension(self.dimension)

    @classmethod
    def build(
        cls, *, sigma: float, params: Mapping[str, float], dimension: int, generator: str
    ) -> Self:
        """See `NoiseDistribution`; it has no further parameters."""
        check_no_params(cls.family, params)
        return cls(sigma, dimension, generator)

    def radius(self, p_lower: float, p_upper_second: float | None = None) -> float:
        """See `NoiseDistribution`: sigma Phi^-1(p_A), or the formula with a given p_B."""
        check_probabilities(p_lower, p_upper_second)
        if p_upper_second is None:
            # Phi^-1(1 - p_A) = -Phi^-1(p_A): the two terms of the theorem are equal.
            quantiles = outward(float(special.ndtri(p_lower)))
        else:
            first, second = float(special.ndtri(p_lower)), float(special.ndtri(p_upper_second))
            # Where p_A = 0 or p_B = 1 nothing is known, and inf - inf would be no number.
            informed = p_lower > 0.0 and p_upper_second < 1.0
            quantiles = (outward(first) + outward(-second)) / 2 if informed else 0.0
        return max(outward(self.sigma * quantiles), 0.0)

    def probability(self, radius: float) -> float:
        """See `NoiseDistribution`: Phi(r / sigma)."""
        p = float(special.ndtr(radius / self.sigma))
        while p < 1.0 and self.radius(p) < radius:
            p = math.nextafter(p, 1.0)
        return p

    def pixels(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See `NoiseDistribution`: the theorem is about every image."""
        return images
