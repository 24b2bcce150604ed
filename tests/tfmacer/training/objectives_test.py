"""What each objective shows the network, and how it weighs what the losses say."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from tfmacer.training import objectives as o
from tfmacer.training import schedules

SIGMA = 0.5


def _random(shape, *, scale, seed=0):
    """Logits with the true class ahead in most images, and their labels."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=shape)
    labels = rng.integers(0, shape[2], shape[0])
    logits[np.arange(shape[0]), :, labels] += 1.5 * scale
    return logits.astype(np.float32), labels


def _batch(size, *, copies, labels=None, step=0):
    """Images whose pixels all differ, with noise that says image and copy."""
    images = np.arange(size * 12, dtype=np.float32).reshape(size, 2, 3, 2) / 100
    copy = np.arange(size * copies, dtype=np.float32).reshape(size, copies, 1, 1, 1)
    return o.Batch(
        tf.constant(images),
        tf.constant(np.zeros(size, int) if labels is None else labels),
        tf.constant(np.broadcast_to(1000 * (copy + 1), (size, copies, 2, 3, 2))),
        tf.constant(step, tf.int64),
        tf.constant([0, 0], tf.int64),
    )


def test_lambda_0_and_one_copy_make_macer_gaussian_training():
    logits, labels = _random((8, 1, 10), scale=1.0)
    batch = _batch(8, copies=1, labels=labels)
    macer = o.Macer(sigma=SIGMA, weight=0.0).losses(tf.constant(logits), batch)
    gaussian = o.Gaussian().losses(tf.constant(logits), batch)
    np.testing.assert_allclose(macer[:2], gaussian[:2], rtol=1e-6)
    assert macer.robustness.numpy() == 0.0


def test_consistency_with_eta_equal_lambda_is_the_cross_entropy_to_the_mean():
    """Remark below equation 7 of Jeong and Shin: KL(P || Q) + H(P) = -sum P log Q."""
    logits, labels = _random((4, 3, 10), scale=1.0)
    losses = o.Consistency(weight=0.7, eta=0.7).losses(
        tf.constant(logits), _batch(4, copies=3, labels=labels)
    )
    mean = _mean_softmax(logits)[:, np.newaxis]
    cross = -(mean * special.log_softmax(logits.astype(np.float64), axis=2)).sum(axis=2).mean()
    assert losses.robustness.numpy() == pytest.approx(0.7 * cross, rel=1e-5)


@pytest.mark.parametrize(
    ("form", "expected"), [("default", 3 * 2.0 + 0.5 * 5.0), ("kl", 3 * 2.0), ("mse", 3 * 7.0)]
)
def test_consistency_forms_weigh_their_terms(monkeypatch, form, expected):
    for name, value in (
        ("consistency_divergence", 2.0),
        ("prediction_entropy", 5.0),
        ("consistency_distance", 7.0),
    ):
        monkeypatch.setattr(o, name, lambda logits, value=value: tf.constant(value))
    objective = o.Consistency(weight=3.0, eta=0.5, form=form)
    losses = objective.losses(tf.zeros([1, 2, 3]), _batch(1, copies=2))
    assert losses.robustness.numpy() == pytest.approx(expected)


@pytest.mark.parametrize("objective", [o.Gaussian(), o.Macer(sigma=1.0), o.Consistency()])
def test_copy_j_of_image_b_is_image_b_whole_under_its_jth_noise(objective):
    """With pixels all distinct: tiling the channel axis instead was seen to pass other tests."""
    batch = _batch(3, copies=4)
    views = objective.views(None, batch).numpy()
    assert views.shape == (3, 4, 2, 3, 2)
    for b, j in itertools.product(range(3), range(4)):
        expected = batch.images.numpy()[b] + 1000 * (4 * b + j + 1)
        np.testing.assert_array_equal(views[b, j], expected)


def test_stability_sees_the_clean_image_first():
    batch = _batch(2, copies=3)
    views = o.Stability().views(None, batch).numpy()
    assert views.shape == (2, 4, 2, 3, 2)
    np.testing.assert_array_equal(views[:, 0], batch.images)
    np.testing.assert_array_equal(views[:, 1:], o.noisy_views(batch))
    logits = tf.random.stateless_normal([2, 4, 5], [1, 2])
    losses = o.Stability(weight=2.0).losses(logits, batch)
    np.testing.assert_allclose(losses.classification, o.cross_entropy(logits[:, :1], [0, 0]))
    np.testing.assert_allclose(losses.robustness, 2 * o.stability(logits[:, :1], logits[:, 1:]))
    np.testing.assert_array_equal(losses.noisy_logits, logits[:, 1:])


@pytest.mark.parametrize("name", sorted(set(o.OBJECTIVES) - {"gaussian"}))
def test_the_weight_follows_its_schedule(name):
    options = {"sigma": SIGMA} if name == "macer" else {}
    options |= {"eta": 0.0} if name == "consistency" else {}
    constant = o.OBJECTIVES[name](weight=3.0, **options)
    deferred = o.OBJECTIVES[name](weight=schedules.deferred(3.0, 10), **options)
    logits, labels = _random((4, 3, 10), scale=0.1)
    for step, factor in ((9, 0.0), (10, 1.0)):
        batch = _batch(4, copies=3, labels=labels, step=step)
        full = constant.losses(tf.constant(logits), batch).robustness.numpy()
        found = deferred.losses(tf.constant(logits), batch).robustness.numpy()
        assert full > 0
        assert found == pytest.approx(factor * full)
        assert deferred.weight_at(batch.step).numpy() == pytest.approx(3 * factor)


@pytest.mark.parametrize("name", o.OBJECTIVES)
def test_bfloat16_logits_are_computed_in_float32(name):
    options = {"sigma": SIGMA} if name == "macer" else {}
    objective = o.OBJECTIVES[name](**options)
    logits, labels = _random((4, 3, 10), scale=0.1)
    coarse = tf.cast(logits, tf.bfloat16)
    batch = _batch(4, copies=3, labels=labels)
    losses = objective.losses(coarse, batch)
    expected = objective.losses(tf.cast(coarse, tf.float32), batch)
    assert losses.classification.dtype == tf.float32
    np.testing.assert_array_equal(losses.classification, expected.classification)
    np.testing.assert_array_equal(losses.robustness, expected.robustness)
