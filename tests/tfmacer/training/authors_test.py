"""What the authors' own code computes, on the same weights, images and noise.

`authors.json` holds numbers that were recorded by running that code in float64 (its `about` says
which); nothing of the code itself is here. Inputs are drawn again from NumPy's `RandomState`, whose
streams do not change.
"""

import json
import math
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmacer.attacks import adversarial
from tfmacer.training import losses, networks, objectives, schedules
from tfmacer.training.objective import Batch
from tfmacer.training.optimizer import SGD
from tfmacer.training.trainer import SmoothedTrainer

RECORDED = json.loads((Path(__file__).parent / "authors.json").read_text())
SHAPES = {"lenet": (28, 28, 1), "resnet50": (64, 64, 3)}
ROLES = {"kernel": 0, "gamma": 0, "bias": 1, "beta": 1, "moving_mean": 2, "moving_variance": 3}


def drawn(seed, shape, scale=1.0, middle=0.0):
    return middle + scale * np.random.RandomState(seed).standard_normal(shape)


def weight(seed, role, shape):
    """A weight as the recording drew it; kernels so small that 110 layers do not overflow."""
    if role == "kernel":
        gain = 0.5 if len(shape) == 4 else 1.0
        return drawn(seed, shape, math.sqrt(gain / math.prod(shape[:-1])))
    if role == "moving_variance":
        return np.exp(drawn(seed, shape, 0.1))
    return drawn(seed, shape, 0.1, 1.0 if role == "gamma" else 0.0)


def network_of(name):
    """The network, with the weights of the recording: a seed for each layer, in order of names."""
    shape = SHAPES.get(name, (32, 32, 3))
    dataset = "cifar10" if shape == (32, 32, 3) else "mnist"
    network = networks.build(name, dataset, shape, 1000 if name == "resnet50" else 10)
    for number, layer in enumerate(sorted(each.name for each in network.layers if each.weights)):
        for variable in network.get_layer(layer).weights:
            role = ROLES[variable.name]
            variable.assign(weight(10 * number + role, variable.name, tuple(variable.shape)))
    return network


@pytest.mark.parametrize("name", RECORDED["networks"])
def test_networks(name):
    recorded = RECORDED["networks"][name]
    network = network_of(name)
    assert sum(math.prod(v.shape) for v in network.trainable_variables) == recorded["parameters"]
    images = np.random.RandomState(1).random_sample((2, *network.input_shape[1:]))
    for mode, tolerance in (("inference", 1e-5), ("training", 3e-4)):
        logits = network(images.astype(np.float32), training=mode == "training")
        np.testing.assert_allclose(logits[:, :10], recorded[mode], atol=tolerance, err_msg=mode)


@pytest.mark.parametrize("name", ["lenet", "resnet20", "densenet40", "resnet50"])
def test_initial_weights(name):
    """Their spread, and the bound of those that are uniform: one drawing beside another."""
    keras.utils.set_random_seed(7)
    shape = SHAPES.get(name, (32, 32, 3))
    network = networks.build(name, "mnist", shape, 1000 if name == "resnet50" else 10)
    for path, (deviation, largest) in RECORDED["networks"][name]["initial"].items():
        layer, role = path.split("/")
        found = getattr(network.get_layer(layer), role).numpy()
        # 5 standard errors of a standard deviation, twice over; those of uniform draws are less.
        error = 5 * math.sqrt(2) / math.sqrt(2 * found.size)
        assert found.std() == pytest.approx(deviation, rel=error), path
        if layer in ("logits", "hidden") or name == "lenet":
            bound = math.prod(network.get_layer(layer).kernel.shape[:-1]) ** -0.5
            assert max(largest, abs(found).max()) <= bound * 1.0002, path


LOGITS = 2 * drawn(21, (6, 3, 5)) + 2 * drawn(22, (6, 1, 5))
OTHERS = {"stability": 2 * drawn(24, (6, 1, 5)), "smoothmix": 2 * drawn(23, (6, 3, 5))}
LABELS = RECORDED["losses"]["labels"]


