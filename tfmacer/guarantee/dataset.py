"""What the certificates of many images say together."""

from scipy import special

from tfmacer.guarantee.bounds import check_draws


def most_wrong(num_examples: int, alpha: float, rho: float) -> int:
    """How many of N statements are wrong at most, except with probability rho.

    Args:
      num_examples: N, 1 or more, made with independent noise.
      alpha: probability that one of them is wrong, in (0, 1).
      rho: in (0, 1).

    Returns:
      The 1 - rho quantile of Bin(N, alpha).

    Raises:
      UserError: an argument is out of range.
    """
    check_draws(0, num_examples, alpha)
    check_draws(0, num_examples, rho)
    wrong = 0
    while special.bdtrc(wrong, num_examples, alpha) > rho:
        wrong += 1
    return wrong


def dataset_lower_bound(correct: int, num_examples: int, alpha: float, rho: float) -> float:
    """Lower bound on the share of a data set that is truly robust, from its certificates.

    Each certificate may be wrong with probability alpha, so among N of them, drawn with independent
    noise, the wrong ones number at most the 1 - rho quantile of Bin(N, alpha), except with
    probability rho.

    Args:
      correct: examples certified, with the right class, at the radius in question.
      num_examples: N, all examples examined, 1 or more.
      alpha: of each certificate, in (0, 1).
      rho: probability that this bound is wrong, in (0, 1).

    Returns:
      (correct - quantile) / N, at least 0. It speaks of these N examples, not of others.

    Raises:
      UserError: an argument is out of range.
    """
    check_draws(correct, num_examples, alpha)
    return max(correct - most_wrong(num_examples, alpha, rho), 0) / num_examples
