"""The smoothed classifier's answer alone, without a radius."""

from collections.abc import Sequence
from typing import NamedTuple

from scipy import special

from tfmacer.guarantee.bounds import TAIL_MARGIN
from tfmacer.guarantee.certificate import ABSTAIN
from tfmacer.guarantee.rule import check_error_rate


class Prediction(NamedTuple):
    """The answer of PREDICT.

    Attributes:
      predict: the class, or -1 for abstain.
      p_value: of the hypothesis that the two most frequent classes are equally likely.
    """

    predict: int
    p_value: float


def predict(counts: Sequence[int], alpha: float) -> Prediction:
    """PREDICT of Cohen, Rosenfeld & Kolter (ICML 2019, section 3.2.1).

    Args:
      counts: `[K]`, votes by class; the two most frequent are tested on the same draws (valid by
        Hung & Fithian, Ann. Stat. 2019).
      alpha: probability that the class differs from the smoothed classifier's, in (0, 1).

    Returns:
      The most frequent class where the test rejects at alpha, otherwise abstain.
    """
    check_error_rate("alpha", alpha)
    first, second = sorted(counts, reverse=True)[:2]
    p_value = binomial_test_p_value(first, first + second)
    return Prediction(list(counts).index(first) if p_value <= alpha else ABSTAIN, p_value)


def binomial_test_p_value(hits: int, n: int) -> float:
    """Two-sided p-value of `hits` in `n` fair coin tosses; 1 without tosses.

    A fair coin is symmetric, so it is twice the tail beyond the more frequent side. Rounded up.
    """
    tail = float(special.bdtrc(max(hits, n - hits) - 1, n, 0.5)) if n else 1.0
    return min(2 * tail * (1 + TAIL_MARGIN), 1.0)
