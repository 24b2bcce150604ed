"""Attacks on linear classifiers, whose smoothed radius is known: the distance of the hyperplane.

Every noise family here is symmetric, so the smoothed class changes where the class without noise
does, whatever sigma is.
"""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfmacer.attacks import falsification
from tfmacer.attacks.falsification import MOST_TESTS, Falsifier
from tfmacer.attacks.plan import Plan
from tfmacer.certification.images import certify_images
from tfmacer.common.errors import UserError
from tfmacer.guarantee.rule import Rule
from tfmacer.records.rows import Record
from tfmacer.records.runs import Smoothing
from tfmacer.votes.local import NetworkVotes
from tfmacer.votes.source import ESTIMATE, SELECT, Votes, row_seed

SHAPE = (3, 4, 2)
SIGMA = 0.2
PLAN = Plan(steps=8, num_noise=4, n=2000)
# A flip is confirmed where its class has some 56 % of 2,000 draws: 0.15 sigma beyond the plane.
SLACK = 0.25 * SIGMA


def weights(seed=0):
    return np.random.default_rng(seed).normal(size=SHAPE)


def classifier(w=None, bias=0.0, scale=3.0):
    """Class 1 where w . (x - 1/2) + bias > 0."""
    slope = tf.constant(weights() if w is None else w, tf.float32)

    def network(x):
        score = scale * (tf.reduce_sum((x - 0.5) * slope, axis=[1, 2, 3]) + bias)
        return tf.stack([-score, score], axis=1)

    return network


def votes(network, family="gaussian", params=None, classes=2):
    smoothing = Smoothing(
        sigma=SIGMA, num_classes=classes, input_shape=SHAPE, model_digest="d" * 64,
        noise_family=family, noise_params=params or {},
    )  # fmt: skip
    return NetworkVotes(network, smoothing)


def image_at(distance, seed=1, norm=np.linalg.norm):
    """An image of class 1 that far from the plane of `weights`, in the dual of `norm`."""
    w = weights()
    x = 0.5 + np.random.default_rng(seed).uniform(-0.1, 0.1, SHAPE)
    score = np.sum(w * (x - 0.5))
    x = x + w * (distance * norm(w.ravel()) - score) / np.sum(w**2)
    return x.astype(np.float32)


def true_radius(image, norm=np.linalg.norm):
    w = weights()
    return float(np.sum(w * (image.astype(np.float64) - 0.5)) / norm(w.ravel()))


def certified(radius, idx=0, predict=1):
    return Record(idx=idx, label=predict, predict=predict, radius=radius, seconds=0.0)


def attacked(image, radius, *, network=None, source=None, norm="l2", rule=None, **plan):
    network = network or classifier()
    falsifier = Falsifier(
        network,
        source or votes(network),
        rule or Rule(),
        norm,
        dataclasses.replace(PLAN, **plan),
    )
    return falsifier(image, certified(radius))


@pytest.mark.parametrize("attack", ["pgd", "ddn"])
def test_certificates_hold_and_the_attack_comes_close_to_the_true_radius(attack):
    """Of images certified in earnest: certified <= true <= found, and found is near."""
    images = np.stack([image_at(d, seed) for seed, d in enumerate([0.02, 0.15, 0.4])])
    network = classifier()
    certificates = certify_images(network, images, sigma=SIGMA, num_classes=2, n=5000, seed=1)
    for image, certificate in zip(images, certificates, strict=True):
        assert certificate.predict == 1
        found = attacked(image, certificate.radius, attack=attack, steps=10)
        true = true_radius(image)
        assert not found.flipped_within
        assert found.attack_class == 0
        assert certificate.radius <= true < found.attack_radius + 1e-6
        assert found.attack_radius < true + SLACK
        assert 2 <= found.tests <= MOST_TESTS


