import hashlib
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats
from small_exports import write_export

import tfmacer
from tfmacer.certification import images as certification
from tfmacer.certification.preflight import preflight
from tfmacer.common.errors import UserError
from tfmacer.records.locked_table import LockedTable
from tfmacer.records.logs import read_log
from tfmacer.records.runs import Smoothing
from tfmacer.votes import local

SHAPE = (4, 4, 1)
SIGMA = 0.25


def linear(weights: np.ndarray, bias: float):
    """A binary linear classifier: class 1 where w.x + b > 0."""

    def network(images: tf.Tensor) -> tf.Tensor:
        score = tf.linalg.matvec(tf.reshape(images, [-1, 16]), weights.astype(np.float32)) + bias
        return tf.stack([-score, score], axis=-1)

    return network


def true_radius(weights: np.ndarray, bias: float, image: np.ndarray) -> float:
    """Distance to the decision boundary, which is the smoothed classifier's boundary as well.

    Under N(0, sigma^2 I) the score is Gaussian with mean w.x + b and deviation sigma |w|, so the
    smoothed probability is Phi(|w.x + b| / (sigma |w|)), and sigma times its quantile the distance.
    """
    return abs(float(weights @ image.ravel()) + bias) / float(np.linalg.norm(weights))


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=16)
    images = rng.random((12, *SHAPE)).astype(np.float32)
    return weights, -float(weights @ np.full(16, 0.5)), images


def test_a_linear_classifier_is_certified_up_to_its_true_radius(problem):
    weights, bias, images = problem
    truth = np.array([true_radius(weights, bias, image) for image in images])
    certificates = certification.certify_images(
        linear(weights, bias), images, sigma=SIGMA, num_classes=2, n=20_000, alpha=0.001, seed=0
    )
    radii = np.array([c.radius for c in certificates])
    # 12 certificates at alpha = 0.001 and a fixed seed: none may exceed the truth.
    assert (radii <= truth).all()
    p = stats.norm.cdf(truth / SIGMA)
    reachable = p < 0.999
    # Five standard errors of the counts, and the bound's own three, in units of the radius.
    slack = SIGMA * 8 * np.sqrt(p * (1 - p) / 20_000) / stats.norm.pdf(truth / SIGMA)
    assert (truth - radii <= slack)[reachable & (truth > slack)].all()
    assert (reachable & (truth > slack)).sum() >= 5
    for certificate, image in zip(certificates, images, strict=True):
        score = float(weights @ image.ravel()) + bias
        assert certificate.predict in (-1, int(score > 0))


def test_sources_agree_on_equal_seeds(problem, tmp_path):
    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Flatten(),
            keras.layers.Dense(8, "relu"),
            keras.layers.Dense(3),
        ]
    )
    smoothing = Smoothing(sigma=SIGMA, num_classes=3, input_shape=SHAPE, model_digest="0" * 64)
    exported = write_export(tmp_path / "1", network, smoothing)
    images = problem[2][:4]
    plan = {"n0": 64, "n": 2000, "alpha": 0.01, "seed": 3}
    first = tfmacer.certify_images(network, images, sigma=SIGMA, **plan)

    def function(x: np.ndarray) -> np.ndarray:
        kernels = [w.numpy() for w in network.weights]
        hidden = np.maximum(x.reshape(-1, 16) @ kernels[0] + kernels[1], 0)
        return hidden @ kernels[2] + kernels[3]

    for other in (exported, local.from_callable(function, smoothing)):
        found = tfmacer.certify_images(other, images, **plan)
        assert [c.draws.counts for c in found] == [c.draws.counts for c in first]
        assert [c.draws.select_counts for c in found] == [c.draws.select_counts for c in first]
        assert [c.radius for c in found] == [c.radius for c in first]


