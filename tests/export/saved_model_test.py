import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from export import check, lint, saved_model
from export.signatures import SmoothedClassifier
from tfmacer.common.errors import UserError
from tfmacer.votes import local
from tfmacer.votes.source import ESTIMATE, row_seed

SHAPE = (8, 8, 1)


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory) -> Path:
    keras.utils.set_random_seed(3)
    network = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Normalization(mean=0.5, variance=0.25),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Flatten(),
            keras.layers.Dense(4),
        ]
    )
    path = tmp_path_factory.mktemp("keras") / "model.keras"
    network.save(path)
    return path


@pytest.fixture(scope="module")
def exported(keras_file, tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("export") / "model"
    # A global seed must not find its way into the served noise.
    tf.random.set_seed(1)
    arguments = [f"--model={keras_file}", "--sigma=0.25", f"--export_dir={base}"]
    assert saved_model.main(arguments) == 0
    return base / "1"


def test_votes_of_the_export_equal_those_of_the_network(exported, keras_file):
    source = local.SavedModelVotes(exported)
    network = local.NetworkVotes(keras.models.load_model(keras_file), source.smoothing)
    request = {
        "images": np.random.default_rng(0).random((3, *SHAPE), np.float32),
        "seeds": np.stack([row_seed(1, ESTIMATE, i) for i in range(3)]),
        "offsets": np.array([0, 100, 256], np.int32),
        "num_samples": np.array([600, 5, 300], np.int32),
    }
    theirs, ours = source.sample(**request, beta=4.0), network.sample(**request, beta=4.0)
    np.testing.assert_array_equal(theirs.counts, ours.counts)
    np.testing.assert_allclose(theirs.sums, ours.sums, atol=1e-9)
    images = request["images"]
    np.testing.assert_allclose(source.logits(images), network.logits(images), atol=1e-5)


def test_it_runs_in_a_fresh_process_without_this_project(exported, tmp_path):
    """Plain `tf.saved_model.load` and a v1 Session; fresh noise differs between processes."""
    script = tmp_path / "use.py"
    script.write_text(
        textwrap.dedent(
            """
            import json, sys
            import numpy as np, tensorflow as tf
            x = np.full((2, 8, 8, 1), 0.5, np.float32)
            model = tf.saved_model.load(sys.argv[1])
            fresh = [
                model.signatures["serving_default"](images=tf.constant(x))["probabilities"].numpy()
                for _ in range(2)
            ]
            with tf.Graph().as_default() as graph, tf.compat.v1.Session() as session:
                meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], sys.argv[1])
                signature = meta.signature_def["sample_under_noise"]
                inputs = dict(images=x, seeds=[[1, 2], [1, 2]], offsets=[0, 0],
                              num_samples=[500, 500], beta=[1.0, 1.0])
                counts = session.run(
                    signature.outputs["counts"].name,
                    {signature.inputs[k].name: v for k, v in inputs.items()},
                )
            assert not any(name.startswith(("tfmacer", "export")) for name in sys.modules)
            print(json.dumps({"fresh": np.stack(fresh).tolist(), "counts": counts.tolist()}))
            """
        )
    )
    done = subprocess.run(
        [sys.executable, str(script), str(exported)],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    answer = json.loads(done.stdout)
    serve = tf.saved_model.load(str(exported)).signatures["serving_default"]
    here = [serve(images=tf.fill((2, *SHAPE), 0.5))["probabilities"].numpy() for _ in range(2)]
    fresh = np.concatenate([*answer["fresh"], *here])
    # Two processes, two calls, two rows of one image: no two draws of noise may be the same.
    assert len(fresh) == len(np.unique(fresh, axis=0)) == 8
    counts = answer["counts"]
    assert counts[0] == counts[1]
    source = local.SavedModelVotes(exported)
    mine = source.sample(
        np.full((1, *SHAPE), 0.5, np.float32),
        np.array([[1, 2]], np.int32),
        np.array([0], np.int32),
        np.array([500], np.int32),
    )
    assert mine.counts[0].tolist() == counts[0]


def test_default_prediction_counts_its_draws(exported):
    model = tf.saved_model.load(str(exported))
    answer = model.signatures["serving_default"](images=tf.fill((3, *SHAPE), 0.5))
    counts = answer["counts"].numpy()
    assert counts.sum(axis=1).tolist() == [100, 100, 100]
    np.testing.assert_array_equal(answer["classes"], counts.argmax(axis=1))
    np.testing.assert_allclose(answer["probabilities"].numpy().sum(axis=1), 1.0, rtol=1e-5)


def test_encoded_images_are_predicted_and_a_wrong_size_is_refused(exported):
    model = tf.saved_model.load(str(exported))
    pixels = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    png, jpeg = tf.io.encode_png(pixels), tf.io.encode_jpeg(pixels)
    answer = model.signatures["encoded"](encoded_images=tf.stack([png, jpeg]))
    assert answer["counts"].shape == (2, 4)
    small = tf.io.encode_png(pixels[:4])
    with pytest.raises(tf.errors.InvalidArgumentError, match="PNG or JPEG of 8 x 8 pixels"):
        model.signatures["encoded"](encoded_images=small[tf.newaxis])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [[1, 2]]}, "seeds must have as many rows as images"),
        ({"beta": [1.0]}, "beta must have as many rows as images"),
        ({"offsets": [0, -1]}, r"offsets must lie in \[0, 2000000000\]"),
        ({"num_samples": [1, 1_000_001]}, r"num_samples must lie in \[0, 1000000\]"),
    ],
)
def test_rows_that_do_not_fit_are_refused_inside_the_graph(exported, change, message):
    inputs = {
        "images": np.zeros((2, *SHAPE), np.float32),
        "seeds": [[1, 2], [3, 4]],
        "offsets": [0, 0],
        "num_samples": [1, 1],
        "beta": [1.0, 1.0],
    } | change
    signature = tf.saved_model.load(str(exported)).signatures["sample_under_noise"]
    tensors = {
        name: tf.constant(value, spec.dtype)
        for (name, value), spec in zip(
            sorted(inputs.items()),
            [signature.structured_input_signature[1][name] for name in sorted(inputs)],
            strict=True,
        )
    }
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        signature(**tensors)


