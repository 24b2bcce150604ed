"""A run that is stopped, killed or fails, and what it has to go on from."""

import os
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmacer.common.errors import UserError
from tfmacer.data.splits import ArraySplit
from tfmacer.training import batches, callbacks, loop, objectives, schedules
from tfmacer.training.checkpoints import Checkpoints
from tfmacer.training.optimizer import SGD
from tfmacer.training.trainer import SmoothedTrainer

STEPS, EPOCHS, BATCH = 5, 4, 8
SHAPE, CLASSES = (4, 4, 1), 3


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (STEPS * BATCH + 3, *SHAPE)).astype(np.uint8)
    return ArraySplit("name", "train", images, rng.integers(0, CLASSES, len(images)), 3)


def _trainer(initial=0):
    """With all that a resumed run must find again: momentum, batch statistics, schedules."""
    keras.utils.set_random_seed(initial)
    network = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Flatten(),
            keras.layers.Dense(4),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(CLASSES),
        ]
    )
    objective = objectives.Macer(sigma=0.5, weight=schedules.deferred(4.0, STEPS + 2))
    trainer = SmoothedTrainer(network, objective, sigma=0.5, num_noise=2, seed=1, clip_norm=1.0)
    rate = schedules.piecewise(0.1, [2 * STEPS])
    trainer.compile(optimizer=SGD(rate, momentum=0.9, nesterov=True, weight_decay=1e-3))
    return trainer


class _Raise(keras.callbacks.Callback):
    """A kill, as far as the files can tell."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == self.step:
            raise KeyboardInterrupt


def _run(trainer, split, root, *, extra=(), source=None, every=3, epochs=EPOCHS, stop=None):
    def from_step(step, share):
        data = batches.epoch_batches(
            split, batch_size=BATCH, seed=2, start=step, augmentation="crop", share=share
        )
        return source(step, data) if source else data

    kept = Checkpoints(trainer, root / "checkpoints")
    resumed = kept.restore()
    complete = loop.run(
        trainer,
        from_step,
        epochs=epochs,
        steps=STEPS,
        kept=kept,
        checkpoint_every=every,
        held_out=tf.data.Dataset.from_tensor_slices(split.take(range(6))).batch(4),
        callbacks=[callbacks.MetricsFile(root / "metrics.csv"), *extra],
        **({"stop": stop} if stop else {}),
    )
    return resumed, complete


def _curve(root):
    """metrics.csv without its last column, the seconds."""
    return [line.rpartition(",")[0] for line in (root / "metrics.csv").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(split, tmp_path_factory):
    root = tmp_path_factory.mktemp("uninterrupted")
    trainer = _trainer()
    assert _run(trainer, split, root) == (False, True)
    return [v.numpy() for v in trainer.network.variables + trainer.optimizer.variables], _curve(
        root
    )


def _assert_same(trainer, root, uninterrupted):
    values, curve = uninterrupted
    for variable, expected in zip(
        trainer.network.variables + trainer.optimizer.variables, values, strict=True
    ):
        np.testing.assert_array_equal(variable.numpy(), expected, err_msg=variable.path)
    assert _curve(root) == curve


@pytest.mark.parametrize("killed_at", [2, 5, 6, 11])
def test_a_killed_run_goes_on_bit_for_bit(split, tmp_path, uninterrupted, killed_at):
    """Before any checkpoint, at the end of an epoch, at a checkpoint and between two."""
    with pytest.raises(KeyboardInterrupt):
        _run(_trainer(), split, tmp_path, extra=[_Raise(killed_at)])
    trainer = _trainer(initial=0 if killed_at < 4 else 99)
    assert _run(trainer, split, tmp_path) == (killed_at > 3, True)
    _assert_same(trainer, tmp_path, uninterrupted)


def test_stopping_saves_at_once(split, tmp_path, uninterrupted):
    """SIGTERM during step 8; the next checkpoint would have come after step 100."""

    class Terminate(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.optimizer.iterations) == 8:
                os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with loop.termination() as stop:
        trainer = _trainer()
        answer = _run(trainer, split, tmp_path, extra=[Terminate()], every=100, stop=stop)
    assert answer == (False, False)
    assert int(trainer.optimizer.iterations) == 8
    assert signal.getsignal(signal.SIGTERM) == before
    trainer = _trainer(initial=99)
    assert _run(trainer, split, tmp_path, every=100) == (True, True)
    _assert_same(trainer, tmp_path, uninterrupted)


def test_more_epochs_go_on_where_fewer_ended(split, tmp_path, uninterrupted):
    _run(_trainer(), split, tmp_path, epochs=EPOCHS - 2)
    trainer = _trainer(initial=99)
    assert _run(trainer, split, tmp_path) == (True, True)
    _assert_same(trainer, tmp_path, uninterrupted)


def test_a_finished_run_has_nothing_left_to_do(split, tmp_path, uninterrupted):
    _run(_trainer(), split, tmp_path)
    trainer = _trainer(initial=99)
    assert _run(trainer, split, tmp_path, source=lambda *_: pytest.fail("asked for batches")) == (
        True,
        True,
    )
    _assert_same(trainer, tmp_path, uninterrupted)


class _Poison(keras.callbacks.Callback):
    """Weights that are no numbers after step 7, as a rate that is too high leaves them."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == 7:
            kernel = self.model.network.trainable_variables[0]
            kernel.assign(np.full(kernel.shape, self.value, np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_ends_training_before_the_next_checkpoint(split, tmp_path, value):
    trainer = _trainer()
    with pytest.raises(UserError, match=r"loss is (nan|inf) at step 8: .*checkpoints/step-6"):
        _run(trainer, split, tmp_path, extra=[_Poison(value)])
    assert int(trainer.optimizer.iterations) == 9
    fresh = _trainer(initial=99)
    assert Checkpoints(fresh, tmp_path / "checkpoints").restore()
    assert int(fresh.optimizer.iterations) == 6
    assert all(np.isfinite(v.numpy()).all() for v in fresh.network.variables)
