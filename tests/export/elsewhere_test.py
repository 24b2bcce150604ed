"""Exports in other TensorFlow code, and what a server's batching makes of them."""

import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from small_exports import (
    CLASSES,
    IMAGES,
    ROWS,
    SHAPE,
    small_network,
    small_smoothing,
)
from tensorflow.python.tools import saved_model_cli

from export import lint, saved_model
from export.signatures import SmoothedClassifier
from tfmacer.common.errors import UserError
from tfmacer.training import networks
from tfmacer.training.precision import policy


@pytest.fixture(scope="module")
def model(small_export):
    return tf.saved_model.load(str(small_export))


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


def test_inside_another_keras_model(small_export, model) -> None:
    pixels = keras.Input(SHAPE)
    logits = keras.layers.TFSMLayer(str(small_export), call_endpoint="logits")(pixels)["logits"]
    outer = keras.Model(pixels, keras.layers.Softmax()(logits))
    expected = tf.nn.softmax(model.signatures["logits"](images=tf.constant(IMAGES))["logits"])
    np.testing.assert_allclose(outer.predict(IMAGES, verbose=0), expected, rtol=1e-5)
    votes = keras.layers.TFSMLayer(str(small_export), call_endpoint="serving_default")
    counts = keras.Model(pixels, votes(pixels)["counts"]).predict(IMAGES, verbose=0)
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
    module = SmoothedClassifier(network, small_smoothing(shape, 10), 10)
    monkeypatch.chdir(tmp_path)
    tf.saved_model.save(module, "models/digits/1", signatures=module.signatures())
    found: dict[str, Any] = {}
    exec(code, found)
    images, plain = found["images"], network(found["images"])
    assert found["votes"].numpy().sum(axis=1).tolist() == [256, 256]
    assert found["classes"].shape == next(iter(found["dataset"])).shape == (2,)
    np.testing.assert_allclose(found["probabilities"](images), tf.nn.softmax(plain), rtol=1e-5)
    np.testing.assert_allclose(found["compiled"](images), plain, atol=1e-5)
    assert found["predicted"].numpy().sum(axis=1).tolist() == [100, 100]


def test_names_and_numbers_are_seen_from_outside(small_export, capsys) -> None:
    saved_model_cli._show_all(str(small_export))
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
        saved_model.export(small_network(), small_smoothing(), tmp_path, version=7)
    # While it was complete but for its name, no number was there; afterwards, nothing.
    assert [name.isdigit() for names in seen for name in names] == [False]
    assert list(tmp_path.iterdir()) == []


def test_of_two_exports_of_one_version_the_first_stays(tmp_path, monkeypatch) -> None:
    def finish_another(network, smoothing, folder) -> None:
        (tmp_path / "7").mkdir()
        (tmp_path / "7" / "saved_model.pb").write_bytes(b"the other")

    monkeypatch.setattr(saved_model, "_verify", finish_another)
    with pytest.raises(UserError, match="7 exists by now"):
        saved_model.export(small_network(), small_smoothing(), tmp_path, version=7)
    assert [path.name for path in tmp_path.iterdir()] == ["7"]
    assert (tmp_path / "7" / "saved_model.pb").read_bytes() == b"the other"


def test_a_base_path_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: cannot be written"):
        saved_model.export(small_network(), small_smoothing(), tmp_path / "file", version=1)


def _settle(network: keras.Model, shape: tuple[int, ...]) -> None:
    """Gives batch normalisation its statistics: an untrained deep network overflows float16."""
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    images = np.random.default_rng(2).normal(0.5, 0.4, (32, *shape)).astype(np.float32)
    network(images, training=True)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
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
    _settle(network, shape)
    module = SmoothedClassifier(network, small_smoothing(shape, precision=precision), 10)
    tf.saved_model.save(module, str(tmp_path), signatures=module.signatures())
    assert lint.lint(tmp_path, len(network.weights)) == []
    signatures = tf.saved_model.load(str(tmp_path)).signatures
    images = np.random.default_rng(1).random((2, *shape), np.float32)
    found = signatures["logits"](images=tf.constant(images))["logits"]
    assert found.dtype == tf.float32
    expected = np.asarray(network(images, training=False), np.float32)
    assert np.isfinite(expected).all()
    # Eight bits of bfloat16, eleven of float16, over many layers.
    part = 1e-4 if precision == "float32" else 0.1
    np.testing.assert_allclose(found, expected, atol=part * np.abs(expected).max())
    rows = {name: tf.constant(values[:2]) for name, values in ROWS.items() if name != "images"}
    votes = signatures["sample_under_noise"](images=tf.constant(images), **rows)
    np.testing.assert_array_equal(votes["counts"].numpy().sum(axis=1), ROWS["num_samples"][:2])
    png = [tf.io.encode_png(np.uint8(255 * image)) for image in images]
    for answer in (
        signatures["serving_default"](images=tf.constant(images)),
        signatures["encoded"](encoded_images=tf.stack(png)),
    ):
        assert answer["counts"].numpy().sum(axis=1).tolist() == [10, 10]
    info = signatures["tfmacer_info"](probe=tf.zeros([1], tf.int32))["smoothing"].numpy()[0]
    assert f'"precision": "{precision}"' in info.decode()
