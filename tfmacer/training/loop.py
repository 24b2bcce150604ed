"""Training that can be stopped and taken up again at any step."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfmacer.errors import UserError
from tfmacer.training.trainer import SmoothedTrainer


def checkpoints(
    trainer: SmoothedTrainer, directory: str, keep: int = 2
) -> tf.train.CheckpointManager:
    """What a run must keep to go on bit for bit, and where.

    Network, optimizer (its iteration count, from which noise, data order and schedules follow,
    among the rest) and the epoch's running means.
    """
    trainer.optimizer.build(trainer.network.trainable_variables)
    kept = {
        "network": trainer.network.variables,
        "optimizer": trainer.optimizer.variables,
        "means": [variable for metric in trainer.metrics for variable in metric.variables],
    }
    state = tf.train.Checkpoint(
        **{name: [variable.value for variable in variables] for name, variables in kept.items()}
    )
    return tf.train.CheckpointManager(state, directory, max_to_keep=keep, checkpoint_name="step")


def restore(manager: tf.train.CheckpointManager) -> bool:
    """Restores the newest checkpoint; False where there is none.

    Raises:
      UserError: it is not of this network and optimizer.
    """
    if manager.latest_checkpoint is None:
        return False
    try:
        manager.checkpoint.restore(manager.latest_checkpoint).assert_consumed()
    except (AssertionError, ValueError) as error:
        raise UserError(f"{manager.latest_checkpoint}: does not fit this run: {error}") from error
    return True


def run(
    trainer: SmoothedTrainer,
    batches: Callable[[int], Iterator[Any]],
    *,
    epochs: int,
    steps: int,
    manager: tf.train.CheckpointManager,
    checkpoint_every: int,
    held_out: tf.data.Dataset | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Trains from wherever the optimizer's iteration count stands.

    Args:
      trainer: compiled.
      batches: gives the iterator of batches from a step on.
      epochs: to train in all.
      steps: per epoch.
      manager: see `checkpoints`.
      checkpoint_every: steps between checkpoints; one more is written at the end.
      held_out: batches to evaluate on after each epoch; None for none.
      callbacks: told of epochs, of batches and of the end.
      stop: asked after every step; True saves and returns.

    Returns:
      Whether training is complete (False: stopped before).

    Raises:
      UserError: the loss or the gradient is not finite. The last checkpoint is kept.
    """
    total, step = epochs * steps, int(trainer.optimizer.iterations)
    iterator = batches(step)
    trainer.make_train_function()
    listeners = keras.callbacks.CallbackList(list(callbacks), model=trainer)
    listeners.on_train_begin()
    started = False
    while step < total and not (started and stop()):
        epoch, within = divmod(step, steps)
        if within == 0:
            trainer.reset_metrics()
        if within == 0 or not started:
            listeners.on_epoch_begin(epoch)
        started = True
        logs = trainer.train_function(iterator)
        step += 1
        _check_finite(logs, step, manager)
        listeners.on_train_batch_end(within, logs)
        if step % steps == 0:
            listeners.on_epoch_end(epoch, logs | _evaluate(trainer, held_out))
        if step % checkpoint_every == 0 or step == total or stop():
            manager.save(checkpoint_number=step)
    listeners.on_train_end()
    return step == total


def _check_finite(logs: dict[str, Any], step: int, manager: tf.train.CheckpointManager) -> None:
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(value := float(logs[name])):
            raise UserError(
                f"{name} is {value} at step {step}: stopped; last checkpoint: "
                f"{manager.latest_checkpoint}; a smaller --learning_rate or --clip_norm may help"
            )


def _evaluate(trainer: SmoothedTrainer, held_out: tf.data.Dataset | None) -> dict[str, float]:
    if held_out is None:
        return {}
    result = trainer.evaluate(held_out, verbose=0, return_dict=True)
    return {f"val_{name}": value for name, value in result.items()}
