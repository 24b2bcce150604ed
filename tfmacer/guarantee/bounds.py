"""Confidence bounds on a probability, or on a mean of scores in [0, 1], from n independent draws.

Every function is one-sided and spends the whole of its alpha on that side. What is returned is
rounded away from the estimate: a lower bound is never above the number its formula defines, an
upper bound never below.

Adding a bound is one function and one line of `BOUNDS`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from scipy import special

from tfmacer.common.errors import UserError
from tfmacer.guarantee.stopping import GROWTH

# Beta quantiles are looked up at an alpha smaller by this part of itself, and must pass at one
# smaller by half of it. SciPy's incomplete beta function was seen to be off by a part in 1e12 at a
# million draws (its inverse by a part in 1e7); this is a hundred times as much, and moves a bound
# by less than 1e-12.
TAIL_MARGIN = 1e-10

# Prior Beta(1/2, 1/2) of the mixture (Krichevsky-Trofimov). With a first parameter above 1 the
# restricted mixture is no longer monotone in p, and bisection would not find its bound.
_PRIOR = 0.5

# What `late_share` keeps for the end of a run that is seldom cut short.
_LAST_SHARE = 0.9


def clopper_pearson_lower(hits: int, n: int, alpha: float) -> float:
    """Exact lower bound on a probability (Clopper & Pearson, Biometrika 1934).

    The largest p with P(Bin(n, p) >= hits) <= alpha, rounded down. For a number of draws fixed in
    advance.

    Args:
      hits: draws in which the event occurred, 0 to n.
      n: draws, 1 or more.
      alpha: probability that the bound exceeds the truth, in (0, 1).

    Returns:
      The bound in [0, 1); 0 without hits, alpha ** (1 / n) without misses.

    Raises:
      UserError: an argument is out of range.
    """
    check_draws(hits, n, alpha)
    if hits == 0:
        return 0.0
    misses = n - hits
    p = float(special.betaincinv(hits, misses + 1, alpha * (1 - TAIL_MARGIN)))
    step = math.ulp(p)
    while special.betainc(hits, misses + 1, p) > alpha * (1 - TAIL_MARGIN / 2):
        p, step = max(p - step, 0.0), 2 * step
    return p


def clopper_pearson_upper(hits: int, n: int, alpha: float) -> float:
    """Exact upper bound on a probability; see `clopper_pearson_lower`.

    Returns:
      The smallest p with P(Bin(n, p) <= hits) <= alpha, rounded up; in (0, 1], 1 without misses.
    """
    check_draws(hits, n, alpha)
    misses = n - hits
    if misses == 0:
        return 1.0
    p = float(special.betainccinv(hits + 1, misses, alpha * (1 - TAIL_MARGIN)))
    step = math.ulp(p)
    while special.betaincc(hits + 1, misses, p) > alpha * (1 - TAIL_MARGIN / 2):
        p, step = min(p + step, 1.0), 2 * step
    return p


def hoeffding_lower(mean: float, n: int, alpha: float) -> float:
    """Lower bound on the mean of scores in [0, 1] (Hoeffding, JASA 1963, Theorem 2).

    Args:
      mean: average of n independent scores.
      n: scores, 1 or more, fixed in advance.
      alpha: probability that the bound exceeds the true mean, in (0, 1).

    Returns:
      mean - sqrt(ln(1 / alpha) / 2n), clipped to [0, 1].

    Raises:
      UserError: an argument is out of range.
    """
    check_draws(mean * n, n, alpha)
    return _clipped_down(mean - math.sqrt(-math.log(alpha) / (2 * n)))


def bernstein_lower(mean: float, variance: float, n: int, alpha: float) -> float:
    """Empirical Bernstein lower bound on the mean of scores in [0, 1].

    Maurer & Pontil, COLT 2009, Theorem 4. One-sided at the full alpha: the 2 in ln(2 / alpha) pays
    for the deviation of the mean and that of the variance, not for two sides.

    Args:
      mean: average of n independent scores.
      variance: their unbiased sample variance, with n - 1 in the denominator; what round-off
        leaves below 0 counts as 0.
      n: scores, 2 or more, fixed in advance.
      alpha: probability that the bound exceeds the true mean, in (0, 1).

    Returns:
      mean - sqrt(2 variance ln(2 / alpha) / n) - 7 ln(2 / alpha) / (3 (n - 1)), clipped to [0, 1].

    Raises:
      UserError: n is below 2, or another argument out of range.
    """
    check_draws(mean * n, n, alpha)
    if n < 2:
        raise UserError(f"the empirical Bernstein bound needs n of 2 or more, got {n}")
    log_term = math.log(2 / alpha)
    deviation = math.sqrt(2 * max(variance, 0.0) * log_term / n)
    return _clipped_down(mean - deviation - 7 * log_term / (3 * (n - 1)))


def check_draws(total: float, n: int, alpha: float) -> None:
    """Raises UserError unless `total` can be that of n draws, and alpha lies in (0, 1)."""
    if n < 1 or not 0 <= total <= n:
        raise UserError(f"hits must lie between 0 and n, and n be 1 or more, got {total} of {n}")
    if not 0 < alpha < 1:
        raise UserError(f"alpha must lie between 0 and 1, got {alpha}")


def unbiased_variance(total: float, square_total: float, n: int) -> float:
    """Sample variance (n - 1 in the denominator) from a sum and a sum of squares; at least 0."""
    return max((square_total - total * total / n) / (n - 1), 0.0)


def _clipped_down(bound: float) -> float:
    """Rounds down by more than the few operations before it can have rounded up, clips."""
    return min(max(bound - 8 * math.ulp(1.0), 0.0), 1.0)


@functools.lru_cache(maxsize=4096)  # certifying at a look and testing its stop rule ask the same
def beta_binomial_lower(hits: int, n: int, alpha: float) -> float:
    """Lower confidence sequence on a probability: it holds at all n at once.

    The largest p at which the evidence against "the probability is p or less" stays at 1 / alpha
    or more. The evidence is the likelihood ratio of a Beta(1/2, 1/2) prior restricted to q > p
    against p. For every p' <= p each factor has expectation at most 1, so it is a
    supermartingale under the whole of that hypothesis, and by Ville's inequality it ever reaches
    1 / alpha with probability at most alpha (Robbins, Ann. Math. Stat. 1970; Waudby-Smith & Ramdas,
    JRSS-B 2023). It falls as p grows, so there is one crossing.

    Args:
      hits: draws in which the event occurred, 0 to n.
      n: draws so far, 1 or more; may depend on what was seen.
      alpha: probability that the bound ever exceeds the truth, in (0, 1).

    Returns:
      The bound in [0, 1), monotone in `hits`.

    Raises:
      UserError: an argument is out of range.
    """
    check_draws(hits, n, alpha)
    # At or above the observed share no draw speaks against the null, so the crossing is below it.
    low, high = 0.0, hits / n
    evidence = _BetaBinomial(hits, n)
    while low < (middle := (low + high) / 2) < high:
        if evidence.reaches(middle, alpha):
            low = middle
        else:
            high = middle
    return low


def beta_binomial_upper(hits: int, n: int, alpha: float) -> float:
    """Upper confidence sequence on a probability, the mirror image of `beta_binomial_lower`."""
    check_draws(hits, n, alpha)
    lower = beta_binomial_lower(n - hits, n, alpha)
    return 1.0 if lower == 0.0 else math.nextafter(1 - lower, 1.0)


class _BetaBinomial:
    """Evidence of `hits` in `n` draws against each p, as a mixture over the greater q."""

    def __init__(self, hits: int, n: int) -> None:
        self._hits, self._misses = hits, n - hits
        self._posterior = (_PRIOR + hits, _PRIOR + n - hits)
        mixture = float(special.betaln(*self._posterior) - special.betaln(_PRIOR, _PRIOR))
        # Log-gamma functions of this size cancel; what round-off may leave is paid for in advance
        # (seen: below a tenth of this up to 1e8 draws).
        self._log_mixture = mixture - 1e-11 - 1e-14 * n * math.log(n + 1)

    def reaches(self, p: float, alpha: float) -> bool:
        """Whether the evidence against "p or less" is 1 / alpha or more; 0 < p < hits / n."""
        # Both tails are computed as such: 1 - I loses them where they matter.
        above = float(special.betaincc(*self._posterior, p))
        above_before = float(special.betaincc(_PRIOR, _PRIOR, p))
        log_likelihood = self._hits * math.log(p) + self._misses * math.log1p(-p)
        log_evidence = self._log_mixture - log_likelihood + math.log(above / above_before)
        return log_evidence >= -math.log(alpha)


def look_share(look: int, num_looks: int) -> float:
    """Part of alpha that alpha-spending gives to one look of a schedule fixed in advance.

    1 / (k (k + 1)) to look k, and to the last one all that is left, 1 / num_looks: early looks,
    where most runs stop, get the most, and a run to the end pays a factor of only num_looks.

    Args:
      look: 1 to num_looks.
      num_looks: length of the schedule.
    """
    _check_look(look, num_looks)
    return 1 / num_looks if look == num_looks else 1 / (look * (look + 1))


def _check_look(look: int, num_looks: int) -> None:
    if not 1 <= look <= num_looks:
        raise UserError(f"look must lie between 1 and {num_looks}, got {look}")


def late_share(look: int, num_looks: int) -> float:
    """Part of alpha for one look of a schedule fixed in advance, most of it for the last one.

    The last look gets 0.9, the others share the rest evenly; a schedule of one look gets all. For
    runs that are meant to reach their end, and are stopped before it by a deadline alone.

    Args:
      look: 1 to num_looks.
      num_looks: length of the schedule.
    """
    _check_look(look, num_looks)
    if look < num_looks:
        return (1 - _LAST_SHARE) / (num_looks - 1)
    return _LAST_SHARE if num_looks > 1 else 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class VoteBound:
    """A bound on how often a class wins, from how often it did.

    Attributes:
      lower: (hits, n, alpha) to a lower bound.
      upper: (hits, n, alpha) to an upper bound.
      anytime: at the parts of alpha that `share` gives, the bounds hold at all looks of a schedule
        at once, so drawing may stop at any of them. Otherwise n must be fixed in advance.
      share: (look, num_looks) to the part of alpha that a look may spend.
      growth: of the draws from look to look.
    """

    lower: Callable[[int, int, float], float]
    upper: Callable[[int, int, float], float]
    anytime: bool
    share: Callable[[int, int], float] = lambda look, num_looks: 1.0
    growth: float = GROWTH


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreBound:
    """A bound on the mean of a class's softmax score, from n draws fixed in advance.

    Attributes:
      lower: (mean, variance, n, alpha) to a lower bound; the variance is the unbiased one.
      anytime: False; the interface shared with `VoteBound`.
    """

    lower: Callable[[float, float, int, float], float]
    anytime: bool = False


BOUNDS: Mapping[str, VoteBound | ScoreBound] = MappingProxyType(
    {
        "clopper_pearson": VoteBound(
            lower=clopper_pearson_lower, upper=clopper_pearson_upper, anytime=False
        ),
        "beta_binomial": VoteBound(
            lower=beta_binomial_lower, upper=beta_binomial_upper, anytime=True
        ),
        "alpha_spending": VoteBound(
            lower=clopper_pearson_lower, upper=clopper_pearson_upper, anytime=True, share=look_share
        ),
        # Each look is a border between requests, and only a deadline needs one before the last.
        "late_spending": VoteBound(
            lower=clopper_pearson_lower,
            upper=clopper_pearson_upper,
            anytime=True,
            share=late_share,
            growth=2.0,
        ),
        "hoeffding": ScoreBound(
            lower=lambda mean, variance, n, alpha: hoeffding_lower(mean, n, alpha)
        ),
        "bernstein": ScoreBound(lower=bernstein_lower),
    }
)
