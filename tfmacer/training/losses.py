"""Losses of logits under noise: pure functions of logits `[B, k, K]` and labels `[B]`.

The axes are image, noisy copy and class; each function returns `[B]`, the loss of every image.
Everything is computed in float64, whose cost is negligible next to the network: many of the
derivatives are small differences of large terms.
"""

import tensorflow as tf
import tensorflow_probability as tfp

from tfmacer.attacks.soft_classifier import other_classes, smoothed_log_probabilities


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """-log softmax(F)_y, mean over the copies (Cohen et al., ICML 2019).

    Args:
      logits: `[B, k, K]`.
      labels: int `[B]`.

    Returns:
      `[B]`.
    """
    log_p = tf.reduce_mean(tf.nn.log_softmax(_double(logits)), axis=1)
    return _like(logits, -tf.gather(log_p, labels, batch_dims=1))


def smoothed_cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """MACER's classification term: -log of the mean softmax at the true class.

    Equation 17 of Zhai et al. (ICLR 2020), at inverse temperature 1. With one copy it equals
    `cross_entropy`; with more it is below it (Jensen).

    Args:
      logits: `[B, k, K]`.
      labels: int `[B]`.

    Returns:
      `[B]`.
    """
    log_p = smoothed_log_probabilities(logits)
    return _like(logits, -tf.gather(log_p, labels, batch_dims=1))


def macer_robustness(
    logits: tf.Tensor, labels: tf.Tensor, *, sigma: float, gamma: float, beta: float
) -> tf.Tensor:
    """MACER's robustness term without its weight: the hinge on the soft certified radius.

    Equation 17 of Zhai et al. (ICLR 2020): sigma / 2 x max(gamma - xi, 0) where the
    soft-smoothed classifier has the image right, else 0, with
    xi = Phi^-1(q_y) - Phi^-1(max_{c != y} q_c) and q is the mean over copies of softmax(beta F).

    Args:
      logits: `[B, k, K]`, K >= 2.
      labels: int `[B]`.
      sigma: scale of the noise; > 0.
      gamma: hinge: images with xi >= gamma cost nothing; > 0.
      beta: inverse temperature; > 0.

    Returns:
      `[B]`; its gradient is finite for any finite logits.
    """
    right, rest, runner_up = _tails(logits, labels, beta)
    gap = -_quantile(tf.stop_gradient(rest)) - _quantile(tf.stop_gradient(runner_up))
    # Select before inverting, and again after: where an image is wrong or saturated, Phi^-1 has
    # an infinite derivative, and with a single select 0 x inf would reach the tape.
    active = right & (gap < gamma)
    half = tf.fill(tf.shape(rest), tf.constant(0.5, rest.dtype))
    gap = -_quantile(tf.where(active, rest, half)) - _quantile(tf.where(active, runner_up, half))
    hinge = tf.where(active, gamma - gap, tf.zeros_like(gap))
    return _like(logits, sigma / 2 * hinge)


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
    """Cross-entropy of the noisy predictions to the clean one, mean over the copies.

    Equation 9 of Jeong and Shin (NeurIPS 2020), after Li et al. (NeurIPS 2019). The clean
    prediction is not detached, as in the former's code: both sides are drawn together.

    Args:
      clean_logits: `[B, 1, K]`, without noise.
      logits: `[B, k, K]`.

    Returns:
      `[B]`.
    """
    target = tf.nn.softmax(_double(clean_logits))
    cross = -tf.reduce_sum(target * tf.nn.log_softmax(_double(logits)), axis=-1)
    return _like(logits, tf.reduce_mean(cross, axis=1))


def consistency_divergence(logits: tf.Tensor) -> tf.Tensor:
    """Mean over the copies of KL(mean prediction || prediction).

    The first term of equation 7 of Jeong and Shin (NeurIPS 2020) without its weight. The mean
    prediction is not detached. 0 with one copy.

    Args:
      logits: `[B, k, K]`.

    Returns:
      `[B]`.
    """
    log_mean = smoothed_log_probabilities(logits)
    gaps = log_mean - tf.reduce_mean(tf.nn.log_softmax(_double(logits)), axis=1)
    return _like(logits, tf.reduce_sum(tf.exp(log_mean) * gaps, axis=-1))


