"""What is minimised: losses of the logits under noise, and the objectives composed of them.

The losses are pure functions of logits `[B, k, K]` (image, noisy copy, class) and labels `[B]`,
in the precision of the logits. An objective is a small object that says which views of a batch
the network must see (`views`) and what their logits cost (`losses`); it is handed the network and
never owns one. A new objective is one class here and one line in `OBJECTIVES`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import tensorflow as tf
import tensorflow_probability as tfp

from tfmacer.training.schedules import Schedule, constant

Network = Callable[[tf.Tensor], tf.Tensor]


class Batch(NamedTuple):
    """One training batch, its noise drawn.

    Attributes:
      images: float32 `[B, H, W, C]` in [0, 1].
      labels: int `[B]`.
      noise: float32 `[B, k, H, W, C]`, to be added to the images.
      step: int64 scalar, steps taken so far: the schedules' argument.
      seed: int64 `[2]`, the step's own, for an objective's further random choices.
    """

    images: tf.Tensor
    labels: tf.Tensor
    noise: tf.Tensor
    step: tf.Tensor
    seed: tf.Tensor


class Losses(NamedTuple):
    """What a batch costs; the objective is the sum of the two terms.

    Attributes:
      classification: scalar, mean over the batch.
      robustness: scalar, mean over the batch, weighted.
      noisy_logits: `[B, k, K]`, those of the views under noise; what noisy accuracy is made of.
    """

    classification: tf.Tensor
    robustness: tf.Tensor
    noisy_logits: tf.Tensor


class Objective(Protocol):
    """A training objective.

    Attributes:
      num_noise: noisy copies of each image in the papers' configurations.
    """

    num_noise: ClassVar[int]

    def views(self, network: Network, batch: Batch) -> tf.Tensor:
        """What the network must see of a batch: `[B, v, H, W, C]`.

        Computed outside the gradient tape; `network` (noisy images `[N, H, W, C]` to logits
        `[N, K]`, in inference mode) is for objectives that look before they choose.
        """
        ...

    def losses(self, logits: tf.Tensor, batch: Batch) -> Losses:
        """What the logits `[B, v, K]` of the views cost."""
        ...

    def weight(self, step: tf.Tensor) -> tf.Tensor:
        """Weight of the robustness term (lambda) after `step` steps."""
        ...


def noisy_views(batch: Batch) -> tf.Tensor:
    """x + delta_j: row b, copy j is image b under its j-th noise. `[B, k, H, W, C]`."""
    shape = tf.shape(batch.noise)
    # tf.repeat along the batch axis: tiling another axis and reshaping scrambles the pixels.
    copies = tf.reshape(tf.repeat(batch.images, shape[1], axis=0), shape)
    return copies + batch.noise


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """-log softmax(F)_y, mean over copies and images (Cohen et al., ICML 2019).

    Args:
      logits: `[B, k, K]`.
      labels: int `[B]`.

    Returns:
      Scalar.
    """
    log_p = tf.nn.log_softmax(_at_least_float32(logits))
    return -tf.reduce_mean(tf.gather(tf.reduce_mean(log_p, axis=1), labels, batch_dims=1))


def smoothed_log_probabilities(logits: tf.Tensor, beta: float = 1.0) -> tf.Tensor:
    """log of the mean over the copies of softmax(beta F), computed in log space.

    Args:
      logits: `[B, k, K]`.
      beta: inverse temperature; > 0.

    Returns:
      `[B, K]`, finite wherever the logits are.
    """
    log_p = tf.nn.log_softmax(beta * _at_least_float32(logits))
    copies = tf.cast(tf.shape(logits)[1], log_p.dtype)
    return tf.reduce_logsumexp(log_p, axis=1) - tf.math.log(copies)


def smoothed_cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """MACER's classification term: -log of the mean softmax at the true class, mean over images.

    Equation 17 of Zhai et al. (ICLR 2020), at inverse temperature 1. With one copy it equals
    `cross_entropy`; with more it is below it (Jensen).

    Args:
      logits: `[B, k, K]`.
      labels: int `[B]`.

    Returns:
      Scalar.
    """
    log_p = smoothed_log_probabilities(logits)
    return -tf.reduce_mean(tf.gather(log_p, labels, batch_dims=1))


def macer_robustness(
    logits: tf.Tensor, labels: tf.Tensor, *, sigma: float, gamma: float, beta: float
) -> tf.Tensor:
    """MACER's robustness term without its weight: the hinge on the soft certified radius.

    Equation 17 of Zhai et al. (ICLR 2020): sigma / 2 x max(gamma - xi, 0) over the images that
    the soft-smoothed classifier has right, divided by the whole batch, where
    xi = Phi^-1(q_y) - Phi^-1(max_{c != y} q_c) and q is the mean over copies of softmax(beta F).

    Args:
      logits: `[B, k, K]`, K >= 2.
      labels: int `[B]`.
      sigma: scale of the noise; > 0.
      gamma: hinge: images with xi >= gamma cost nothing; > 0.
      beta: inverse temperature; > 0.

    Returns:
      Scalar; its gradient is finite for any finite logits.
    """
    right, rest, runner_up = _tails(logits, labels, beta)
    gap = -_quantile(tf.stop_gradient(rest)) - _quantile(tf.stop_gradient(runner_up))
    # Select before inverting, and again after: where an image is wrong or saturated, Phi^-1 has
    # an infinite slope, and 0 x inf would reach the tape from under a single select.
    active = right & (gap < gamma)
    half = tf.fill(tf.shape(rest), tf.constant(0.5, rest.dtype))
    gap = -_quantile(tf.where(active, rest, half)) - _quantile(tf.where(active, runner_up, half))
    return sigma / 2 * tf.reduce_mean(tf.where(active, gamma - gap, tf.zeros_like(gap)))


def soft_radius(logits: tf.Tensor, labels: tf.Tensor, *, sigma: float, beta: float) -> tf.Tensor:
    """Soft certified radius sigma / 2 x xi of each image; 0 where the class is wrong.

    Equation 16 of Zhai et al. with expectations replaced by means over the copies: an estimate
    to watch in training, not a certificate.

    Args:
      logits: `[B, k, K]`.
      labels: int `[B]`.
      sigma: scale of the noise.
      beta: inverse temperature.

    Returns:
      `[B]`, 0 or more; infinite where all copies are saturated.
    """
    right, rest, runner_up = _tails(logits, labels, beta)
    gap = -_quantile(rest) - _quantile(runner_up)
    return tf.where(right, sigma / 2 * gap, tf.zeros_like(gap))


def _tails(
    logits: tf.Tensor, labels: tf.Tensor, beta: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Whether argmax q = y (bool `[B]`), 1 - q_y and max_{c != y} q_c (both `[B]`).

    1 - q_y is summed from the other classes rather than subtracted, and Phi^-1(q_y) taken as
    -Phi^-1(1 - q_y), so that the tail keeps its full relative precision as q_y nears 1.
    """
    log_q = smoothed_log_probabilities(logits, beta)
    truth = tf.one_hot(labels, tf.shape(log_q)[-1], on_value=True, off_value=False)
    others = tf.where(truth, tf.constant(log_q.dtype.min, log_q.dtype), log_q)
    right = tf.argmax(log_q, axis=-1) == tf.cast(labels, tf.int64)
    rest = tf.exp(tf.reduce_logsumexp(others, axis=-1))
    return right, rest, tf.exp(tf.reduce_max(others, axis=-1))


