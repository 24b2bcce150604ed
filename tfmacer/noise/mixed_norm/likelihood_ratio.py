"""How the density p(z) ~ |z|_inf^-k exp(-|z|_2^2 / 2) in d dimensions changes when it is shifted.

As in `radial`, p certifies a shift if F(-t) <= 1/2 with F(t) = p, where F is the distribution of
the log likelihood ratio L under the noise. The worst shift within an l-infinity ball is a corner
(Filling the Soap Bubbles, Theorem 5), (r, ..., r) say, and then

    L = -k ln(max(max z - r, r - min z) / |z|_inf) - (d r^2 - 2 r sum z) / 2

depends on z by its largest, its smallest and its total alone. There is no closed form, so F is
counted among draws, and every use of it takes a Clopper-Pearson bound instead of the count:

1. A first batch of draws only proposes thresholds t, as its own quantiles for each r.
2. A second, independent batch bounds F at each threshold and at its negative, from above.

All those bounds, over all radii of the grid, hold together except with probability `ERROR`, over
the draws of the table; it is the same for everyone, drawn from a fixed seed.

All lengths here are in units of sigma.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tfmacer.guarantee.bounds import clopper_pearson_upper
from tfmacer.noise.mixed_norm.largest_coordinate import largest_coordinate
from tfmacer.noise.mixed_norm.statistics import (
    Statistics,
    draw_statistics,
    statistics_sampler,
)

# Probability, over the draws behind a table, that any bound in it is wrong.
ERROR = 1e-9
# Radii of the grid: multiples of this part of what one unit of a Gaussian quantile would give.
STEP = 1 / 128
LAST = 8 * 128

_SEED = 20_200_217
_PILOT = 20_000
_DRAWS = 500_000

Array = npt.NDArray[np.float64]


def _levels() -> Array:
    """Where thresholds are proposed: close together at 1/2, and finer toward both ends."""
    tail = 0.5 * 0.93 ** np.arange(1, 140)
    middle = 0.5 - 0.001 * np.arange(1, 16)
    half = np.concatenate([tail, middle])
    return np.sort(np.concatenate([half, [0.5], 1 - half]))


class Profile(NamedTuple):
    """Upper bounds on F for one radius.

    Attributes:
      at: `[T]`, at each threshold, ascending.
      mirrored: `[T]`, at its negative.
    """

    at: Array
    mirrored: Array

    def upper(self, p: float) -> float:
        """Upper bound on F(-t) for the t with F(t) = p; 1 where nothing is known."""
        below = np.flatnonzero(self.at <= p)
        return float(self.mirrored[below].min()) if len(below) else 1.0


class MixedNormNoise:
    """The likelihood ratio of this noise against its shifts, counted among draws."""

    def __init__(self, dimension: int, k: float, draws: int | None = None) -> None:
        """Prepares nothing yet: draws are made when first needed.

        Args:
          dimension: d, 2 or more.
          k: exponent of the largest coordinate, in [0, d - 1].
          draws: behind each bound; None for as many as take a second or two.
        """
        self._dimension, self._k = dimension, k
        self._draws = draws or _DRAWS
        # What the noise as drawn may add to any probability.
        self.slack = largest_coordinate(dimension, k).total_variation

    @property
    def unit(self) -> float:
        """What a Gaussian of the same mean square certifies in l-infinity per unit of quantile."""
        return math.sqrt(self._dimension - self._k) / self._dimension

    @functools.cached_property
    def _batches(self) -> tuple[Statistics, Statistics]:
        streams = np.random.SeedSequence(_SEED).spawn(2)
        pilot, main = (np.random.Generator(np.random.Philox(stream)) for stream in streams)
        d, k = self._dimension, self._k
        return draw_statistics(d, k, _PILOT, pilot), draw_statistics(d, k, self._draws, main)

    @functools.lru_cache(maxsize=LAST + 1)  # noqa: B019 - instances are few and live long
    def profile(self, index: int) -> Profile:
        """Bounds for radius `index * STEP * unit`, 1 <= index <= LAST."""
        r = index * STEP * self.unit
        pilot, main = (batch.log_ratio(self._dimension, self._k, r) for batch in self._batches)
        thresholds = np.quantile(pilot, _levels())
        ordered = np.sort(main)
        alpha = ERROR / (LAST * 2 * len(thresholds))
        error = statistics_sampler(self._dimension, self._k).total_variation

        def bound(t: Array) -> Array:
            counts = np.searchsorted(ordered, t, side="right")
            uppers = [clopper_pearson_upper(int(c), self._draws, alpha) for c in counts]
            return np.minimum(np.array(uppers) + error, 1.0)

        return Profile(bound(thresholds), bound(-thresholds))

    def probability(self, index: int) -> float:
        """Upper bound on p*, the least probability that certifies the radius."""
        return self.profile(index).upper(0.5)

    def certifies(self, p_first: float, p_second: float, index: int) -> bool:
        """Whether a shift of the radius leaves the first class ahead; see `RadialNoise`."""
        profile = self.profile(index)
        return profile.upper(p_first) + profile.upper(1 - p_second) <= 1


# Each is made once.
mixed_norm_noise = functools.lru_cache(maxsize=8)(MixedNormNoise)
