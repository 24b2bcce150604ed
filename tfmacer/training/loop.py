"""Training that can be stopped or killed at any step, and resumed."""

import contextlib
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfmacer.common.errors import UserError
from tfmacer.training import distribution, inputs
from tfmacer.training.checkpoints import Checkpoints
from tfmacer.training.trainer import SmoothedTrainer

Step = Callable[[Iterator[Any]], dict[str, tf.Tensor]]

# Steps between looks at the loss: to look is to wait for the device.
LOOK_EVERY = 50


def run(
    trainer: SmoothedTrainer,
    batches: distribution.Batches,
    *,
    epochs: int,
    steps: int,
    kept: Checkpoints,
    checkpoint_every: int,
    held_out: tf.data.Dataset | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Trains from wherever the optimizer's iteration count stands.

    On several machines each calls this at the same time; the first alone writes, evaluates and
    has callbacks.

    Args:
      trainer: compiled.
      batches: gives a share of the batches from a step to the end of its epoch.
      epochs: to train in all.
      steps: per epoch.
      kept: saves the state.
      checkpoint_every: steps between checkpoints; one more is written at the end.
      held_out: batches to evaluate on after each epoch; None for none.
      callbacks: called as `fit` calls them.
      stop: asked after every step; where it is True on any machine, training is saved and left.

    Returns:
      Whether all epochs are done.

    Raises:
      UserError: the loss or the gradient is not finite. The last checkpoint is kept.
    """
    strategy = trainer.distribute_strategy
    chief = distribution.is_chief(strategy)
    step = trainer.steps_taken
    distribution.check_agreed(strategy, step)
    on_any_machine = distribution.on_any_machine(strategy)
    losses = _Losses(kept)
    listeners = keras.callbacks.CallbackList(list(callbacks) if chief else [], model=trainer)
    listeners.on_train_begin()
    take_step = step_function(trainer)
    for epoch in range(step // steps, epochs):
        if step % steps == 0:
            trainer.reset_metrics()
        # Before the iterator, so that the epoch's seconds hold all that it costs.
        listeners.on_epoch_begin(epoch)
        iterator = iter(distribution.share_batches(strategy, batches, step))
        while step < (epoch + 1) * steps:
            with inputs.in_one_line():
                logs = take_step(iterator)
            step += 1
            losses.add(step, logs)
            ended, due = step == (epoch + 1) * steps, step % checkpoint_every == 0
            if ended or due or step % LOOK_EVERY == 0:
                losses.check()
            listeners.on_train_batch_end(step, logs)
            if chief and ended:
                # Before the checkpoint, so that none is ever ahead of what was recorded.
                listeners.on_epoch_end(epoch, logs | _evaluate(trainer, held_out))
            stopped = on_any_machine(stop())
            if stopped:
                losses.check()
            if chief and (stopped or due or step == epochs * steps):
                kept.save(step)
            if stopped:
                listeners.on_train_end()
                return step == epochs * steps
    listeners.on_train_end()
    return True


def step_function(trainer: SmoothedTrainer) -> Step:
    """One step on an iterator's next batch, on all replicas.

    In place of Keras' own, which cannot collect what several machines return.
    """
    strategy = trainer.distribute_strategy

    @tf.function(reduce_retracing=True)
    def step(iterator: Iterator[Any]) -> dict[str, tf.Tensor]:
        logs = strategy.run(trainer.train_step, args=(next(iterator),))
        # Every replica has the means over all of them.
        return {name: strategy.experimental_local_results(v)[0] for name, v in logs.items()}

    return step


@contextlib.contextmanager
def termination() -> Iterator[Callable[[], bool]]:
    """Keeps SIGTERM from killing the process; yields a function that says whether it has come."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event.is_set  # Python delivers signals to the main thread only.
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event.is_set
    finally:
        signal.signal(signal.SIGTERM, previous)


class _Losses:
    """The losses since the last look at them."""

    def __init__(self, kept: Checkpoints) -> None:
        self._kept = kept
        self._new: list[tuple[str, int, tf.Tensor]] = []

    def add(self, step: int, logs: dict[str, tf.Tensor]) -> None:
        """Takes those of a step, without waiting for them."""
        # The logs are running means, where one value that is not finite stays.
        self._new += [(name, step, logs[name]) for name in ("loss", "gradient_norm")]

    def check(self) -> None:
        """Raises UserError where one is not finite."""
        values = tf.stack([value for _, _, value in self._new]).numpy() if self._new else ()
        for (name, step, _), value in zip(self._new, values, strict=True):
            if not math.isfinite(value):
                steps = self._kept.steps
                last = self._kept.path(steps[-1]) if steps else "none yet"
                raise UserError(
                    f"{name} is {value} at step {step}: training stopped; last good checkpoint: "
                    f"{last}; --clip_norm=1 or a smaller --learning_rate may help"
                )
        self._new.clear()


def _evaluate(trainer: SmoothedTrainer, held_out: tf.data.Dataset | None) -> dict[str, float]:
    if held_out is None:
        return {}
    result = trainer.single().evaluate(held_out, verbose=0, return_dict=True)
    return {f"val_{name}": value for name, value in result.items()}
