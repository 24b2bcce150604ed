"""What is minimised: losses of the logits under noise, and the objectives composed of them.

The losses are pure functions of logits `[B, k, K]` (image, noisy copy, class) and labels `[B]`.
They compute in float64, which costs nothing beside the network: many of their derivatives are
small differences of large terms. An objective is a small object that says which views of a batch
the network must see (`views`) and what their logits cost (`losses`); it is handed the network and
never owns one. A new objective is one class here and one line in `OBJECTIVES`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol

import tensorflow as tf
import tensorflow_probability as tfp

from tfmacer.training.schedules import Schedule

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

    def weight_at(self, step: tf.Tensor) -> tf.Tensor:
        """Weight of the robustness term (lambda) after `step` steps."""
        ...


def noisy_views(batch: Batch) -> tf.Tensor:
    """Row b, copy j: image b under its j-th noise. `[B, k, H, W, C]`."""
    shape = tf.shape(batch.noise)
    # tf.repeat along the batch axis: tiling another axis and reshaping scrambles the pixels.
    copies = tf.reshape(tf.repeat(batch.images, shape[1], axis=0), shape)
    return tf.ensure_shape(copies + batch.noise, [None, None, *batch.images.shape[1:]])


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """-log softmax(F)_y, mean over copies and images (Cohen et al., ICML 2019).

    Args:
      logits: `[B, k, K]`.
      labels: int `[B]`.

    Returns:
      Scalar.
    """
    log_p = tf.reduce_mean(tf.nn.log_softmax(_double(logits)), axis=1)
    return _like(logits, -tf.reduce_mean(tf.gather(log_p, labels, batch_dims=1)))


def smoothed_log_probabilities(logits: tf.Tensor, beta: float = 1.0) -> tf.Tensor:
    """Logarithm of the mean over the copies of softmax(beta F), computed in log space.

    Args:
      logits: `[B, k, K]`.
      beta: inverse temperature; > 0.

    Returns:
      float64 `[B, K]`, finite wherever the logits are.
    """
    log_p = tf.nn.log_softmax(beta * _double(logits))
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
    return _like(logits, -tf.reduce_mean(tf.gather(log_p, labels, batch_dims=1)))


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
    hinge = tf.where(active, gamma - gap, tf.zeros_like(gap))
    return _like(logits, sigma / 2 * tf.reduce_mean(hinge))


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
    return _like(logits, tf.where(right, sigma / 2 * gap, tf.zeros_like(gap)))


def stability(clean_logits: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of the noisy predictions to the clean one, mean over copies and images.

    Equation 9 of Jeong and Shin (NeurIPS 2020), after Li et al. (NeurIPS 2019). The clean
    prediction is not detached, as in the former's code: both sides are drawn together.

    Args:
      clean_logits: `[B, 1, K]`, without noise.
      logits: `[B, k, K]`.

    Returns:
      Scalar.
    """
    target = tf.nn.softmax(_double(clean_logits))
    cross = -tf.reduce_sum(target * tf.nn.log_softmax(_double(logits)), axis=-1)
    return _like(logits, tf.reduce_mean(cross))


def consistency_divergence(logits: tf.Tensor) -> tf.Tensor:
    """Mean over the copies of KL(mean prediction || prediction), mean over images.

    The first term of equation 7 of Jeong and Shin (NeurIPS 2020) without its weight. The mean
    prediction is not detached. 0 with one copy.

    Args:
      logits: `[B, k, K]`.

    Returns:
      Scalar.
    """
    log_mean = smoothed_log_probabilities(logits)
    gaps = log_mean - tf.reduce_mean(tf.nn.log_softmax(_double(logits)), axis=1)
    return _like(logits, tf.reduce_mean(tf.reduce_sum(tf.exp(log_mean) * gaps, axis=-1)))


def prediction_entropy(logits: tf.Tensor) -> tf.Tensor:
    """Entropy of the mean prediction, mean over images: the second term of the same equation.

    Args:
      logits: `[B, k, K]`.

    Returns:
      Scalar, in nats.
    """
    log_mean = smoothed_log_probabilities(logits)
    return _like(logits, -tf.reduce_mean(tf.reduce_sum(tf.exp(log_mean) * log_mean, axis=-1)))


def consistency_distance(logits: tf.Tensor) -> tf.Tensor:
    """Squared distance of the predictions of two copies, mean over pairs of them and images.

    The MSE form of equation 13 of Jeong and Shin (NeurIPS 2020), which has two copies; with more,
    all pairs have the same expectation. 0 with one copy.

    Args:
      logits: `[B, k, K]`.

    Returns:
      Scalar.
    """
    p = tf.nn.softmax(_double(logits))
    deviations = tf.reduce_sum((p - tf.reduce_mean(p, axis=1, keepdims=True)) ** 2, axis=[1, 2])
    others = tf.cast(tf.maximum(tf.shape(logits)[1] - 1, 1), tf.float64)
    return _like(logits, tf.reduce_mean(2 * deviations / others))


