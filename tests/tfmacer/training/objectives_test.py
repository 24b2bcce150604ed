"""What each objective shows the network, and how it weighs what the losses say."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from tfmacer.attacks import adversarial
from tfmacer.common.errors import UserError
from tfmacer.training import losses, schedules
from tfmacer.training import objectives as o
from tfmacer.training.objective import Batch, noisy_views

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
    return Batch(
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
    assert not macer.robustness.numpy().any()


def test_consistency_with_eta_equal_lambda_is_the_cross_entropy_to_the_mean():
    """Remark below equation 7 of Jeong and Shin: KL(P || Q) + H(P) = -sum P log Q."""
    logits, labels = _random((4, 3, 10), scale=1.0)
    found = o.Consistency(weight=0.7, eta=0.7).losses(
        tf.constant(logits), _batch(4, copies=3, labels=labels)
    )
    mean = special.softmax(logits.astype(np.float64), axis=2).mean(axis=1, keepdims=True)
    cross = -(mean * special.log_softmax(logits.astype(np.float64), axis=2)).sum(axis=2)
    np.testing.assert_allclose(found.robustness, 0.7 * cross.mean(axis=1), rtol=1e-5)


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
    found = objective.losses(tf.zeros([1, 2, 3]), _batch(1, copies=2))
    assert found.robustness.numpy() == pytest.approx(expected)


@pytest.mark.parametrize("objective", [o.Gaussian(), o.Macer(sigma=1.0), o.Consistency()])
def test_copy_j_of_image_b_is_image_b_whole_under_its_jth_noise(objective):
    """With pixels all distinct: tiling the channel axis instead was seen to pass other tests."""
    batch = _batch(3, copies=4)
    (views,) = objective.views(None, batch)
    assert views.shape == (3, 4, 2, 3, 2)
    for b, j in itertools.product(range(3), range(4)):
        expected = batch.images.numpy()[b] + 1000 * (4 * b + j + 1)
        np.testing.assert_array_equal(views[b, j], expected)


def test_stability_sees_the_clean_image_first_and_apart():
    batch = _batch(2, copies=3)
    clean, noisy = o.Stability().views(None, batch)
    np.testing.assert_array_equal(clean[:, 0], batch.images)
    np.testing.assert_array_equal(noisy, noisy_views(batch))
    logits = tf.random.stateless_normal([2, 4, 5], [1, 2])
    found = o.Stability(weight=2.0).losses(logits, batch)
    np.testing.assert_allclose(found.classification, losses.cross_entropy(logits[:, :1], [0, 0]))
    expected = 2 * losses.stability(logits[:, :1], logits[:, 1:])
    np.testing.assert_allclose(found.robustness, expected)
    np.testing.assert_array_equal(found.noisy_logits, logits[:, 1:])


def _options(name):
    return {"sigma": SIGMA} if name == "macer" else {}


@pytest.mark.parametrize("name", [name for name in o.OBJECTIVES if "weight" in o.options(name)])
def test_the_weight_follows_its_schedule(name):
    options = _options(name) | ({"eta": 0.0} if "eta" in o.options(name) else {})
    constant = o.compose(name, weight=3.0, **options)
    deferred = o.compose(name, weight=schedules.deferred(3.0, 10), **options)
    logits, labels = _random((4, 6, 10), scale=0.1)
    for step, factor in ((9, 0.0), (10, 1.0)):
        batch = _batch(4, copies=3, labels=labels, step=step)
        full = constant.losses(tf.constant(logits), batch).robustness.numpy()
        found = deferred.losses(tf.constant(logits), batch).robustness.numpy()
        assert (full >= 0).all()
        assert full.sum() > 0
        assert found == pytest.approx(factor * full)
        assert deferred.weight_at(batch.step).numpy() == pytest.approx(3 * factor)


@pytest.mark.parametrize("name", o.OBJECTIVES)
def test_bfloat16_logits_are_computed_in_float32(name):
    objective = o.compose(name, **_options(name))
    logits, labels = _random((4, 6, 10), scale=0.1)
    coarse = tf.cast(logits, tf.bfloat16)
    batch = _batch(4, copies=3, labels=labels)
    found = objective.losses(coarse, batch)
    expected = objective.losses(tf.cast(coarse, tf.float32), batch)
    assert found.classification.dtype == tf.float32
    np.testing.assert_array_equal(found.classification, expected.classification)
    np.testing.assert_array_equal(found.robustness, expected.robustness)


def test_compose_gives_each_part_its_options():
    made = o.compose("smoothadv_consistency", weight=3.0, form="kl", epsilon=0.5, steps=3)
    inner = o.Consistency(weight=3.0, form="kl")
    assert made == o.SmoothAdv(objective=inner, epsilon=0.5, steps=3, code="jeong")
    assert o.compose("smoothadv") == o.SmoothAdv(objective=o.Gaussian())
    assert o.compose("macer", sigma=1.0) == o.Macer(sigma=1.0)
    assert set(o.options("smoothadv_consistency")) == {
        "attack", "code", "steps", "epsilon", "weight", "eta", "form",
    }  # fmt: skip
    assert (o.options("smoothadv")["code"], o.options("smoothadv_consistency")["code"]) == (
        "salman",
        "jeong",
    )
    with pytest.raises(TypeError, match="smoothadv has no weight"):
        o.compose("smoothadv", weight=1.0)


SHAPE, PIXELS = (2, 3, 2), 12


def _drawn(size=6, copies=3, classes=2, step=0, seed=(1, 2)):
    """A batch away from the ends of the pixels, noise as in training."""
    rng = np.random.default_rng(4)
    return Batch(
        tf.constant(rng.uniform(0.4, 0.6, (size, *SHAPE)), tf.float32),
        tf.constant(np.arange(size) % classes),
        tf.constant(rng.normal(0, 0.1, (size, copies, *SHAPE)), tf.float32),
        tf.constant(step, tf.int64),
        tf.constant(seed, tf.int64),
    )


def _linear(classes=2):
    """X W, and the direction from its first class to its second."""
    weights = np.random.default_rng(5).normal(size=(PIXELS, classes))
    direction = weights[:, 1] - weights[:, 0]
    constant = tf.constant(weights, tf.float32)
    return lambda x: tf.reshape(x, [-1, PIXELS]) @ constant, direction / np.linalg.norm(direction)


def _seen(views, batch):
    """The images below the views' noise, one of each copy: `[B, k, pixels]`."""
    bare = views.numpy() - batch.noise.numpy()
    return bare.reshape(*bare.shape[:2], PIXELS)


