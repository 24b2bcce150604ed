"""Balls of the l-infinity norm: by noise made for them, and inside l2 balls."""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy import special

from tfmacer.common.errors import UserError
from tfmacer.guarantee.distribution import check_probabilities, check_sigma, last_holding, outward
from tfmacer.noise import generators
from tfmacer.noise.mixed_norm import likelihood_ratio as mixed_norm


@dataclasses.dataclass(frozen=True)
class MixedNorm:
    """Noise of density p(z) ~ |z|_inf^-k exp(-|z|_2^2 / (2 sigma^2)); certifies l-infinity balls.

    The mixed-norm family of Filling the Soap Bubbles (Zhang et al., NeurIPS 2020). Its radii are
    those of a grid, from a table that is counted among draws (see `mixed_norm`): besides alpha,
    every certificate of one (d, k) rests on that table, which is wrong with probability 1e-9.

    For research: at equal probabilities and root mean square, a Gaussian's l2 radius over sqrt(d)
    (`linf_from_l2`) is larger, by far for large k.

    Attributes:
      sigma: scale of the density, in units of pixels in [0, 1].
      k: exponent, in [0, d - 1]; 0 is the Gaussian.
      dimension: d, numbers in one image.
      generator: see `NoiseDistribution`.
    """

    sigma: float
    k: float
    dimension: int
    generator: str = generators.LATEST
    family: ClassVar[str] = "mixed_norm"
    norm: ClassVar[str] = "linf"

    def __post_init__(self) -> None:
        check_sigma(self.sigma)
        if self.dimension < 2:
            raise UserError(f"{self.family} needs images of 2 numbers or more")
        if not 0 <= self.k <= self.dimension - 1:
            raise UserError(
                f"noise_params of {self.family}: k must lie in [0, {self.dimension - 1}], "
                f"got {self.k}"
            )

    @classmethod
    def build(
        cls, *, sigma: float, params: Mapping[str, float], dimension: int, generator: str
    ) -> Self:
        """See `NoiseDistribution`; its parameter is k."""
        if set(params) != {"k"}:
            raise UserError(f"noise_params of {cls.family} must be k alone, got {dict(params)}")
        return cls(sigma, float(params["k"]), dimension, generator)

    @property
    def _noise(self) -> mixed_norm.MixedNormNoise:
        return mixed_norm.mixed_norm_noise(self.dimension, self.k)

    def _radius(self, index: int) -> float:
        return max(outward(self.sigma * (index * mixed_norm.STEP * self._noise.unit)), 0.0)

    def radius(self, p_lower: float, p_upper_second: float | None = None) -> float:
        """See `NoiseDistribution`: the last radius of the grid that the probabilities certify."""
        check_probabilities(p_lower, p_upper_second)
        noise = self._noise
        # What is drawn may differ from the density by as much.
        first = math.nextafter(p_lower - noise.slack, -1.0)
        if p_upper_second is None:
            if first <= 0.5:
                return 0.0
            near = float(special.ndtri(first)) / mixed_norm.STEP
            index = last_holding(lambda i: noise.probability(i) <= first, near, mixed_norm.LAST)
            return self._radius(index)
        second = math.nextafter(p_upper_second + noise.slack, 2.0)
        if first <= second:
            return 0.0
        near = (float(special.ndtri(first)) - float(special.ndtri(second))) / 2 / mixed_norm.STEP
        index = last_holding(lambda i: noise.certifies(first, second, i), near, mixed_norm.LAST)
        return self._radius(index)

    def probability(self, radius: float) -> float:
        """See `NoiseDistribution`: of the first radius of the grid that is large enough."""
        index = max(math.floor(radius / self._radius(1)), 1)
        while self._radius(index) < radius:
            index += 1
        if index > mixed_norm.LAST:
            return 1.0
        p = min(self._noise.probability(index) + self._noise.slack, 1.0)
        while p < 1.0 and self.radius(p) < radius:
            p = math.nextafter(p, 1.0)
        return p

    def pixels(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """See `NoiseDistribution`: the theorem is about every image."""
        return images


def linf_from_l2(radius: float, dimension: int) -> float:
    """The l-infinity ball inside an l2 ball: its radius over sqrt(d), rounded down.

    The corner of an l-infinity ball is sqrt(d) times as far away as its faces.

    Args:
      radius: certified l2 radius, 0 or more.
      dimension: numbers in one image.
    """
    return max(outward(radius / math.sqrt(dimension)), 0.0)