def test_certificates_depend_on_seed_and_index_not_on_the_company(problem):
    weights, bias, images = problem
    network = linear(weights, bias)
    plan = {"sigma": SIGMA, "num_classes": 2, "n": 2000}
    together = certification.certify_images(network, images, seed=1, **plan)
    [alone] = certification.certify_images(network, images[5:6], seed=1, indices=[5], **plan)
    assert alone == together[5]
    other = certification.certify_images(network, images, seed=2, **plan)
    assert [c.draws.counts for c in other] != [c.draws.counts for c in together]


def test_bytes_and_floats_are_the_same_image(problem):
    weights, bias, _ = problem
    pixels = np.random.default_rng(2).integers(0, 256, (2, *SHAPE), np.uint8)
    plan = {"sigma": SIGMA, "num_classes": 2, "n": 1000, "seed": 0}
    network = linear(weights, bias)
    floats = certification.certify_images(network, pixels.astype(np.float32) / 255, **plan)
    assert certification.certify_images(network, pixels, **plan) == floats


def test_a_log_is_written_resumed_and_read_instead_of_drawn_again(problem, tmp_path, monkeypatch):
    weights, bias, images = problem
    network = linear(weights, bias)
    plan = {"sigma": SIGMA, "num_classes": 2, "n": 2000, "seed": 4, "model_digest": "linear"}
    reference = certification.certify_images(network, images, **plan)
    out = tmp_path / "log.tsv"
    append = LockedTable.append

    def dies_at_the_sixth(writer, record):
        if len(writer.rows) == 5:
            raise KeyboardInterrupt
        append(writer, record)

    monkeypatch.setattr(LockedTable, "append", dies_at_the_sixth)
    labels = [1] * 12
    with pytest.raises(KeyboardInterrupt):
        certification.certify_images(network, images, labels=labels, out=out, **plan)
    monkeypatch.setattr(LockedTable, "append", append)
    assert len(read_log(out).records) == 5
    found = certification.certify_images(network, images, labels=labels, out=out, **plan)
    assert found == reference
    records = read_log(out).records
    assert [record.correct for record in records] == [c.predict == 1 for c in reference]

    def never(*_, **__):
        raise AssertionError("drawn again")

    monkeypatch.setattr(local.NetworkVotes, "sample", never)
    assert certification.certify_images(network, images, labels=labels, out=out, **plan) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((2, 4, 4), np.float32)}, r"images must be \[N, H, W, C\]"),
        (
            {"images": np.full((1, *SHAPE), 2.0)},
            r"images must lie in \[0, 1\], found values from 2",
        ),
        ({"images": np.full((1, *SHAPE), np.nan)}, r"images must lie in \[0, 1\]"),
        ({"images": np.zeros((1, *SHAPE), np.int32)}, "got int32"),
        ({"sigma": None}, "sigma and input_shape must be given"),
        ({"sigma": -1.0}, "sigma must be positive"),
        ({"sigma": "0.25"}, "sigma must be a number, got '0.25'"),
        ({"indices": [0, 0]}, "indices must be"),
        ({"indices": [0.2, 0.7]}, "indices must be a list of integers, got float64"),
        ({"indices": 5}, "indices must be a list of integers"),
        ({"labels": [1]}, "labels must be 2 integers, got 1"),
        ({"labels": [1.7, 0]}, "labels must be a list of integers, got float64"),
        ({"labels": [math.nan, 0]}, "labels must be a list of integers, got float64"),
        ({"labels": np.eye(2, dtype=int)}, r"labels must be a list of integers, .* \[2, 2\]"),
        ({"labels": [0, 2]}, "labels must be 0 to 1, or -1 for none, got 0 to 2"),
        ({"seed": -1}, "seed must be an integer of 0 or more"),
        ({"seed": 0.5}, "seed must be an integer of 0 or more"),
        ({"seed": 2**63}, "seed must be an integer of 0 or more"),
        ({"out": "x.tsv"}, "nothing identifies this model"),
        ({"out": "x.tsv", "model_digest": "unknown"}, "model_digest must be text that names a"),
        ({"out": "x.tsv", "model_digest": "a\nb"}, "model_digest must be text that names a"),
        ({"out": "x.tsv", "model_digest": 3}, "model_digest must be text that names a"),
        ({"indices": [0, 1], "out": "x.tsv"}, "indices cannot be given with out"),
        ({"n": 5}, "n = 5 is too small"),
        ({"alpha": 0.0}, "alpha must lie between"),
        ({"draws": 5}, "draws is no argument; a plan has alpha, bound, "),
    ],
)
def test_arguments_out_of_range_are_named(problem, change, message):
    weights, bias, images = problem
    arguments = {"images": images[:2], "sigma": SIGMA, "num_classes": 2, "n": 1000} | change
    with pytest.raises(UserError, match=message):
        certification.certify_images(linear(weights, bias), **arguments)