def _consistency(form):
    def cost(logits):
        distance = losses.consistency_distance if form == "mse" else losses.consistency_divergence
        entropy = 0.5 * losses.prediction_entropy(logits) if form == "default" else 0.0
        return 10 * distance(logits) + entropy

    return cost


def _macer(beta):
    def cost(logits):
        options = {"sigma": 0.5, "gamma": 8.0, "beta": beta}
        robustness = losses.macer_robustness(logits, LABELS, **options)
        return losses.smoothed_cross_entropy(logits, LABELS) + 12 * robustness

    return cost


def _smoothmix(logits, mixed):
    share = tf.constant(RECORDED["losses"]["smoothmix"]["share"], tf.float64)
    divergence = losses.mixed_divergence(logits, mixed, LABELS, share)
    return losses.cross_entropy(logits, LABELS) + 5 * divergence


COSTS = {
    "cross_entropy": (lambda z: losses.cross_entropy(z, LABELS), [LOGITS]),
    "consistency_default": (_consistency("default"), [LOGITS]),
    "consistency_kl": (_consistency("kl"), [LOGITS]),
    "consistency_mse": (_consistency("mse"), [LOGITS[:, :2]]),
    "stability": (
        lambda z, clean: losses.stability(clean, z),
        [LOGITS[:, :1], OTHERS["stability"]],
    ),
    "macer_beta16": (_macer(16.0), [0.15 * LOGITS]),
    "macer_beta1": (_macer(1.0), [LOGITS]),
    "smoothmix": (_smoothmix, [LOGITS, OTHERS["smoothmix"]]),
}


@pytest.mark.parametrize("name", COSTS)
def test_losses(name):
    cost, values = COSTS[name]
    logits = [tf.constant(value) for value in values]
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = tf.reduce_mean(cost(*logits))
    recorded = RECORDED["losses"][name]
    assert float(loss) == pytest.approx(recorded["value"], rel=1e-6)
    for found, expected in zip(tape.gradient(loss, logits), recorded["gradients"], strict=True):
        np.testing.assert_allclose(np.ravel(found), expected, rtol=1e-5, atol=1e-7)


def test_losses_of_the_authors_are_all_compared():
    assert set(COSTS) == set(RECORDED["losses"]) - {"labels"}


STEPS = {
    "gaussian": (objectives.Gaussian(), 1),
    "stability": (objectives.Stability(weight=2.0), 1),
    "macer": (objectives.Macer(sigma=0.5, weight=12.0, beta=1.0), 4),
    "consistency": (objectives.Consistency(weight=10.0), 2),
    "smoothadv": (objectives.compose("smoothadv", steps=2, epsilon=1.0), 2),
    "smoothadv_consistency": (
        objectives.compose("smoothadv_consistency", steps=2, epsilon=1.0, weight=2.0),
        2,
    ),
    "smoothmix": (objectives.SmoothMix(steps=2), 2),
    "smoothmix_one_step": (objectives.SmoothMix(steps=2, epsilon=1.0), 2),
}


@pytest.mark.parametrize("name", RECORDED["objectives"])
def test_a_step_of_a_network_with_batch_statistics(name, monkeypatch):
    """Views, attack, groups of batch statistics, loss and gradient, in one: a step of rate 1."""
    objective, copies = STEPS[name]
    images = np.clip(1.4 * np.random.RandomState(2).random_sample((4, 32, 32, 3)) - 0.2, 0, 1)
    noise = 0.5 * drawn(3, (4, copies, 32, 32, 3))
    labels = tf.constant([7, 0, 7, 9])
    monkeypatch.setattr(
        SmoothedTrainer,
        "draw",
        lambda self, images, labels, stream, step: Batch(
            images, labels, tf.constant(noise, tf.float32), step, tf.zeros(2, tf.int64)
        ),
    )
    monkeypatch.setattr(objectives, "_share", lambda batch: tf.constant([0.1, 0.45, 0.3, 0.02]))
    network = network_of("resnet20")
    kernel = network.get_layer("logits").kernel
    kernel.assign(4 * kernel)
    trainer = SmoothedTrainer(network, objective, sigma=0.5, num_noise=copies)
    trainer.compile(optimizer=SGD(1.0, momentum=0.0))
    before = {variable.path: variable.numpy() for variable in network.trainable_variables}
    found = trainer.train_step((tf.constant(images, tf.float32), labels))
    recorded = RECORDED["objectives"][name]
    assert float(found["loss"]) == pytest.approx(recorded["loss"], rel=1e-4)
    for path, (norm, product) in recorded["gradients"].items():
        layer, role = path.split("/")
        gradient = before[path] - getattr(network.get_layer(layer), role).numpy()
        assert np.linalg.norm(gradient) == pytest.approx(norm, rel=2e-3), path
        # A rectifier that another rounding switches moves single images by as much.
        direction = np.random.RandomState(4).standard_normal(gradient.shape)
        assert (gradient * direction).sum() == pytest.approx(product, abs=1e-2 * norm), path


