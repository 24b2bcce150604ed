"""The largest coordinate of noise with density p(z) ~ |z|_inf^-k exp(-|z|_2^2 / 2).

All lengths here are in units of sigma.
"""

import functools
import math

import numpy as np
import numpy.typing as npt
from scipy import special

_CELLS = 16_384
# Where the density of ln M is below exp(-45) of its highest, nothing is drawn.
_DEPTH = 45.0

Array = npt.NDArray[np.float64]


class LogConcave:
    """A distribution drawn from the log-linear interpolation of its log-concave density.

    The interpolation lies below the density: a part of the mass is missing, and that part bounds
    how far the two distributions are apart.

    Attributes:
      nodes: `[CELLS + 1]`, values at equal distances.
      cumulative: `[CELLS + 1]`, probability below each node, from 0 to 1.
      rises: `[CELLS]`, by how much the log density rises over each cell.
      total_variation: bound on the distance of the distribution drawn from the exact one.
    """

    def __init__(self, nodes: Array, logs: Array, outside: float) -> None:
        """Tabulates the distribution.

        Args:
          nodes: `[CELLS + 1]`, values at equal distances.
          logs: `[CELLS + 1]`, log of the density there, up to a constant.
          outside: bound on the probability beyond the nodes, and on what `logs` are off.
        """
        self.nodes = nodes
        logs = logs - logs.max()
        self.rises: Array = np.diff(logs)
        masses = np.exp(logs[:-1]) * _mean_exp(self.rises)
        self.cumulative: Array = np.concatenate([[0.0], np.cumsum(masses) / masses.sum()])
        self.cumulative[-1] = 1.0
        # In a cell, a concave function stays below the chords of its neighbours, extended: above
        # the cell's own chord by at most a quarter of the difference of their rises.
        slopes = np.concatenate([[self.rises[0]], self.rises, [self.rises[-1]]])
        gaps = np.maximum(slopes[:-2] - slopes[2:], 0) / 4
        self.total_variation = float(np.expm1(gaps) @ masses) / float(masses.sum()) + outside

    def places(self, shares: Array) -> Array:
        """Values at these probabilities, each in [0, 1)."""
        cell = np.searchsorted(self.cumulative, shares, side="right") - 1
        cell = np.clip(cell, 0, len(self.rises) - 1)
        width = self.cumulative[cell + 1] - self.cumulative[cell]
        part = (shares - self.cumulative[cell]) / np.maximum(width, 1e-300)
        rise = self.rises[cell]
        steep = np.where(np.abs(rise) < 1e-6, 1.0, rise)
        bent = np.log1p(part * np.expm1(steep)) / steep
        step = self.nodes[1] - self.nodes[0]
        found: Array = self.nodes[cell] + step * np.where(np.abs(rise) < 1e-6, part, bent)
        return found


class LargestCoordinate(LogConcave):
    """The distribution of M = |z|_inf, and how it is drawn.

    On the face z_i = +-M the other coordinates have density prod exp(-z_j^2 / 2) on [-M, M], so

        p(M) ~ M^-k exp(-M^2 / 2) erf(M / sqrt 2)^(d - 1),

    the face and the sign are uniform, and given M the others are independent Gaussians truncated
    to [-M, M]. The density of y = ln M is log-concave; the nodes are values of y.
    """

    def __init__(self, dimension: int, k: float) -> None:
        """Tabulates the distribution; `dimension` is d, 2 or more, and 0 <= k <= d - 1."""
        self._dimension, self._k = dimension, k
        nodes = np.linspace(*self._range(), _CELLS + 1)
        super().__init__(nodes, self._log_density(nodes), 4 * math.exp(-_DEPTH) * _CELLS + 1e-12)

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
        return np.exp(self.places(shares))


def _mean_exp(rises: Array) -> Array:
    """Mean of exp over a line from 0 to each rise."""
    steep = np.where(np.abs(rises) < 1e-6, 1.0, rises)
    means: Array = np.where(np.abs(rises) < 1e-6, 1 + rises / 2, np.expm1(steep) / steep)
    return means


# Each is made once.
largest_coordinate = functools.lru_cache(maxsize=8)(LargestCoordinate)
