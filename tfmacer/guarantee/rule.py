"""The rule of a certificate: everything that must be fixed before the first draw."""

import dataclasses
import functools
import itertools
import math
import numbers
import operator

from tfmacer.common.errors import UserError
from tfmacer.guarantee.bounds import BOUNDS, ScoreBound
from tfmacer.guarantee.stopping import FIXED, StopRule, looks

# Parts of a smaller one could leave the range of floating-point numbers.
_LEAST_ALPHA = 1e-100

# Both sides of a bilateral certificate may fail, so each gets half of the error allowed. The halves
# are fixed in advance; choosing them after the counts would not be covered by the proof.
SIDE = 0.5


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
            check_count(name, getattr(self, name), least=1)
            object.__setattr__(self, name, operator.index(getattr(self, name)))
        for name in ("alpha", "reject_alpha"):
            check_error_rate(name, getattr(self, name))
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
        if unanimous(self, self.n) > 0.5:
            return
        enough = next(n for n in itertools.count(self.n + 1) if unanimous(self, n) > 0.5)
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
        bound = BOUNDS[self.bound]
        if isinstance(bound, ScoreBound) or not bound.anytime:
            return (self.n,)
        return looks(self.n, self.block_size, bound.growth)


def unanimous(rule: Rule, n: int) -> float:
    """Lower bound that the rule gives when all of n draws, at its last look, agree."""
    bound = BOUNDS[rule.bound]
    if isinstance(bound, ScoreBound):
        return bound.lower(1.0, 0.0, n, rule.alpha) if n > 1 else 0.0
    last = len(looks(n, rule.block_size, bound.growth))
    side = SIDE if rule.bilateral else 1.0
    return bound.lower(n, n, rule.alpha * side * bound.share(last, last))


def check_count(name: str, value: object, *, least: int) -> None:
    """Raises UserError unless `value` is an integer of `least` or more."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise UserError(f"{name} must be an integer of {least} or more, got {value!r}")


def check_error_rate(name: str, value: float) -> None:
    """Raises UserError unless `value` is an error rate that can still be divided."""
    if not _LEAST_ALPHA <= value < 1:
        raise UserError(f"{name} must lie between {_LEAST_ALPHA} and 1, got {value}")
