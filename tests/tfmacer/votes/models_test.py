"""A `.keras` file loads layers, and runs nothing of its own; what it must answer with."""

import json
import os
import zipfile

import keras
import numpy as np
import pytest
from keras.src.saving import saving_lib

from export import saved_model
from tfmacer import train
from tfmacer.common.errors import UserError
from tfmacer.records.runs import RunDirectory
from tfmacer.training import networks
from tfmacer.votes import models


def _layer(module, name, config):
    return {"module": module, "class_name": name, "config": config, "registered_name": name}


def _function(module, name):
    return {"module": module, "class_name": "function", "config": name, "registered_name": name}


def _activation(value):
    return _layer("keras.layers", "Activation", {"name": "theirs", "activation": value})


def _lambda(path):
    """The configuration that Keras writes of a Lambda layer which makes a file."""
    layer = keras.layers.Lambda(lambda x: __import__("os").mkdir("theirs") or x)
    return keras.saving.serialize_keras_object(layer)


THEIRS = {
    "a lambda": _lambda,
    "a function of another module": lambda path: _activation(_function("os", "mkdir")),
    "a class of another module": lambda path: _layer("subprocess", "Popen", {"args": ["ls"]}),
    "a function of Keras that fetches": lambda path: _activation(
        _function("keras.utils", "get_file")
    ),
    "a SavedModel": lambda path: _layer(
        "keras.layers",
        "TFSMLayer",
        {"filepath": str(path.parent), "call_endpoint": "serving_default", "name": "theirs"},
    ),
    "a module of Keras": lambda path: _layer("keras.src.saving.saving_lib", "zipfile", {}),
}


@pytest.fixture(params=THEIRS)
def theirs(request, tmp_path, monkeypatch):
    """A saved network with one more layer, written into its configuration by hand."""
    path = tmp_path / "model.keras"
    layers = [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)]
    keras.Sequential(layers).save(path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["config.json"])
    config["config"]["layers"].insert(1, THEIRS[request.param](path))
    config.pop("compile_config", None)
    files["config.json"] = json.dumps(config).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    monkeypatch.chdir(tmp_path)
    return path


def test_a_network_that_carries_code_is_refused_in_one_line(theirs):
    with pytest.raises(UserError, match=r"model\.keras: cannot be loaded: ") as caught:
        models.load_network(theirs)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert os.listdir() == ["model.keras"]


@pytest.mark.parametrize("config", [b"\xff\x00", b"[" * 100_000, None], ids=["bin", "deep", "none"])
def test_a_network_without_a_configuration_is_one_line(tmp_path, config):
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        if config is not None:
            archive.writestr("config.json", config)
    with pytest.raises(UserError, match=r"model\.keras: cannot be loaded: ") as caught:
        models.load_network(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_part_of_a_network_is_named(theirs):
    content = bytearray(theirs.read_bytes())
    content[content.index(b'"class_name"')] ^= 1
    theirs.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be loaded: config\.json in it is damaged"):
        models.load_network(theirs)


def test_every_command_loads_networks_so(theirs, tiny_run, capsys):
    run = RunDirectory(theirs.parent)
    run.smoothing.write_text(RunDirectory(tiny_run).read_smoothing().to_json())
    with pytest.raises(UserError, match="cannot be loaded"):
        models.load_run(run.root)
    flags = ["--sigma=0.5", "--export_dir=exports"]
    assert saved_model.main([f"--model={theirs}", *flags]) == 1
    assert "cannot be loaded" in capsys.readouterr().err
    flags = ["--dataset=mnist5k", "--sigma=0.5", "--lambda=1", "--epochs=1", "--run_dir=run"]
    assert train.main([f"--init_from={theirs}", *flags]) == 1
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "error: " in text]
    assert line.startswith(f"error: --init_from={theirs}: cannot be used: model {theirs}: cannot")
    assert not os.path.exists("theirs")


@pytest.mark.parametrize("name", ["model.h5", "model.keras", "model.zip"])
def test_what_is_no_keras_file(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(UserError, match=rf"{name}: not a \.keras file$"):
        models.load_network(tmp_path / name)
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    with pytest.raises(UserError, match="--init_from=.*: cannot be used: .* not a .keras file"):
        networks.copy_weights(tmp_path / name, network)


def test_a_class_that_the_program_has_registered_is_loaded(tmp_path):
    @keras.saving.register_keras_serializable(package="models_test")
    class Doubled(keras.layers.Layer):
        def call(self, inputs):
            return 2 * inputs

    network = keras.Sequential([keras.Input((2,)), Doubled(), keras.layers.Dense(3)])
    network.save(tmp_path / "model.keras")
    loaded = models.load_network(tmp_path / "model.keras")
    x = np.ones((1, 2), np.float32)
    np.testing.assert_array_equal(loaded(x), network(x))


class Shifted(keras.layers.Layer):
    """Of a user's own; its shift is not in its configuration."""

    def __init__(self, shift=0.0, **kwargs):
        super().__init__(**kwargs)
        self.shift = shift

    def call(self, inputs):
        return inputs + self.shift


@keras.saving.register_keras_serializable(package="models_test")
class Forgetful(Shifted):
    pass


@keras.saving.register_keras_serializable(package="models_test")
class Registered(Shifted):
    def get_config(self):
        return {**super().get_config(), "shift": self.shift}


SHAPE = (4, 4, 1)


def _network(*layers):
    return keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), *layers])


