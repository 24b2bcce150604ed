"""The Gaussian's radius against its theorem in 60 digits."""

import math

import mpmath
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tfmacer.common.errors import UserError
from tfmacer.noise.gaussian.distribution import Gaussian

PROBABILITIES = st.one_of(
    st.floats(1e-12, 1 - 2**-53), st.floats(0, 30).map(lambda x: 1 - 2.0**-x)
).filter(lambda p: 0 < p < 1)
SIGMAS = st.floats(1e-3, 1e3)


def quantile(p):
    return mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(p) - 1)


class TestGaussian:
    @given(p=PROBABILITIES, sigma=SIGMAS)
    def test_one_sided_radius(self, p, sigma):
        """The product sigma Phi^-1(p), or a few units in the last place less."""
        with mpmath.workdps(60):
            exact = max(mpmath.mpf(sigma) * quantile(p), mpmath.mpf(0))
            found = Gaussian(sigma, 784).radius(p)
            assert exact * (1 - mpmath.mpf(10) ** -14) <= found <= exact

    @given(first=PROBABILITIES, second=PROBABILITIES, sigma=SIGMAS)
    def test_bilateral_radius(self, first, second, sigma):
        """Half of sigma (Phi^-1(p_A) - Phi^-1(p_B)), never more, not even if they cancel."""
        with mpmath.workdps(60):
            terms = quantile(first), quantile(second)
            exact = mpmath.mpf(sigma) / 2 * (terms[0] - terms[1])
            slack = mpmath.mpf(10) ** -14 * sigma * (abs(terms[0]) + abs(terms[1]))
            found = Gaussian(sigma, 784).radius(first, second)
            assert max(exact - slack, 0) <= found <= max(exact, 0)

    @given(p=PROBABILITIES, sigma=SIGMAS)
    def test_one_sided_is_bilateral_with_all_that_is_left(self, p, sigma):
        assume(1 - (1 - p) == p)
        distribution = Gaussian(sigma, 784)
        assert distribution.radius(p) == pytest.approx(
            distribution.radius(p, 1 - p), rel=1e-12, abs=1e-15
        )

    @given(p=PROBABILITIES, q=PROBABILITIES, second=PROBABILITIES)
    def test_more_is_known_more_is_certified(self, p, q, second):
        distribution = Gaussian(0.5, 784)
        low, high = sorted((p, q))
        assert distribution.radius(low) <= distribution.radius(high)
        assert distribution.radius(low, second) <= distribution.radius(high, second)
        assert distribution.radius(second, high) <= distribution.radius(second, low)

    @given(radius=st.floats(1e-6, 8), sigma=st.floats(0.1, 10))
    def test_probability_certifies_the_radius(self, radius, sigma):
        distribution = Gaussian(sigma, 784)
        p = distribution.probability(radius)
        with mpmath.workdps(60):
            exact = mpmath.ncdf(mpmath.mpf(radius) / mpmath.mpf(sigma))
            assert exact <= p + mpmath.mpf(10) ** -17
            assert p <= exact + mpmath.mpf(10) ** -13
        assert p == 1 or distribution.radius(p) >= radius

    def test_probability_of_a_radius_beyond_all_counting(self):
        assert Gaussian(0.1, 784).probability(5.0) == 1

    @pytest.mark.parametrize("p", [0.0, 0.2, 0.5])
    def test_half_of_the_votes_certify_nothing(self, p):
        assert Gaussian(1.0, 784).radius(p) == 0

    def test_bilateral_certifies_below_half(self):
        """p_A = 0.45 against 0.2: (Phi^-1(0.45) - Phi^-1(0.2)) / 2 = 0.35798."""
        assert Gaussian(1.0, 784).radius(0.45, 0.2) == pytest.approx(0.35798, abs=5e-6)
        assert Gaussian(1.0, 784).radius(0.2, 0.45) == 0

    @pytest.mark.parametrize(
        ("first", "second", "radius"),
        [
            (1.0, None, math.inf),
            (1.0, 0.3, math.inf),
            (0.3, 0.0, math.inf),
            (0.0, 0.0, 0.0),
            (1.0, 1.0, 0.0),
            (0.0, 1.0, 0.0),
        ],
    )
    def test_ends(self, first, second, radius):
        assert Gaussian(0.25, 784).radius(first, second) == radius

    @pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
    def test_no_probability(self, p):
        with pytest.raises(UserError, match=r"p_lower must lie in \[0, 1\]"):
            Gaussian(1.0, 784).radius(p)
        with pytest.raises(UserError, match=r"p_upper_second must lie in \[0, 1\]"):
            Gaussian(1.0, 784).radius(0.9, p)

    @pytest.mark.parametrize("sigma", [0.0, -0.5, 1e300, math.inf, math.nan])
    def test_sigma_out_of_range(self, sigma):
        with pytest.raises(UserError, match="sigma must be positive and finite"):
            Gaussian(sigma, 784)
