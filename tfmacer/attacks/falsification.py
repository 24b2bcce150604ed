"""Attacks on certified images: does the smoothed classifier change its answer, and how near?

An attack climbs the loss of the soft-smoothed classifier, its gradient averaged over noisy copies.
What it finds counts only where PREDICT, with fresh noise of its own, answers another class than
the certified one at `alpha` over the tests that an image may take. So a flip within the certified
radius refutes the certificate, and the norm of a flip is an upper bound on the true radius, each
wrong with probability at most alpha. Not finding one proves nothing.

Everything depends on the seed and the image alone, one image at a time.
"""

import decimal
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfmacer.attacks import adversarial
from tfmacer.attacks.plan import Plan
from tfmacer.common.errors import UserError
from tfmacer.guarantee.bounds import BOUNDS, ScoreBound, unbiased_variance
from tfmacer.guarantee.certificate import ABSTAIN, RADIUS_DECIMALS
from tfmacer.guarantee.prediction import predict
from tfmacer.guarantee.rule import Rule
from tfmacer.noise.samplers import training_noise
from tfmacer.records.attack_rows import Attacked
from tfmacer.records.rows import Record
from tfmacer.records.runs import Smoothing
from tfmacer.votes.counting import inference
from tfmacer.votes.source import Images, Votes, VoteSource, row_seed

# An image takes one attack within its radius; then, until one succeeds, attacks beyond it by these
# multiples of the scale of the noise; then attacks between the largest failure and the smallest
# success, and last smaller changes in the direction of the best one. Each is tested once at most.
_BEYOND = (0.25, 0.5, 1.0, 2.0, 4.0)
_BETWEEN = 3
_ALONG = 5
MOST_TESTS = 1 + len(_BEYOND) + _BETWEEN + _ALONG
# A certificate speaks of all changes smaller than its radius: this much smaller, for float32.
_WITHIN = 1 - 1e-5


class Falsifier:
    """Attacks the certificates of one smoothed classifier."""

    def __init__(
        self,
        network: Callable[..., tf.Tensor],
        source: VoteSource,
        rule: Rule,
        norm: str,
        plan: Plan,
    ) -> None:
        """Prepares the attack, whose graph is traced when it is first used.

        Args:
          network: the base network, images `[B, H, W, C]` to logits `[B, K]`.
          source: its votes.
          rule: that of the certificates; says which smoothed classifier they are about.
          norm: of their radii, `l2` or `linf`.
          plan: how to attack.

        Raises:
          UserError: the attack does not know the norm, or n is too small to confirm anything.
        """
        if plan.attack == "ddn" and norm != "l2":
            raise UserError(f"attack=ddn searches l2 balls, the radii are {norm}: use pgd")
        self._source, self._rule, self._plan = source, rule, plan
        self._norm: Callable[[npt.NDArray[np.float64]], float] = {
            "l2": lambda change: float(np.sqrt(np.sum(change**2))),
            "linf": lambda change: float(np.abs(change).max()),
        }[norm]
        smoothing = source.smoothing
        self._levels = smoothing.distribution.levels
        dimension = int(np.prod(smoothing.input_shape))
        self._scale = smoothing.sigma / (1.0 if norm == "l2" else dimension**0.5)
        self._attack = _graph(network, smoothing, norm, plan, rule.beta if rule.soft else 1.0)
        self._check_power()

    def __call__(self, image: npt.NDArray[np.float32], record: Record) -> Attacked:
        """Attacks one image.

        Args:
          image: float32 `[H, W, C]` in [0, 1].
          record: its certificate, not an abstention.
        """
        started = time.monotonic()
        search = _Search(self, image, record)
        sizes = [record.radius * _WITHIN]
        sizes += [record.radius + reach * self._scale for reach in _BEYOND]
        for size in sizes:
            if search.attacked(size):
                break
        for _ in range(_BETWEEN):
            search.between()
        search.along()
        return Attacked(
            idx=record.idx,
            label=record.label,
            predict=record.predict,
            radius=record.radius,
            flipped_within=search.best is not None and search.high < record.radius,
            attack_radius=None if search.best is None else round_up(search.high),
            attack_class=search.answer,
            searched=round_up(search.farthest),
            tests=search.tests,
            seconds=time.monotonic() - started,
        )

    def direction(
        self, image: npt.NDArray[np.float32], record: Record, size: float, number: int
    ) -> npt.NDArray[np.float64]:
        """The change that attack `number` proposes within `size`; 0 where it has none."""
        seed = row_seed(self._plan.seed, f"attack{number}", record.idx).astype(np.int64)
        found = self._attack(image, np.int64(record.predict), np.float32(size), seed)
        change: npt.NDArray[np.float64] = found.numpy().astype(np.float64) - image
        return change

    def placed(
        self, image: npt.NDArray[np.float32], change: npt.NDArray[np.float64], size: float
    ) -> tuple[Images, float]:
        """The image changed in a direction by `size` at most, and by how much it then differs."""
        change = change * (size / self._norm(change))
        if self._levels is not None:
            # Toward the image: rounding must not leave the ball.
            change = np.trunc(change * self._levels) / self._levels
        moved = image + change
        if self._plan.clip or self._levels is not None:
            moved = np.clip(moved, 0.0, 1.0)
        pixels = moved.astype(np.float32)
        moved_by = pixels.astype(np.float64) - image
        if self._levels is not None:
            # Distances are between whole steps, not between the floats that stand for them.
            moved_by = np.round(moved_by * self._levels) / self._levels
        return pixels, self._norm(moved_by)

    def answer(self, image: Images, idx: int, number: int) -> int:
        """What the smoothed classifier answers, by the fresh noise of test `number`; or -1."""
        votes = self._votes(image, f"confirm{number}", idx)
        alpha = self._plan.alpha / MOST_TESTS
        if not self._rule.soft:
            return predict(votes.counts.tolist(), alpha).predict
        chosen = int(self._votes(image, f"choose{number}", idx).sums.argmax())
        lower = self._mean_lower(float(votes.sums[chosen]), float(votes.square_sums[chosen]), alpha)
        return chosen if lower > 0.5 else ABSTAIN

    def _votes(self, image: Images, stage: str, idx: int) -> Votes:
        n = self._plan.n
        votes = self._source.sample(
            image[np.newaxis],
            row_seed(self._plan.seed, stage, idx)[np.newaxis],
            np.zeros(1, np.int32),
            np.full(1, n, np.int32),
            beta=self._rule.beta,
        ).row(0)
        if int(votes.counts.sum()) != n:
            raise UserError(f"idx {idx}: the network's logits were not finite under attack")
        return votes

    def _mean_lower(self, total: float, square_total: float, alpha: float) -> float:
        bound, n = BOUNDS[self._rule.bound], self._plan.n
        if not isinstance(bound, ScoreBound):
            raise ValueError(f"{self._rule.bound} is no bound on a mean")
        return bound.lower(min(total / n, 1.0), unbiased_variance(total, square_total, n), n, alpha)

    def _check_power(self) -> None:
        n, alpha = self._plan.n, self._plan.alpha / MOST_TESTS
        if self._rule.soft:
            enough = n > 1 and self._mean_lower(float(n), float(n), alpha) > 0.5
        else:
            enough = predict([n, 0], alpha).predict == 0
        if not enough:
            raise UserError(
                f"n = {n} is too small to confirm a flip at alpha = {self._plan.alpha} over "
                f"{MOST_TESTS} tests, even if all draws agree"
            )


