"""What the layers compute, and that stock Keras loads them."""

import json
import zipfile

import keras
import numpy as np
import pytest
from scipy import signal

from tfmacer.common.errors import UserError
from tfmacer.training import networks

CIFAR, IMAGENET = (32, 32, 3), (224, 224, 3)


def test_lenet_computes_what_its_layers_say():
    """One image through SciPy's correlation and plain NumPy."""
    keras.utils.set_random_seed(0)
    network = networks.build("lenet", "mnist", (28, 28, 1), 10)
    image = np.random.default_rng(0).random((28, 28, 1))

    def convolve(x, name):
        kernel, bias = (w.astype(np.float64) for w in network.get_layer(name).get_weights())
        maps = [
            sum(signal.correlate(x[..., c], kernel[..., c, f], "valid") for c in range(x.shape[2]))
            for f in range(kernel.shape[3])
        ]
        x = np.maximum(np.stack(maps, axis=-1) + bias, 0)
        side = x.shape[0] // 2
        return x.reshape(side, 2, side, 2, -1).max(axis=(1, 3))

    x = convolve(convolve(image, "conv1"), "conv2").reshape(-1)
    for name in ("hidden", "logits"):
        kernel, bias = network.get_layer(name).get_weights()
        x = x @ kernel + bias
        x = np.maximum(x, 0) if name == "hidden" else x
    found = network(image[np.newaxis].astype(np.float32)).numpy()[0]
    np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-6)


def test_normalisation_comes_first_and_has_no_weights():
    network = networks.build("resnet20", "cifar10", CIFAR, 10)
    layer = network.layers[1]
    assert layer.name == "normalization"
    assert not layer.weights
    image = np.random.default_rng(0).random((1, *CIFAR)).astype(np.float32)
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2023, 0.1994, 0.2010])
    np.testing.assert_allclose(layer(image), (image - mean) / std, rtol=1e-5, atol=1e-5)


def test_a_strided_convolution_pads_both_sides_alike():
    """As PyTorch's padding=1: output i is centred on input 2i, where "same" centres on 2i + 1."""
    images = keras.Input((8, 8, 1))
    layer = keras.Model(images, networks._conv(images, 1, 3, 2, "test"))
    centre = np.zeros((3, 3, 1, 1))
    centre[1, 1] = 1
    layer.layers[-1].set_weights([centre])
    x = np.arange(64, dtype=np.float32).reshape(1, 8, 8, 1)
    np.testing.assert_array_equal(layer(x), x[:, ::2, ::2])


@pytest.mark.parametrize(
    ("name", "shape"), [("lenet", (28, 28, 1)), ("resnet20", CIFAR), ("densenet40", CIFAR)]
)
def test_stock_keras_loads_it_in_safe_mode(tmp_path, name, shape):
    network = networks.build(name, "cifar10" if shape == CIFAR else "mnist", shape, 10)
    network.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    images = np.random.default_rng(0).random((3, *shape)).astype(np.float32)
    np.testing.assert_array_equal(loaded(images), network(images))
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        modules = _modules(json.loads(archive.read("config.json")))
    assert all(module.startswith("keras") for module in modules)


def _modules(config):
    """Every module that a saved configuration names."""
    if isinstance(config, list):
        return {module for item in config for module in _modules(item)}
    if not isinstance(config, dict):
        return set()
    own = {config["module"]} if isinstance(config.get("module"), str) else set()
    return own | {module for item in config.values() for module in _modules(item)}


def test_a_saved_network_of_another_structure_loads_as_it_was(tmp_path):
    """The file's own configuration is what is loaded, whatever `build` makes under that name."""
    images = keras.Input((8, 8, 4), name="images")
    short = keras.ops.pad(images[:, ::2, ::2], [(0, 0), (0, 0), (0, 0), (2, 2)])
    long = keras.layers.Conv2D(8, 2, 2, use_bias=False, name="stage2_block1_1_conv")(images)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Add()([short, long]))
    network = keras.Model(images, keras.layers.Dense(10, name="logits")(x), name="resnet20")
    network.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    pixels = np.random.default_rng(0).random((3, 8, 8, 4)).astype(np.float32)
    np.testing.assert_array_equal(loaded(pixels), network(pixels))


def test_logits_stay_float32_under_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = networks.build("lenet", "mnist", (28, 28, 1), 10)
    finally:
        keras.config.set_dtype_policy(before)
    assert network.get_layer("conv1").compute_dtype == "bfloat16"
    assert network(np.zeros((1, 28, 28, 1), np.float32)).dtype == "float32"


MODULE = """
import keras

def good(shape, num_classes):
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(),
                             keras.layers.Dense(num_classes)])

def softmax(shape, num_classes):
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(),
                             keras.layers.Dense(num_classes, activation="softmax")])

def narrow(shape, num_classes):
    return good(shape, num_classes - 1)

def nothing(shape, num_classes):
    return None

number = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_networks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "my_networks"


def test_a_users_network(module):
    network = networks.build(f"{module}:good", "mnist", (8, 8, 1), 5)
    assert network.output_shape == (None, 5)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("softmax", "ends in a softmax; remove it, logits are expected"),
        ("narrow", r"maps \(None, 8, 8, 1\) to \(None, 4\), must map"),
        ("nothing", "returned NoneType, not a keras.Model"),
        ("number", "not a function"),
        ("absent", "has no attribute 'absent'"),
    ],
)
def test_a_users_network_is_checked(module, function, message):
    with pytest.raises(UserError, match=message):
        networks.build(f"{module}:{function}", "mnist", (8, 8, 1), 5)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("lenett", (28, 28, 1), "must be one of lenet, .*got 'lenett'"),
        ("no_such_module:f", (28, 28, 1), "No module named 'no_such_module'"),
        ("lenet", (8, 8, 1), r"lenet cannot take images of \(8, 8, 1\)"),
    ],
)
def test_what_cannot_be_built(name, shape, message):
    with pytest.raises(UserError, match=message):
        networks.build(name, "mnist", shape, 10)


def test_weights_are_copied_from_a_file_or_a_run(tmp_path):
    source, target = (networks.build("lenet", "mnist", (28, 28, 1), 10) for _ in range(2))
    source.save(tmp_path / "model.keras")
    for path in (tmp_path, tmp_path / "model.keras"):
        target = networks.build("lenet", "mnist", (28, 28, 1), 10)
        networks.copy_weights(path, target)
        for found, expected in zip(target.get_weights(), source.get_weights(), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_weights_that_do_not_fit_are_refused_by_the_difference(tmp_path):
    networks.build("lenet", "mnist", (28, 28, 1), 10).save(tmp_path / "model.keras")
    other = networks.build("lenet", "mnist", (28, 28, 1), 5)
    with pytest.raises(UserError, match=r"^--init_from=.* \(500, 10\), .* \(500, 5\) [^\n]*$"):
        networks.copy_weights(tmp_path, other)
    deeper = networks.build("resnet20", "cifar10", CIFAR, 10)
    with pytest.raises(UserError, match=r"^--init_from=.* 8 weights, this one 107[^\n]*$"):
        networks.copy_weights(tmp_path, deeper)
    with pytest.raises(UserError, match="--init_from=.*cannot be used"):
        networks.copy_weights(tmp_path / "absent.keras", other)
