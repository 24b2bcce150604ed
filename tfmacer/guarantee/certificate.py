"""From votes to a statement: the counts drawn, under a rule fixed before, become a certificate."""

import dataclasses
import math
from collections.abc import Sequence

from tfmacer.common.decimals import down
from tfmacer.common.errors import UserError
from tfmacer.guarantee.bounds import (
    BOUNDS,
    ScoreBound,
    VoteBound,
    unbiased_variance,
)
from tfmacer.guarantee.counts import Counts
from tfmacer.guarantee.distribution import NoiseDistribution
from tfmacer.guarantee.rule import SIDE, Rule, unanimous

ABSTAIN = -1
RADIUS_DECIMALS = 9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certificate:
    """A statement about one image, with all that is needed to recompute it.

    Attributes:
      draws: what was counted.
      rule: as fixed before drawing; `rule.alpha` is the probability, over the draws, that the
        statement is wrong.
      distribution: the noise that the classifier is smoothed with.
      predict: the class, or -1 for abstain.
      radius: within it the smoothed classifier's class is `predict`; in units of pixels in
        [0, 1], rounded down; 0 for abstain.
      p_lower: lower bound on the probability (soft: the mean score) of the selected class.
      p_upper_second: upper bound on that of every other class; None unless bilateral.
    """

    draws: Counts
    rule: Rule
    distribution: NoiseDistribution
    predict: int
    radius: float
    p_lower: float
    p_upper_second: float | None = None

    @property
    def norm(self) -> str:
        """The norm in which the radius is measured."""
        return self.distribution.norm

    @property
    def abstained(self) -> bool:
        """Whether nothing is certified."""
        return self.predict == ABSTAIN

    @property
    def stopped_early(self) -> bool:
        """Whether fewer than the planned draws were taken."""
        return self.draws.n < self.rule.n

    def statement(self) -> str:
        """What is guaranteed, under which assumptions, and what is not; several sentences."""
        rule, noise = self.rule, self.distribution
        score = (
            f"the mean over the noise of softmax({rule.beta!r} x logits)"
            if rule.soft
            else "the frequency with which the noisy network votes for it"
        )
        subject = (
            f"The smoothed classifier answers the class of largest score, which is {score}; the "
            f"noise is {noise.family} with sigma = {noise.sigma!r}, in units of pixels in [0, 1]."
        )
        bounded = "its score and every other class's" if rule.bilateral else "its score"
        basis = (
            f"{self.draws.n0} draws selected the class and {self.draws.n} independent ones bounded "
            f"{bounded} ({rule.bound} bound)."
        )
        if self.stopped_early:
            basis += " The bound allows for stopping before all planned draws were taken."
        if self.abstained:
            return (
                f"Abstained: nothing is certified for these pixels. {subject} {basis} This does "
                "not say that its answer can be changed: more draws may certify it."
            )
        return (
            f"Except with probability {rule.alpha!r} over the random draws, the smoothed "
            f"classifier answers class {self.predict} for these pixels and for all pixels at "
            f"{self.norm} distance below {down(self.radius, RADIUS_DECIMALS)} from them. "
            f"{subject} {basis} The probability is that of this image alone: among N certificates "
            f"up to {rule.alpha!r} x N wrong ones are to be expected. Nothing is said about the "
            f"network without noise, or about whether the class is right; {noise.caveat()}"
        )


def certify(counts: Counts, rule: Rule, distribution: NoiseDistribution) -> Certificate:
    """CERTIFY: bounds the probability of the class the selection draws chose, and its radius.

    Cohen, Rosenfeld & Kolter, ICML 2019, section 3.2.2; for soft bounds Zhai et al., ICLR 2020,
    Algorithm 2.

    Args:
      counts: what was drawn; n must be one of the rule's looks.
      rule: as fixed before drawing.
      distribution: the noise distribution.

    Returns:
      The certificate. It rests on the counts of this look alone, so that it can be recomputed.

    Raises:
      UserError: the counts are not those of the rule.
    """
    share = _share(counts, rule)
    selected = _argmax(_needed(counts, "select_sums") if rule.soft else counts.select_counts)
    p_lower, p_upper_second = _bounds(counts, rule, selected, rule.alpha * share)
    radius = distribution.radius(p_lower, p_upper_second)
    if radius < 10.0**-RADIUS_DECIMALS:  # recorded, it would be a certificate of radius 0
        radius = 0.0
    if not rule.soft and counts.sums is not None:
        counts = dataclasses.replace(counts, select_sums=None, sums=None, square_sums=None)
    return Certificate(
        draws=counts,
        rule=rule,
        distribution=distribution,
        predict=selected if radius > 0 else ABSTAIN,
        radius=radius,
        p_lower=p_lower,
        p_upper_second=p_upper_second,
    )


def decided(counts: Counts, rule: Rule, distribution: NoiseDistribution) -> bool:
    """Whether the stop rule says to stop at this look. Never for `fixed` and `budget`.

    `decide` stops when the radius asked for is certified at alpha, or when the greatest radius that
    the probabilities may allow is below it, at reject_alpha. `precision` stops when the certified
    radius falls short of that greatest one, or of what n unanimous draws would certify, by no
    more than the given part. What is certified is valid whenever drawing stops.

    Args:
      counts: what was drawn; n must be one of the rule's looks.
      rule: as fixed before drawing.
      distribution: the noise distribution.
    """
    stop = rule.stop
    if stop.kind not in ("decide", "precision"):
        return False
    certified = certify(counts, rule, distribution).radius
    possible = _possible_radius(counts, rule, distribution)
    if stop.radius is not None:
        return certified >= stop.radius or possible < stop.radius
    reachable = min(possible, largest_radius(rule, distribution))
    return certified >= (1 - (stop.precision or 0.0)) * reachable


