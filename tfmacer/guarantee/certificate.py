"""Certificates."""

import dataclasses

from tfmacer.guarantee.bounds import clopper_pearson_lower
from tfmacer.guarantee.smoothing import Law
from tfmacer.guarantee.stopping import StopRule


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    alpha: float = 0.001
    bound: str = "clopper_pearson"
    bilateral: bool = False
    n0: int = 100
    n: int = 100_000
    beta: float = 1.0
    stop: StopRule = StopRule()
    reject_alpha: float = 0.001
    block_size: int = 256
    soft = False

    @property
    def looks(self):
        return (self.n,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    select_counts: tuple[int, ...]
    counts: tuple[int, ...]
    n0: int
    n: int
    select_sums: tuple[float, ...] | None = None
    sums: tuple[float, ...] | None = None
    square_sums: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certificate:
    predict: int
    radius: float
    norm: str
    alpha: float
    sigma: float
    family: str
    bound: str
    bilateral: bool
    beta: float
    n0: int
    n: int
    select_counts: tuple[int, ...]
    counts: tuple[int, ...]
    select_sums: tuple[float, ...] | None = None
    sums: tuple[float, ...] | None = None
    square_sums: tuple[float, ...] | None = None
    p_lower: float
    p_upper_second: float | None = None
    stopped_early: bool = False


def certify(counts: Counts, rule: Rule, law: Law) -> Certificate:
    top = max(range(len(counts.counts)), key=lambda c: counts.select_counts[c])
    p = clopper_pearson_lower(counts.counts[top], counts.n, rule.alpha)
    radius = law.radius(p)
    return Certificate(
        predict=top if radius > 0 else -1,
        radius=radius,
        norm=law.norm,
        alpha=rule.alpha,
        sigma=law.sigma,
        family=law.family,
        bound=rule.bound,
        bilateral=False,
        beta=1.0,
        n0=counts.n0,
        n=counts.n,
        select_counts=counts.select_counts,
        counts=counts.counts,
        p_lower=p,
    )


def decided(counts: Counts, rule: Rule, law: Law) -> bool:
    return False


def round_down(x: float, decimals: int = 9) -> float:
    """Rounds toward zero."""
    import math

    return math.floor(x * 10**decimals) / 10**decimals
