"""Each family as it is drawn, against its density; Gaussian noise itself: see local_test."""

import json

import keras
import numpy as np
import pytest
import session_runs
import tensorflow as tf
from scipy import stats

from export.lint import lint
from export.signatures import SmoothedClassifier
from tfmacer.certification import images as certification
from tfmacer.common.errors import Notice, UserError
from tfmacer.noise.generators import GENERATORS, LATEST
from tfmacer.noise.mixed_norm import statistics
from tfmacer.noise.rounded_gaussian import rounding
from tfmacer.noise.rounded_gaussian import sampler as rounded
from tfmacer.noise.samplers import training_noise
from tfmacer.records.logs import read_log
from tfmacer.records.runs import Smoothing
from tfmacer.records.sealing import pixels_digest
from tfmacer.records.verification import verify_log
from tfmacer.votes import counting, local
from tfmacer.votes.replay import replay_from

SHAPE = (7, 6, 2)


def smoothing(family: str, sigma: float, generator: str = LATEST, **params: float) -> Smoothing:
    return Smoothing(
        sigma=sigma,
        num_classes=2,
        input_shape=SHAPE,
        model_digest="t",
        noise_family=family,
        noise_params=params,
        block_size=128,
        generator=generator,
    )


def linear(weights: np.ndarray, bias: float):
    """Class 1 where w.x + b > 0; its smoothed version has the same boundary."""

    def network(images: tf.Tensor) -> tf.Tensor:
        flat = tf.reshape(images, [-1, len(weights)])
        score = tf.linalg.matvec(flat, weights.astype(np.float32)) + bias
        return tf.stack([-score, score], axis=-1)

    return network


def blocks(image: np.ndarray, described: Smoothing, count: int) -> np.ndarray:
    seed = tf.constant([3, 4], tf.int32)
    numbers = tf.range(count, dtype=tf.int64)
    return np.stack([counting.noisy_block(image, seed, block, described) for block in numbers])


