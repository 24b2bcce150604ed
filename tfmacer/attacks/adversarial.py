"""Attacks on the soft-smoothed classifier, to train on what they find or to test certificates.

For k given noises the soft-smoothed classifier of an image is the mean over them of
softmax(F(image + noise)); every attack climbs its cross-entropy, -log of that mean at the true
class, with the same k noises at every step (Salman et al., "Provably Robust Deep Learning via
Adversarially Trained Smoothed Classifiers", NeurIPS 2019; equation 4 of the supplementary
material of Jeong and Shin, NeurIPS 2020).

They are pure functions that share these arguments:

  network: noisy images `[N, H, W, C]` to logits `[N, K]`. In inference mode: each row's gradient is
    then its own, and no moving statistic is touched.
  images: float32 `[B, H, W, C]` in [0, 1].
  labels: int `[B]`.
  noise: float32 `[B, k, H, W, C]`.
  epsilon: bound on the norm of the change, l2 unless `norm` says otherwise, in units of pixels in
    [0, 1]; a scalar, 0 or more.
  steps: forward and backward passes of the k copies; a Python integer.
  seed: int64 `[2]`, of the directions taken where the gradient is 0.
  clip: whether pixels stay in [0, 1], as those of real images do; certificates cover all.

They return images `[B, H, W, C]` through which no gradient flows.
"""

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfmacer.attacks.soft_classifier import smoothed_log_odds

Network = Callable[[tf.Tensor], tf.Tensor]


def pgd(
    network: Network,
    images: tf.Tensor,
    labels: tf.Tensor,
    noise: tf.Tensor,
    *,
    epsilon: tf.Tensor | float,
    steps: int,
    seed: tf.Tensor,
    clip: bool = True,
    norm: str = "l2",
    clip_first: bool = False,
    damped: bool = False,
) -> tf.Tensor:
    """Projected gradient descent: `steps` steps of length 2 epsilon / steps, projected after each.

    Salman et al.'s first attack. In their code steps are of full length and pixels are clipped
    before the change is projected; in Jeong and Shin's steps are damped, and pixels are clipped
    after it. In the l-infinity norm steps are along the gradient's signs (Madry et al., ICLR 2018);
    there, too, their length lets a pixel cross the whole ball.

    `norm`: `l2` or `linf`, that of epsilon; the other options are for l2.
    `clip_first`: whether pixels are clipped before the change is projected, not after it.
    `damped`: the gradient of the cross-entropy, averaged over the images, is divided by its
    norm + 1e-8; where the classifier is so sure that the gradient is of that size, steps are
    short. Full steps there follow a gradient that the authors' code loses to rounding.
    """
    epsilon = tf.cast(epsilon, images.dtype)

    def step(i: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor]:
        _, gradient, factor = _input_gradient(network, x, labels, noise)
        if norm == "linf":
            x += 2 * epsilon / steps * tf.sign(_unit(gradient, seed, i))
            return (_in_range(tf.clip_by_value(x, images - epsilon, images + epsilon), clip),)
        factor /= tf.cast(tf.shape(x)[0], x.dtype)
        direction = _damped(gradient, factor) if damped else _unit(gradient, seed, i)
        x += 2 * epsilon / steps * direction
        if clip_first:
            x = _in_range(x, clip)
        return (project(x, images, epsilon, clip=clip and not clip_first),)

    return tf.stop_gradient(_repeat(step, steps, images)[0])


def ddn(
    network: Network,
    images: tf.Tensor,
    labels: tf.Tensor,
    noise: tf.Tensor,
    *,
    epsilon: tf.Tensor | float,
    steps: int,
    seed: tf.Tensor,
    gamma: float = 0.05,
    levels: int | None = 256,
    clip: bool = True,
) -> tf.Tensor:
    """Decoupled direction and norm: the closest image that is misclassified, within epsilon.

    Rony et al. (CVPR 2019, Algorithm 1), as Salman et al. run it on the smoothed classifier. Each
    step turns the change of an image along the gradient and sets its norm: smaller by the share
    `gamma` where the majority of the copies is wrong already, larger where it is not; then rounds
    the pixels to `levels` values, those of 8-bit images (None: not at all). The smallest change
    that fooled the majority is kept, and last projected.

    As in the latter's training code, the norm starts at epsilon, an image that was never fooled
    stays as it is, and the point after the last step is not looked at. That code rounds once more
    after the projection, which leaves the ball by up to sqrt(d) / 510; this does not.
    """
    epsilon = tf.cast(epsilon, images.dtype)
    farthest = _norm(tf.maximum(images, 1 - images))
    if not clip:
        farthest = tf.fill(tf.shape(farthest), tf.as_dtype(images.dtype).max)

    def step(i: tf.Tensor, x: tf.Tensor, norm: tf.Tensor, best: tf.Tensor, least: tf.Tensor) -> Any:
        logits, gradient, _ = _input_gradient(network, x, labels, noise)
        fooled = tf.reshape(_majority(logits) != tf.cast(labels, tf.int64), tf.shape(norm))
        change = x - images
        better = fooled & (_norm(change) < least)
        best, least = tf.where(better, x, best), tf.where(better, _norm(change), least)
        change_of_norm = 1 + gamma * tf.where(fooled, -tf.ones_like(norm), tf.ones_like(norm))
        norm = tf.minimum(norm * change_of_norm, farthest)
        # From 1 down to 0.01, which the last step has: the code takes its rate before each step.
        rate = 0.01 + 0.99 * (1 + tf.cos(math.pi / steps * tf.cast(i + 1, x.dtype))) / 2
        x = images + norm * _unit(change + rate * _unit(gradient, seed, i), seed, i)
        x = x if levels is None else tf.round(x * (levels - 1)) / (levels - 1)
        return _in_range(x, clip), norm, best, least

    start = (images, epsilon * tf.ones_like(farthest), images, farthest)
    best = _repeat(step, steps, *start)[2]
    return tf.stop_gradient(project(best, images, epsilon, clip=clip))