def test_info_and_assets_tell_the_smoothing(exported):
    model = tf.saved_model.load(str(exported))
    texts = model.signatures["tfmacer_info"](probe=tf.zeros([2], tf.int32))["smoothing"].numpy()
    assert texts[0] == texts[1]
    assert texts[0].decode() == (exported / "assets.extra" / "smoothing.json").read_text()
    assert json.loads(texts[0])["sigma"] == 0.25


def test_warm_up_requests_name_signatures_and_inputs_that_exist(exported):
    model = tf.saved_model.load(str(exported))
    path = exported / "assets.extra" / "tf_serving_warmup_requests"
    seen = []
    for record in tf.data.TFRecordDataset(str(path)):
        log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        signature = model.signatures[request.model_spec.signature_name]
        inputs = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
        signature(**inputs)
        seen.append(request.model_spec.signature_name)
    assert sorted(seen) == ["logits", "sample_under_noise", "serving_default", "tfmacer_info"]


def test_exporting_again_takes_the_next_number_and_gives_equal_outputs(exported, keras_file):
    arguments = [f"--model={keras_file}", "--sigma=0.25", f"--export_dir={exported.parent}"]
    assert saved_model.main(arguments) == 0
    image = np.random.default_rng(5).random((1, *SHAPE), np.float32)
    first, second = (local.SavedModelVotes(exported.parent / name) for name in ("1", "2"))
    np.testing.assert_array_equal(first.logits(image), second.logits(image))
    request = (
        image,
        np.array([[5, 6]], np.int32),
        np.zeros(1, np.int32),
        np.array([300], np.int32),
    )
    for a, b in zip(first.sample(*request), second.sample(*request), strict=True):
        np.testing.assert_array_equal(a, b)
    assert sorted(path.name for path in exported.parent.iterdir()) == ["1", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "exactly one of --run_dir and --model"),
        (["--run_dir=/nowhere", "--model=x.keras"], "exactly one of --run_dir and --model"),
        (["--model=x.keras"], "--sigma goes with --model"),
        (["--model=x.keras", "--sigma=-1"], "--sigma"),
        (["--model=/nowhere.keras", "--sigma=1"], "--model=/nowhere.keras: no such file"),
        (["--run_dir=/nowhere"], "/nowhere: not a finished run directory"),
    ],
)
def test_bad_flags_get_one_line(arguments, message, tmp_path, capsys):
    assert saved_model.main([*arguments, f"--export_dir={tmp_path}"]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_no_version_follows_the_last(tmp_path, capsys):
    (tmp_path / str(2**63 - 1)).mkdir()
    arguments = ["--model=none.keras", "--sigma=0.25", f"--export_dir={tmp_path}"]
    assert saved_model.main(arguments) == 1
    assert f"holds version {2**63 - 1}: give --version" in capsys.readouterr().err


def test_an_existing_version_is_refused(exported, keras_file, capsys):
    arguments = [f"--model={keras_file}", "--sigma=1", f"--export_dir={exported.parent}"]
    assert saved_model.main([*arguments, "--version=1"]) == 1
    assert "exists already" in capsys.readouterr().err


@keras.saving.register_keras_serializable("tests")
class _Doubled(keras.layers.Layer):
    """A layer of a user's own."""

    def call(self, x):
        return 2 * x


def _model(*layers: keras.Layer) -> keras.Model:
    return keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), *layers])