def _quantile(p: tf.Tensor) -> tf.Tensor:
    """Phi^-1 in the precision of `p`; -inf at 0."""
    zero = tf.zeros((), p.dtype)
    return tfp.distributions.Normal(zero, tf.ones_like(zero)).quantile(p)


def _at_least_float32(logits: tf.Tensor) -> tf.Tensor:
    return logits if logits.dtype == tf.float64 else tf.cast(logits, tf.float32)


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Cross-entropy under noise (Cohen et al., ICML 2019), averaged over the copies."""

    num_noise: ClassVar[int] = 1

    def views(self, network: Network, batch: Batch) -> tf.Tensor:
        """The noisy copies."""
        return noisy_views(batch)

    def losses(self, logits: tf.Tensor, batch: Batch) -> Losses:
        """Classification only."""
        classification = cross_entropy(logits, batch.labels)
        return Losses(classification, tf.zeros_like(classification), logits)

    def weight(self, step: tf.Tensor) -> tf.Tensor:
        """No robustness term."""
        return tf.zeros(())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Macer:
    """MACER (Zhai et al., ICLR 2020, Algorithm 1).

    Attributes:
      sigma: scale of the noise; > 0.
      weight: lambda as a schedule of the step.
      gamma: hinge on xi; > 0.
      beta: inverse temperature of the robustness term (the classification term's is 1); > 0.
    """

    num_noise: ClassVar[int] = 16

    sigma: float
    weight: Schedule = constant(12.0)
    gamma: float = 8.0
    beta: float = 16.0

    def views(self, network: Network, batch: Batch) -> tf.Tensor:
        """The noisy copies."""
        return noisy_views(batch)

    def losses(self, logits: tf.Tensor, batch: Batch) -> Losses:
        """Equation 17."""
        classification = smoothed_cross_entropy(logits, batch.labels)
        robustness = macer_robustness(
            logits, batch.labels, sigma=self.sigma, gamma=self.gamma, beta=self.beta
        )
        return Losses(classification, self.weight(batch.step) * robustness, logits)


OBJECTIVES: dict[str, Any] = {"gaussian": Gaussian, "macer": Macer}
