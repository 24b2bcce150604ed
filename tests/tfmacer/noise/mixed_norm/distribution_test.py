"""The mixed-norm family: its draws against its density, its table against other computations."""

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, stats

from tfmacer.common.errors import UserError
from tfmacer.noise.families import noise_distribution
from tfmacer.noise.gaussian.distribution import Gaussian
from tfmacer.noise.mixed_norm import likelihood_ratio, statistics
from tfmacer.noise.mixed_norm.distribution import MixedNorm
from tfmacer.noise.mixed_norm.largest_coordinate import LargestCoordinate
from tfmacer.noise.mixed_norm.likelihood_ratio import MixedNormNoise
from tfmacer.noise.mixed_norm.statistics import draw_statistics
from tfmacer.noise.radii import linf_from_l2


def density(m, d, k):
    """Log density of |z|_inf, from the face integral, not normalised."""
    inside = math.erf(m / math.sqrt(2))
    if inside == 0:
        return -math.inf
    return -k * math.log(m) - m**2 / 2 + (d - 1) * math.log(inside)


@pytest.fixture(scope="module")
def small():
    """At d = 6, k = 2, with 200,000 draws."""
    return MixedNormNoise(6, 2, 200_000)


class TestLargestCoordinate:
    @pytest.mark.parametrize(("d", "k"), [(4, 2), (30, 0), (784, 250), (3, 2)])
    def test_distribution_against_quadrature(self, d, k):
        noise = LargestCoordinate(d, k)
        assert noise.total_variation < 1e-5
        shares = np.array([0.001, 0.1, 0.5, 0.9, 0.999])
        scale = density(float(noise.quantiles(np.array([0.5]))[0]), d, k)
        points = [0.0, *noise.quantiles(np.append(shares, 1.0)).tolist()]
        parts = [
            integrate.quad(lambda m: math.exp(density(m, d, k) - scale), a, b, limit=200)[0]
            for a, b in itertools.pairwise(points)
        ]
        np.testing.assert_allclose(np.cumsum(parts)[:-1] / sum(parts), shares, atol=2e-6)

    def test_median_of_a_published_check(self):
        """At CIFAR's size and k = 250 the largest coordinate is squeezed to 2.53 sigma."""
        median = LargestCoordinate(3072, 250).quantiles(np.array([0.5]))[0]
        assert median == pytest.approx(2.53, abs=0.005)


class TestDraws:
    def test_moments(self):
        """Of d = 4, k = 2, by importance sampling elsewhere; standard errors under 0.002."""
        z = draw_statistics(4, 2, 200_000, np.random.default_rng(0))
        assert np.maximum(z.largest, -z.smallest).mean() == pytest.approx(0.943, abs=0.006)
        assert (z.total**2).mean() == pytest.approx(2.0, abs=0.03)

    def test_importance_sampling_agrees(self):
        """Gaussian vectors weighted by |z|_inf^-k; effective sample of more than 100,000."""
        d, k, n = 5, 1.0, 300_000
        z = np.random.default_rng(1).normal(size=(n, d))
        weights = np.abs(z).max(axis=1) ** -k
        weights /= weights.sum()
        drawn = draw_statistics(d, k, n, np.random.default_rng(2))
        for column, values in zip(
            drawn, (z.max(axis=1), z.min(axis=1), z.sum(axis=1)), strict=True
        ):
            for q in (-1.0, 0.0, 0.7, 2.0):
                assert (column <= q).mean() == pytest.approx(weights @ (values <= q), abs=0.007)

    @pytest.mark.parametrize(("d", "k"), [(300, 20), (400, 250), (300, 285), (300, 299)])
    def test_most_coordinates_need_not_be_drawn(self, d, k):
        """Against whole vectors, M drawn by itself: each of the three, and what L makes of them."""
        n = 10_000
        rng = np.random.default_rng(7)
        m = LargestCoordinate(d, k).quantiles(rng.random(n))[:, np.newaxis]
        edge = stats.norm.cdf(-m)
        vectors = stats.norm.ppf(edge + rng.random((n, d)) * (1 - 2 * edge))
        vectors[:, :1] = np.where(rng.random((n, 1)) < 0.5, m, -m)
        whole = statistics.Statistics(vectors.max(1), vectors.min(1), vectors.sum(1))
        drawn = draw_statistics(d, k, n, np.random.default_rng(8))
        assert statistics.statistics_sampler(d, k).total_variation < 1e-5
        for mine, theirs in zip(drawn, whole, strict=True):
            assert stats.ks_2samp(mine, theirs).pvalue > 1e-3
        for r in (0.02, 0.1):
            ratios = [z.log_ratio(d, k, r) for z in (drawn, whole)]
            assert stats.ks_2samp(*ratios).pvalue > 1e-3
        correlations = [np.corrcoef(np.stack(z)) for z in (drawn, whole)]
        np.testing.assert_allclose(*correlations, atol=0.035)

    def test_rows_below_the_shell_are_drawn_whole(self, monkeypatch):
        """With c far above most values of M nothing is in the shell, and nothing changes."""
        sampler = statistics.StatisticsSampler(300, 20)
        expected = draw_statistics(300, 20, 20_000, np.random.default_rng(1))
        monkeypatch.setattr(sampler, "_c", 3.2)
        monkeypatch.setattr(sampler, "_sums", statistics.InnerSums(3.2, 200, 299))
        found = sampler.draw(20_000, np.random.default_rng(2))
        for mine, theirs in zip(found, expected, strict=True):
            assert stats.ks_2samp(mine, theirs).pvalue > 1e-3

    def test_k_0_is_the_gaussian_in_many_dimensions(self):
        z = draw_statistics(3072, 0, 50_000, np.random.default_rng(3))
        assert stats.kstest(z.total / math.sqrt(3072), "norm").pvalue > 1e-3
        for extreme in (z.largest, -z.smallest):
            assert stats.kstest(stats.norm.cdf(extreme) ** 3072, "uniform").pvalue > 1e-3

    def test_k_0_is_the_gaussian(self):
        z = draw_statistics(9, 0, 20_000, np.random.default_rng(3))
        assert stats.kstest(z.total / 3, "norm").pvalue > 1e-3
        assert stats.kstest(stats.norm.cdf(z.largest) ** 9, "uniform").pvalue > 1e-3


