"""The bits of each generator, as normal numbers: against NumPy and mpmath from the same bits."""

import math

import mpmath
import numpy as np
import pytest
import tensorflow as tf
from scipy import integrate, special, stats

from tfmacer.noise import generators, random_numbers

SEED = tf.constant([3, -4], tf.int64)


def pair(length: int, angle: int) -> list[mpmath.mpf]:
    """What real numbers make of the bits of one pair, and its length."""
    with mpmath.workdps(40):
        u = mpmath.mpf(max(abs(length), 0.5)) / 2**63
        r = mpmath.sqrt(-2 * mpmath.log(u))
        theta = mpmath.pi * angle / 2**31
        return [r * mpmath.cos(theta), r * mpmath.sin(theta), r]


def made(lengths, angles, sigma: float = 1.0) -> np.ndarray:
    """`[n, 2]`: the pairs that the transformation makes of these bits."""
    numbers = random_numbers.box_muller(
        tf.constant(lengths, tf.int64), tf.constant(angles, tf.int32), sigma
    ).numpy()
    return np.stack(np.split(numbers, 2, axis=-1), axis=-1)


def anderson(values: np.ndarray) -> float:
    """Anderson & Darling's statistic for N(0, 1); above 6.0 once in a thousand."""
    ordered = np.sort(values.astype(np.float64))
    n = len(ordered)
    weights = 2 * np.arange(1, n + 1) - 1
    logs = special.log_ndtr(ordered) + special.log_ndtr(-ordered[::-1])
    return -n - float(weights @ logs) / n


class TestBoxMuller:
    # Both ends, their neighbours, and powers of two between.
    LENGTHS = (0, 1, -1, 2, -3, *(2**e for e in range(5, 63, 6)), 2**62 + 1, -(2**62), 2**63 - 1,
               2**63 - 2**20, 2**63 - 2**40, -(2**63))  # fmt: skip
    ANGLES = (0, 1, -1, 2**29, 2**30, 2**30 + 1, 3 * 2**29, 2**31 - 1, -(2**31), -(2**30), 12345)

    def test_is_that_of_real_numbers_at_every_end(self):
        both = [(length, angle) for length in self.LENGTHS for angle in self.ANGLES]
        found = made(*zip(*both, strict=True))
        for row, bits in zip(found, both, strict=True):
            *exact, length = pair(*bits)
            for number, true in zip(row, exact, strict=True):
                assert abs(float(number) - true) <= 5e-7 * length + 1.1e-8, bits

    def test_is_that_of_real_numbers_everywhere(self):
        rng = np.random.default_rng(0)
        lengths = rng.integers(-(2**63), 2**63, 300_000)
        # Half of them from all the tail, evenly over the exponents.
        lengths[::2] >>= rng.integers(0, 62, 150_000)
        angles = rng.integers(-(2**31), 2**31, 300_000)
        rest = (2**63 - np.abs(lengths.astype(object))).astype(np.float64) / 2**63
        u = np.maximum(np.abs(lengths.astype(np.float64)), 0.5) / 2**63
        r = np.sqrt(-2 * np.where(rest < 0.5, np.log1p(-np.minimum(rest, 0.6)), np.log(u)))
        theta = np.pi * angles / 2**31
        exact = np.stack([r * np.cos(theta), r * np.sin(theta)], axis=-1)
        errors = np.abs(made(lengths, angles) - exact).max(axis=-1)
        assert (errors <= 5e-7 * r + 1.1e-8).all()
        assert r.max() > 9

    @pytest.mark.parametrize("length", [5.68, 6.0, 7.0, 8.0, 9.0, 9.3])
    def test_reaches_every_length_up_to_nine(self, length):
        """The length is chosen; the first number is it, where the angle is 0."""
        bits = round(2**63 * math.exp(-(length**2) / 2))
        assert made([bits], [0])[0].tolist() == pytest.approx([length, 0.0], rel=1e-2)
        assert made([-bits], [2**30], 0.25)[0, 1] == pytest.approx(0.25 * length, rel=1e-2)

    def test_ends_where_64_bits_end(self):
        assert made([0], [0])[0, 0] == np.float32(math.sqrt(128 * math.log(2)))
        assert made([1], [0])[0, 0] == np.float32(math.sqrt(126 * math.log(2)))
        assert made([-(2**63)], [7])[0].tolist() == [0.0, 0.0]

    @pytest.mark.parametrize("quantile", [5.5, 5.68, 6.0, 6.5])
    def test_tail_has_its_exact_mass(self, quantile):
        """Of lengths among the 2^-20 longest, beyond 5.26, as many as there should be exceed it."""
        rng = np.random.default_rng(1)
        lengths = rng.integers(-(2**43) + 1, 2**43, 2_000_000)
        angles = rng.integers(-(2**31), 2**31, 2_000_000)
        # Neighbours of one pair are no independent events, and both are beyond 5.5 never.
        beyond = int((np.abs(made(lengths, angles)) > quantile).sum())
        share = 2 * 2 * stats.norm.sf(quantile) * 2**20
        assert stats.binomtest(beyond, 2_000_000, share).pvalue > 1e-3

    def test_the_two_numbers_of_a_pair_are_independent(self):
        rng = np.random.default_rng(2)
        lengths = rng.integers(-(2**63), 2**63, 400_000)
        angles = rng.integers(-(2**31), 2**31, 400_000)
        first, second = made(lengths, angles).astype(np.float64).T
        for power in (1, 2, 3):
            assert abs(np.corrcoef(first**power, second**power)[0, 1]) < 5 / math.sqrt(400_000)
        assert abs(np.corrcoef(first**2, second)[0, 1]) < 5 / math.sqrt(400_000)
        cells = [np.minimum((special.ndtr(x) * 16).astype(int), 15) for x in (first, second)]
        table = np.zeros((16, 16))
        np.add.at(table, tuple(cells), 1)
        assert stats.chisquare(table.ravel()).pvalue > 1e-3

    def test_uniforms_keep_their_digits_near_zero(self):
        whole = tf.constant([0, 1, -1, 3, 2**40 + 1, 2**63 - 1, -(2**63)], tf.int64)
        for dtype in (tf.float32, tf.float64):
            found = random_numbers.uniforms(whole, dtype).numpy()
            exact = np.array([0.5, 1, 1, 3, 2**40 + 1, 2**63 - 1, 2**63]) / 2**63
            np.testing.assert_array_equal(found, exact.astype(dtype.as_numpy_dtype))