@pytest.mark.parametrize("kind", [list, dict, "three axes", "a function"])
def test_a_model_of_other_outputs_is_refused(problem, kind):
    weights, bias, images = problem
    pixels = keras.Input(SHAPE)
    logits = keras.layers.Dense(3)(keras.layers.Flatten()(pixels))
    rows = keras.layers.Reshape((3, 1))(logits)
    outputs = {list: [logits, logits], dict: {"a": logits}, "three axes": rows}
    model = keras.Model(pixels, outputs.get(kind, logits))
    if kind == "a function":
        model = lambda x: (linear(weights, bias)(x), x)  # noqa: E731
    with pytest.raises(UserError, match=r"the model: must return logits \[B, K\] and nothing"):
        certification.certify_images(model, images, sigma=SIGMA, n=100)


def test_the_number_of_classes_is_what_the_model_returns(problem):
    weights, bias, images = problem
    found = certification.certify_images(linear(weights, bias), images[:1], sigma=SIGMA, n=100)
    assert len(found[0].draws.counts) == 2
    with pytest.raises(UserError, match="num_classes=3: the model returns logits of 2"):
        certification.certify_images(linear(weights, bias), images, sigma=SIGMA, num_classes=3)


def test_a_model_keeps_its_own_sigma(problem):
    weights, bias, images = problem
    smoothing = Smoothing(sigma=0.5, num_classes=2, input_shape=SHAPE, model_digest="t")
    source = local.NetworkVotes(linear(weights, bias), smoothing)
    with pytest.raises(UserError, match="sigma=0.25 differs from the model's own, 0.5"):
        certification.certify_images(source, images, sigma=0.25)
    with pytest.raises(UserError, match="model_digest=u differs from the model's own, t"):
        certification.certify_images(source, images, model_digest="u")
    with pytest.raises(UserError, match="images are 5x4x1 .*, the model takes 4x4x1"):
        certification.certify_images(source, np.zeros((1, 5, 4, 1), np.float32))


# A log answers only for what it was made of.

PLAN = {"sigma": SIGMA, "num_classes": 2, "n": 200, "alpha": 0.01, "model_digest": "linear"}


@pytest.fixture
def log(problem, tmp_path):
    """A finished log of four images, and the call that made it."""
    weights, bias, images = problem
    out = tmp_path / "log.tsv"

    def again(**change):
        arguments = {"labels": [1, 0, 1, 0], "out": out, **PLAN, **change}
        pixels = arguments.pop("images", images[:4])
        return certification.certify_images(linear(weights, bias), pixels, **arguments)

    return again, again(), out


def test_a_log_names_its_pixels(problem, log):
    records = read_log(log[2]).records
    for record, image in zip(records, problem[2], strict=False):
        raw = image.astype("<f4").tobytes()
        assert record.pixels_sha256 == hashlib.sha256(raw).hexdigest()
        assert record.name is None