class TestRoundedGaussian:
    @pytest.mark.parametrize("sigma", [0.02, 0.25])
    def test_steps_follow_the_exact_probabilities(self, sigma):
        """Chi-squared over bins of 50 expected draws or more; the seed is fixed."""
        drawn = rounded.steps([400_000], tf.constant([1, 2], tf.int64), sigma).numpy()
        last = rounding.reach(sigma)
        edges = (2 * np.arange(-last, last) + 1) / (510 * sigma)
        below = np.concatenate([[0], stats.norm.cdf(edges), [1]])
        expected = np.diff(below) * len(drawn)
        observed = np.bincount(drawn + last, minlength=2 * last + 1)
        common = expected >= 50
        pooled = np.append(observed[common], observed[~common].sum())
        wanted = np.append(expected[common], expected[~common].sum())
        assert stats.chisquare(pooled, wanted).pvalue > 1e-4

    def test_lands_on_the_grid_and_within_the_clip(self):
        image = (np.arange(84).reshape(SHAPE) * 3 / 255).astype(np.float32)
        described = smoothing("rounded_gaussian", 0.25)
        noisy = blocks(image, described, 40)
        steps = np.round(noisy * 255)
        np.testing.assert_array_equal(noisy, (steps / np.float32(255)).astype(np.float32))
        drawn = rounded.steps(
            (128, *SHAPE), counting.block_seed(tf.constant([3, 4]), tf.constant(7, tf.int64)), 0.25
        ).numpy()
        by_hand = np.clip(np.round(image * 255) + drawn, -255, 510)
        np.testing.assert_array_equal(steps[7], by_hand)

    @pytest.mark.parametrize(("level", "end"), [(0.0, -255), (1.0, 510)])
    def test_sums_are_clipped_and_not_the_noise(self, level, end):
        """Sigma is 84 steps and K = 1, so a thousandth of the sums lies beyond the nearer end."""
        described = smoothing("rounded_gaussian", 0.33)
        steps = np.round(blocks(np.full(SHAPE, level, np.float32), described, 100) * 255)
        at_end = np.mean(steps == end)
        # 1.08 million draws; five standard errors.
        assert at_end == pytest.approx(stats.norm.sf(254.5 / (255 * 0.33)), abs=2e-4)
        assert np.abs(steps - 127.5).max() <= 382.5

    def test_certifies_up_to_the_distance_of_a_linear_boundary(self):
        rng = np.random.default_rng(0)
        weights = rng.normal(size=84)
        images = rng.integers(0, 256, (6, *SHAPE)).astype(np.uint8)
        bias = -float(weights @ np.full(84, 0.5))
        source = local.NetworkVotes(linear(weights, bias), smoothing("rounded_gaussian", 0.25))
        certificates = certification.certify_images(source, images, n=4000, alpha=0.001, seed=0)
        truth = np.abs(images.reshape(6, -1) / 255 @ weights + bias) / np.linalg.norm(weights)
        radii = np.array([c.radius for c in certificates])
        # A step of the grid is 1/64 of sigma: rounding moves the boundary by far less.
        assert (radii <= truth).all()
        assert (radii >= np.minimum(truth, 0.6) - 0.08).all()
        assert certificates[0].distribution.family == "rounded_gaussian"
        assert "whole steps of 1/255" in certificates[0].statement()

    def test_refuses_images_off_the_grid(self):
        source = local.NetworkVotes(linear(np.ones(84), 0.0), smoothing("rounded_gaussian", 0.25))
        image = np.zeros((1, *SHAPE), np.float32)
        image[0, 5, 4, 1] = 0.5
        with pytest.raises(UserError, match=r"pixel \(5, 4, 1\) is 0.5, not a multiple of 1/255"):
            certification.certify_images(source, image, n=1000, seed=0)

    def test_pixels_beside_the_grid_are_certified_as_those_on_it(self, tmp_path):
        """What is drawn, certified, named by its digest and drawn again is the rounded image."""
        rng = np.random.default_rng(3)
        exact = rng.integers(0, 256, (2, *SHAPE)).astype(np.float32) / np.float32(255)
        beside = np.nextafter(exact, np.float32(0.5))
        assert (beside != exact).all()
        source = local.NetworkVotes(
            linear(rng.normal(size=84), 0.0), smoothing("rounded_gaussian", 0.25)
        )
        path = tmp_path / "log.tsv"
        plan = {"n": 1000, "seed": 5}
        certificates = certification.certify_images(source, beside, out=path, **plan)
        log = read_log(path)
        assert [record.pixels_sha256 for record in log.records] == [
            pixels_digest(image) for image in exact
        ]
        assert certificates == certification.certify_images(source, exact, **plan)
        # The log is of both alike, and of no others.
        assert certificates == certification.certify_images(source, exact, out=path, **plan)
        assert certificates == certification.certify_images(source, beside, out=path, **plan)
        with pytest.raises(UserError, match="was certified with pixels of SHA-256"):
            certification.certify_images(source, exact[::-1], out=path, **plan)
        for images in (beside, exact):
            assert verify_log(log, replay_from(source, lambda i, x=images: (x[i], -1))) is None
        nearest = "the pixels are the multiples of 1/255 nearest to those given"
        assert nearest in certificates[0].statement()

    def test_training_draws_the_same_distribution(self):
        drawn = training_noise("rounded_gaussian")(
            tf.constant([2, 3, *SHAPE]), tf.constant([5, 6], tf.int64), 0.1, {}
        ).numpy()
        assert drawn.shape == (2, 3, *SHAPE)
        np.testing.assert_allclose(drawn * 255, np.round(drawn * 255), atol=1e-4)
        assert drawn.std() == pytest.approx(0.1, rel=0.15)  # 504 draws: standard error 3 %


