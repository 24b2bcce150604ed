"""What an objective is: which views of a batch the network sees, and the losses of their logits.

An objective is handed the network and never owns one, and it may hold another objective that it
shows other images to.
"""

from typing import ClassVar, NamedTuple, Protocol, TypeAlias

import tensorflow as tf

from tfmacer.attacks.adversarial import Network
from tfmacer.training.schedules import Schedule


class Batch(NamedTuple):
    """One training batch, its noise drawn.

    Attributes:
      images: float32 `[B, H, W, C]` in [0, 1].
      labels: int `[B]`.
      noise: float32 `[B, k, H, W, C]`, to be added to the images; None for `losses` where the
        copies were drawn a few at a time.
      step: int64 scalar, steps taken so far: the schedules' argument.
      seed: int64 `[2]`, the step's own, for an objective's further random choices.
    """

    images: tf.Tensor
    labels: tf.Tensor
    noise: tf.Tensor
    step: tf.Tensor
    seed: tf.Tensor


class Losses(NamedTuple):
    """The loss of each image of a batch; the objective is the mean of the sum of the two terms.

    Attributes:
      classification: `[B]`.
      robustness: `[B]`, weighted by lambda.
      noisy_logits: `[B, k, K]`, of the views under noise, from which noisy accuracy is computed.
    """

    classification: tf.Tensor
    robustness: tf.Tensor
    noisy_logits: tf.Tensor


# Groups of views, one at least.
Views: TypeAlias = tuple[tf.Tensor, ...]


class Objective(Protocol):
    """A training objective; a subclass defines `losses`, and whatever else differs from here.

    Attributes:
      num_noise: noisy copies of each image in the papers' configurations.
      weight: of the robustness term (lambda); a number, 0 or more, or a schedule of the step.
      epsilon: bound on the attack, in units of pixels in [0, 1]; a number, 0 for no attack, or a
        schedule of the step.
    """

    num_noise: ClassVar[int]

    weight: float | Schedule = 0.0
    epsilon: float | Schedule = 0.0

    @property
    def sees_copies_only(self) -> bool:
        """Whether the views are the noisy copies in one group, each a function of its own noise.

        Then they can be shown to the network a few copies at a time.
        """
        return type(self).views is Objective.views

    def views(self, network: Network, batch: Batch) -> Views:
        """What the network must see of a batch, in groups `[B, v, H, W, C]`: the noisy copies.

        Each group is one forward pass, and batch statistics are a group's. Computed outside the
        gradient tape; `network` (noisy images `[N, H, W, C]` to logits `[N, K]`, in inference
        mode) is for objectives whose views depend on it.
        """
        return (noisy_views(batch),)

    def losses(self, logits: tf.Tensor, batch: Batch) -> Losses:
        """The losses of logits `[B, v, K]`; v counts the views of all groups, one after another."""
        ...

    def weight_at(self, step: tf.Tensor) -> tf.Tensor:
        """The weight after `step` steps."""
        return _at(self.weight, step)

    def epsilon_at(self, step: tf.Tensor) -> tf.Tensor:
        """The bound on the attack after `step` steps."""
        return _at(self.epsilon, step)


def noisy_views(batch: Batch) -> tf.Tensor:
    """Row b, copy j: image b under its j-th noise. `[B, k, H, W, C]`."""
    shape = tf.shape(batch.noise)
    # tf.repeat along the batch axis: tiling another axis and reshaping scrambles the pixels.
    copies = tf.reshape(tf.repeat(batch.images, shape[1], axis=0), shape)
    return tf.ensure_shape(copies + batch.noise, [None, None, *batch.images.shape[1:]])


def _at(value: float | Schedule, step: tf.Tensor) -> tf.Tensor:
    """A number, or a schedule's value after `step` steps."""
    return value(step) if callable(value) else tf.constant(value)
