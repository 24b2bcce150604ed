"""The l2 family against Monte Carlo, the paper's dual, a closed form and published checks."""

import math

import mpmath
import numpy as np
import pytest
from scipy import stats

from tfmacer.common.errors import UserError
from tfmacer.noise.families import noise_distribution
from tfmacer.noise.gaussian.distribution import Gaussian
from tfmacer.noise.generalized_gaussian.distribution import GeneralizedGaussian
from tfmacer.noise.generalized_gaussian.likelihood_ratio import RadialNoise


def draw(d, k, n, seed=0):
    """Vectors of the family with sigma = 1."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, d))
    lengths = np.sqrt(rng.gamma((d - k) / 2, 2, size=(n, 1)))
    return lengths * z / np.linalg.norm(z, axis=1, keepdims=True)


def log_ratio(z, k, delta):
    """The ratio ln p(z - delta) - ln p(z), from the density as written."""
    before, after = np.linalg.norm(z, axis=1), np.linalg.norm(z - delta, axis=1)
    return -k * np.log(after / before) - (after**2 - before**2) / 2


@pytest.fixture(scope="module")
def small():
    return RadialNoise(20, 6)


class TestRadialNoise:
    @pytest.mark.parametrize(("r", "p"), [(0.5, 0.7281), (1, 0.8866), (2, 0.9913)])
    def test_thresholds_of_an_independent_computation(self, small, r, p):
        assert small.probability(r) == pytest.approx(p, abs=1.5e-4)

    @pytest.mark.parametrize("r", [0.5, 1.0, 2.0])
    def test_distribution_of_the_ratio_against_monte_carlo(self, small, r):
        """200,000 draws: standard error below 0.0012; the direction of the shift is arbitrary."""
        delta = r * np.ones(20) / math.sqrt(20)
        ratio = log_ratio(draw(20, 6, 200_000), 6, delta)
        for t in (-2.0, -0.5, 0.0, 0.5, 1.5):
            seen = (ratio <= t).mean()
            assert small.guess(t, r) == pytest.approx(seen, abs=0.005)
            assert small.guess(t, r) <= small.upper(t, r) <= small.guess(t, r) + 1e-3

    @pytest.mark.parametrize("r", [0.5, 2.0])
    def test_the_papers_dual_is_one_half_at_the_threshold(self, small, r):
        """Equation 5: max over lambda of lambda p - E (lambda - ratio)+, by Monte Carlo."""
        p = small.probability(r)
        delta = np.zeros(20)
        delta[0] = r
        ratio = np.exp(log_ratio(draw(20, 6, 200_000, seed=1), 6, delta))
        duals = [
            lam * p - np.maximum(lam - ratio, 0).mean() for lam in np.exp(np.linspace(-6, 6, 61))
        ]
        # The grid of lambda loses under 0.002, and a lambda of e^-2 to e^2 adds 0.003 of noise.
        assert max(duals) == pytest.approx(0.5, abs=0.012)

    @pytest.mark.parametrize(("d", "r"), [(10, 0.3), (784, 1.0), (784, 3.5)])
    def test_k_0_is_the_gaussian(self, d, r):
        exact = stats.norm.cdf(r)
        assert exact <= RadialNoise(d, 0).probability(r) <= exact + 6e-5

    def test_bounds_cover_a_quadrature_in_30_digits(self):
        """At d = 5, k = 2: P(c <= x) is a polynomial, so F is one integral that mpmath can do."""
        noise, r = RadialNoise(5, 2), mpmath.mpf("0.8")

        def below(rho, t):
            def excess(s):
                return 2 * mpmath.log(s / rho) + (s * s - rho * rho) / 2 + t

            s = mpmath.findroot(excess, (rho / 30, rho * 30 + 3), solver="anderson", tol=1e-22)
            x = min(max((rho**2 + r * r - s * s) / (2 * rho * r), -1), 1)
            return (3 * x - x**3 + 2) / 4

        def density(rho):
            return rho**2 * mpmath.exp(-(rho**2) / 2) * mpmath.sqrt(2 / mpmath.pi)

        with mpmath.workdps(20):
            for t in (-0.7, 0.4):
                exact = mpmath.quad(
                    lambda rho, t=t: density(rho) * below(rho, t), [0.001, 0.5, 1, 2, 3, 5, 9]
                )
                assert float(exact) - 1e-9 <= noise.upper(t, float(r)) <= float(exact) + 5e-4
                assert noise.guess(t, float(r)) == pytest.approx(float(exact), abs=1e-4)

    @pytest.mark.parametrize(("p", "r"), [(0.9, 1.0), (0.9999, 2.0), (0.2, 0.5)])
    def test_quantiles_are_surely_low_and_hardly_so(self, small, p, r):
        t = small.quantile(p, r)
        assert small.upper(t, r) <= p
        assert small.guess(t, r) >= p - 1e-3


class TestDistribution:
    @pytest.mark.parametrize(("p", "over_root_mean_square"), [(0.9, 1.2816), (0.99993092, 3.8121)])
    def test_radius_at_cifar_size_is_the_gaussians(self, p, over_root_mean_square):
        """At d = 3072, k = 500, in units of the matched Gaussian's sigma."""
        scale = math.sqrt(2571 / 3071)
        distribution = GeneralizedGaussian(0.25 / scale, 3072, k=500)
        assert distribution.radius(p) / 0.25 == pytest.approx(over_root_mean_square, abs=0.0012)
        assert distribution.radius(p) <= 0.25 * (over_root_mean_square + 2e-4)

    def test_grid_is_exhausted(self):
        """The next radius of the grid needs more than is there."""
        distribution = GeneralizedGaussian(1.0, 20, k=6)
        step = math.sqrt(14 / 20) / 1024
        for p in (0.5001, 0.999):
            found = distribution.radius(p)
            r = round(found / step) * step
            assert r == 0 or distribution._noise.probability(r) <= p
            assert distribution._noise.probability(r + step) > p

    def test_more_is_known_more_is_certified(self):
        distribution = GeneralizedGaussian(0.5, 20, k=6)
        radii = [distribution.radius(p) for p in (0.0, 0.3, 0.5, 0.55, 0.8, 0.801, 0.999999)]
        assert radii == sorted(radii)
        assert radii[:3] == [0, 0, 0]
        assert radii[3] > 0

    @pytest.mark.parametrize("radius", [0.01, 1.3])
    def test_probability_certifies_the_radius(self, radius):
        distribution = GeneralizedGaussian(0.5, 20, k=6)
        p = distribution.probability(radius)
        assert distribution.radius(p) >= radius
        assert distribution.radius(p - 3e-3) < radius

    def test_unreachable(self):
        assert GeneralizedGaussian(0.1, 20, k=6).probability(5.0) == 1
        assert GeneralizedGaussian(0.1, 20, k=6).probability(0.79) == 1

    def test_bilateral_of_k_0_is_the_gaussians(self):
        distribution, closed = GeneralizedGaussian(1.0, 100, k=0), Gaussian(1.0, 784)
        for first, second in ((0.45, 0.2), (0.99, 0.003)):
            exact = closed.radius(first, second)
            assert exact - 0.003 <= distribution.radius(first, second) <= exact

    def test_bilateral_and_one_sided_agree_where_nothing_else_is_known(self):
        distribution = GeneralizedGaussian(1.0, 20, k=6)
        assert distribution.radius(0.9, 0.1) == pytest.approx(distribution.radius(0.9), abs=0.003)
        assert distribution.radius(0.9, 0.05) > distribution.radius(0.9) + 0.1

    @pytest.mark.parametrize(
        ("first", "second"), [(0.2, 0.45), (0.0, 0.1), (0.5, 1.0), (0.3, 0.3), (0.0, 0.0)]
    )
    def test_bilateral_abstains(self, first, second):
        assert GeneralizedGaussian(1.0, 20, k=6).radius(first, second) == 0

    @pytest.mark.parametrize(
        ("first", "second"), [(1 - 1e-15, 1e-15), (1e-12, 1e-14), (0.9, 1e-300), (1.0, 0.2)]
    )
    def test_bilateral_at_the_ends(self, first, second):
        """Nothing raises or hangs, and a Gaussian of the same scale is hardly exceeded."""
        found = GeneralizedGaussian(1.0, 20, k=6).radius(first, second)
        assert 0 <= found <= 1.1 * Gaussian(math.sqrt(14 / 20), 20).radius(first, second)

    def test_bilateral_against_the_shifted_probabilities(self):
        """The two worst classifiers, shifted by the radius, meet: by Monte Carlo, within 0.01."""
        distribution, d, k = GeneralizedGaussian(1.0, 20, k=6), 20, 6
        delta = np.zeros(d)
        delta[0] = distribution.radius(0.7, 0.1)
        z = draw(d, k, 200_000, seed=3)
        ratio, shifted = log_ratio(z, k, delta), log_ratio(z + delta, k, delta)
        kept = (shifted <= np.quantile(ratio, 0.7)).mean()
        won = (shifted > np.quantile(ratio, 0.9)).mean()
        assert kept == pytest.approx(won, abs=0.01)

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            ({}, "must be k alone, got {}"),
            ({"k": 3, "j": 1}, "must be k alone"),
            ({"k": 20}, r"k must lie in \[0, 20\), got 20.0"),
            ({"k": -1}, r"k must lie in \[0, 20\)"),
            ({"k": math.nan}, r"k must lie in \[0, 20\)"),
        ],
    )
    def test_mistakes(self, params, message):
        with pytest.raises(UserError, match=message):
            noise_distribution("generalized_gaussian", sigma=1.0, params=params, dimension=20)
