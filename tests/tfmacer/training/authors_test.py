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

from tfmacer.training import networks

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
