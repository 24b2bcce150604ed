"""How the density p(z) ~ |z|^-k exp(-|z|^2 / 2) in d dimensions changes when it is shifted.

By the Neyman-Pearson lemma, among all classifiers that give a class the probability p under the
noise z, the one that loses most of it under z + delta is 1[L <= t], where L is the log likelihood
ratio of the shifted noise against the noise itself and t its p-quantile. The density is even, so
reflecting z to delta - z turns L into -L: the probability left is 1 - F(-t), with F the
distribution of L under the noise. Hence

    p certifies |delta| = r  if and only if  F(-t) <= 1/2, with F(t) = p,

that is from p* = F(-median) on. The worst shift of length r or less has length r (Filling the Soap
Bubbles, Theorem 2, by symmetry); L then depends on z by its length rho and the cosine c between z
and delta, which are independent: rho^2 ~ Gamma((d - k) / 2, 2), (1 + c) / 2 ~ Beta((d - 1) / 2,
(d - 1) / 2). For a given rho, L <= t means c <= c* in closed form, by Wright's omega function (as
Li et al., ICML 2022, use Lambert's), so that F is one integral over rho.

All lengths here are in units of sigma.
"""

import functools
import math

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

# Strata of rho of equal probability; beyond the last one on either side, strata halve in
# probability down to 2^-40.
_STRATA = 4_000
_TAIL = 40
# Nodes of the Gauss-Legendre rule that only guesses; every bound is checked by the strata.
_NODES = 400
# Added to every bound, a thousand times what SciPy's special functions were seen to be off here.
_NUMERICAL = 1e-10

Array = npt.NDArray[np.float64]


