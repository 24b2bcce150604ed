"""Training that can be stopped, or killed, and taken up again at any step."""

import contextlib
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfmacer.errors import UserError
from tfmacer.training.trainer import SmoothedTrainer

KEPT_CHECKPOINTS = 2


def checkpoints(trainer: SmoothedTrainer, directory: Path) -> tf.train.CheckpointManager:
    """What a run must keep to go on bit for bit, and where.

    That is the network, the optimizer (its iteration count among the rest, from which noise, data
    order and schedules follow) and the running means of the epoch under way.
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
    return tf.train.CheckpointManager(
        state, str(directory), max_to_keep=KEPT_CHECKPOINTS, checkpoint_name="step"
    )


def restore(manager: tf.train.CheckpointManager) -> bool:
    """Restores the newest checkpoint; False where there is none.

    Raises:
      UserError: it is not one of this network and optimizer.
    """
    if manager.latest_checkpoint is None:
        return False
    try:
        manager.checkpoint.restore(manager.latest_checkpoint).assert_consumed()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        raise UserError(f"{manager.latest_checkpoint}: cannot be restored: {error}") from error
    return True


def run(
    trainer: SmoothedTrainer,
    batches: Callable[[int], tf.data.Dataset],
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
      batches: gives the batches from a step to the end of its epoch.
      epochs: to train in all.
      steps: per epoch.
      manager: see `checkpoints`.
      checkpoint_every: steps between checkpoints; one more is written at the end.
      held_out: batches to evaluate on after each epoch; None for none.
      callbacks: told of epochs and batches as `fit` would tell them.
      stop: asked after every step; where it is True, training is saved and left.

    Returns:
      Whether all epochs are done.

    Raises:
      UserError: the loss or the gradient is not finite. The last checkpoint is kept.
    """
    step = int(trainer.optimizer.iterations)
    first = step // steps
    listeners = keras.callbacks.CallbackList(list(callbacks), model=trainer)
    listeners.on_train_begin()
    trainer.make_train_function()
    for epoch in range(first, epochs):
        iterator = iter(batches(step))
        if step % steps == 0:
            trainer.reset_metrics()
        listeners.on_epoch_begin(epoch)
        while step < (epoch + 1) * steps:
            logs = trainer.train_function(iterator)
            step += 1
            _check_finite(logs, step, manager)
            listeners.on_train_batch_end(step, logs)
            if step == (epoch + 1) * steps:
                # Before the checkpoint, so that none is ever ahead of what was recorded.
                listeners.on_epoch_end(epoch, logs | _evaluate(trainer, held_out))
            stopped = stop()
            if stopped or step % checkpoint_every == 0 or step == epochs * steps:
                manager.save(checkpoint_number=step)
            if stopped:
                listeners.on_train_end()
                return step == epochs * steps
    listeners.on_train_end()
    return True


@contextlib.contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """Says whether SIGTERM has come, which within does not kill the process."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event.is_set  # Python delivers signals to the main thread only.
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event.is_set
    finally:
        signal.signal(signal.SIGTERM, previous)


def _check_finite(logs: dict[str, Any], step: int, manager: tf.train.CheckpointManager) -> None:
    # The logs are running means, where one value that is not finite stays.
    for name in ("loss", "gradient_norm"):
        value = float(logs[name])
        if not math.isfinite(value):
            raise UserError(
                f"{name} is {value} at step {step}: training stopped; last good checkpoint: "
                f"{manager.latest_checkpoint}; --clip_norm=1 or a smaller --learning_rate may help"
            )


def _evaluate(trainer: SmoothedTrainer, held_out: tf.data.Dataset | None) -> dict[str, float]:
    if held_out is None:
        return {}
    result = trainer.evaluate(held_out, verbose=0, return_dict=True)
    return {f"val_{name}": value for name, value in result.items()}