def _logits(network, views):
    flat = network(tf.reshape(views, [-1, *SHAPE]))
    return tf.reshape(flat, [*views.shape[:2], -1])


def test_an_attack_of_nobodys_code_is_refused():
    with pytest.raises(UserError, match="got ddn of jeong"):
        o.SmoothAdv(attack="ddn", code="jeong")


@pytest.mark.parametrize(
    ("attack", "code"), [("pgd", "salman"), ("pgd", "jeong"), ("ddn", "salman")]
)
def test_smoothadv_shows_attacked_images_under_the_noise_of_the_attack(attack, code):
    """And each copy the same image, which costs more than the one it was made of."""
    network, _ = _linear(classes=4)
    batch = _drawn(classes=4)
    objective = o.SmoothAdv(attack=attack, code=code, steps=3, epsilon=0.4)
    (views,) = objective.views(network, batch)
    seen = _seen(views, batch)
    np.testing.assert_allclose(seen, seen[:, :1].repeat(3, axis=1), atol=1e-6)
    seed = tf.random.experimental.stateless_fold_in(batch.seed, 1, alg="philox")
    options = {"pgd": {"clip_first": code == "salman", "damped": code == "jeong"}, "ddn": {}}
    expected = getattr(adversarial, attack)(
        network, *batch[:3], epsilon=tf.constant(0.4), steps=3, seed=seed, **options[attack]
    )
    np.testing.assert_allclose(seen[:, 0], expected.numpy().reshape(-1, PIXELS), atol=1e-6)
    attacked, plain = (
        objective.losses(_logits(network, v), batch) for v in (views, noisy_views(batch))
    )
    assert np.mean(attacked.classification - plain.classification) > 1e-3


@pytest.mark.parametrize(("step", "bound"), [(0, 0.0), (5, 0.2), (10, 0.4), (99, 0.4)])
def test_epsilon_follows_its_schedule(step, bound):
    """Linear over the first ten steps; PGD on a linear network goes to the bound."""
    network, direction = _linear()
    batch = _drawn(step=step)
    objective = o.SmoothAdv(epsilon=schedules.linear(0.4, 10))
    (views,) = objective.views(network, batch)
    change = _seen(views, batch) - _seen(noisy_views(batch), batch)
    sign = np.where(batch.labels == 0, 1, -1)[:, np.newaxis]
    np.testing.assert_allclose(change[:, 0], bound * sign * direction, atol=1e-6)


