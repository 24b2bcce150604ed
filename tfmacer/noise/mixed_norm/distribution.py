"""The distribution of noise made for balls of the l-infinity norm."""

import dataclasses
import math
from typing import ClassVar

from scipy import special

from tfmacer.common.errors import UserError
from tfmacer.guarantee.distribution import NoiseDistribution
from tfmacer.noise import generators
from tfmacer.noise.mixed_norm import likelihood_ratio
from tfmacer.noise.mixed_norm.likelihood_ratio import ERROR, LAST, STEP, MixedNormNoise
from tfmacer.noise.radii import last_holding, outward

# In one image: draws behind its table take memory that grows with them.
_MOST_NUMBERS = 2**24


@dataclasses.dataclass(frozen=True)
class MixedNorm(NoiseDistribution):
    """Noise of density p(z) ~ |z|_inf^-k exp(-|z|_2^2 / (2 sigma^2)); certifies l-infinity balls.

    The mixed-norm family of Filling the Soap Bubbles (Zhang et al., NeurIPS 2020). Its radii are
    those of a grid, from a table that is counted among draws (see `likelihood_ratio`):
    besides alpha, every certificate of one (d, k) rests on that table, which is wrong with
    probability 1e-9.

    For research: at equal probabilities and root mean square, a Gaussian's l2 radius over sqrt(d)
    (`linf_from_l2`) is larger, by far for large k.

    Attributes:
      k: exponent, in [0, d - 1]; 0 is the Gaussian.
    """

    family: ClassVar[str] = "mixed_norm"
    norm: ClassVar[str] = "linf"
    tabulated: ClassVar[bool] = True
    note: ClassVar[str] = (
        "all radii of this noise rest on one table, which is wrong with probability "
        f"{ERROR!r}, over draws of its own"
    )
    generator: str = generators.LATEST
    k: float = dataclasses.field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.dimension <= _MOST_NUMBERS:
            raise UserError(
                f"{self.family} needs images of 2 to {_MOST_NUMBERS} numbers, got {self.dimension}"
            )
        if not 0 <= self.k <= self.dimension - 1:
            raise UserError(
                f"noise_params of {self.family}: k must lie in [0, {self.dimension - 1}], "
                f"got {self.k}"
            )

    @property
    def _noise(self) -> MixedNormNoise:
        return likelihood_ratio.mixed_norm_noise(self.dimension, self.k)

    def _grid_radius(self, index: int) -> float:
        return max(outward(self.sigma * (index * STEP * self._noise.unit)), 0.0)

    def _radius(self, p_lower: float, p_upper_second: float | None) -> float:
        """The last radius of the grid that the probabilities certify."""
        noise = self._noise
        # What is drawn may differ from the density by as much.
        first = math.nextafter(p_lower - noise.slack, -1.0)
        if p_upper_second is None:
            if first <= 0.5:
                return 0.0
            near = float(special.ndtri(first)) / STEP
            index = last_holding(lambda i: noise.probability(i) <= first, near, LAST)
            return self._grid_radius(index)
        second = math.nextafter(p_upper_second + noise.slack, 2.0)
        if first <= second:
            return 0.0
        near = (float(special.ndtri(first)) - float(special.ndtri(second))) / 2 / STEP
        index = last_holding(lambda i: noise.certifies(first, second, i), near, LAST)
        return self._grid_radius(index)

    def _probability(self, radius: float) -> float:
        """Of the first radius of the grid that is large enough."""
        index = max(math.floor(radius / self._grid_radius(1)), 1)
        while self._grid_radius(index) < radius:
            index += 1
        if index > LAST:
            return 1.0
        return min(self._noise.probability(index) + self._noise.slack, 1.0)

    @property
    def left_out(self) -> float:
        """By `philox`, values next to the largest one have 22 bits and a sign."""
        if self.generator == generators.PHILOX:
            return math.ldexp(self.dimension, -22)
        return generators.left_out(self.generator, self.dimension)