class RadialNoise:
    """The likelihood ratio of this noise against its shifts, with bounds that cannot be too low."""

    def __init__(self, dimension: int, k: float) -> None:
        """Prepares the strata.

        Args:
          dimension: d, 2 or more.
          k: exponent of the length, in [0, d).
        """
        self._dimension, self._k = dimension, k
        shape = (dimension - k) / 2
        tail = 0.5 ** np.arange(_TAIL, math.log2(_STRATA), -0.5)
        shares = np.concatenate([tail, np.arange(1, _STRATA // 2 + 1) / _STRATA])
        lower = special.gammaincinv(shape, shares)
        upper = special.gammainccinv(shape, shares[-2::-1])
        self._edges: Array = np.sqrt(2 * np.concatenate([lower, upper]))
        # Probabilities of the edges as they came out, from the end that each is nearer to.
        below = special.gammainc(shape, lower)
        above = special.gammaincc(shape, upper)
        middle = 1 - below[-1] - above[0]
        masses = np.concatenate([np.diff(below), [middle], -np.diff(above)])
        self._masses: Array = np.maximum(masses, 0)
        self._outside = float(below[0] + above[-1])
        nodes, weights = special.roots_legendre(_NODES)
        self._nodes: Array = np.sqrt(2 * special.gammaincinv(shape, (1 + nodes) / 2))
        self._weights: Array = weights / 2

    @property
    def scale(self) -> float:
        """Root of the mean square of one coordinate: 1 for k = 0, where this is a Gaussian."""
        return math.sqrt((self._dimension - self._k) / self._dimension)

    def _gain(self, rho: Array, t: float) -> Array:
        """rho^2 - s^2, with s the shifted length at which L is t.

        L = -k ln(s / rho) - (s^2 - rho^2) / 2. Where s is near rho it is solved for the difference,
        which keeps its relative precision however large rho is.
        """
        if self._k == 0:
            return np.minimum(np.full_like(rho, 2 * t), rho**2)
        w = rho**2 / self._k
        aim = -2 * t / self._k
        change = special.wrightomega(w + np.log(w) + aim).real - w
        near = np.abs(change) < w / 2
        for _ in range(2):
            start = np.where(near, change, 0)
            excess = start + np.log1p(start / w) - aim
            change = np.where(near, start - excess / (1 + 1 / (w + start)), change)
        gain: Array = -self._k * change
        return gain

    def _share_below(self, cosine: Array) -> Array:
        """P(c <= cosine)."""
        half = (self._dimension - 1) / 2
        shares: Array = special.betainc(half, half, np.clip((1 + cosine) / 2, 0, 1))
        return shares

    def guess(self, t: float, r: float) -> float:
        """F(t) under a shift of length r > 0, to many digits but without a bound on its error."""
        rho = self._nodes
        cosine = (self._gain(rho, t) + r * r) / (2 * r * rho)
        return float(self._weights @ self._share_below(cosine))

    def upper(self, t: float, r: float) -> float:
        """Upper bound on F(t) under a shift of length r > 0.

        In a stratum [a, b] of rho, rho^2 - s^2 is monotone (increasing for t >= 0, decreasing
        else), so c* is at most the larger end of that, plus r^2, over 2 r a, or over 2 r b where
        that is negative.
        """
        gain = self._gain(self._edges, t) + r * r
        highest = np.maximum(gain[:-1], gain[1:])
        rho = np.where(highest >= 0, self._edges[:-1], self._edges[1:])
        shares = self._share_below(highest / (2 * r * rho))
        return min(float(self._masses @ shares) + self._outside + _NUMERICAL, 1.0)

    def quantile(self, p: float, r: float) -> float:
        """A t so small that F(t) <= p surely, and hardly smaller than needed; 0 < p < 1."""
        aim = p
        while True:
            t = self._solve(aim, r)
            if not math.isfinite(t):
                return t
            excess = self.upper(t, r) - p
            if excess <= 0:
                return t
            # At least what every bound has added, or the ends would be approached for ever.
            aim = max(aim - 1.1 * max(excess, _NUMERICAL), aim / 2)
            if aim < _NUMERICAL:
                return -math.inf

    def _solve(self, p: float, r: float) -> float:
        """The t where `guess` is p."""
        width = 4 * (r / self.scale) * (1 + r / self.scale)
        while self.guess(-width, r) > p or self.guess(width, r) < p:
            width *= 2
            if width > 1e9:
                return -math.inf
        return float(optimize.brentq(lambda t: self.guess(t, r) - p, -width, width, xtol=1e-12))

    @functools.lru_cache(maxsize=16_384)  # noqa: B019 - instances are few and live long
    def probability(self, r: float) -> float:
        """Upper bound on p*, the least probability that certifies a shift of length r > 0."""
        t = self.quantile(0.5, r)
        return self.upper(-t, r) if math.isfinite(t) else 1.0

    def certifies(self, p_first: float, p_second: float, r: float) -> bool:
        """Whether a shift of length r leaves the first class ahead of the second.

        The first keeps at least 1 - F(-t_1) with F(t_1) = p_first; the second gets at most what
        the rest loses, F(-t_2) with F(t_2) = 1 - p_second. (Appendix D of the paper, each side at
        its own worst shift.)

        Args:
          p_first: lower bound on the first class's probability, in (0, 1).
          p_second: upper bound on the second one's, in (0, 1).
          r: length of the shift, > 0.
        """
        kept, lost = self.quantile(p_first, r), self.quantile(1 - p_second, r)
        if not (math.isfinite(kept) and math.isfinite(lost)):
            return False
        return self.upper(-kept, r) + self.upper(-lost, r) <= 1

    def guess_certifies(self, p_first: float, p_second: float, r: float) -> bool:
        """`certifies`, fast and without the bounds."""
        kept, lost = self._solve(p_first, r), self._solve(1 - p_second, r)
        if not (math.isfinite(kept) and math.isfinite(lost)):
            return False
        return self.guess(-kept, r) + self.guess(-lost, r) <= 1


# Each is made once.
radial_noise = functools.lru_cache(maxsize=8)(RadialNoise)