def prediction_entropy(logits: tf.Tensor) -> tf.Tensor:
    """Entropy of the mean prediction: the second term of the same equation.

    Args:
      logits: `[B, k, K]`.

    Returns:
      `[B]`, in nats.
    """
    log_mean = smoothed_log_probabilities(logits)
    return _like(logits, -tf.reduce_sum(tf.exp(log_mean) * log_mean, axis=-1))


def consistency_distance(logits: tf.Tensor) -> tf.Tensor:
    """Squared distance of the predictions of two copies, mean over pairs of them.

    The MSE form of equation 13 of Jeong and Shin (NeurIPS 2020), which has two copies; with more,
    all pairs have the same expectation. 0 with one copy.

    Args:
      logits: `[B, k, K]`.

    Returns:
      `[B]`.
    """
    p = tf.nn.softmax(_double(logits))
    deviations = tf.reduce_sum((p - tf.reduce_mean(p, axis=1, keepdims=True)) ** 2, axis=[1, 2])
    others = tf.cast(tf.maximum(tf.shape(logits)[1] - 1, 1), tf.float64)
    return _like(logits, 2 * deviations / others)


def mixed_divergence(
    logits: tf.Tensor, mixed_logits: tf.Tensor, labels: tf.Tensor, share: tf.Tensor
) -> tf.Tensor:
    """SmoothMix's robustness term without its weight.

    Algorithm 1 of Jeong et al., "SmoothMix" (NeurIPS 2021): the mean over the copies of
    KL(t || prediction of the mixed image), where t = (1 - u) x mean prediction + u x uniform, for
    images whose mean prediction is right; 0 for others. As in their code, the mean prediction is
    not detached.

    Args:
      logits: `[B, k, K]`, of the images.
      mixed_logits: `[B, k, K]`, of (1 - u) x image + u x adversary, under the same noise.
      labels: int `[B]`.
      share: u, `[B]`, in [0, 1).

    Returns:
      `[B]`.
    """
    log_p = smoothed_log_probabilities(logits)
    share = _double(share)[:, tf.newaxis]
    uniform = tf.math.log(share / tf.cast(tf.shape(logits)[2], share.dtype))
    parts = [tf.math.log1p(-share) + log_p, tf.broadcast_to(uniform, tf.shape(log_p))]
    log_target = tf.reduce_logsumexp(parts, axis=0)
    gaps = log_target - tf.reduce_mean(tf.nn.log_softmax(_double(mixed_logits)), axis=1)
    divergence = tf.reduce_sum(tf.exp(log_target) * gaps, axis=-1)
    right = tf.argmax(log_p, axis=-1) == tf.cast(labels, tf.int64)
    kept = tf.where(right, divergence, tf.zeros_like(divergence))
    return _like(logits, kept)


def accuracy(logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
    """Share of the copies `[B, k, K]` whose largest logit is the label's, by weights `[B]`."""
    hits = tf.argmax(logits, axis=-1) == tf.cast(labels, tf.int64)[:, tf.newaxis]
    if weights is None:
        return tf.reduce_mean(tf.cast(hits, tf.float32))
    shares = tf.reduce_mean(tf.cast(hits, tf.float32), axis=1)
    return tf.math.divide_no_nan(tf.reduce_sum(shares * weights), tf.reduce_sum(weights))


def _tails(
    logits: tf.Tensor, labels: tf.Tensor, beta: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Whether argmax q = y (bool `[B]`), 1 - q_y and max_{c != y} q_c (both `[B]`).

    1 - q_y is summed from the other classes rather than subtracted, and Phi^-1(q_y) taken as
    -Phi^-1(1 - q_y): as q_y nears 1, the tail keeps its full relative precision.
    """
    log_q = smoothed_log_probabilities(logits, beta)
    others = other_classes(log_q, labels)
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