def test_distances_between_images_of_eight_bits_are_those_of_whole_steps():
    """Not those of the floats that stand for them, which are off by some 1e-8 either way."""
    network = classifier()
    falsifier = Falsifier(network, votes(network, "rounded_gaussian"), Rule(), "l2", PLAN)
    levels = np.arange(24).reshape(SHAPE) * 7 + 40
    image = levels.astype(np.float32) / np.float32(255)
    for place, steps in enumerate(range(1, 25)):
        change = np.zeros(24)
        change[place] = steps
        # A hair above the step, since what lies between two steps is cut off toward the image.
        pixels, norm = falsifier.placed(image, change.reshape(SHAPE), (steps + 1e-9) / 255)
        assert norm == steps / 255
        moved = levels.ravel() + change
        np.testing.assert_array_equal(pixels.ravel(), moved.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize(
    ("family", "params"),
    [("generalized_gaussian", {"k": 6.0}), ("mixed_norm", {"k": 3.0}), ("rounded_gaussian", {})],
)
def test_every_family_is_attacked_in_its_norm(family, params):
    norm = "linf" if family == "mixed_norm" else "l2"
    # The distance in l-infinity is the score over the dual norm of the weights, l1.
    dual = (lambda w: np.abs(w).sum()) if norm == "linf" else np.linalg.norm
    unit = SIGMA if norm == "l2" else SIGMA / np.sqrt(24)
    image = image_at(1.2 * unit, norm=dual)
    if family == "rounded_gaussian":
        image = np.float32(np.round(image * 255)) / np.float32(255)
    true = true_radius(image, dual)
    network = classifier()
    source = votes(network, family, params)
    found = attacked(image, 0.9 * true, network=network, source=source, norm=norm)
    assert not found.flipped_within
    assert true - 1e-6 < found.attack_radius < true + 0.3 * unit


@pytest.mark.parametrize("attack", ["pgd", "ddn"])
def test_a_radius_that_is_too_large_is_found_out(attack):
    image = image_at(0.3)
    found = attacked(image, 0.3 + 2 * SLACK, attack=attack, steps=20)
    assert found.flipped_within
    assert found.attack_class == 0
    assert 0.3 - 1e-6 < found.attack_radius < 0.3 + SLACK


class Watched:
    """A source of votes that keeps the images it is asked about."""

    def __init__(self, source):
        self.smoothing, self.parallelism, self._source = source.smoothing, 1, source
        self.images, self.seeds = [], []

    def sample(self, images, seeds, *arguments, **options):
        self.images.append(images[0])
        self.seeds.append(tuple(seeds[0].tolist()))
        return self._source.sample(images, seeds, *arguments, **options)


def test_pixels_leave_their_range_unless_they_are_clipped():
    """At the ends of [0, 1] a clipped attack finds less, and stays in."""
    w = weights()
    image = np.where(w > 0, 0.02, 0.55).astype(np.float32)
    bias = -np.sum(w * (image - 0.5)) + 0.3 * np.linalg.norm(w)
    network = classifier(bias=float(bias))
    radii, lowest = {}, {}
    for clip in (False, True):
        source = Watched(votes(network))
        found = attacked(image, 0.25, network=network, source=source, clip=clip, steps=20)
        radii[clip] = found.attack_radius
        lowest[clip] = min(tried.min() for tried in source.images)
    assert lowest[False] < 0
    assert lowest[True] >= 0
    assert 0.3 < radii[False] < 0.3 + SLACK
    assert radii[True] >= radii[False] - SLACK / 2


def test_8_bit_noise_is_attacked_with_8_bit_pixels():
    image = np.float32(np.round(image_at(0.2) * 255)) / np.float32(255)
    network = classifier()
    source = Watched(votes(network, "rounded_gaussian"))
    found = attacked(image, 0.15, network=network, source=source)
    assert found.attack_radius is not None
    for tried in source.images:
        levels = 255 * tried.astype(np.float64)
        np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)


def test_what_counts_is_the_change_that_the_classifier_saw():
    """No image put to PREDICT within the radius is further away than the radius."""
    image = image_at(0.3)
    network = classifier()
    source = Watched(votes(network))
    attacked(image, 0.28, network=network, source=source)
    norms = [np.linalg.norm(tried.astype(np.float64) - image) for tried in source.images]
    assert norms[0] < 0.28
    assert norms[0] > 0.2799
    assert min(norms[1:]) > 0.28


def test_soft_certificates_are_about_the_mean_softmax():
    """Votes say class 0 behind the plane at once, the mean softmax of a lopsided network later."""

    def network(x):
        score = classifier(scale=100.0)(x)[:, 1]
        # Class 1 wins with certainty before the plane, class 0 with 0.62 against 0.38 behind it.
        return tf.stack([0.5 - 20 * tf.sigmoid(score), tf.zeros_like(score)], axis=1)

    image = image_at(0.1)
    hard = attacked(image, 0.09, network=network)
    soft = attacked(image, 0.09, network=network, rule=Rule(bound="bernstein"), n=10_000)
    assert hard.attack_radius < 0.1 + SLACK
    # Mean of class 0: P(behind) x 0.62 > 1/2 where P(behind) > 0.803, 0.853 sigma behind the plane.
    assert soft.attack_radius > 0.1 + 0.8 * SIGMA
    assert soft.attack_radius < 0.1 + 1.3 * SIGMA