class _Search:
    """The search for the smallest flip of one image."""

    def __init__(
        self, falsifier: Falsifier, image: npt.NDArray[np.float32], record: Record
    ) -> None:
        self._falsifier, self._image, self._record = falsifier, image, record
        self._attacks = 0
        self.tests = 0
        self.low = self.high = self.farthest = 0.0
        self.best: npt.NDArray[np.float64] | None = None
        self.answer = ABSTAIN

    def attacked(self, size: float) -> bool:
        """Whether an attack within `size` finds a flip."""
        change = self._falsifier.direction(self._image, self._record, size, self._attacks)
        self._attacks += 1
        return self._tried(change, size)

    def between(self) -> None:
        """Attacks halfway between the largest failure and the smallest flip."""
        if self.best is not None:
            self.attacked((self.low + self.high) / 2)

    def along(self) -> None:
        """Tries smaller changes in the direction of the smallest flip, halving.

        Down to the certified radius: where an attack failed this direction may not.
        """
        self.low = self._record.radius if self.high > self._record.radius else 0.0
        for _ in range(_ALONG):
            if self.best is not None:
                self._tried(self.best, (self.low + self.high) / 2)

    def _tried(self, change: npt.NDArray[np.float64], size: float) -> bool:
        """Puts a change of the given size to PREDICT, and takes note of what it answers."""
        self.farthest = max(self.farthest, size)
        flipped = False
        if change.any():
            pixels, norm = self._falsifier.placed(self._image, change, size)
            # Where float32 cannot move so little, or moves more, nothing is learned.
            if 0 < norm <= size / _WITHIN:
                answer = self._falsifier.answer(pixels, self._record.idx, self.tests)
                self.tests += 1
                flipped = answer not in (ABSTAIN, self._record.predict)
        if flipped:
            self.best, self.high = pixels.astype(np.float64) - self._image, norm
            # Clipped or rounded, a change may be smaller than one that failed.
            self.low, self.answer = min(self.low, norm), answer
        else:
            self.low = size
        return flipped


def round_up(value: float) -> float:
    """A norm rounded up at the digits that tables keep, by its exact decimal value."""
    step = decimal.Decimal(1).scaleb(-RADIUS_DECIMALS)
    return float(decimal.Decimal(value).quantize(step, rounding=decimal.ROUND_UP))


def _graph(
    network: Callable[..., tf.Tensor], smoothing: Smoothing, norm: str, plan: Plan, beta: float
) -> Any:
    """(image, class, epsilon, seed) to the image attacked, as one graph."""
    infer = inference(network)
    draw = training_noise(smoothing.noise_family)
    attacks: dict[str, tuple[Callable[..., tf.Tensor], dict[str, Any]]] = {
        "pgd": (adversarial.pgd, {"norm": norm}),
        "ddn": (adversarial.ddn, {"levels": None}),
    }
    find, options = attacks[plan.attack]

    def attack(image: tf.Tensor, label: tf.Tensor, epsilon: tf.Tensor, seed: tf.Tensor) -> Any:
        noise_seed, direction_seed = tf.unstack(tf.random.split(seed, 2, alg="philox"))
        copies = draw(
            (plan.num_noise, *smoothing.input_shape),
            noise_seed,
            smoothing.sigma,
            smoothing.noise_params,
        )
        found = find(
            lambda x: beta * tf.cast(infer(x), tf.float32),
            image[tf.newaxis],
            label[tf.newaxis],
            copies[tf.newaxis],
            epsilon=epsilon,
            seed=direction_seed,
            steps=plan.steps,
            clip=plan.clip,
            **options,
        )
        return found[0]

    return tf.function(
        attack,
        input_signature=[
            tf.TensorSpec(smoothing.input_shape, tf.float32),
            tf.TensorSpec([], tf.int64),
            tf.TensorSpec([], tf.float32),
            tf.TensorSpec([2], tf.int64),
        ],
    )
