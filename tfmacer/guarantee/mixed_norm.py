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
import sys
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from tfmacer.guarantee.bounds import clopper_pearson_upper

# Probability, over the draws behind a table, that any bound in it is wrong.
ERROR = 1e-9
# Radii of the grid: multiples of this part of what one unit of a Gaussian quantile would give.
STEP = 1 / 128
LAST = 8 * 128

_SEED = 20_200_217
_PILOT = 20_000
# Numbers drawn for one table at most: about 10 s of one core; and draws, where images are small.
_NUMBERS = 500_000_000
_DRAWS = 500_000
_CHUNK = 4_000_000

_CELLS = 16_384
# Where the density of ln M is below exp(-45) of its highest, nothing is drawn.
_DEPTH = 45.0

Array = npt.NDArray[np.float64]


class LargestCoordinate:
    """The distribution of M = |z|_inf, and how it is drawn.

    On the face z_i = +-M the other coordinates have density prod exp(-z_j^2 / 2) on [-M, M], so

        p(M) ~ M^-k exp(-M^2 / 2) erf(M / sqrt 2)^(d - 1),

    the face and the sign are uniform, and given M the others are independent Gaussians truncated
    to [-M, M]. The density of y = ln M is log-concave. It is drawn from its log-linear
    interpolation between nodes, which lies below it: a part of the mass is missing, and that part
    bounds how far the two distributions are apart.

    Attributes:
      nodes: `[CELLS + 1]`, values of y at equal distances.
      cumulative: `[CELLS + 1]`, probability below each node, from 0 to 1.
      rises: `[CELLS]`, by how much the log density rises over each cell.
      total_variation: bound on the distance of the distribution drawn from the exact one.
    """

    def __init__(self, dimension: int, k: float) -> None:
        """Tabulates the distribution; `dimension` is d, 2 or more, and 0 <= k <= d - 1."""
        self._dimension, self._k = dimension, k
        self.nodes: Array = np.linspace(*self._range(), _CELLS + 1)
        logs = self._log_density(self.nodes)
        logs -= logs.max()
        self.rises: Array = np.diff(logs)
        masses = np.exp(logs[:-1]) * _mean_exp(self.rises)
        self.cumulative: Array = np.concatenate([[0.0], np.cumsum(masses) / masses.sum()])
        self.cumulative[-1] = 1.0
        # In a cell, a concave function stays below the chords of its neighbours, extended: above
        # the cell's own chord by at most a quarter of the difference of their rises.
        slopes = np.concatenate([[self.rises[0]], self.rises, [self.rises[-1]]])
        gaps = np.maximum(slopes[:-2] - slopes[2:], 0) / 4
        missing = float(np.expm1(gaps) @ masses) / float(masses.sum())
        self.total_variation = missing + 4 * math.exp(-_DEPTH) * _CELLS + 1e-12

    def _log_density(self, y: Array) -> Array:
        x = np.exp(y) / math.sqrt(2)
        tail = np.log1p(-special.erfc(np.maximum(x, 0.5)))
        inner = np.log(special.erf(np.minimum(x, 0.5)))
        log_erf = np.where(x > 0.5, tail, inner)
        logs: Array = (1 - self._k) * y - x**2 + (self._dimension - 1) * log_erf
        return logs

    def _range(self) -> tuple[float, float]:
        """Where the density of y is not negligible; below e^-60 it is, for k <= d - 1."""
        coarse = np.linspace(-60, 4, 20_001)
        logs = self._log_density(coarse)
        inside = np.flatnonzero(logs > logs.max() - _DEPTH)
        first, last = max(inside[0] - 1, 0), min(inside[-1] + 1, len(coarse) - 1)
        return float(coarse[first]), float(coarse[last])

    def quantiles(self, shares: Array) -> Array:
        """M at these probabilities, each in [0, 1)."""
        cell = np.searchsorted(self.cumulative, shares, side="right") - 1
        cell = np.clip(cell, 0, _CELLS - 1)
        width = self.cumulative[cell + 1] - self.cumulative[cell]
        part = (shares - self.cumulative[cell]) / np.maximum(width, 1e-300)
        rise = self.rises[cell]
        steep = np.where(np.abs(rise) < 1e-6, 1.0, rise)
        bent = np.log1p(part * np.expm1(steep)) / steep
        step = self.nodes[1] - self.nodes[0]
        places: Array = self.nodes[cell] + step * np.where(np.abs(rise) < 1e-6, part, bent)
        return np.exp(places)


def _mean_exp(rises: Array) -> Array:
    """Mean of exp over a line from 0 to each rise."""
    steep = np.where(np.abs(rises) < 1e-6, 1.0, rises)
    means: Array = np.where(np.abs(rises) < 1e-6, 1 + rises / 2, np.expm1(steep) / steep)
    return means


