"""What is computed in which precision, and the scale that float16 needs."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmacer.training import networks, objectives, precision
from tfmacer.training.optimizer import SGD
from tfmacer.training.trainer import SmoothedTrainer

SHAPE, CLASSES = (4, 3, 2), 3


def _data(size=12):
    rng = np.random.default_rng(0)
    images = rng.random((size, *SHAPE)).astype(np.float32)
    return tf.constant(images), tf.constant(rng.integers(0, CLASSES, size))


class _Watch(keras.layers.Layer):
    """Notes the dtype in which the network is given its images, and what it computes in."""

    def call(self, x):
        self.seen = (tf.as_dtype(x.dtype), self.compute_dtype)
        return x


def _trainer(policy, objective=None, **options):
    keras.utils.set_random_seed(1)
    with precision.policy(policy):
        network = keras.Sequential(
            [
                keras.Input(SHAPE),
                _Watch(autocast=False),
                keras.layers.Flatten(),
                keras.layers.Dense(8, activation="tanh"),
                keras.layers.Dense(CLASSES),
            ]
        )
    objective = objective or objectives.Macer(sigma=0.5, weight=0.3, beta=1.0)
    options = {"sigma": 0.5, "num_noise": 4, "seed": 7} | options
    trainer = SmoothedTrainer(network, objective, **options)
    trainer.compile(optimizer=SGD(0.1, momentum=0.0))
    return trainer


def test_the_policy_ends_with_its_block():
    before = keras.config.dtype_policy().name
    with precision.policy("mixed_bfloat16"):
        assert keras.layers.Dense(1).compute_dtype == "bfloat16"
    assert keras.config.dtype_policy().name == before


@pytest.mark.parametrize("name", ["mixed_bfloat16", "mixed_float16"])
def test_noise_is_added_before_the_cast_and_losses_after_it(name):
    trainer = _trainer(name)
    images, labels = _data()
    batch = trainer.draw(images, labels, "train", 0)
    exact = _trainer("float32").draw(images, labels, "train", 0)
    np.testing.assert_array_equal(batch.noise, exact.noise)
    (views,) = trainer.objective.views(trainer.call, batch)
    np.testing.assert_array_equal(views, images[:, np.newaxis] + exact.noise)
    logits = trainer.logits(views)
    assert trainer.network.layers[0].seen == (tf.float32, name.removeprefix("mixed_"))
    assert logits.dtype == tf.float32
    assert all(part.dtype == tf.float32 for part in trainer.objective.losses(logits, batch))
    assert {v.dtype for v in trainer.network.variables} == {"float32"}


@pytest.mark.parametrize("name", ["mixed_bfloat16", "mixed_float16"])
def test_a_step_is_that_of_float32_but_for_the_rounding(name):
    data = _data()
    weights, norms = [], []
    for policy in ("float32", name):
        trainer = _trainer(policy)
        norms.append(float(trainer.train_step(data)["gradient_norm"]))
        weights.append(trainer.network.get_weights())
    assert norms[1] == pytest.approx(norms[0], rel=0.02)
    assert norms[1] != norms[0]
    before = _trainer("float32").network.get_weights()
    for found, expected, start in zip(weights[1], weights[0], before, strict=True):
        bound = 0.03 * np.abs(expected - start).max()
        np.testing.assert_allclose(found, expected, atol=bound)


def test_under_a_global_policy_losses_are_scaled_once():
    """Keras would wrap the optimizer in a scale of its own, and undo it on gradients without it."""
    alone = _trainer("mixed_float16")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        trainer = _trainer("mixed_float16")
        history = trainer.fit(*_data(), batch_size=12, shuffle=False, verbose=0).history
    finally:
        keras.config.set_dtype_policy(before)
    assert isinstance(trainer.optimizer, SGD)
    expected = alone.fit(*_data(), batch_size=12, shuffle=False, verbose=0).history
    assert history["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-5)
    pairs = zip(trainer.network.get_weights(), alone.network.get_weights(), strict=True)
    for found, same in pairs:
        np.testing.assert_allclose(found, same, rtol=1e-5, atol=1e-6)
    start = _trainer("mixed_float16").network.get_weights()[0]
    assert np.abs(trainer.network.get_weights()[0] - start).max() > 1e-3


def test_networks_of_the_project_answer_in_float32():
    with precision.policy("mixed_bfloat16"):
        network = networks.build("lenet", "mnist", (28, 28, 1), 10)
    assert network.get_layer("conv2").compute_dtype == "bfloat16"
    assert network(tf.zeros([1, 28, 28, 1])).dtype == tf.float32


def test_only_float16_has_a_scale():
    assert _trainer("float32").loss_scale is None
    assert _trainer("mixed_bfloat16").loss_scale is None
    assert float(_trainer("mixed_float16").loss_scale.value()) == precision.FIRST_SCALE
    inner = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, dtype="mixed_float16")])
    nested = keras.Sequential([keras.Input((2,)), inner])
    assert precision.loss_scale(nested) is not None


def test_the_scale_follows_what_overflows(monkeypatch):
    monkeypatch.setattr(precision, "PATIENCE", 2)
    scale = precision.LossScale()
    good, bad = [tf.constant([3.0]), tf.constant(6.0)], [tf.constant([3.0]), tf.constant(np.inf)]
    history = []
    for gradients in (good, good, good, bad, bad, good, good):
        now = scale.value()
        unscaled, kept = scale.unscale(gradients, now)
        history.append(float(now))
        assert float(kept) == (gradients is good)
        expected = [3 / float(now), 6 / float(now)] if gradients is good else [0, 0]
        assert [float(tf.squeeze(g)) for g in unscaled] == pytest.approx(expected)
    first = precision.FIRST_SCALE
    assert history == [first, first, 2 * first, 2 * first, first, first / 2, first / 2]
    assert float(scale.value()) == first


def test_an_overflow_at_the_least_scale_is_let_through():
    scale = precision.LossScale()
    scale.variables[0].assign(precision.LEAST_SCALE)
    unscaled, kept = scale.unscale([tf.constant(np.inf)], scale.value())
    assert np.isinf(unscaled[0])
    assert float(kept) == 1.0
    assert float(scale.value()) == precision.LEAST_SCALE


def test_a_step_that_overflows_counts_and_changes_nothing():
    trainer = _trainer("mixed_float16")
    trainer.loss_scale.variables[0].assign(2.0**40)
    before = trainer.network.get_weights()
    logs = trainer.train_step(_data())
    assert int(trainer.optimizer.iterations) == 1
    assert all(np.isfinite(float(value)) for value in logs.values())
    for found, expected in zip(trainer.network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert float(trainer.loss_scale.value()) == 2.0**39
    trainer.loss_scale.variables[0].assign(2.0**10)
    norm = float(trainer.train_step(_data())["gradient_norm"])
    trainer.reset_metrics()
    assert 0 < norm < 1e3