@pytest.mark.parametrize("name", ["smoothadv", "smoothmix"])
def test_warming_up(name):
    """Epsilon, and SmoothMix's weight, of the first twelve epochs; here of seven steps each."""
    recorded = RECORDED["optimizer"]["epochs"][name]
    for what, value in (("epsilon", recorded["epsilon"][-1]), ("weight", 5.0)):
        if what in recorded:
            schedule = schedules.by_epoch(value, 10, 7)
            for within in (0, 6):
                found = [float(schedule(tf.constant(7 * e + within))) for e in range(12)]
                assert found == pytest.approx(recorded[what])


W1, W2 = drawn(11, (32, 12), 0.25), drawn(12, (12, 5))
ATTACKED = np.clip(1.4 * np.random.RandomState(13).random_sample((3, 4, 4, 2)) - 0.2, 0, 1)
SEED = tf.constant([1, 2], tf.int64)


@pytest.mark.parametrize("number", range(len(RECORDED["attacks"]["cases"])))
def test_attacks(number):
    """In float64. A gain of 12 makes two of three images so sure that damped steps are short."""
    case = RECORDED["attacks"]["cases"][number]
    scale = 0.5 if case["gain"] == 1 else 0.05
    noise = tf.constant(drawn(14, (3, 3, 4, 4, 2), scale)[:, : case["copies"]])
    images, labels = tf.constant(ATTACKED), tf.constant(case["labels"])

    def network(x):
        return case["gain"] * tf.tanh(tf.reshape(x, [-1, 32]) @ W1) @ W2

    def attack(name, **options):
        options = {"epsilon": case["epsilon"], "seed": SEED, **options}
        return name(network, images, labels, noise, **options)

    found = {
        "salman": lambda: attack(objectives.ATTACKS["pgd", "salman"], steps=4),
        "jeong": lambda: attack(objectives.ATTACKS["pgd", "jeong"], steps=4),
        "ddn": lambda: attack(objectives.ATTACKS["ddn", "salman"], steps=6, levels=None),
        # Their last rounding, of the change, may leave the ball and the levels: it is left out.
        "ddn_levels": lambda: attack(objectives.ATTACKS["ddn", "salman"], steps=6),
        "smoothmix_near": lambda: adversarial.project(
            adversarial.ascend(network, images, labels, noise, step_size=0.7, steps=1),
            images,
            tf.constant(case["epsilon"], tf.float64),
        ),
        "smoothmix_far": lambda: adversarial.ascend(
            network, images, labels, noise, step_size=0.7, steps=3
        ),
    }[case["attack"]]()
    expected = np.reshape(case["images"], ATTACKED.shape)
    if case["attack"] == "ddn_levels":
        found = ATTACKED + np.round((found - ATTACKED) * 255) / 255
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("form", ["momentum", "nesterov"])
def test_optimizer(form):
    """Six steps, the rate falling to a tenth after three."""
    variable = keras.Variable(drawn(31, (6,)), dtype="float64")
    optimizer = SGD(0.1, momentum=0.9, weight_decay=0.05, nesterov=form == "nesterov")
    for step, expected in enumerate(RECORDED["optimizer"][form]):
        optimizer.learning_rate = 0.1 if step < 3 else 0.01
        optimizer.apply([tf.constant(drawn(40 + step, (6,)))], [variable])
        np.testing.assert_allclose(variable, expected, rtol=1e-6)