def largest_radius(rule: Rule, distribution: NoiseDistribution) -> float:
    """The radius that n unanimous draws certify: no image gets a larger one under this rule."""
    p_lower = unanimous(rule, rule.n)
    return distribution.radius(p_lower, 1 - p_lower if rule.bilateral else None)


def round_down(value: float, decimals: int = RADIUS_DECIMALS) -> float:
    """Rounds a radius toward zero, by its exact decimal value: what `down` shows, as a float.

    Args:
      value: a number of either sign, or an infinity, which stays.
      decimals: digits after the point, 0 or more.

    Returns:
      A float that is exact when written with so many decimals, and not above a positive `value`.
    """
    return math.copysign(float(down(abs(value), decimals)), value)


def check_reachable(rule: Rule, distribution: NoiseDistribution) -> None:
    """Refuses to decide about a radius that even n unanimous draws would not certify.

    Raises:
      UserError: the rule's `decide` radius is out of reach.
    """
    largest = largest_radius(rule, distribution)
    if rule.stop.radius is not None and rule.stop.radius > largest:
        raise UserError(
            f"stop={rule.stop}: n = {rule.n} draws at alpha = {rule.alpha} certify a radius of "
            f"{down(largest, 4)} at most, with sigma = {distribution.sigma}"
        )


def _bounds(counts: Counts, rule: Rule, selected: int, alpha: float) -> tuple[float, float | None]:
    """Lower bound for the selected class, and upper bound for the others if bilateral."""
    bound = BOUNDS[rule.bound]
    if isinstance(bound, ScoreBound):
        total = _needed(counts, "sums")[selected]
        square_total = _needed(counts, "square_sums")[selected]
        # A float32 softmax may exceed 1 by its last place.
        mean = min(total / counts.n, 1.0)
        variance = unbiased_variance(total, square_total, counts.n)
        return bound.lower(mean, variance, counts.n, alpha), None
    hits = counts.counts[selected]
    if not rule.bilateral:
        return bound.lower(hits, counts.n, alpha), None
    p_lower = bound.lower(hits, counts.n, alpha * SIDE)
    # The bound grows with the count, and no other class has more votes than the one most voted
    # for, so its bound holds for the true runner-up too, whichever that is: no factor for the
    # number of classes (Voráček, NeurIPS 2024, appendix B). It needs the class to be chosen from
    # other draws.
    others = bound.upper(max(_others(counts.counts, selected)), counts.n, alpha * SIDE)
    return p_lower, min(others, math.nextafter(1 - p_lower, 1.0))


def _possible_radius(counts: Counts, rule: Rule, distribution: NoiseDistribution) -> float:
    """Greatest radius the probabilities may allow; too small with probability reject_alpha."""
    bound = BOUNDS[rule.bound]
    if not isinstance(bound, VoteBound):
        raise UserError(f"bound={rule.bound} has no upper bound to stop by")
    selected = _argmax(counts.select_counts)
    alpha = rule.reject_alpha * _share(counts, rule)
    hits = counts.counts[selected]
    if not rule.bilateral:
        return distribution.radius(bound.upper(hits, counts.n, alpha))
    # A one-sided limit would give up images whose first class has less than half of the votes,
    # which a bilateral certificate can reach. Here the class with most votes stands for the
    # runner-up, from below, so the bound must hold for all other classes at once.
    others = _others(counts.counts, selected)
    upper = bound.upper(hits, counts.n, alpha * SIDE)
    lower_second = bound.lower(max(others), counts.n, alpha * SIDE / len(others))
    return distribution.radius(upper, lower_second)


def _share(counts: Counts, rule: Rule) -> float:
    """Part of alpha that the rule spends at this look; refuses counts that are not the rule's."""
    if counts.n0 != rule.n0:
        raise UserError(f"n0 is {counts.n0}, the rule takes {rule.n0} selection draws")
    if counts.n not in rule.looks:
        raise UserError(f"n is {counts.n}, the rule's looks are at {_listed(rule.looks)} draws")
    bound = BOUNDS[rule.bound]
    if isinstance(bound, ScoreBound):
        return 1.0
    return bound.share(rule.looks.index(counts.n) + 1, len(rule.looks))


def _listed(schedule: tuple[int, ...]) -> str:
    return ", ".join(map(str, schedule))


def _needed(counts: Counts, name: str) -> tuple[float, ...]:
    values: tuple[float, ...] | None = getattr(counts, name)
    if values is None:
        raise UserError(f"{name} is missing, and a bound on softmax scores needs it")
    return values


def _argmax(values: Sequence[float]) -> int:
    """Index of the largest value, the lowest of several."""
    return max(range(len(values)), key=values.__getitem__)


def _others(values: Sequence[int], selected: int) -> list[int]:
    return [value for index, value in enumerate(values) if index != selected]
