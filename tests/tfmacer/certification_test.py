import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

import tfmacer
from export import saved_model
from tfmacer import certification
from tfmacer.errors import UserError
from tfmacer.records.logs import read_log
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
        linear(weights, bias), images, sigma=SIGMA, num_classes=2, n=20_000, alpha=0.001
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
    network.save(tmp_path / "m.keras")
    base = tmp_path / "export"
    arguments = [f"--model={tmp_path / 'm.keras'}", f"--sigma={SIGMA}", f"--export_dir={base}"]
    assert saved_model.main(arguments) == 0
    images = problem[2][:4]
    plan = {"n0": 64, "n": 2000, "alpha": 0.01, "seed": 3}
    first = tfmacer.certify_images(network, images, sigma=SIGMA, **plan)

    def function(x: np.ndarray) -> np.ndarray:
        kernels = [w.numpy() for w in network.weights]
        hidden = np.maximum(x.reshape(-1, 16) @ kernels[0] + kernels[1], 0)
        return hidden @ kernels[2] + kernels[3]

    smoothing = local.SavedModelVotes(base).smoothing
    for other in (base, local.from_callable(function, smoothing)):
        found = tfmacer.certify_images(other, images, **plan)
        assert [c.counts for c in found] == [c.counts for c in first]
        assert [c.select_counts for c in found] == [c.select_counts for c in first]
        assert [c.radius for c in found] == [c.radius for c in first]


def test_certificates_depend_on_seed_and_index_not_on_the_company(problem):
    weights, bias, images = problem
    network = linear(weights, bias)
    plan = {"sigma": SIGMA, "num_classes": 2, "n": 2000}
    together = certification.certify_images(network, images, seed=1, **plan)
    [alone] = certification.certify_images(network, images[5:6], seed=1, indices=[5], **plan)
    assert alone == together[5]
    other = certification.certify_images(network, images, seed=2, **plan)
    assert [c.counts for c in other] != [c.counts for c in together]


def test_bytes_and_floats_are_the_same_image(problem):
    weights, bias, _ = problem
    pixels = np.random.default_rng(2).integers(0, 256, (2, *SHAPE), np.uint8)
    plan = {"sigma": SIGMA, "num_classes": 2, "n": 1000}
    network = linear(weights, bias)
    floats = certification.certify_images(network, pixels.astype(np.float32) / 255, **plan)
    assert certification.certify_images(network, pixels, **plan) == floats


def test_a_log_is_written_resumed_and_read_instead_of_drawn_again(problem, tmp_path, monkeypatch):
    weights, bias, images = problem
    network = linear(weights, bias)
    plan = {"sigma": SIGMA, "num_classes": 2, "n": 2000, "seed": 4}
    reference = certification.certify_images(network, images, **plan)
    out = tmp_path / "log.tsv"
    append = certification.LogWriter.append

    def dies_at_the_sixth(writer, record):
        if len(writer.records) == 5:
            raise KeyboardInterrupt
        append(writer, record)

    monkeypatch.setattr(certification.LogWriter, "append", dies_at_the_sixth)
    labels = [1] * 12
    with pytest.raises(KeyboardInterrupt):
        certification.certify_images(network, images, labels=labels, out=out, **plan)
    monkeypatch.setattr(certification.LogWriter, "append", append)
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
        ({"sigma": None}, "sigma, num_classes and input_shape must be given"),
        ({"sigma": -1.0}, "sigma must be positive"),
        ({"indices": [0, 0]}, "indices must be"),
        ({"labels": [1]}, "labels must be 2 integers, got 1"),
        ({"indices": [0, 1], "out": "x.tsv"}, "indices cannot be given with out"),
        ({"n": 5}, "n"),
        ({"alpha": 0.0}, "alpha"),
    ],
)
def test_arguments_out_of_range_are_named(problem, change, message):
    weights, bias, images = problem
    arguments = {"images": images[:2], "sigma": SIGMA, "num_classes": 2, "n": 1000} | change
    with pytest.raises(UserError, match=message):
        certification.certify_images(linear(weights, bias), **arguments)


def test_a_model_keeps_its_own_sigma(problem):
    weights, bias, images = problem
    smoothing = certification.Smoothing(
        sigma=0.5, num_classes=2, input_shape=SHAPE, model_digest="t"
    )
    source = local.NetworkVotes(linear(weights, bias), smoothing)
    with pytest.raises(UserError, match="sigma=0.25 differs from the model's own, 0.5"):
        certification.certify_images(source, images, sigma=0.25)
    with pytest.raises(UserError, match="images are 5x4x1 .*, the model takes 4x4x1"):
        certification.certify_images(source, np.zeros((1, 5, 4, 1), np.float32))


def _source(network) -> local.NetworkVotes:
    smoothing = certification.Smoothing(
        sigma=0.5, num_classes=2, input_shape=SHAPE, model_digest="t"
    )
    return local.NetworkVotes(network, smoothing)


def test_batch_statistics_are_found_before_anything_is_certified(problem):
    weights, bias, images = problem

    def batch_dependent(x: tf.Tensor) -> tf.Tensor:
        return linear(weights, bias)(x - tf.reduce_mean(x, axis=0))

    with pytest.raises(UserError, match="batch statistics are active"):
        certification.preflight(_source(batch_dependent), images[:2])


def test_randomness_in_the_model_is_found_before_anything_is_certified(problem):
    weights, bias, images = problem

    def dropping(x: tf.Tensor) -> tf.Tensor:
        noise = tf.random.normal(tf.shape(x)) if x.shape[0] == 256 else 0.0
        return linear(weights, bias)(x + noise)

    with pytest.raises(UserError, match="votes differently on equal noisy images"):
        certification.preflight(_source(dropping), images[:2])


def test_a_sound_model_passes_and_its_speed_is_measured(problem):
    weights, bias, images = problem
    assert certification.preflight(_source(linear(weights, bias)), images[:2]) > 0
