"""The distribution of noise whose length concentrates less than a Gaussian's."""

import dataclasses
import functools
import math
from typing import ClassVar

from scipy import special

from tfmacer.common.errors import UserError
from tfmacer.guarantee.distribution import NoiseDistribution
from tfmacer.noise import generators
from tfmacer.noise.generalized_gaussian.likelihood_ratio import RadialNoise, radial_noise
from tfmacer.noise.radii import last_holding, outward

# Certified radii are multiples of this part of the noise's root mean square; nothing beyond eight
# of these can be certified, whatever is counted.
_STEP = 1 / 1024
_LAST = 8 * 1024


@dataclasses.dataclass(frozen=True)
class GeneralizedGaussian(NoiseDistribution):
    """Noise of density p(z) ~ |z|_2^-k exp(-|z|_2^2 / (2 sigma^2)); certifies l2 balls.

    The l2 family of Filling the Soap Bubbles (Zhang et al., NeurIPS 2020), called generalized
    Gaussian by Li et al. (Double Sampling Randomized Smoothing, ICML 2022). Its radius is computed
    by quadrature with a rigorous bracket (see `likelihood_ratio`) on a grid of radii, each of which
    is evaluated once for one (d, k); a certified radius is the last one of the grid that the
    probabilities certify.

    At equal probabilities and equal root mean square, sigma sqrt((d - k) / d), its radius is the
    Gaussian's to a part in a thousand: a gain can come only from probabilities that grow because
    the noise is kinder to the network.

    Attributes:
      k: exponent, in [0, d); 0 is the Gaussian.
    """

    family: ClassVar[str] = "generalized_gaussian"
    norm: ClassVar[str] = "l2"
    generator: str = generators.LATEST
    k: float = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dimension < 2:
            raise UserError(f"{self.family} needs images of 2 numbers or more")
        if not 0 <= self.k < self.dimension:
            raise UserError(
                f"noise_params of {self.family}: k must lie in [0, {self.dimension}), got {self.k}"
            )

    @property
    def _noise(self) -> RadialNoise:
        return radial_noise(self.dimension, self.k)

    def _length(self, index: int) -> float:
        """Radius of the grid, in units of sigma."""
        return index * _STEP * self._noise.scale

    def _radius(self, p_lower: float, p_upper_second: float | None) -> float:
        """The last radius of the grid that the probabilities certify."""
        noise = self._noise
        if p_upper_second is None:
            near = _STEP**-1 * float(special.ndtri(p_lower)) if p_lower > 0.5 else 0.0
            index = last_holding(
                lambda i: noise.probability(self._length(i)) <= p_lower, near, _LAST
            )
        else:
            index = _bilateral_index(self, p_lower, p_upper_second)
        return max(outward(self.sigma * self._length(index)), 0.0)

    def _probability(self, radius: float) -> float:
        """Of the first radius of the grid that is large enough."""
        index = max(math.floor(radius / (self.sigma * self._length(1))), 1)
        while outward(self.sigma * self._length(index)) < radius:
            index += 1
        return self._noise.probability(self._length(index)) if index <= _LAST else 1.0

    @property
    def left_out(self) -> float:
        """See `generators.left_out`: the length takes one of the pairs counted there."""
        return generators.left_out(self.generator, self.dimension)


@functools.lru_cache(maxsize=4096)
def _bilateral_index(distribution: GeneralizedGaussian, first: float, second: float) -> int:
    """Index of the radius that two probabilities certify: guessed fast, lowered until certain."""
    if first == 0.0 or second == 1.0 or first <= second:
        return 0
    if first == 1.0 or second == 0.0:
        return _LAST
    noise = distribution._noise
    near = (float(special.ndtri(first)) - float(special.ndtri(second))) / 2 / _STEP
    index = last_holding(
        lambda i: noise.guess_certifies(first, second, distribution._length(i)), near, _LAST
    )
    back = 0
    while index > 0 and not noise.certifies(first, second, distribution._length(index)):
        back = 2 * back + 1
        index = max(index - back, 0)
    return index
