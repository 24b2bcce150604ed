"""The soft-smoothed classifier: the mean, over noisy copies of an image, of the softmax.

Attacks climb its loss and training minimises it. Everything is computed in log space and float64.
"""

import tensorflow as tf


def smoothed_log_probabilities(logits: tf.Tensor, beta: float = 1.0) -> tf.Tensor:
    """Logarithm of the mean over the copies of softmax(beta F), computed in log space.

    Args:
      logits: `[B, k, K]`.
      beta: inverse temperature; > 0.

    Returns:
      float64 `[B, K]`, finite wherever the logits are.
    """
    log_p = tf.nn.log_softmax(beta * tf.cast(logits, tf.float64))
    copies = tf.cast(tf.shape(logits)[1], log_p.dtype)
    return tf.reduce_logsumexp(log_p, axis=1) - tf.math.log(copies)


def smoothed_log_odds(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Logarithm of (1 - p) / p, for p the mean over the copies of the softmax at the true class.

    It grows with the cross-entropy -log p, and its gradient has the same direction but does not
    vanish as p nears 1: 1 - p is summed from the other classes.

    Args:
      logits: `[B, k, K]`, K >= 2.
      labels: int `[B]`.

    Returns:
      float64 `[B]`, finite wherever the logits are.
    """
    log_p = smoothed_log_probabilities(logits)
    rest = tf.reduce_logsumexp(other_classes(log_p, labels), axis=-1)
    return rest - tf.gather(log_p, labels, batch_dims=1)


def other_classes(log_p: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Logarithms of the probabilities `[B, K]`, that of the true class as good as -inf."""
    truth = tf.one_hot(labels, tf.shape(log_p)[-1], on_value=True, off_value=False)
    return tf.where(truth, tf.constant(log_p.dtype.min, log_p.dtype), log_p)