@pytest.mark.parametrize("kept", [4, 2, 1], ids=["finished", "unfinished", "one row"])
def test_a_log_of_other_pixels_or_labels_is_refused(problem, log, kept):
    again, certificates, out = log
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[: kept + 1]))
    before = out.read_bytes()
    images = problem[2][:4]
    row = int(lines[1].split("\t")[0])
    nudged = images.copy()
    nudged[row, 0, 0, 0] = np.nextafter(nudged[row, 0, 0, 0], np.float32(1))
    for change in (
        {"images": nudged},
        {"images": 1 - images},
        {"images": np.zeros_like(images)},
        {"labels": [0, 1, 0, 1]},
        {"labels": None},
    ):
        with pytest.raises(UserError, match=rf"log\.tsv: idx {row} was certified with") as error:
            again(**change)
        assert "\n" not in str(error.value)
    assert out.read_bytes() == before
    assert again() == certificates


def test_swapped_images_are_refused(problem, log):
    swapped = problem[2][[1, 0, 2, 3]]
    with pytest.raises(UserError, match="pixels of SHA-256 .* the log is of other images"):
        log[0](images=swapped, labels=[1, 0, 1, 0])


def test_another_model_is_refused_by_its_digest(log):
    with pytest.raises(UserError, match="model_digest is 'linear', not 'other'"):
        log[0](model_digest="other")


def test_a_new_log_and_a_new_call_draw_a_seed_and_a_log_keeps_its_own(problem, log):
    weights, bias, images = problem
    again, certificates, out = log
    assert 0 <= certificates.seed < 2**53
    assert read_log(out).settings.seed == certificates.seed
    assert again().seed == certificates.seed
    with pytest.raises(UserError, match=f"seed is {certificates.seed}, not 5"):
        again(seed=5)
    network, plan = linear(weights, bias), PLAN | {"n": 2000}
    first, second = (certification.certify_images(network, images, **plan) for _ in range(2))
    assert first.seed != second.seed
    assert [c.draws.counts for c in first] != [c.draws.counts for c in second]
    assert certification.certify_images(network, images, seed=first.seed, **plan) == first
    with_indices = certification.certify_images(network, images[:1], indices=[7], **plan)
    assert with_indices.seed == 0


class Negated(keras.layers.Layer):
    def call(self, inputs):
        return -inputs


class Subclassed(keras.Model):
    def __init__(self, sign: float):
        super().__init__()
        self.dense = keras.layers.Dense(2, kernel_initializer="ones")
        self.sign = sign
        self.build((None, *SHAPE))

    def build(self, shape):
        self.dense.build((None, 16))

    def call(self, inputs):
        return self.sign * self.dense(keras.ops.reshape(inputs, (-1, 16)))


def stock(*layers) -> keras.Model:
    keras.utils.set_random_seed(3)
    inputs = [keras.Input(SHAPE, name="in"), keras.layers.Flatten(name="flat")]
    return keras.Sequential([*inputs, *layers, keras.layers.Dense(2, name="last")], name="stock")


def plain_function(images):
    return tf.reshape(images, [-1, 16])[:, :2]


class Module(tf.Module):
    def __init__(self):
        self.weights = tf.Variable(tf.ones([16, 2]))

    @tf.function(input_signature=[tf.TensorSpec([None, *SHAPE])])
    def __call__(self, images):
        return tf.reshape(images, [-1, 16]) @ self.weights


def reloaded(folder):
    tf.saved_model.save(Module(), str(folder))
    return tf.saved_model.load(str(folder))


UNIDENTIFIED = {
    "function": lambda _: plain_function,
    "module": lambda _: Module(),
    "saved model": reloaded,
    "layer": lambda _: stock(Negated()),
    "lambda": lambda _: stock(keras.layers.Lambda(lambda x: -x)),
    "activation": lambda _: stock(keras.layers.Dense(4, activation=lambda x: -x)),
    "subclass": lambda _: Subclassed(-1.0),
}


