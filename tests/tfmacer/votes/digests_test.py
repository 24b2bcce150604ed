"""Digests of networks that were never saved."""

import functools
import json
import zipfile

import keras
import numpy as np
import pytest

from tfmacer.records.runs import UNKNOWN_MODEL, model_digest
from tfmacer.votes import digests, models

SHAPE = (4, 4, 1)


def _branches(order, names=(None,) * 6):
    """The difference of two branches, one of them a model of its own, with given weights."""
    inputs = keras.Input((4, 4, 1), name=names[0])
    flat = keras.layers.Flatten(name=names[1])(inputs)
    inner = [keras.layers.Dense(2, "relu", name=names[2]), keras.layers.Dense(3, name=names[3])]
    parts = [keras.Sequential(inner)(flat), keras.layers.Dense(3, name=names[4])(flat)]
    network = keras.Model(inputs, keras.layers.Subtract(name=names[5])(parts[::order]))
    for weight in network.weights:
        weight.assign(np.random.default_rng(tuple(weight.shape)).normal(size=weight.shape))
    return network


def test_the_same_network_has_the_same_digest_whatever_was_built_before():
    first, again = _branches(1), _branches(1)
    assert first.layers[-1].name != again.layers[-1].name
    assert digests.weights_digest(first) == digests.weights_digest(again)
    names = [f"{name}_{i}" for i, name in enumerate(("x", "dense", "relu", "add", "y", "z"))]
    assert digests.weights_digest(_branches(1, names)) != digests.weights_digest(first)


def test_structure_and_names_given_by_hand_enter_the_digest():
    one, other = _branches(1), _branches(-1)
    shapes = [sorted(tuple(weight.shape) for weight in each.weights) for each in (one, other)]
    assert shapes[0] == shapes[1]  # and with them the values
    assert digests.weights_digest(one) != digests.weights_digest(other)
    # Either dense layer, numbered anew, would have the name that the other layer was given.
    names = (None, "dense", None, None, None, None)
    swapped = (None, "dense_1", None, None, None, None)
    assert digests.weights_digest(_branches(1, names)) != digests.weights_digest(
        _branches(1, swapped)
    )


def test_digests_of_networks_that_were_built_first_are_what_they_were():
    layers = [keras.Input((4,), name="input_layer"), keras.layers.Dense(2, name="dense")]
    network = keras.Sequential(layers, name="sequential")
    config = json.dumps(network.get_config(), sort_keys=True)
    values = [(variable.name, variable.numpy()) for variable in network.weights]
    assert digests.weights_digest(network) == model_digest(config, values)


def _reading_levels(vocabulary):
    """Looks each pixel's level up in a vocabulary, which is no weight."""
    keras.utils.set_random_seed(0)
    look_up = keras.layers.IntegerLookup()
    look_up.set_vocabulary(vocabulary)
    last = [keras.layers.Rescaling(0.1), keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input(SHAPE), keras.layers.Rescaling(255.0), look_up, *last])


def _as_if(name, path):
    """Calls the vocabulary's directory something else that is unpacked as `assets`."""
    with zipfile.ZipFile(path) as archive:
        files = {each: archive.read(each) for each in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for each, content in files.items():
            archive.writestr(each.replace("assets/", name), content)


@pytest.mark.parametrize("name", ["assets/", "./assets/", "assets//"])
def test_a_vocabulary_is_a_part_of_what_a_network_is(tmp_path, name):
    """Two networks of the same weights and configuration."""
    path = tmp_path / "model.keras"
    found, logits = [], []
    for vocabulary in (range(256), range(255, -1, -1)):
        network = _reading_levels(list(vocabulary))
        assert digests.weights_digest(network) == UNKNOWN_MODEL
        network.save(path)
        _as_if(name, path)
        loaded = models.load_network(path)
        found.append(digests.network_digest(path, loaded))
        logits.append(models.answers(loaded, SHAPE, what="mine"))
        np.testing.assert_allclose(logits[-1], models.answers(network, SHAPE, what="mine"))
        assert found[-1] == digests.network_digest(path, network)
    assert found[0] != found[1]
    assert np.abs(logits[0] - logits[1]).max() > 0.1


def _signed(sign):
    def theirs(x):
        return sign * x

    return theirs


BY_FUNCTIONS = {
    "a name": lambda x: keras.ops.map(_signed(-1.0), x),
    "a lambda": lambda x: keras.ops.map(lambda each: -each, x),
    "a partial": lambda x: keras.ops.map(functools.partial(keras.ops.add, -1.0), x),
    "one of several": lambda x: keras.ops.switch(0, [keras.ops.relu, _signed(-1.0)], x),
}


@pytest.mark.parametrize("name", BY_FUNCTIONS)
def test_the_name_of_a_function_is_not_what_it_computes(name):
    images = keras.Input(SHAPE)
    network = keras.Model(images, BY_FUNCTIONS[name](images))
    assert digests.weights_digest(network) == UNKNOWN_MODEL
