"""Exports in other TensorFlow code, and what a server's batching makes of them."""

import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.tools import saved_model_cli

from export import lint, saved_model
from export.signatures import SmoothedClassifier
from tfmacer.errors import UserError
from tfmacer.records.runs import Smoothing
from tfmacer.training import networks
from tfmacer.training.precision import policy

SHAPE, CLASSES = (8, 8, 1), 4
IMAGES = np.random.default_rng(0).random((3, *SHAPE), np.float32)
ROWS = {
    "images": IMAGES,
    "seeds": np.array([[1, 2], [-3, 4], [1, 2]], np.int32),
    "offsets": np.array([0, 32, 5], np.int32),
    "num_samples": np.array([64, 100, 7], np.int32),
    "beta": np.array([1.0, 4.0, 1.0], np.float32),
}


def _smoothing(shape=SHAPE, classes=CLASSES, precision="float32") -> Smoothing:
    return Smoothing(
        sigma=0.25,
        num_classes=classes,
        input_shape=shape,
        model_digest="0" * 64,
        block_size=32,
        precision=precision,
    )


def _network() -> keras.Model:
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Conv2D(4, 3), keras.layers.Flatten(), keras.layers.Dense(CLASSES)]
    return keras.Sequential([keras.Input(SHAPE), *layers])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    module = SmoothedClassifier(_network(), _smoothing(), 100)
    version = tmp_path_factory.mktemp("export") / "1"
    tf.saved_model.save(module, str(version), signatures=module.signatures())
    return version


@pytest.fixture(scope="module")
def model(path):
    return tf.saved_model.load(str(path))


def _rows(*which: int):
    return {name: tf.constant(values[list(which)]) for name, values in ROWS.items()}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 2, 2)])
def test_requests_put_together_by_a_server_give_each_its_own_votes(model, order) -> None:
    """As batching does: rows of several requests in any order, the last repeated as padding."""
    sample = model.signatures["sample_under_noise"]
    together = sample(**_rows(*order))
    for place, row in enumerate(order):
        alone = sample(**_rows(row))
        for name, values in alone.items():
            np.testing.assert_array_equal(together[name][place], values[0], err_msg=name)


def test_batches_of_the_other_signatures_are_rows_too(model) -> None:
    logits = model.signatures["logits"]
    together = logits(images=tf.constant(IMAGES))["logits"].numpy()
    for row, image in enumerate(IMAGES):
        alone = logits(images=tf.constant(image[np.newaxis]))["logits"].numpy()[0]
        np.testing.assert_allclose(together[row], alone, rtol=1e-5, atol=1e-6)
    for size in (1, 5):
        info = model.signatures["tfmacer_info"](probe=tf.zeros([size], tf.int32))
        assert info["smoothing"].shape == (size,)
        images = tf.fill((size, *SHAPE), 0.5)
        assert model.signatures["serving_default"](images=images)["counts"].shape == (size, 4)


def test_inside_another_keras_model(path, model) -> None:
    pixels = keras.Input(SHAPE)
    logits = keras.layers.TFSMLayer(str(path), call_endpoint="logits")(pixels)["logits"]
    outer = keras.Model(pixels, keras.layers.Softmax()(logits))
    expected = tf.nn.softmax(model.signatures["logits"](images=tf.constant(IMAGES))["logits"])
    np.testing.assert_allclose(outer.predict(IMAGES, verbose=0), expected, rtol=1e-5)
    votes = keras.layers.TFSMLayer(str(path), call_endpoint="serving_default")(pixels)["counts"]
    counts = keras.Model(pixels, votes).predict(IMAGES, verbose=0)
    assert counts.sum(axis=1).tolist() == [100, 100, 100]


def test_inside_a_tf_data_map(model) -> None:
    predict = model.signatures["serving_default"]
    dataset = tf.data.Dataset.from_tensor_slices(IMAGES).batch(2)
    dataset = dataset.map(lambda images: predict(images=images)["counts"])
    counts = np.concatenate(list(dataset.as_numpy_iterator()))
    assert counts.sum(axis=1).tolist() == [100, 100, 100]