def _several_outputs(kind: type) -> keras.Model:
    pixels = keras.Input(SHAPE)
    logits = keras.layers.Dense(3)(keras.layers.Flatten()(pixels))
    return keras.Model(pixels, {"a": logits} if kind is dict else [logits, logits])


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: _model(keras.layers.Dense(3, "softmax")), "ends in a softmax"),
        (lambda: _model(keras.layers.Dense(3, "sigmoid")), "ends in a sigmoid"),
        (lambda: _model(keras.layers.Dense(3), keras.layers.Softmax()), "ends in a softmax"),
        (
            lambda: _model(keras.layers.Dense(3, "softmax"), keras.layers.Identity()),
            "returns probabilities",
        ),
        (lambda: _model(keras.layers.Reshape((8, 8))), r"logits \[B, K\] .* returned \[\(4, 8, 8"),
        (lambda: _several_outputs(list), r"nothing else, returned \[\(4, 3\), \(4, 3\)\]"),
        (lambda: _several_outputs(dict), r"nothing else, returned \[\(4, 3\)\]"),
        (
            lambda: keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(2, 3)]),
            r"expected images \[B, H, W, C\]",
        ),
    ],
)
def test_models_that_are_no_classifiers_are_refused(network, message, tmp_path):
    network().save(tmp_path / "bad.keras")
    with pytest.raises(UserError, match=message):
        saved_model.load_model(tmp_path / "bad.keras", 0.5)


def test_layers_of_a_users_own_need_only_be_known(tmp_path, monkeypatch):
    path = tmp_path / "mine.keras"
    _model(_Doubled(), keras.layers.Dense(3)).save(path)
    _, smoothing = saved_model.load_model(path, 0.5)
    assert (smoothing.num_classes, smoothing.sigma) == (3, 0.5)
    monkeypatch.delitem(keras.saving.get_custom_objects(), "tests>_Doubled")
    with pytest.raises(UserError, match="cannot be loaded: it has '_Doubled' of the module") as e:
        saved_model.load_model(path, 0.5)
    assert "\n" not in str(e.value)


class _Seeded(SmoothedClassifier):
    """What an exporter with `tf.random.normal` and a global seed would have written."""

    def serving_default(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        noisy = images + tf.random.normal(tf.shape(images), seed=4)
        return {"classes": tf.argmax(self._network(noisy), axis=-1)}


class _Generator(SmoothedClassifier):
    """What an exporter with a `tf.random.Generator` would have written."""

    def __init__(self, *args):
        super().__init__(*args)
        self.generator = tf.random.Generator.from_seed(5)

    def serving_default(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        noisy = images + self.generator.normal(tf.shape(images))
        return {"classes": tf.argmax(self._network(noisy), axis=-1)}


class _Python(SmoothedClassifier):
    """What only runs in the process that wrote it, with a scalar output."""

    def logits(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = tf.numpy_function(lambda x: x, [self._network(images)], tf.float32)
        return {"logits": logits, "mean": tf.reduce_mean(logits)}


class _Pinned(SmoothedClassifier):
    """What never reaches a server's GPU."""

    def logits(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.device("CPU:0"):
            return super().logits(images)


@pytest.mark.parametrize(
    ("module", "finding"),
    [
        (_Seeded, "RandomStandardNormal has a seed baked in"),
        (_Generator, "carries generator state"),
        (_Python, r"^PyFunc \(node \w+ of function __inference_"),
        (_Pinned, "nodes are pinned to a device, .* to /device:CPU:0"),
        (_Python, "output mean is .*: its first dimension must be the batch"),
    ],
)
def test_lint_finds_what_must_not_be_served(module, finding, keras_file, tmp_path):
    network, smoothing = saved_model.load_model(keras_file, 0.5)
    bad = module(network, smoothing, 10)
    tf.saved_model.save(bad, str(tmp_path), signatures=bad.signatures())
    findings = lint.lint(tmp_path, len(network.weights))
    assert any(re.search(finding, line) for line in findings), findings


def test_an_op_that_tensorflow_lacks_is_found(exported, keras_file, tmp_path):
    """Twice: by the lint, and in the fresh process, which has loaded no library of ops."""
    directory = tmp_path / "1"
    shutil.copytree(exported, directory)
    saved = directory / "saved_model.pb"
    # Same length, so that the file stays a protocol buffer.
    saved.write_bytes(saved.read_bytes().replace(b"Softmax", b"Hardmax"))
    findings = lint.lint(directory, len(keras.models.load_model(keras_file).weights))
    assert any("Hardmax (node " in line for line in findings)
    images = np.zeros((1, *SHAPE), np.float32)
    logits = local.SavedModelVotes(exported).logits(images)
    with pytest.raises(tf.errors.OpError, match="Hardmax"):
        check.check(directory, images, logits)


def test_lint_finds_nothing_in_a_good_export_and_counts_its_variables(exported, keras_file):
    network = keras.models.load_model(keras_file)
    assert lint.lint(exported, len(network.weights)) == []
    assert "the network has 3" in lint.lint(exported, 3)[0]


def test_a_full_disk_is_one_line_and_leaves_nothing(keras_file, tmp_path, monkeypatch, capsys):
    """As does what a killed export has left."""
    left = tmp_path / "exports" / ".1.killed.tmp"
    left.mkdir(parents=True)

    def full(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "a; No space left on device [Op:SaveV2]")

    arguments = [f"--model={keras_file}", "--sigma=0.25", f"--export_dir={left.parent}"]
    monkeypatch.setattr(tf.saved_model, "save", full)
    assert saved_model.main(arguments) == 1
    assert "error: a; No space left on device\n" in capsys.readouterr().err
    assert list(left.parent.iterdir()) == []
