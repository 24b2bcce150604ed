"""What the likelihood ratio of the mixed-norm noise depends on, and how that is drawn.

All lengths here are in units of sigma.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from tfmacer.noise.mixed_norm.largest_coordinate import Array, LogConcave, largest_coordinate

# Numbers drawn at a time, and coordinates of an image that are drawn one by one, about.
_CHUNK = 1_000_000
_SHELL = 48

# Of sums: cells; half the width, and the period, in standard deviations; the highest frequency.
_SUM_CELLS = 8_192
_WIDTH = 6.5
_PERIOD = 24.0
_FREQUENCIES = 9.0


class InnerSums:
    """Sums of independent Gaussians truncated to [-c, c], for every number of them in a range.

    Such a sum has a log-concave density, found from its characteristic function phi(u)^m by the
    trapezoidal rule, whose error is what the density has a whole period away.

    Attributes:
      total_variation: bound on the distance of any sum drawn from the exact one.
    """

    def __init__(self, c: float, fewest: int, most: int) -> None:
        """Tabulates the sums of `fewest` to `most` terms."""
        x, weights = special.roots_legendre(200)
        weights = weights * np.exp(-((c * x) ** 2) / 2)
        weights /= weights.sum()
        scale = math.sqrt(most * float(weights @ (c * x) ** 2))
        period = 2 * math.pi / _PERIOD / scale
        # As far as the shortest of the sums needs.
        u = np.arange(0, _FREQUENCIES / scale * math.sqrt(most / fewest), period)
        phi = np.cos(np.outer(u, c * x)) @ weights
        nodes = np.linspace(-_WIDTH * scale, _WIDTH * scale, _SUM_CELLS + 1)
        powers = phi ** np.arange(fewest, most + 1)[:, np.newaxis]
        powers[:, 0] /= 2
        densities = powers @ np.cos(np.outer(u, nodes))
        # Below that of the peak, what is left is rounding.
        densities = np.maximum(densities, 1e-13 * densities.max(axis=1, keepdims=True))
        self._fewest = fewest
        # 1e-10 lies beyond the nodes, and the densities are off by less.
        self._sums = [LogConcave(nodes, np.log(density), 1e-9) for density in densities]
        self.total_variation = max(each.total_variation for each in self._sums)

    def draw(self, terms: npt.NDArray[np.int64], generator: np.random.Generator) -> Array:
        """One sum of each of these numbers of terms."""
        sums = np.empty(len(terms))
        for m in np.unique(terms):
            rows = np.flatnonzero(terms == m)
            sums[rows] = self._sums[m - self._fewest].places(generator.random(len(rows)))
        return sums


class Statistics(NamedTuple):
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


def _truncated(low: Array, high: Array, generator: np.random.Generator) -> Array:
    """Gaussians with low < |z| <= high, elementwise; by their tails, which keep their digits."""
    near, far = special.ndtr(-low), special.ndtr(-high)
    tail = far + generator.random(len(low)) * (near - far)
    signs = np.where(generator.random(len(low)) < 0.5, -1.0, 1.0)
    values: Array = signs * special.ndtri(tail)
    return values


class StatisticsSampler:
    """Draws the largest and smallest coordinate of z and their sum, without drawing most of them.

    Given M, the coordinates off the face are of two kinds, those within [-c, c] and those in the
    shell beyond: how many are in the shell is binomial. Only these are drawn; of the others the sum
    is, from its own distribution. They are drawn one by one where the largest or smallest may be
    among them: no coordinate of the shell on one side, or M below c. What is drawn differs from the
    density by the tables of M and of the sums alone.

    Attributes:
      total_variation: bound on how far.
    """

    def __init__(self, dimension: int, k: float) -> None:
        """Chooses c and tabulates; `dimension` is d, 2 or more, and 0 <= k <= d - 1."""
        self._others = dimension - 1
        self._largest = largest_coordinate(dimension, k)
        self.total_variation = self._largest.total_variation
        self._sums: InnerSums | None = None
        if self._others < 4 * _SHELL:
            return
        lowest = float(self._largest.quantiles(np.array([1e-3]))[0])
        self._c = min(lowest, -float(special.ndtri(_SHELL / self._others / 2)))
        share = 2 * float(special.ndtr(-self._c))
        # Ten standard deviations, and more where there are few.
        most = math.ceil(self._others * share + 10 * math.sqrt(self._others * share) + 30)
        # Where M is spread so widely that most of them may lie in the shell, all are drawn.
        if most > self._others // 2:
            return
        self._most = most
        self._sums = InnerSums(self._c, self._others - self._most, self._others)
        self.total_variation += self._sums.total_variation + 1e-15

    def draw(self, count: int, generator: np.random.Generator) -> Statistics:
        """Draws z `count` times."""
        rows = max(_CHUNK // min(self._others, 4 * _SHELL), 1)
        parts = [self._draw(min(rows, count - start), generator) for start in range(0, count, rows)]
        return Statistics(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _draw(self, count: int, generator: np.random.Generator) -> Statistics:
        m = self._largest.quantiles(generator.random(count))
        face = np.where(generator.random(count) < 0.5, -m, m)
        if self._sums is None:
            return _with_others(
                m, np.full(count, self._others), Statistics(face, face, face), generator
            )
        c = np.full(count, self._c)
        outside, beyond = special.ndtr(-c), special.ndtr(-m)
        share = np.maximum(outside - beyond, 0) / (0.5 - beyond)
        shell = np.minimum(generator.binomial(self._others, share), self._most)
        drawn = _with_others(m, shell, Statistics(face, face, face), generator, c)
        inner = self._others - shell
        open_side = (drawn.largest <= c) | (drawn.smallest >= -c)
        total = drawn.total + self._sums.draw(inner, generator)
        found = Statistics(drawn.largest, drawn.smallest, total)
        again = np.flatnonzero(open_side)
        known = Statistics(*(column[again] for column in drawn))
        whole = _with_others(np.minimum(m, c)[again], inner[again], known, generator)
        for column, better in zip(found, whole, strict=True):
            column[again] = better
        return found


def _with_others(
    high: Array,
    numbers: npt.NDArray[np.int64],
    known: Statistics,
    generator: np.random.Generator,
    low: Array | None = None,
) -> Statistics:
    """Adds coordinates to draws of which some are known.

    Args:
      high: `[n]`, largest absolute value of those added.
      numbers: `[n]`, how many are added to each.
      known: the largest, the smallest and the sum of the others.
      generator: draws them.
      low: `[n]`, least absolute value; None for 0.
    """
    row = np.repeat(np.arange(len(high)), numbers)
    least = np.zeros(len(row)) if low is None else low[row]
    values = _truncated(least, high[row], generator)
    largest, smallest = known.largest.copy(), known.smallest.copy()
    filled = np.flatnonzero(numbers)
    if len(filled):
        starts = (np.cumsum(numbers) - numbers)[filled]
        largest[filled] = np.maximum(largest[filled], np.maximum.reduceat(values, starts))
        smallest[filled] = np.minimum(smallest[filled], np.minimum.reduceat(values, starts))
    return Statistics(
        largest, smallest, known.total + np.bincount(row, values, minlength=len(high))
    )


def draw_statistics(
    dimension: int, k: float, count: int, generator: np.random.Generator
) -> Statistics:
    """Draws z `count` times and keeps what L needs; see `StatisticsSampler`."""
    return statistics_sampler(dimension, k).draw(count, generator)


# Each is made once.
statistics_sampler = functools.lru_cache(maxsize=8)(StatisticsSampler)