def test_the_lines_of_the_documentation(tmp_path, monkeypatch) -> None:
    page = (Path(__file__).parents[2] / "docs/serving.md").read_text()
    (code,) = re.findall(r"## Without a server\n.*?```python\n(.*?)```", page, re.DOTALL)
    shape = (28, 28, 1)
    network = keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(10)])
    module = SmoothedClassifier(network, _smoothing(shape, 10), 10)
    monkeypatch.chdir(tmp_path)
    tf.saved_model.save(module, "models/digits/1", signatures=module.signatures())
    found: dict[str, Any] = {}
    exec(code, found)
    images, plain = found["images"], network(found["images"])
    assert found["votes"].numpy().sum(axis=1).tolist() == [256, 256]
    assert found["classes"].shape == next(iter(found["dataset"])).shape == (2,)
    np.testing.assert_allclose(found["probabilities"](images), tf.nn.softmax(plain), rtol=1e-5)
    np.testing.assert_allclose(found["compiled"](images), plain, atol=1e-5)


def test_compiled_by_xla(model) -> None:
    """`logits` within rounding; votes under XLA's own noise, so alike in law and repeatable."""
    logits = model.signatures["logits"]
    compiled = tf.function(lambda images: logits(images=images)["logits"], jit_compile=True)
    plain = logits(images=tf.constant(IMAGES))["logits"]
    np.testing.assert_allclose(compiled(tf.constant(IMAGES)), plain, rtol=1e-4, atol=1e-5)
    sample = model.signatures["sample_under_noise"]
    drawn = tf.function(lambda **rows: sample(**rows), jit_compile=True)
    many = _rows(0, 1) | {"num_samples": tf.constant([4096, 4096])}
    first, second = drawn(**many)["counts"].numpy(), drawn(**many)["counts"].numpy()
    np.testing.assert_array_equal(first, second)
    assert first.sum(axis=1).tolist() == [4096, 4096]
    # Two samples of 4096 draws: a share differs by more than 5 sqrt(2 / (4 x 4096)) in one of
    # millions.
    share = sample(**many)["counts"].numpy() / 4096
    assert np.abs(first / 4096 - share).max() < 5 * np.sqrt(2 / (4 * 4096))


def test_names_and_numbers_are_seen_from_outside(path, capsys) -> None:
    saved_model_cli._show_all(str(path))
    text = capsys.readouterr().out
    for name in ("serving_default", "encoded", "sample_under_noise", "logits", "tfmacer_info"):
        assert f"signature_def['{name}']" in text
    for alias in (*ROWS, "encoded_images", "probe"):
        assert f"inputs['{alias}']" in text
    for alias in ("classes", "counts", "probabilities", "sums", "square_sums", "smoothing"):
        assert f"outputs['{alias}']" in text
    assert "shape: (-1, 8, 8, 1)" in text
    assert "shape: (-1, 4)" in text


def test_a_version_appears_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    seen = []

    def look(network, smoothing, folder) -> None:
        seen.append([child.name for child in tmp_path.iterdir()])
        raise UserError("not fit to be served")

    monkeypatch.setattr(saved_model, "_verify", look)
    with pytest.raises(UserError, match="not fit"):
        saved_model.export(_network(), _smoothing(), tmp_path, version=7)
    # While it was complete but for its name, no number was there; afterwards, nothing.
    assert [name.isdigit() for names in seen for name in names] == [False]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(
    "name",
    [
        "lenet",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in networks.NETWORKS
            if name != "lenet"
        ),
    ],
)
def test_every_network_in_every_precision(name, precision, tmp_path) -> None:
    shape = (32, 32, 1) if name == "lenet" else (32, 32, 3)
    keras.utils.set_random_seed(4)
    with policy(precision):
        network = networks.build(name, "none", shape, CLASSES)
    module = SmoothedClassifier(network, _smoothing(shape, precision=precision), 10)
    tf.saved_model.save(module, str(tmp_path), signatures=module.signatures())
    assert lint.lint(tmp_path, len(network.weights)) == []
    signatures = tf.saved_model.load(str(tmp_path)).signatures
    images = np.random.default_rng(1).random((2, *shape), np.float32)
    found = signatures["logits"](images=tf.constant(images))["logits"]
    assert found.dtype == tf.float32
    expected = np.asarray(network(images, training=False), np.float32)
    # Eight bits of bfloat16, over many layers.
    part = 1e-4 if precision == "float32" else 0.1
    np.testing.assert_allclose(found, expected, atol=part * np.abs(expected).max())
    rows = {name: tf.constant(values[:2]) for name, values in ROWS.items() if name != "images"}
    votes = signatures["sample_under_noise"](images=tf.constant(images), **rows)
    np.testing.assert_array_equal(votes["counts"].numpy().sum(axis=1), ROWS["num_samples"][:2])