def ascend(
    network: Network,
    images: tf.Tensor,
    labels: tf.Tensor,
    noise: tf.Tensor,
    *,
    step_size: float,
    steps: int,
) -> tf.Tensor:
    """Steps of length `step_size` along the gradient, within [0, 1] and however far they lead.

    SmoothMix's search for an adversary (Jeong et al., NeurIPS 2021, Algorithm 1). As in their code,
    the gradient of each cross-entropy is divided by its norm + 1e-8, so that steps of an image of
    which the classifier is sure are short.
    """

    def step(i: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor]:
        _, gradient, factor = _input_gradient(network, x, labels, noise)
        return (_in_range(x + step_size * _damped(gradient, factor), clip=True),)

    return tf.stop_gradient(_repeat(step, steps, images)[0])


def project(x: tf.Tensor, images: tf.Tensor, epsilon: tf.Tensor, *, clip: bool = True) -> tf.Tensor:
    """`x` brought back to within `epsilon` of the images, and then, to clip, into [0, 1].

    The second leaves the ball no more: the images are in [0, 1], so every pixel nears its own.
    """
    change = x - images
    change *= tf.math.divide_no_nan(epsilon, tf.maximum(_norm(change), epsilon))
    return _in_range(images + change, clip)


def _in_range(x: tf.Tensor, clip: bool) -> tf.Tensor:
    return tf.clip_by_value(x, 0.0, 1.0) if clip else x


def _repeat(step: Callable[..., Any], steps: int, *state: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """`state = step(i, *state)`, `steps` times; a loop in the graph, which it keeps small."""

    def body(i: tf.Tensor, *state: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return (i + 1, *step(i, *state))

    start = tuple(tf.convert_to_tensor(value) for value in (0, *state))
    _, *end = tf.while_loop(lambda i, *_: i < steps, body, start)
    return tuple(end)


def _input_gradient(
    network: Network, x: tf.Tensor, labels: tf.Tensor, noise: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Logits `[B, k, K]` of x under noise, a gradient in x and the factor to the cross-entropy's.

    The gradient is that of the log-odds of 1 - p, which has the cross-entropy's direction: the
    cross-entropy's own, 1 - p times it, is lost to rounding where an image is sure. The factors
    `[B, 1, 1, 1]` are 1 - p, and 0 where p is below 1e-20: the code takes p for 1e-20 there.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        views = x[:, tf.newaxis] + noise
        logits = network(tf.reshape(views, [-1, *x.shape[1:]]))
        logits = tf.reshape(logits, [*tf.unstack(tf.shape(noise)[:2]), logits.shape[-1]])
        odds = smoothed_log_odds(logits, labels)
        total = tf.reduce_sum(odds)
    factor = tf.where(odds > -math.log(1e-20), tf.zeros_like(odds), tf.sigmoid(odds))
    factor = tf.reshape(tf.cast(factor, x.dtype), [-1] + [1] * (len(x.shape) - 1))
    return logits, tape.gradient(total, x), factor


def _majority(logits: tf.Tensor) -> tf.Tensor:
    """The class that most copies of an image are given, int64 `[B]`; the lowest of equals."""
    votes = tf.one_hot(tf.argmax(logits, axis=-1), logits.shape[-1])
    return tf.argmax(tf.reduce_sum(votes, axis=1), axis=-1)


def _unit(gradient: tf.Tensor, seed: tf.Tensor, i: tf.Tensor) -> tf.Tensor:
    """The direction of each image's gradient, of norm 1; a random one where it is 0."""
    seed = tf.random.experimental.stateless_fold_in(seed, tf.cast(i, tf.int64), alg="philox")
    shape, dtype = tf.shape(gradient), gradient.dtype
    random = tf.random.stateless_normal(shape, seed, dtype=dtype, alg="philox")
    gradient = tf.where(_norm(gradient) > 0, gradient, random)
    return gradient / _norm(gradient)


def _damped(gradient: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """`factor` times each image's gradient, divided by its norm + 1e-8: of norm 1 or less."""
    norm = _norm(gradient)
    return gradient * tf.math.divide_no_nan(factor, factor * norm + 1e-8)


def _norm(x: tf.Tensor) -> tf.Tensor:
    """l2 norm of each image, `[B, 1, 1, 1]`."""
    return tf.sqrt(tf.reduce_sum(x * x, axis=list(range(1, len(x.shape))), keepdims=True))