def _tails(
    logits: tf.Tensor, labels: tf.Tensor, beta: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Whether argmax q = y (bool `[B]`), 1 - q_y and max_{c != y} q_c (both `[B]`).

    1 - q_y is summed from the other classes rather than subtracted, and Phi^-1(q_y) taken as
    -Phi^-1(1 - q_y): as q_y nears 1, the tail keeps its full relative precision.
    """
    log_q = smoothed_log_probabilities(logits, beta)
    truth = tf.one_hot(labels, tf.shape(log_q)[-1], on_value=True, off_value=False)
    others = tf.where(truth, tf.constant(log_q.dtype.min, log_q.dtype), log_q)
    right = tf.argmax(log_q, axis=-1) == tf.cast(labels, tf.int64)
    rest = tf.exp(tf.reduce_logsumexp(others, axis=-1))
    return right, rest, tf.exp(tf.reduce_max(others, axis=-1))


def _quantile(p: tf.Tensor) -> tf.Tensor:
    """Phi^-1 of float64; -inf at 0."""
    zero = tf.zeros((), tf.float64)
    return tfp.distributions.Normal(zero, tf.ones_like(zero)).quantile(p)


def _double(logits: tf.Tensor) -> tf.Tensor:
    return tf.cast(logits, tf.float64)


def _like(logits: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    """A result in the precision of the logits, float32 at least."""
    return value if logits.dtype == tf.float64 else tf.cast(value, tf.float32)


class _OnNoise:
    """What the objectives share that see nothing but the noisy copies."""

    def views(self, network: Network, batch: Batch) -> tf.Tensor:
        """The noisy copies."""
        return noisy_views(batch)


class _Weighted:
    """What the objectives share that have a weight."""

    weight: float | Schedule

    def weight_at(self, step: tf.Tensor) -> tf.Tensor:
        """See `Objective.weight_at`."""
        return self.weight(step) if callable(self.weight) else tf.constant(self.weight)


@dataclasses.dataclass(frozen=True)
class Gaussian(_OnNoise):
    """Cross-entropy under noise (Cohen et al., ICML 2019), averaged over the copies."""

    num_noise: ClassVar[int] = 1

    def losses(self, logits: tf.Tensor, batch: Batch) -> Losses:
        """Classification only."""
        classification = cross_entropy(logits, batch.labels)
        return Losses(classification, tf.zeros_like(classification), logits)

    def weight_at(self, step: tf.Tensor) -> tf.Tensor:
        """No robustness term."""
        return tf.zeros(())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Macer(_OnNoise, _Weighted):
    """MACER (Zhai et al., ICLR 2020, Algorithm 1).

    Attributes:
      sigma: scale of the noise; > 0.
      weight: lambda; a number, 0 or more, or a schedule of the step.
      gamma: hinge on xi; > 0.
      beta: inverse temperature of the robustness term (the classification term's is 1); > 0.
    """

    num_noise: ClassVar[int] = 16

    sigma: float
    weight: float | Schedule = 12.0
    gamma: float = 8.0
    beta: float = 16.0

    def losses(self, logits: tf.Tensor, batch: Batch) -> Losses:
        """Equation 17."""
        classification = smoothed_cross_entropy(logits, batch.labels)
        robustness = macer_robustness(
            logits, batch.labels, sigma=self.sigma, gamma=self.gamma, beta=self.beta
        )
        return Losses(classification, self.weight_at(batch.step) * robustness, logits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stability(_Weighted):
    """Stability training (Li et al., NeurIPS 2019) as Jeong and Shin's code runs it.

    The clean image and its noisy copies pass through the network as one batch, so that batch
    statistics are of both together.

    Attributes:
      weight: lambda; a number, 0 or more, or a schedule of the step.
    """

    num_noise: ClassVar[int] = 1

    weight: float | Schedule = 2.0

    def views(self, network: Network, batch: Batch) -> tf.Tensor:
        """The clean image first, then its noisy copies."""
        return tf.concat([batch.images[:, tf.newaxis], noisy_views(batch)], axis=1)

    def losses(self, logits: tf.Tensor, batch: Batch) -> Losses:
        """Cross-entropy of the clean image, and `stability`."""
        clean, noisy = logits[:, :1], logits[:, 1:]
        robustness = self.weight_at(batch.step) * stability(clean, noisy)
        return Losses(cross_entropy(clean, batch.labels), robustness, noisy)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consistency(_OnNoise, _Weighted):
    """Consistency regularisation of Gaussian training (Jeong and Shin, NeurIPS 2020).

    Attributes:
      weight: lambda; a number, 0 or more, or a schedule of the step.
      eta: weight of the entropy, which only the default form has; 0 or more.
      form: `default`: equation 7, which their supplementary Table 4 calls cross-entropy;
        `kl` and `mse`: equation 13.
    """

    num_noise: ClassVar[int] = 2

    weight: float | Schedule = 10.0
    eta: float = 0.5
    form: str = "default"

    def losses(self, logits: tf.Tensor, batch: Batch) -> Losses:
        """Cross-entropy under noise, and the regularisation."""
        distance = consistency_distance if self.form == "mse" else consistency_divergence
        robustness = self.weight_at(batch.step) * distance(logits)
        if self.form == "default":
            robustness += self.eta * prediction_entropy(logits)
        return Losses(cross_entropy(logits, batch.labels), robustness, logits)


OBJECTIVES: dict[str, Any] = {
    "gaussian": Gaussian,
    "macer": Macer,
    "stability": Stability,
    "consistency": Consistency,
}