class TestNormals:
    @pytest.mark.parametrize("generator", generators.GENERATORS)
    def test_moments_and_distribution(self, generator):
        z = (
            random_numbers.GENERATORS[generator]
            .normals((100, 50, 20, 5), SEED, 2.0)
            .numpy()
            .ravel()
            / 2
        )
        n = len(z)
        assert (n, z.dtype) == (500_000, np.float32)
        z = z.astype(np.float64)
        # E z^k and the standard deviation of z^k.
        for power, mean, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
            assert abs((z**power).mean() - mean) < 4 * math.sqrt(spread / n), power
        assert stats.kstest(z, "norm").pvalue > 1e-3
        assert anderson(z) < 6.0

    @pytest.mark.parametrize("shape", [(3, 2, 2, 1), (2, 1, 1, 1), (2, 3, 5, 7, 1), (4, 3, 3, 3)])
    def test_are_made_of_the_bits_as_documented(self, shape):
        """From the same bits by NumPy: two seeds, a pair for each two numbers of one image."""
        dimension = math.prod(shape[-3:])
        pairs = (*shape[:-3], -(-dimension // 2))
        length_seed, angle_seed = tf.random.split(SEED, 2, alg="philox").numpy()
        lengths, angles = (
            tf.random.stateless_uniform(pairs, seed, None, None, dtype, alg="philox").numpy()
            for seed, dtype in ((length_seed, tf.int64), (angle_seed, tf.int32))
        )
        r = 0.5 * np.sqrt(-2 * np.log(np.abs(lengths.astype(np.float64)) / 2**63))
        theta = np.pi * angles / 2**31
        both = np.concatenate([r * np.cos(theta), r * np.sin(theta)], axis=-1)
        expected = both[..., :dimension].reshape(shape)
        found = random_numbers.BOX_MULLER.normals(shape, SEED, 0.5).numpy()
        np.testing.assert_allclose(found, expected, atol=2e-6)

    def test_no_image_shares_bits_with_another(self):
        """Numbers of one pair have the same length; such pairs are within images."""
        z = random_numbers.BOX_MULLER.normals((64, 3, 5, 2), SEED, 1.0).numpy().reshape(64, 2, 15)
        length_seed, _ = tf.random.split(SEED, 2, alg="philox")
        lengths = random_numbers.bits((64, 15), length_seed, tf.int64)
        squares = -2 * tf.math.log(random_numbers.uniforms(lengths, tf.float64)).numpy()
        np.testing.assert_allclose((z.astype(np.float64) ** 2).sum(axis=1), squares, rtol=1e-5)

    def test_first_generator_is_tensorflows(self):
        found = random_numbers.PHILOX.normals((2, 3, 2, 1), SEED, 0.5).numpy()
        theirs = 0.5 * tf.random.stateless_normal((2, 3, 2, 1), SEED, alg="philox").numpy()
        np.testing.assert_array_equal(found, theirs)

    def test_first_generator_ends_where_said(self):
        """Of 4 million numbers none is beyond, nor is a pair: 2^-23 of pairs are its last one."""
        for seed in range(8):
            z = random_numbers.PHILOX.normals(
                (1000, 5, 100, 1), tf.constant([seed, 0], tf.int64), 1.0
            )
            pairs = z.numpy().reshape(-1, 2).astype(np.float64)
            assert (pairs**2).sum(axis=1).max() <= -2 * math.log(1e-7) * (1 + 1e-6)

    def test_a_graph_makes_what_is_made_eagerly(self):
        shape = (5, 3, 7, 3)
        for generator in random_numbers.GENERATORS.values():
            drawn = tf.function(lambda seed, g=generator: g.normals(shape, seed, 0.3))(SEED)
            eager = generator.normals(shape, SEED, 0.3).numpy()
            np.testing.assert_array_equal(drawn.numpy(), eager)


class TestGammas:
    @pytest.mark.parametrize("generator", generators.GENERATORS)
    @pytest.mark.parametrize("alpha", [0.05, 0.5, 1.0, 3.25, 392.0, 75_264.0])
    def test_distribution(self, generator, alpha):
        alpha = tf.constant(alpha, tf.float64)
        found = (
            random_numbers.GENERATORS[generator].gammas(tf.constant([20_000]), SEED, alpha).numpy()
        )
        assert found.dtype == np.float64
        assert stats.kstest(found, stats.gamma(float(alpha)).cdf).pvalue > 1e-3

    @pytest.mark.parametrize("alpha", [1.0, 1.05, 1.5, 2.0, 10.0, 1000.0])
    def test_a_proposal_is_taken_nearly_always(self, alpha):
        """So that of 16 none is with probability below 2^-69; it is never above 1, as it must."""
        d = alpha - 1 / 3

        def chance(x: float) -> float:
            v = (1 + x / math.sqrt(9 * d)) ** 3
            return math.exp(x**2 / 2 + d * (1 - v + math.log(v))) if v > 0 else 0.0

        assert max(map(chance, np.linspace(-8, 8, 20_001))) <= 1 + 1e-12
        taken, _ = integrate.quad(lambda x: chance(x) * stats.norm.pdf(x), -10, 10, limit=200)
        assert (1 - taken) ** 16 < 2.0**-69

    def test_shapes_and_seeds(self):
        alpha = tf.constant(2.5, tf.float64)
        found = random_numbers.BOX_MULLER.gammas(tf.constant([4, 3]), SEED, alpha).numpy()
        assert found.shape == (4, 3)
        assert len(np.unique(found)) == 12
        again = random_numbers.BOX_MULLER.gammas(tf.constant([4, 3]), SEED, alpha).numpy()
        np.testing.assert_array_equal(found, again)


class TestTruncated:
    @pytest.mark.parametrize("generator", random_numbers.GENERATORS.values())
    @pytest.mark.parametrize("bound", [0.05, 1.0, 3.0, 6.0])
    def test_distribution(self, generator, bound):
        edge = tf.constant(stats.norm.sf(bound), tf.float32)
        z = generator.truncated(generator.sides(tf.constant([200_000]), SEED), edge).numpy()
        assert np.abs(z).max() <= bound * (1 + 1e-6)
        assert stats.kstest(z, stats.truncnorm(-bound, bound).cdf).pvalue > 1e-3

    def test_the_second_has_all_of_the_tail(self):
        """Of bits near 0 come the numbers near the bound, on the side of their sign."""
        edge = float(np.float32(stats.norm.sf(7.0)))
        share = np.array([2.0**-50, 2.0**-40, 2.0**-30, 2.0**-20])
        whole = (share * 2.0**63).astype(np.int64)
        exact = -special.ndtri(edge + share * (0.5 - edge))
        found = random_numbers.BOX_MULLER.truncated(
            tf.constant([0, *whole, *-whole], tf.int64), tf.constant(edge, tf.float32)
        ).numpy()
        np.testing.assert_allclose(found, [-special.ndtri(edge), *exact, *-exact], rtol=2e-6)
        assert found[0] == pytest.approx(7.0, abs=1e-5)


@pytest.mark.parametrize("generator", random_numbers.GENERATORS.values())
def test_choices_are_uniform(generator):
    found = generator.choices(tf.constant([50_000]), SEED, 7).numpy()
    assert stats.chisquare(np.bincount(found, minlength=7)).pvalue > 1e-3
    assert (found.min(), found.max()) == (0, 6)