def _changed():
    layer = Forgetful()
    layer.shift = 2.0
    return layer


NOT_COMING_BACK = {
    "unregistered": (
        Shifted,
        r"could not be loaded once it was saved: 'Shifted' of the module '.*models_test' must be "
        r"registered: see keras\.saving\.register_keras_serializable$",
    ),
    "a lambda": (
        lambda: keras.layers.Lambda(lambda x: x + 1),
        "could not be loaded once it was saved: .*`Lambda` layer.*; for layers see",
    ),
    "a lambda as an activation": (
        lambda: keras.layers.Activation(lambda x: x + 1),
        "could not be loaded once it was saved: .*activation function",
    ),
    "changed": (_changed, "answers differently once saved and loaded: get_config of a custom"),
}


@pytest.mark.parametrize("name", NOT_COMING_BACK)
def test_what_would_not_come_back_is_found(name):
    layer, message = NOT_COMING_BACK[name]
    network = _network(keras.layers.Dense(3), layer())
    with pytest.raises(UserError, match=f"mine: {message}") as caught:
        models.check_saved(network, what="mine")
    assert "\n" not in str(caught.value)


def test_what_comes_back_is_let_through():
    models.check_saved(_network(Registered(2.0), keras.layers.Dense(3)), what="mine")


def _functional(last):
    images = keras.Input(SHAPE)
    return keras.Model(images, last(keras.layers.Dense(3)(keras.layers.Flatten()(images))))


def _nested():
    features = keras.Input((3,))
    head = keras.Model(features, keras.layers.Softmax()(features))
    return _network(keras.layers.Dense(3), head)


def _unknown():
    class Mine(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = [keras.layers.Flatten(), keras.layers.Dense(3)]

        def call(self, images):
            for part in self.parts:
                images = part(images)
            return keras.ops.softmax(images)

    return Mine()


PROBABILITIES = {
    "an activation": lambda: _network(keras.layers.Dense(3, "softmax")),
    "a layer": lambda: _network(keras.layers.Dense(3), keras.layers.Softmax()),
    "an activation alone": lambda: _network(
        keras.layers.Dense(3), keras.layers.Activation("softmax")
    ),
    "an operation": lambda: _functional(keras.ops.softmax),
    "nested": _nested,
    "hidden": lambda: _network(keras.layers.Dense(3, "softmax"), keras.layers.Identity()),
    "written out": lambda: _functional(
        lambda x: keras.ops.exp(x) / keras.ops.sum(keras.ops.exp(x), axis=1, keepdims=True)
    ),
    "subclass": _unknown,
    "sigmoid": lambda: _network(keras.layers.Dense(3, "sigmoid")),
    "sigmoid as an operation": lambda: _functional(keras.ops.sigmoid),
}


@pytest.mark.parametrize("name", PROBABILITIES)
def test_probabilities_are_refused_whatever_made_them(name):
    message = "mine: (ends in a (softmax|sigmoid)|returns probabilities); remove"
    with pytest.raises(UserError, match=message):
        models.check_logits(PROBABILITIES[name](), SHAPE, what="mine")


@pytest.mark.parametrize(
    "network",
    [
        lambda: _network(keras.layers.Dense(3)),
        lambda: _network(keras.layers.Dense(5, "softmax"), keras.layers.Dense(3)),
        # Logits like any others: their softmax is what it was made of.
        lambda: _functional(keras.ops.log_softmax),
        lambda: _network(keras.layers.Dense(3, "relu")),
    ],
)
def test_logits_are_let_through(network):
    assert models.check_logits(network(), SHAPE, what="mine") == 3


def test_a_network_of_other_images_is_refused():
    with pytest.raises(UserError, match=r"mine: fails on images of \(4, 5, 5, 1\): ") as caught:
        models.check_logits(_network(keras.layers.Dense(3)), (5, 5, 1), what="mine")
    assert "\n" not in str(caught.value)


@keras.saving.register_keras_serializable(package="models_test")
class Nested(keras.layers.Layer):
    """Holds a layer in a list of lists."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts = [[keras.layers.Dense(3)]]

    def build(self, shape):
        self.parts[0][0].build(shape)

    def call(self, inputs):
        return self.parts[0][0](inputs)


def test_no_weight_is_left_as_it_was_drawn(tmp_path, monkeypatch):
    """As in files of earlier versions of Keras, which left out what lies in lists of lists."""
    save = saving_lib._save_container_state

    def earlier(container, *rest, **options):
        if not any(isinstance(each, list) for each in container):
            save(container, *rest, **options)

    path = tmp_path / "model.keras"
    with monkeypatch.context() as patch:
        patch.setattr(saving_lib, "_save_container_state", earlier)
        _network(Nested()).save(path)
    with pytest.raises(UserError, match="cannot be loaded: Skipping nested container at 'layers/"):
        models.load_network(path)