@pytest.mark.parametrize("kind", UNIDENTIFIED)
def test_what_nothing_identifies_is_logged_only_under_a_digest_of_the_callers(tmp_path, kind):
    model = UNIDENTIFIED[kind](tmp_path / "model")
    out, images = tmp_path / "log.tsv", np.full((1, *SHAPE), 0.25, np.float32)
    plan = {"sigma": SIGMA, "num_classes": 2, "n": 200, "alpha": 0.01, "out": out}
    with pytest.raises(UserError, match="nothing identifies this model.* a model_digest"):
        certification.certify_images(model, images, **plan)
    assert not out.exists()
    certification.certify_images(model, images, **plan, model_digest="mine")
    assert read_log(out).settings.classifier.model_digest == "mine"


def test_a_stock_keras_model_is_identified_by_its_weights(tmp_path):
    images = np.full((1, *SHAPE), 0.25, np.float32)
    plan = {"sigma": SIGMA, "n": 200, "alpha": 0.01, "out": tmp_path / "log.tsv"}
    model = stock(keras.layers.Dense(4, "relu", name="first"))
    certificates = certification.certify_images(model, images, **plan)
    same = stock(keras.layers.Dense(4, "relu", name="first"))
    assert certification.certify_images(same, images, **plan) == certificates
    same.weights[0].assign(-same.weights[0])
    with pytest.raises(UserError, match="other settings: model_digest is"):
        certification.certify_images(same, images, **plan)
    digest = read_log(plan["out"]).settings.classifier.model_digest
    with pytest.raises(UserError, match=f"model_digest=mine differs .* own, {digest}"):
        certification.certify_images(model, images, **plan, model_digest="mine")


def batch_dependent(x: tf.Tensor) -> tf.Tensor:
    x = x - tf.reduce_mean(x, axis=0)
    return tf.stack([x[:, 0, 0, 0], x[:, 1, 1, 0]], axis=-1)


def chancy(x: tf.Tensor) -> tf.Tensor:
    scores = tf.stack([x[:, 0, 0, 0], x[:, 1, 1, 0]], axis=-1)
    return scores + 0.1 * tf.random.normal(tf.shape(scores))


@pytest.mark.parametrize("logged", [False, True])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("network", "message"),
    [
        (batch_dependent, "batch statistics are active"),
        (chancy, "randomness is active"),
        (lambda x: chancy(x) / 0, "logits of an image without noise are not finite"),
    ],
)
def test_what_is_no_function_of_one_image_is_not_certified(
    problem, tmp_path, network, message, count, logged
):
    out = {"out": tmp_path / "log.tsv"} if logged else {}
    with pytest.raises(UserError, match=message):
        certification.certify_images(network, problem[2][:count], **PLAN, **out)
    if logged:
        assert read_log(tmp_path / "log.tsv").records == ()


def test_no_images_are_no_certificates():
    assert certification.certify_images(chancy, np.zeros((0, *SHAPE), np.float32), **PLAN) == []


def _source(network) -> local.NetworkVotes:
    smoothing = Smoothing(sigma=0.5, num_classes=2, input_shape=SHAPE, model_digest="t")
    return local.NetworkVotes(network, smoothing)


def test_batch_statistics_are_found_before_anything_is_certified(problem):
    weights, bias, images = problem

    def batch_dependent(x: tf.Tensor) -> tf.Tensor:
        return linear(weights, bias)(x - tf.reduce_mean(x, axis=0))

    with pytest.raises(UserError, match="batch statistics are active"):
        preflight(_source(batch_dependent), images[:2])


def test_randomness_in_the_model_is_found_before_anything_is_certified(problem):
    weights, bias, images = problem

    def dropping(x: tf.Tensor) -> tf.Tensor:
        noise = tf.random.normal(tf.shape(x)) if x.shape[0] == 256 else 0.0
        return linear(weights, bias)(x + noise)

    with pytest.raises(UserError, match="answers differently on equal noisy images"):
        preflight(_source(dropping), images[:2])


def test_a_sound_model_passes_and_its_speed_is_measured(problem):
    weights, bias, images = problem
    assert preflight(_source(linear(weights, bias)), images[:2]) > 0