class Extremes(NamedTuple):
    """What L depends on, for n draws of z."""

    largest: Array
    smallest: Array
    total: Array

    def log_ratio(self, dimension: int, k: float, r: float) -> Array:
        """L for the shift (r, ..., r)."""
        before = np.maximum(self.largest, -self.smallest)
        after = np.maximum(self.largest - r, r - self.smallest)
        ratio: Array = -k * np.log(after / before) - (dimension * r**2 - 2 * r * self.total) / 2
        return ratio


def draw_extremes(dimension: int, k: float, count: int, generator: np.random.Generator) -> Extremes:
    """Draws z exactly, in time proportional to its size, and keeps what L needs."""
    noise = largest_coordinate(dimension, k)
    rows = max(_CHUNK // dimension, 1)
    parts = []
    for start in range(0, count, rows):
        size = min(rows, count - start)
        m = noise.quantiles(generator.random(size))
        others = generator.standard_normal((size, dimension - 1))
        # What lies beyond M is drawn again, from the Gaussian truncated to [-M, M].
        beyond = np.abs(others) > m[:, np.newaxis]
        edge = special.ndtr(-m)[np.nonzero(beyond)[0]]
        uniform = generator.uniform(-1, 1, len(edge))
        lower = 0.5 - np.abs(uniform) * (0.5 - edge)
        others[beyond] = -np.sign(uniform) * special.ndtri(lower)
        face = np.where(generator.random(size) < 0.5, -m, m)
        parts.append(
            Extremes(
                np.maximum(others.max(axis=1), face),
                np.minimum(others.min(axis=1), face),
                others.sum(axis=1) + face,
            )
        )
    return Extremes(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


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
          draws: behind each bound; None for as many as take some seconds.
        """
        self._dimension, self._k = dimension, k
        self._draws = draws or max(min(_NUMBERS // dimension, _DRAWS), _PILOT)
        # What the noise as drawn may add to any probability.
        self.slack = largest_coordinate(dimension, k).total_variation

    @property
    def unit(self) -> float:
        """What a Gaussian of the same mean square certifies in l-infinity per unit of quantile."""
        return math.sqrt(self._dimension - self._k) / self._dimension

    @functools.cached_property
    def _batches(self) -> tuple[Extremes, Extremes]:
        if self._draws * self._dimension > 10 * _CHUNK:
            print(
                f"mixed_norm: drawing the table for {self._dimension} numbers and k = {self._k}, "
                f"{self._draws} draws; once, some seconds to a minute",
                file=sys.stderr,
                flush=True,
            )
        streams = np.random.SeedSequence(_SEED).spawn(2)
        pilot, main = (np.random.Generator(np.random.Philox(stream)) for stream in streams)
        d, k = self._dimension, self._k
        return draw_extremes(d, k, _PILOT, pilot), draw_extremes(d, k, self._draws, main)

    @functools.lru_cache(maxsize=LAST + 1)  # noqa: B019 - instances are few and live long
    def profile(self, index: int) -> Profile:
        """Bounds for radius `index * STEP * unit`, 1 <= index <= LAST."""
        r = index * STEP * self.unit
        pilot, main = (batch.log_ratio(self._dimension, self._k, r) for batch in self._batches)
        thresholds = np.quantile(pilot, _levels())
        ordered = np.sort(main)
        alpha = ERROR / (LAST * 2 * len(thresholds))

        def bound(t: Array) -> Array:
            counts = np.searchsorted(ordered, t, side="right")
            uppers = [clopper_pearson_upper(int(c), self._draws, alpha) for c in counts]
            return np.minimum(np.array(uppers) + self.slack, 1.0)

        return Profile(bound(thresholds), bound(-thresholds))

    def probability(self, index: int) -> float:
        """Upper bound on p*, the least probability that certifies the radius."""
        return self.profile(index).upper(0.5)

    def certifies(self, p_first: float, p_second: float, index: int) -> bool:
        """Whether a shift of the radius leaves the first class ahead; see `RadialNoise`."""
        profile = self.profile(index)
        return profile.upper(p_first) + profile.upper(1 - p_second) <= 1


@functools.lru_cache(maxsize=8)
def largest_coordinate(dimension: int, k: float) -> LargestCoordinate:
    """The distribution of these parameters, tabulated once."""
    return LargestCoordinate(dimension, k)


@functools.lru_cache(maxsize=8)
def mixed_norm_noise(dimension: int, k: float) -> MixedNormNoise:
    """The noise of these parameters, its table made once."""
    return MixedNormNoise(dimension, k)