def test_consistency_on_top_of_smoothadv_is_consistency_of_the_attacked():
    network, _ = _linear(classes=4)
    batch = _drawn(classes=4)
    inner = o.Consistency(weight=3.0, eta=0.2)
    plain, both = o.SmoothAdv(), o.SmoothAdv(objective=inner)
    (views,) = both.views(network, batch)
    np.testing.assert_array_equal(views, plain.views(network, batch)[0])
    logits = _logits(network, views)
    for found, expected in zip(
        both.losses(logits, batch), inner.losses(logits, batch), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    assert float(both.weight_at(0)) == 3.0
    assert float(plain.weight_at(0)) == 0.0


def _mixing(objective, batch, network):
    """Its views, images and mixed images, the latter two without noise."""
    groups = objective.views(network, batch)
    assert [group.shape for group in groups] == [(6, 3, *SHAPE)] * 2
    views = tf.concat(groups, axis=1)
    halves = [_seen(half, batch) for half in groups]
    for half in halves:
        np.testing.assert_allclose(half, half[:, :1].repeat(3, axis=1), atol=1e-6)
    return views, halves[0][:, 0], halves[1][:, 0]


def test_smoothmix_mixes_each_image_with_its_adversary_and_its_label_with_all():
    """The adversary of a linear network is steps x step_size along its direction."""
    network, direction = _linear()
    batch = _drawn()
    objective = o.SmoothMix(weight=3.0, steps=3, step_size=0.05)
    views, images, mixed = _mixing(objective, batch, network)
    np.testing.assert_allclose(images, batch.images.numpy().reshape(6, PIXELS), atol=1e-6)
    sign = np.where(batch.labels == 0, 1, -1)
    along = (mixed - images) @ direction * sign
    np.testing.assert_allclose(mixed - images, np.outer(along * sign, direction), atol=1e-6)
    share = along / 0.15
    assert (share >= 0).all()
    assert (share < 0.5).all()
    assert np.ptp(share) > 0.1
    logits = _logits(network, views)
    found = objective.losses(logits, batch)
    plain, other = logits[:, :3], logits[:, 3:]
    np.testing.assert_array_equal(found.noisy_logits, plain)
    np.testing.assert_allclose(found.classification, losses.cross_entropy(plain, batch.labels))
    expected = 3.0 * losses.mixed_divergence(plain, other, batch.labels, tf.constant(share))
    assert float(tf.reduce_mean(expected)) > 1e-3
    np.testing.assert_allclose(found.robustness, expected, rtol=1e-4)


@pytest.mark.parametrize("epsilon", [0.02, 0.05])
def test_the_one_step_adversary_stands_in_for_the_image(epsilon):
    network, direction = _linear()
    batch = _drawn()
    objective = o.SmoothMix(steps=3, step_size=0.05, epsilon=epsilon)
    _, near, mixed = _mixing(objective, batch, network)
    sign = np.where(batch.labels == 0, 1, -1)[:, np.newaxis]
    images = batch.images.numpy().reshape(6, PIXELS)
    np.testing.assert_allclose(near - images, epsilon * sign * direction, atol=1e-6)
    _, _, plain = _mixing(o.SmoothMix(steps=3, step_size=0.05), batch, network)
    share = (plain - images) @ direction / (0.15 * sign[:, 0])
    far = images + 0.15 * sign * direction
    expected = (1 - share)[:, np.newaxis] * near + share[:, np.newaxis] * far
    np.testing.assert_allclose(mixed, expected, atol=1e-6)


def test_the_adversarys_share_is_uniform_below_a_half():
    network, direction = _linear()
    objective = o.SmoothMix(steps=1, step_size=0.05)
    batch = _drawn(size=2000, copies=1)
    plain, mixed = objective.views(network, batch)
    bare = _seen(mixed, batch)[:, 0] - _seen(plain, batch)[:, 0]
    share = np.abs(bare @ direction) / 0.05
    assert stats.kstest(share, stats.uniform(0, 0.5).cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", ["smoothadv", "smoothmix"])
def test_random_choices_are_a_function_of_the_seed(name):
    """Directions on a network without slopes; shares of adversaries on one that has them."""
    objective = o.compose(name, epsilon=0.5)
    network, _ = _linear()

    def views(seed):
        flat = network if name == "smoothmix" else lambda x: 0 * network(x)
        return np.array(objective.views(flat, _drawn(seed=seed)))

    np.testing.assert_array_equal(views((1, 2)), views((1, 2)))
    assert np.abs(views((1, 2)) - views((1, 3))).max() > 1e-2
