"""Confidence bounds on a probability, NumPy and SciPy, float64."""

from scipy import special

BOUNDS = {"clopper_pearson": None, "beta_binomial": None}


def clopper_pearson_lower(hits: int, n: int, alpha: float) -> float:
    """One-sided lower Clopper-Pearson bound."""
    return 0.0 if hits == 0 else float(special.betaincinv(hits, n - hits + 1, alpha))


def clopper_pearson_upper(hits: int, n: int, alpha: float) -> float:
    """One-sided upper Clopper-Pearson bound."""
    return 1.0 if hits == n else float(special.betaincinv(hits + 1, n - hits, 1 - alpha))
