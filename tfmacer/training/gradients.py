"""The gradient of a step on one replica, with all noisy copies in memory or a few at a time."""

from typing import TYPE_CHECKING, NamedTuple

import tensorflow as tf

from tfmacer.common.errors import UserError
from tfmacer.training.inputs import Examples
from tfmacer.training.objective import Batch, Losses
from tfmacer.training.optimizer import SGD

if TYPE_CHECKING:
    from tfmacer.training.trainer import SmoothedTrainer

# Name of training's stream of noise.
TRAIN = "train"


class Gradients(NamedTuple):
    """What one replica computes of a step.

    Attributes:
      gradients: of the loss, times the scale asked for; one for each trainable variable.
      loss: scalar, weighted mean over this replica's images and the network's own regularisation.
      losses: the objective's.
    """

    gradients: list[tf.Tensor]
    loss: tf.Tensor
    losses: Losses


def at_once(
    trainer: "SmoothedTrainer", examples: Examples, step: tf.Tensor, scale: tf.Tensor
) -> Gradients:
    """Loss of a batch and `scale` times its gradient, with all views in memory."""
    batch = trainer.draw(examples.images, examples.labels, TRAIN, step)
    views = trainer.objective.views(trainer.call, batch)
    with tf.GradientTape() as tape:
        logits, penalties = zip(*(_pass(trainer, group) for group in views), strict=True)
        losses = trainer.objective.losses(tf.concat(logits, axis=1), batch)
        loss = weighted_mean(losses.classification + losses.robustness, examples.weights)
        loss += tf.add_n(penalties) / len(views)
        scaled = scale * loss
    return Gradients(_gradients(trainer, tape, scaled), loss, losses)


def by_chunks(
    trainer: "SmoothedTrainer", examples: Examples, step: tf.Tensor, scale: tf.Tensor
) -> Gradients:
    """The same in memory that does not grow with the number of copies, by two passes.

    The loss is not a sum over copies, so a part of them has no gradient of its own. The first pass
    computes all logits, and with them the loss and its gradient in each; the second carries those
    gradients back, chunk by chunk. Batch statistics are each chunk's.
    """
    seeds, objective_seed = trainer.noise.seeds(TRAIN, step, trainer.num_noise)
    seeds = tf.reshape(seeds, [-1, trainer.noise_chunk, 2])
    images, labels = examples.images, examples.labels
    batch = Batch(images, labels, None, tf.cast(step, tf.int64), objective_seed)
    logits = _first_pass(trainer, batch, seeds)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = trainer.objective.losses(logits, batch)
        loss = weighted_mean(losses.classification + losses.robustness, examples.weights)
        scaled = scale * loss
    of_logits = tape.gradient(scaled, logits)
    gradients, penalty = _second_pass(trainer, batch, seeds, of_logits, scale)
    return Gradients(gradients, loss + penalty, losses)


def apply(
    trainer: "SmoothedTrainer", gradients: list[tf.Tensor], scale: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor | float]:
    """Clips and applies gradients that were multiplied by `scale`.

    Returns:
      Their global norm before clipping, and its weight in the epoch's mean.
    """
    weight: tf.Tensor | float = 1.0
    if trainer.loss_scale is not None:
        gradients, weight = trainer.loss_scale.unscale(gradients, scale)
    norm = tf.linalg.global_norm(gradients)
    if trainer.clip_norm is not None:
        gradients, _ = tf.clip_by_global_norm(gradients, trainer.clip_norm, use_norm=norm)
    replicas = trainer.distribute_strategy.num_replicas_in_sync
    if replicas > 1 and not isinstance(trainer.optimizer, SGD):
        # Summed over replicas already, for the norm of the whole; Keras' own sum once more.
        gradients = [gradient / replicas for gradient in gradients]
    trainer.optimizer.apply(gradients, trainer.network.trainable_variables)
    return norm, weight


def weighted_mean(losses: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """The loss of a batch whose images have losses `[B]` and weights `[B]`."""
    return tf.reduce_mean(losses * weights)


def _first_pass(trainer: "SmoothedTrainer", batch: Batch, seeds: tf.Tensor) -> tf.Tensor:
    """Logits `[B, k, K]` of all copies, chunk by chunk."""
    # What a forward pass leaves behind (moving statistics, seeds of dropout) is put back, so that
    # the second pass repeats the first and the step counts once.
    state = trainer.network.non_trainable_variables
    before = [tf.identity(variable) for variable in state]
    parts = tf.map_fn(
        lambda chunk: trainer.logits(_chunk(trainer, batch, chunk), training=True),
        seeds,
        parallel_iterations=1,
        fn_output_signature=tf.float32,
    )
    for variable, value in zip(state, before, strict=True):
        variable.assign(value)
    chunked = tf.transpose(parts, [1, 0, 2, 3])
    return tf.reshape(chunked, [tf.shape(batch.images)[0], trainer.num_noise, parts.shape[-1]])


def _second_pass(
    trainer: "SmoothedTrainer",
    batch: Batch,
    seeds: tf.Tensor,
    of_logits: tf.Tensor,
    scale: tf.Tensor,
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Gradients from those in the logits `[B, k, K]`, and the mean of the penalties."""
    variables = trainer.network.trainable_variables
    chunks, size = seeds.shape[0], tf.shape(of_logits)[0]
    # Row by row of chunks: XLA cannot take a range of copies that depends on i.
    of_logits = tf.reshape(of_logits, [size, chunks, trainer.noise_chunk, of_logits.shape[-1]])
    of_logits = tf.transpose(of_logits, [1, 0, 2, 3])

    def body(i: tf.Tensor, penalties: tf.Tensor, *sums: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.GradientTape() as tape:
            logits, penalty = _pass(trainer, _chunk(trainer, batch, seeds[i]))
            penalty /= chunks
            carried = tf.reduce_sum(logits * of_logits[i])
            carried += scale * penalty
        parts = _gradients(trainer, tape, carried)
        added = [total + part for total, part in zip(sums, parts, strict=True)]
        return (i + 1, penalties + penalty, *added)

    start = (tf.constant(0), tf.zeros(()), *(tf.zeros(v.shape) for v in variables))
    _, penalty, *gradients = tf.while_loop(
        lambda i, *_: i < chunks, body, start, parallel_iterations=1
    )
    return gradients, penalty


def _chunk(trainer: "SmoothedTrainer", batch: Batch, seeds: tf.Tensor) -> tf.Tensor:
    """The views of the copies of these seeds."""
    drawn = batch._replace(noise=trainer.noise.copies(batch.images, seeds))
    (views,) = trainer.objective.views(trainer.call, drawn)
    return views


def _pass(trainer: "SmoothedTrainer", views: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """One forward pass in training: logits `[B, v, K]`, and the network's regularisation."""
    logits = trainer.logits(views, training=True)
    return logits, tf.add_n([*trainer.network.losses, tf.zeros(())])


def _gradients(
    trainer: "SmoothedTrainer", tape: tf.GradientTape, target: tf.Tensor
) -> list[tf.Tensor]:
    if not trainer.network.trainable_variables:
        raise UserError(f"the network {trainer.network.name!r} has no trainable weights")
    return tape.gradient(
        target,
        trainer.network.trainable_variables,
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