@pytest.mark.parametrize("generator", GENERATORS)
class TestGeneralizedGaussian:
    @pytest.mark.parametrize("k", [0.0, 40.0, 83.0])
    def test_lengths_and_directions(self, k, generator):
        """Squared lengths are Gamma, directions uniform, and neither tells of the other."""
        described = smoothing("generalized_gaussian", 0.5, generator, k=k)
        noisy = blocks(np.zeros(SHAPE, np.float32), described, 8)
        z = noisy.reshape(-1, 84).astype(np.float64) / 0.5
        squares = (z**2).sum(axis=1)
        assert stats.kstest(squares, stats.gamma((84 - k) / 2, scale=2).cdf).pvalue > 1e-3
        cosines = z[:, [0, 41, 83]] / np.sqrt(squares)[:, np.newaxis]
        uniform = stats.beta(41.5, 41.5, loc=-1, scale=2)
        assert stats.kstest(cosines.ravel(), uniform.cdf).pvalue > 1e-3
        # 1,024 draws: standard deviation 0.03.
        assert abs(np.corrcoef(squares, np.abs(cosines[:, 0]))[0, 1]) < 0.12

    def test_certifies_within_the_distance_of_a_linear_boundary(self, generator):
        rng = np.random.default_rng(0)
        weights = rng.normal(size=84)
        images = rng.random((2, *SHAPE)).astype(np.float32)
        bias = -float(weights @ np.full(84, 0.5))
        described = smoothing("generalized_gaussian", 0.35, generator, k=40.0)
        source = local.NetworkVotes(linear(weights, bias), described)
        certificates = certification.certify_images(source, images, n=4000, alpha=0.001, seed=0)
        truth = np.abs(images.reshape(2, -1) @ weights + bias) / np.linalg.norm(weights)
        radii = np.array([c.radius for c in certificates])
        assert (radii <= truth).all()
        assert (radii >= np.minimum(truth, 0.6) - 0.08).all()
        assert (certificates[0].distribution.family, certificates[0].norm) == (
            "generalized_gaussian",
            "l2",
        )


@pytest.mark.parametrize("generator", GENERATORS)
class TestMixedNorm:
    def test_extremes_agree_with_those_drawn_elsewhere(self, generator):
        """The draws behind the table are another program's; 5,120 here against 20,000 there."""
        described = smoothing("mixed_norm", 0.5, generator, k=20.0)
        z = blocks(np.zeros(SHAPE, np.float32), described, 40).reshape(-1, 84) / 0.5
        other = statistics.draw_statistics(84, 20.0, 20_000, np.random.default_rng(0))
        largest = np.maximum(other.largest, -other.smallest)
        for mine, theirs in (
            (np.abs(z).max(axis=1), largest),
            (z.max(axis=1), other.largest),
            (z.min(axis=1), other.smallest),
            (z.sum(axis=1), other.total),
        ):
            assert stats.ks_2samp(mine, theirs).pvalue > 1e-3
        assert stats.chisquare(np.bincount(np.abs(z).argmax(axis=1), minlength=84)).pvalue > 1e-3
        # Squared lengths are Gamma((d - k) / 2, 2), as those of any such density.
        lengths = (z.astype(np.float64) ** 2).sum(axis=1)
        assert stats.kstest(lengths, stats.gamma(32, scale=2).cdf).pvalue > 1e-3

    def test_certifies_within_the_distance_of_a_linear_boundary(self, generator):
        """In l-infinity that is |w.x + b| / |w|_1."""
        rng = np.random.default_rng(0)
        weights = rng.normal(size=84)
        images = rng.random((2, *SHAPE)).astype(np.float32)
        bias = -float(weights @ np.full(84, 0.5))
        described = smoothing("mixed_norm", 0.3, generator, k=20.0)
        source = local.NetworkVotes(linear(weights, bias), described)
        certificates = certification.certify_images(source, images, n=4000, alpha=0.001, seed=0)
        truth = np.abs(images.reshape(2, -1) @ weights + bias) / np.abs(weights).sum()
        radii = np.array([c.radius for c in certificates])
        assert (radii > 0).all()
        assert (radii <= truth).all()
        assert (certificates[0].distribution.family, certificates[0].norm) == ("mixed_norm", "linf")


def test_an_export_from_before_generators_had_names_draws_what_it_drew(tmp_path):
    described = smoothing("gaussian", 0.25, "philox")
    module = SmoothedClassifier(linear_model(), described, 10)
    fields = json.loads(described.to_json()) | {"format_version": 1}
    del fields["generator"], fields["digest"]
    module._text = json.dumps(fields)
    tf.saved_model.save(module, str(tmp_path / "1"), signatures=module.signatures())
    with pytest.warns(Notice, match="written by an earlier version"):
        old = local.SavedModelVotes(tmp_path / "1")
    assert old.smoothing == described
    row = (np.full((1, *SHAPE), 0.2, np.float32), np.array([[1, 2]], np.int32))
    asked = (np.array([3], np.int32), np.array([300], np.int32))
    found = old.sample(*row, *asked).counts
    here, latest = (
        local.NetworkVotes(linear_model(), smoothing("gaussian", 0.25, generator))
        for generator in GENERATORS
    )
    np.testing.assert_array_equal(found, here.sample(*row, *asked).counts)
    assert (found != latest.sample(*row, *asked).counts).any()