class TestInnerSums:
    @pytest.mark.parametrize("terms", [150, 200, 299])
    def test_distribution_against_convolution(self, terms):
        """The density of one term, on a fine grid, convolved with itself by FFT."""
        c, step = 1.5, 2.0**-7
        sums = statistics.InnerSums(c, 150, 299)
        assert sums.total_variation < 1e-5
        # Midpoints of cells, so that a sum of many terms has the same mean and variance to h^2.
        x = np.arange(-c + step / 2, c, step)
        cells = np.diff(stats.norm.cdf(np.arange(-c, c + step / 2, step)))
        size = 2 ** math.ceil(math.log2(terms * len(x)))
        spectrum = np.fft.rfft(cells / cells.sum(), size) ** terms
        exact = np.cumsum(np.fft.irfft(spectrum, size))
        places = terms * x[0] + step * np.arange(size) + step / 2
        shares = np.array([1e-6, 0.01, 0.3, 0.5, 0.9, 0.9999])
        found = sums._sums[terms - 150].places(shares)
        np.testing.assert_allclose(np.interp(found, places, exact), shares, rtol=5e-4)

    def test_drawn_sums_have_their_own_numbers_of_terms(self):
        terms = np.repeat([150, 299], 40_000)
        found = statistics.InnerSums(1.5, 150, 299).draw(terms, np.random.default_rng(0))
        variance = stats.truncnorm.var(-1.5, 1.5)
        for number in (150, 299):
            spread = found[terms == number].var() / (number * variance)
            assert spread == pytest.approx(1, abs=0.03)