def test_every_confirmation_has_noise_of_its_own():
    """Neither that of another test, nor of the certificate, under one and the same seed."""
    network = classifier()
    source = Watched(votes(network))
    found = attacked(image_at(0.3), 0.28, network=network, source=source)
    certificate = {tuple(row_seed(PLAN.seed, stage, 0).tolist()) for stage in (SELECT, ESTIMATE)}
    assert len(set(source.seeds)) == len(source.seeds) == found.tests > 5
    assert not certificate & set(source.seeds)


def test_where_nothing_flips_nothing_is_claimed():
    w = np.zeros(SHAPE)
    network = classifier(w=w, bias=1.0)
    found = attacked(image_at(0.2), 0.2, network=network)
    assert found.attack_radius is None
    assert found.attack_class == -1
    assert not found.flipped_within
    assert found.searched == pytest.approx(0.2 + 4 * SIGMA)


def test_an_image_is_attacked_alike_alone_and_again():
    network = classifier()
    falsifier = Falsifier(network, votes(network), Rule(), "l2", PLAN)
    images = [image_at(0.2, seed) for seed in range(3)]
    records = [certified(0.18, idx) for idx in range(3)]

    def rows(order):
        found = {i: falsifier(images[i], records[i]) for i in order}
        return [dataclasses.replace(found[i], seconds=0.0) for i in range(3)]

    assert rows([0, 1, 2]) == rows([2, 0, 1])
    other = Falsifier(network, votes(network), Rule(), "l2", dataclasses.replace(PLAN, seed=1))
    assert dataclasses.replace(other(images[0], records[0]), seconds=0.0) != rows([0, 1, 2])[0]


class Coin:
    """Votes of a smoothed classifier whose two classes are exactly as likely everywhere."""

    def __init__(self):
        self.smoothing = votes(classifier()).smoothing
        self.parallelism = 1

    def sample(self, images, seeds, offsets, num_samples, *, beta):
        rng = np.random.default_rng(np.abs(seeds[0]).astype(np.int64))
        ones = rng.binomial(num_samples[0], 0.5)
        counts = np.array([[num_samples[0] - ones, ones]])
        return Votes(counts, counts.astype(float), counts.astype(float))


def test_an_image_is_falsely_flipped_with_probability_alpha_at_most(monkeypatch):
    """The hardest case: at each test the wrong class wins by chance alone."""
    monkeypatch.setattr(Falsifier, "direction", lambda self, image, *_: np.ones_like(image) * 1.0)
    falsifier = Falsifier(
        classifier(), Coin(), Rule(), "l2", dataclasses.replace(PLAN, alpha=0.2, n=500)
    )
    image = image_at(0.2)
    rows = [falsifier(image, certified(0.1, idx)) for idx in range(3000)]
    wrong = np.mean([row.attack_radius is not None for row in rows])
    # Half of the two-sided rejections name the wrong class; six tests come before the first flip.
    assert 0.02 < wrong < 0.2
    assert max(row.tests for row in rows) <= MOST_TESTS
    assert sum(row.flipped_within for row in rows) > 0


@pytest.mark.parametrize(
    ("norm", "rule", "plan", "message"),
    [
        ("linf", Rule(), {"attack": "ddn"}, "attack=ddn searches l2 balls"),
        ("l2", Rule(), {"n": 12}, "n = 12 is too small to confirm a flip"),
        ("l2", Rule(bound="hoeffding"), {"n": 10}, "n = 10 is too small to confirm a flip"),
    ],
)
def test_plans_that_cannot_succeed_are_refused(norm, rule, plan, message):
    network = classifier()
    with pytest.raises(UserError, match=message):
        Falsifier(network, votes(network), rule, norm, dataclasses.replace(PLAN, **plan))


def test_logits_that_are_not_finite_end_it():
    network = classifier(scale=float("nan"))
    with pytest.raises(UserError, match="idx 0: the network's logits were not finite"):
        attacked(image_at(0.2), 0.1, network=network)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e-12, 0.0, 5.0])
def test_norms_are_rounded_up(value):
    up = falsification.round_up(value)
    assert value <= up < value + 1.0001e-9
    assert f"{up:.9f}" == f"{up:.12f}"[:-3]