def linear_model() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(2)])


FAMILIES = [
    ("gaussian", {}),
    ("rounded_gaussian", {}),
    ("generalized_gaussian", {"k": 40.0}),
    ("mixed_norm", {"k": 20.0}),
]
# Three numbers of a block of 4 draws of 6 numbers, of either generator.
RECORDED = [
    ("gaussian", {}, (0.37667659, 0.7597391, -0.27033338), (0.04884043, -0.01050683, -0.38770714)),
    ("rounded_gaussian", {}, (92 / 255, -61 / 255, -111 / 255), (92 / 255, -61 / 255, -111 / 255)),
    (
        "generalized_gaussian",
        {"k": 3.0},
        (0.20193626, 0.24471378, -0.14053485),
        (0.13167992, -0.12908681, 0.15661365),
    ),
    (
        "generalized_gaussian",
        {"k": 5.0},
        (0.13485684, 0.15005569, -0.03101438),
        (0.08944908, -0.09200804, 0.07559349),
    ),
    (
        "mixed_norm",
        {"k": 2.0},
        (-0.40191054, -0.17278351, -0.56882149),
        (-0.40191054, 0.32331163, 0.48866501),
    ),
]


@pytest.mark.parametrize(("family", "params", "first", "latest"), RECORDED)
def test_streams_stay_as_they_were_recorded(family, params, first, latest):
    for generator, expected in (("philox", first), ("philox-boxmuller", latest)):
        described = Smoothing(
            sigma=0.5, num_classes=2, input_shape=(2, 3, 1), model_digest="t", block_size=4,
            noise_family=family, noise_params=params, generator=generator,
        )  # fmt: skip
        block = counting.noisy_block(
            tf.zeros((2, 3, 1)), tf.constant([3, -4]), tf.constant(5, tf.int64), described
        ).numpy()
        np.testing.assert_allclose(block.ravel()[[0, 7, 23]], expected, rtol=2e-6)


def in_session(version, request) -> np.ndarray:
    """Counts of `sample_under_noise` in the runtime of TensorFlow Serving."""
    names = ("images", "seeds", "offsets", "num_samples", "beta")
    beta = np.ones(len(request[0]), np.float32)
    asked = dict(zip(names, [*request, beta], strict=True))
    ran = session_runs.run(version, {"sample_under_noise": asked})
    return ran["sample_under_noise"].answers[0]["counts"]


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize(("family", "params"), FAMILIES)
def test_an_export_draws_what_the_network_here_draws(family, params, generator, tmp_path):
    network = linear_model()
    described = smoothing(family, 0.25, generator, **params)
    module = SmoothedClassifier(network, described, 10)
    tf.saved_model.save(module, str(tmp_path / "1"), signatures=module.signatures())
    assert lint(tmp_path / "1", len(network.weights)) == []
    request = [
        np.full((2, *SHAPE), 0.2, np.float32),
        np.array([[1, 2], [3, 4]], np.int32),
        np.array([0, 5], np.int32),
        np.array([200, 100], np.int32),
    ]
    exported = local.SavedModelVotes(tmp_path / "1")
    assert exported.smoothing == described
    here = local.NetworkVotes(network, described).sample(*request)
    there = exported.sample(*request)
    assert here.counts.sum(axis=1).tolist() == [200, 100]
    np.testing.assert_array_equal(here.counts, there.counts)
    np.testing.assert_array_equal(here.counts, in_session(tmp_path / "1", request))


@pytest.mark.parametrize(("family", "params"), FAMILIES)
def test_training_draws_independent_copies(family, params):
    draw = training_noise(family)
    shape = tf.constant([4, 3, *SHAPE])
    drawn = draw(shape, tf.constant([5, 6], tf.int64), 0.3, params).numpy()
    again = draw(shape, tf.constant([5, 6], tf.int64), 0.3, params).numpy()
    np.testing.assert_array_equal(drawn, again)
    rows = drawn.reshape(12, -1)
    assert (drawn.dtype, rows.shape) == (np.float32, (12, 84))
    correlations = np.corrcoef(rows)
    # 84 pairs each: standard deviation 0.11.
    assert np.abs(correlations[~np.eye(12, dtype=bool)]).max() < 0.5
