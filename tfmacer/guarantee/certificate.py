"""From votes to a statement: the rule fixed before drawing, the counts drawn, the certificate."""

import dataclasses
import decimal
import functools
import itertools
import math
import numbers
import operator
from collections.abc import Sequence
from typing import NamedTuple

from tfmacer.errors import UserError
from tfmacer.guarantee.bounds import (
    BOUNDS,
    ScoreBound,
    VoteBound,
    binomial_test_p_value,
    unbiased_variance,
)
from tfmacer.guarantee.smoothing import Law, caveat
from tfmacer.guarantee.stopping import FIXED, StopRule, looks

ABSTAIN = -1
RADIUS_DECIMALS = 9

# Parts of a smaller one could leave the range of floating-point numbers.
_LEAST_ALPHA = 1e-100

# Both sides of a bilateral certificate may fail, so each gets half of the error allowed. The halves
# are fixed in advance; choosing them after the counts would not be covered by the proof.
_SIDE = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """Everything about a certificate that must be fixed before the first draw.

    Attributes:
      alpha: probability, over the draws, that a certificate is wrong; in (0, 1). For each image.
      bound: key of `tfmacer.guarantee.bounds.BOUNDS`.
      bilateral: bounds the runner-up's probability too, instead of giving it all that is left.
      n0: draws that select the class; never used for the bound.
      n: draws that bound its probability; the most that are taken where `stop` may stop earlier.
      beta: inverse temperature of the softmax whose mean a soft bound is about; > 0.
      stop: when to stop before n; its text is accepted too.
      reject_alpha: probability that `decide` gives up a radius that could be certified, in (0, 1).
        It costs certificates, never their truth. `precision` uses it for its upper bounds.
      block_size: draws per block of the noise stream; sets the looks of sequential bounds.
    """

    alpha: float = 0.001
    bound: str = "clopper_pearson"
    bilateral: bool = False
    n0: int = 100
    n: int = 100_000
    beta: float = 1.0
    stop: StopRule = FIXED
    reject_alpha: float = 0.001
    block_size: int = 256

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", StopRule.parse(self.stop))
        for name in ("n0", "n", "block_size"):
            _check_count(name, getattr(self, name), least=1)
            object.__setattr__(self, name, operator.index(getattr(self, name)))
        for name in ("alpha", "reject_alpha"):
            _check_error_rate(name, getattr(self, name))
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise UserError(f"beta must be positive and finite, got {self.beta}")
        if self.bound not in BOUNDS:
            raise UserError(f"bound must be one of {', '.join(BOUNDS)}, got {self.bound!r}")
        if self.bilateral and self.soft:
            raise UserError(f"bilateral needs a bound on votes, {self.bound} bounds softmax scores")
        if self.stop.kind != "fixed" and not BOUNDS[self.bound].anytime:
            anytime = ", ".join(name for name, bound in BOUNDS.items() if bound.anytime)
            raise UserError(
                f"stop={self.stop} needs a bound that allows stopping early ({anytime}), "
                f"{self.bound} holds for a fixed n only"
            )
        self._check_feasible()

    def _check_feasible(self) -> None:
        """Refuses an n at which even unanimous draws certify nothing."""
        if _unanimous(self, self.n) > 0.5:
            return
        enough = next(n for n in itertools.count(self.n + 1) if _unanimous(self, n) > 0.5)
        raise UserError(
            f"n = {self.n} is too small for alpha = {self.alpha}: with bound={self.bound} "
            f"nothing can be certified, even if all draws agree; n must be {enough} or more"
        )

    @property
    def soft(self) -> bool:
        """Whether the certificate is about the mean softmax score rather than the vote."""
        return isinstance(BOUNDS[self.bound], ScoreBound)

    @functools.cached_property
    def looks(self) -> tuple[int, ...]:
        """Cumulative draws at which a certificate may be made; the last one is n."""
        return looks(self.n, self.block_size) if BOUNDS[self.bound].anytime else (self.n,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What was drawn for one image, by class.

    Attributes:
      select_counts: `[K]`, votes among the n0 selection draws.
      counts: `[K]`, votes among the n estimation draws.
      n0: selection draws.
      n: estimation draws so far.
      select_sums: `[K]`, sums of the softmax over the selection draws; None unless soft.
      sums: `[K]`, the same over the estimation draws, accumulated in float64.
      square_sums: `[K]`, sums of the squared softmax over the estimation draws.
    """

    select_counts: tuple[int, ...]
    counts: tuple[int, ...]
    n0: int
    n: int
    select_sums: tuple[float, ...] | None = None
    sums: tuple[float, ...] | None = None
    square_sums: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        classes = len(self.counts)
        if classes < 2:
            raise UserError(f"counts must be of 2 classes or more, got {classes}")
        _check_votes("select_counts", self.select_counts, classes, "n0", self.n0)
        _check_votes("counts", self.counts, classes, "n", self.n)
        for name in ("select_sums", "sums", "square_sums"):
            values = getattr(self, name)
            if values is not None:
                total = self.n0 if name == "select_sums" else self.n
                _check_sums(name, values, classes, total)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certificate:
    """A statement about one image, with all that is needed to recompute it.

    Attributes:
      predict: the class, or -1 for abstain.
      radius: within it the smoothed classifier's class is `predict`; in units of pixels in
        [0, 1], rounded down; 0 for abstain.
      norm: in which the radius is measured.
      alpha: probability, over the draws, that the statement is wrong.
      sigma: scale of the noise.
      family: of the noise.
      bound: key of `tfmacer.guarantee.bounds.BOUNDS`.
      bilateral: whether the runner-up's probability was bounded too.
      beta: inverse temperature of the softmax; of soft bounds only.
      n0: selection draws.
      n: estimation draws that the statement rests on.
      select_counts: `[K]`, votes among the selection draws.
      counts: `[K]`, votes among the estimation draws.
      select_sums: `[K]`, sums of the softmax over the selection draws; None unless soft.
      sums: `[K]`, the same over the estimation draws; None unless soft.
      square_sums: `[K]`, sums of the squared softmax; None unless soft.
      p_lower: lower bound on the probability (soft: the mean score) of the selected class.
      p_upper_second: upper bound on that of every other class; None unless bilateral.
      stopped_early: fewer than the planned draws were taken.
    """

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
    stopped_early: bool

    @property
    def abstained(self) -> bool:
        """Whether nothing is certified."""
        return self.predict == ABSTAIN

    def statement(self) -> str:
        """What is guaranteed, under which assumptions, and what is not; several sentences."""
        score = (
            f"the mean over the noise of softmax({self.beta!r} x logits)"
            if self.sums is not None
            else "the frequency with which the noisy network votes for it"
        )
        subject = (
            f"The smoothed classifier answers the class of largest score, which is {score}; the "
            f"noise is {self.family} with sigma = {self.sigma!r}, in units of pixels in [0, 1]."
        )
        bounded = "its score and every other class's" if self.bilateral else "its score"
        basis = (
            f"{self.n0} draws selected the class and {self.n} independent ones bounded {bounded} "
            f"({self.bound} bound)."
        )
        if self.stopped_early:
            basis += " The bound allows for stopping before all planned draws were taken."
        if self.abstained:
            return (
                f"Abstained: nothing is certified for these pixels. {subject} {basis} This does "
                "not say that its answer can be changed: more draws may certify it."
            )
        return (
            f"Except with probability {self.alpha!r} over the random draws, the smoothed "
            f"classifier answers class {self.predict} for these pixels and for all pixels at "
            f"{self.norm} distance below {round_down(self.radius):.{RADIUS_DECIMALS}f} from them. "
            f"{subject} {basis} The probability is that of this image alone: among N certificates "
            f"up to {self.alpha!r} x N wrong ones are to be expected. Nothing is said about the "
            f"network without noise, or about whether the class is right; {caveat(self.family)}"
        )


class Prediction(NamedTuple):
    """The answer of PREDICT.

    Attributes:
      predict: the class, or -1 for abstain.
      p_value: of the hypothesis that the two most frequent classes are equally likely.
    """

    predict: int
    p_value: float


def predict(counts: Sequence[int], alpha: float) -> Prediction:
    """PREDICT of Cohen, Rosenfeld & Kolter (ICML 2019, section 3.2.1), without a radius.

    Args:
      counts: `[K]`, votes by class; the two most frequent are tested on the same draws (valid by
        Hung & Fithian, Ann. Stat. 2019).
      alpha: probability that the class differs from the smoothed classifier's, in (0, 1).

    Returns:
      The most frequent class where the test rejects at alpha, otherwise abstain.
    """
    _check_error_rate("alpha", alpha)
    top = _argmax(counts)
    second = max(_others(counts, top))
    p_value = binomial_test_p_value(counts[top], counts[top] + second)
    return Prediction(top if p_value <= alpha else ABSTAIN, p_value)


def certify(counts: Counts, rule: Rule, law: Law) -> Certificate:
    """CERTIFY: bounds the probability of the class the selection draws chose, and its radius.

    Cohen, Rosenfeld & Kolter, ICML 2019, section 3.2.2; for soft bounds Zhai et al., ICLR 2020,
    Algorithm 2.

    Args:
      counts: what was drawn; n must be one of the rule's looks.
      rule: as fixed before drawing.
      law: the noise distribution.

    Returns:
      The certificate. It rests on the counts of this look alone, so that it can be recomputed.

    Raises:
      UserError: the counts are not those of the rule.
    """
    share = _share(counts, rule)
    selected = _argmax(_needed(counts, "select_sums") if rule.soft else counts.select_counts)
    p_lower, p_upper_second = _bounds(counts, rule, selected, rule.alpha * share)
    radius = law.radius(p_lower, p_upper_second)
    if radius < 10.0**-RADIUS_DECIMALS:  # recorded, it would be a certificate of radius 0
        radius = 0.0
    return Certificate(
        predict=selected if radius > 0 else ABSTAIN,
        radius=radius,
        norm=law.norm,
        alpha=rule.alpha,
        sigma=law.sigma,
        family=law.family,
        bound=rule.bound,
        bilateral=rule.bilateral,
        beta=rule.beta,
        n0=counts.n0,
        n=counts.n,
        select_counts=counts.select_counts,
        counts=counts.counts,
        select_sums=counts.select_sums if rule.soft else None,
        sums=counts.sums if rule.soft else None,
        square_sums=counts.square_sums if rule.soft else None,
        p_lower=p_lower,
        p_upper_second=p_upper_second,
        stopped_early=counts.n < rule.n,
    )


def decided(counts: Counts, rule: Rule, law: Law) -> bool:
    """Whether the stop rule says to stop at this look. Never for `fixed` and `budget`.

    `decide` stops when the radius asked for is certified at alpha, or when the greatest radius that
    the probabilities may allow is below it, at reject_alpha. `precision` stops when the certified
    radius falls short of that greatest one, or of what n unanimous draws would certify, by no
    more than the given part. What is certified is valid whenever drawing stops.

    Args:
      counts: what was drawn; n must be one of the rule's looks.
      rule: as fixed before drawing.
      law: the noise distribution.
    """
    stop = rule.stop
    if stop.kind not in ("decide", "precision"):
        return False
    certified = certify(counts, rule, law).radius
    possible = _possible_radius(counts, rule, law)
    if stop.radius is not None:
        return certified >= stop.radius or possible < stop.radius
    reachable = min(possible, largest_radius(rule, law))
    return certified >= (1 - (stop.precision or 0.0)) * reachable


def largest_radius(rule: Rule, law: Law) -> float:
    """The radius that n unanimous draws certify: no image gets a larger one under this rule."""
    p_lower = _unanimous(rule, rule.n)
    return law.radius(p_lower, 1 - p_lower if rule.bilateral else None)


def round_down(value: float, decimals: int = RADIUS_DECIMALS) -> float:
    """Rounds a radius toward zero, by its exact decimal value.

    Args:
      value: a number of either sign, or an infinity, which stays.
      decimals: digits after the point, 0 or more.

    Returns:
      A float that is exact when written with so many decimals, and not above a positive `value`.
    """
    if not math.isfinite(value) or abs(value) >= 2**53:  # no digits after the point
        return value
    step = decimal.Decimal(1).scaleb(-decimals)
    return float(decimal.Decimal(value).quantize(step, rounding=decimal.ROUND_DOWN))


def check_reachable(rule: Rule, law: Law) -> None:
    """Refuses to decide about a radius that even n unanimous draws would not certify.

    Raises:
      UserError: the rule's `decide` radius is out of reach.
    """
    largest = largest_radius(rule, law)
    if rule.stop.radius is not None and rule.stop.radius > largest:
        raise UserError(
            f"stop={rule.stop}: n = {rule.n} draws at alpha = {rule.alpha} certify a radius of "
            f"{round_down(largest, 4)} at most, with sigma = {law.sigma}"
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
    p_lower = bound.lower(hits, counts.n, alpha * _SIDE)
    # The bound grows with the count, and no other class has more votes than the one most voted
    # for, so its bound holds for the true runner-up too, whichever that is: no factor for the
    # number of classes (Voráček, NeurIPS 2024, appendix B). It needs the class to be chosen from
    # other draws.
    others = bound.upper(max(_others(counts.counts, selected)), counts.n, alpha * _SIDE)
    return p_lower, min(others, math.nextafter(1 - p_lower, 1.0))


def _possible_radius(counts: Counts, rule: Rule, law: Law) -> float:
    """Greatest radius the probabilities may allow; too small with probability reject_alpha."""
    bound = BOUNDS[rule.bound]
    if not isinstance(bound, VoteBound):
        raise UserError(f"bound={rule.bound} has no upper bound to stop by")
    selected = _argmax(counts.select_counts)
    alpha = rule.reject_alpha * _share(counts, rule)
    hits = counts.counts[selected]
    if not rule.bilateral:
        return law.radius(bound.upper(hits, counts.n, alpha))
    # A one-sided limit would give up images whose first class has less than half of the votes,
    # which a bilateral certificate can reach. Here the class with most votes stands for the
    # runner-up, from below, so the bound must hold for all other classes at once.
    others = _others(counts.counts, selected)
    upper = bound.upper(hits, counts.n, alpha * _SIDE)
    lower_second = bound.lower(max(others), counts.n, alpha * _SIDE / len(others))
    return law.radius(upper, lower_second)


def _unanimous(rule: Rule, n: int) -> float:
    """Lower bound that the rule gives when all of n draws, at its last look, agree."""
    bound = BOUNDS[rule.bound]
    if isinstance(bound, ScoreBound):
        return bound.lower(1.0, 0.0, n, rule.alpha) if n > 1 else 0.0
    last = len(looks(n, rule.block_size))
    side = _SIDE if rule.bilateral else 1.0
    return bound.lower(n, n, rule.alpha * side * bound.share(last, last))


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


def _check_count(name: str, value: object, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise UserError(f"{name} must be an integer of {least} or more, got {value!r}")


def _check_error_rate(name: str, value: float) -> None:
    if not _LEAST_ALPHA <= value < 1:
        raise UserError(f"{name} must lie between {_LEAST_ALPHA} and 1, got {value}")


def _check_votes(
    name: str, votes: tuple[int, ...], classes: int, total_name: str, total: int
) -> None:
    _check_count(total_name, total, least=1)
    if len(votes) != classes or min(votes) < 0 or sum(votes) != total:
        raise UserError(
            f"{name} must be {classes} counts of 0 or more that add up to "
            f"{total_name} = {total}, got {votes}"
        )


def _check_sums(name: str, sums: tuple[float, ...], classes: int, total: int) -> None:
    # Softmax scores lie in [0, 1]; in float32 they may exceed 1 by their last place.
    most = total * (1 + 1e-6)
    if len(sums) != classes or not all(0 <= value <= most for value in sums):
        raise UserError(f"{name} must be {classes} numbers between 0 and {total}, got {sums}")