class TestTable:
    @pytest.mark.parametrize("index", [40, 128, 250])
    def test_bounds_hold_and_are_near(self, small, index):
        """F among 400,000 other draws: whole vectors, L from the density as written."""
        d, k, n = 6, 2, 400_000
        r = index * likelihood_ratio.STEP * small.unit
        rng = np.random.default_rng(4)
        z = rng.normal(size=(n, d))
        weights = np.abs(z).max(axis=1) ** -float(k)
        weights /= weights.sum()
        before, after = np.abs(z).max(axis=1), np.abs(z - r).max(axis=1)
        ratio = -k * np.log(after / before) - ((z - r) ** 2 - z**2).sum(axis=1) / 2
        order = np.argsort(ratio)
        median = ratio[order][np.searchsorted(np.cumsum(weights[order]), 0.5)]
        exact = float(weights @ (ratio <= -median))
        assert exact - 0.004 <= small.probability(index) <= exact + 0.025

    @pytest.mark.parametrize("r", [0.3, 1.0])
    def test_the_papers_dual_is_one_half_at_the_threshold(self, small, r):
        """Its Algorithm 2: the best lambda of one sample, the bound of another."""
        index = round(r / (likelihood_ratio.STEP * small.unit))
        r, p = index * likelihood_ratio.STEP * small.unit, small.probability(index)
        lambdas = np.exp(np.linspace(-5, 5, 51))

        def duals(seed):
            z = draw_statistics(6, 2, 100_000, np.random.default_rng(seed))
            ratio = np.exp(z.log_ratio(6, 2, r))
            return np.array([lam * p - np.maximum(lam - ratio, 0).mean() for lam in lambdas])

        best = duals(5).argmax()
        # The threshold is above the least one by up to 0.02, of which the dual is a multiple.
        assert -0.01 <= duals(6)[best] - 0.5 <= 0.01 + 0.02 * lambdas[best]

    def test_k_0_is_the_gaussian_over_sqrt_d(self):
        noise = MixedNormNoise(9, 0, 300_000)
        for index in (32, 128, 256):
            exact = stats.norm.cdf(index * likelihood_ratio.STEP)
            assert exact <= noise.probability(index) <= exact + 0.02

    def test_bounds_are_above_the_counts(self, small):
        profile = small.profile(128)
        assert (np.diff(profile.at) >= 0).all()
        assert (profile.at > 0).all()
        assert profile.upper(0.0) == 1.0
        assert profile.upper(0.5) >= profile.upper(0.9) >= profile.upper(0.999)


@pytest.fixture
def distribution(monkeypatch, small):
    monkeypatch.setattr(likelihood_ratio, "mixed_norm_noise", lambda d, k: small)
    return MixedNorm(0.5, 6, k=2)


class TestDistribution:
    def test_radius_is_the_last_of_the_grid(self, distribution, small):
        step = 0.5 * likelihood_ratio.STEP * small.unit
        for p in (0.6, 0.9, 0.99):
            index = round(distribution.radius(p) / step)
            assert small.probability(index) <= p - small.slack
            assert small.probability(index + 1) > p - small.slack

    def test_more_is_known_more_is_certified(self, distribution):
        radii = [distribution.radius(p) for p in (0.0, 0.5, 0.6, 0.8, 0.99, 0.9999)]
        assert radii == sorted(radii)
        assert radii[1] == 0 < radii[2]
        assert (
            distribution.radius(0.8, 0.05)
            > distribution.radius(0.8, 0.1)
            > distribution.radius(0.8, 0.2)
        )
        assert distribution.radius(0.45, 0.2) > 0
        assert distribution.radius(0.2, 0.45) == distribution.radius(0.0, 1.0) == 0

    def test_bilateral_and_one_sided_agree_where_nothing_else_is_known(self, distribution):
        """The bounds on the two sides are apart by the table's own error."""
        assert distribution.radius(0.9, 0.1) == pytest.approx(distribution.radius(0.9), rel=0.06)

    def test_not_more_than_the_gaussian_of_the_same_mean_square(self, distribution):
        """Twice the scale of a coordinate: 0.5 sqrt(4 / 6)."""
        gaussian = Gaussian(0.5 * math.sqrt(4 / 6), 6)
        for p in (0.7, 0.9, 0.99):
            assert distribution.radius(p) < 1.02 * linf_from_l2(gaussian.radius(p), 6)

    @pytest.mark.parametrize("radius", [0.02, 0.2])
    def test_probability_certifies_the_radius(self, distribution, radius):
        p = distribution.probability(radius)
        assert distribution.radius(p) >= radius
        assert distribution.radius(p - 0.02) < radius

    def test_unreachable(self, distribution):
        assert distribution.probability(100.0) == 1

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({}, "must be k alone, got {}"),
            ({"k": 5.5}, r"k must lie in \[0, 5\], got 5.5"),
            ({"k": math.nan}, r"k must lie in \[0, 5\]"),
        ],
    )
    def test_mistakes(self, params, message):
        with pytest.raises(UserError, match=message):
            noise_distribution("mixed_norm", sigma=1.0, params=params, dimension=6)


def test_linf_ball_inside_an_l2_ball():
    assert linf_from_l2(1.0, 3072) == pytest.approx(1 / math.sqrt(3072), rel=1e-12)
    assert linf_from_l2(1.0, 3072) < 1 / math.sqrt(3072)
    assert linf_from_l2(0.0, 4) == 0


@pytest.mark.parametrize("dimension", [1, 2**24 + 1, 2**31 - 1])
def test_images_whose_table_does_not_fit_into_memory_are_refused(dimension):
    with pytest.raises(UserError, match=f"images of 2 to 16777216 numbers, got {dimension}"):
        MixedNorm(0.5, dimension, k=0.0)
