"""Rounded Gaussian noise: its table against exact probabilities, its radius against its theorem."""

import fractions
import itertools

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfmacer.common.errors import UserError
from tfmacer.noise.gaussian.distribution import Gaussian
from tfmacer.noise.rounded_gaussian import rounding
from tfmacer.noise.rounded_gaussian.distribution import RoundedGaussian

SIGMAS = [0.01, 0.12, 0.25, 0.5, 1.0]


def exact_cdf(j: int, sigma: float) -> mpmath.mpf:
    """P(D <= j) by the integral of the density, not by the error function of the table."""
    bound = (2 * j + 1) / (510 * mpmath.mpf(sigma))
    return mpmath.quad(mpmath.npdf, [-mpmath.inf, min(bound, -1), bound])


class TestTable:
    @pytest.mark.parametrize("sigma", SIGMAS)
    def test_thresholds_are_exact_to_one_part_in_2_64(self, sigma):
        table, last = rounding.thresholds(sigma), rounding.reach(sigma)
        assert len(table) == 2 * last
        assert (np.diff(table.astype(object)) >= 0).all()
        with mpmath.workdps(40):
            for j in (-last, -last // 2, -40, -3, -1, 0, 1, 7, 100, last - 1):
                found = mpmath.mpf(int(table[j + last]) + 2**63) / 2**64
                assert abs(found - exact_cdf(j, sigma)) <= mpmath.mpf(2) ** -64

    @pytest.mark.parametrize("sigma", SIGMAS)
    def test_total_variation_bounds_the_whole_table(self, sigma):
        """Half the sum of |differences| over all values of D, in 40 digits."""
        table, last = rounding.thresholds(sigma), rounding.reach(sigma)
        with mpmath.workdps(40):
            exact = [
                mpmath.ncdf((2 * j + 1) / (510 * mpmath.mpf(sigma))) for j in range(-last, last)
            ]
            drawn = [mpmath.mpf(int(t) + 2**63) / 2**64 for t in table]
            gaps = [abs(a - b) for a, b in zip(exact, drawn, strict=True)]
            # |difference of a bin| <= the gaps at its two ends.
            assert sum(gaps) <= rounding.total_variation(sigma, 1)
        assert rounding.total_variation(sigma, 784) < 1e-12

    @given(sigma=st.floats(1e-3, 3), x=st.integers(0, 255), beyond=st.integers(0, 10**6))
    def test_lumped_tails_change_nothing(self, sigma, x, beyond):
        """Beyond `reach` every sum is clipped to the same end, so lumping there is exact."""
        low = -255 * rounding.overhang(sigma)
        high, last = 255 - low, rounding.reach(sigma)
        assert x + last >= high
        assert x - last <= low
        assert min(x + last + beyond, high) == min(x + last, high)
        assert rounding.overhang(sigma) >= max(1, 6 * sigma - 1)

    def test_variance_is_the_gaussians_and_that_of_rounding(self):
        """Sheppard: rounding adds 1/12 of a squared step."""
        table, last = rounding.thresholds(0.1), rounding.reach(0.1)
        ends = [0, *(int(t) + 2**63 for t in table), 2**64]
        weights = [fractions.Fraction(b - a, 2**64) for a, b in itertools.pairwise(ends)]
        assert sum(weights) == 1
        second = sum(w * (i - last) ** 2 for i, w in enumerate(weights))
        assert float(second) == pytest.approx((255 * 0.1) ** 2 + 1 / 12, rel=1e-9)


class TestRadius:
    @given(p=st.floats(0.5, 1 - 1e-9), second=st.floats(1e-9, 0.5))
    def test_is_the_gaussians_at_probabilities_moved_by_the_slack(self, p, second):
        distribution = RoundedGaussian(0.5, 150_528)
        slack = rounding.total_variation(0.5, 150_528)
        assert 0 < slack < 1e-10
        assert distribution.radius(p) <= Gaussian(0.5, 784).radius(max(p - slack, 0))
        assert distribution.radius(p) >= Gaussian(0.5, 784).radius(max(p - 2 * slack, 0))
        assert distribution.radius(p, second) <= Gaussian(0.5, 784).radius(
            p - slack, second + slack
        )
        assert distribution.radius(p, second) >= Gaussian(0.5, 784).radius(
            p - 2 * slack, second + 2 * slack
        )

    @pytest.mark.parametrize("radius", [0.01, 0.5, 1.5])
    def test_probability_certifies_the_radius(self, radius):
        distribution = RoundedGaussian(0.5, 784)
        p = distribution.probability(radius)
        assert distribution.radius(p) >= radius
        assert p == pytest.approx(Gaussian(0.5, 784).probability(radius), abs=1e-12)

    def test_certainty_certifies_a_finite_radius_only(self):
        """With all of the probability, what the table may be off is still left to an attacker."""
        assert 0.25 * 7 < RoundedGaussian(0.25, 784).radius(1.0) < 0.25 * 8

    @pytest.mark.parametrize("p", [(-0.1, None), (0.9, 1.5)])
    def test_no_probability(self, p):
        with pytest.raises(UserError, match=r"must lie in \[0, 1\]"):
            RoundedGaussian(0.25, 784).radius(*p)


class TestPixels:
    def test_every_level_in_every_common_spelling_is_the_same_pixel(self):
        levels = np.arange(256)
        exact = (levels.astype(np.float32) / np.float32(255)).reshape(16, 16, 1)
        for image in (
            levels.astype(np.float32) / np.float32(255),
            levels.astype(np.float32) * np.float32(1 / 255),
            (levels / 255).astype(np.float32),
        ):
            found = RoundedGaussian(0.25, 256).pixels(image.reshape(16, 16, 1))
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, exact)

    @pytest.mark.parametrize("level", [0, 1, 128, 255])
    def test_pixels_up_to_the_limit_are_those_of_the_level(self, level):
        """At most 2^-14 of a step off, they are certified as the level; beyond, refused."""
        distribution = RoundedGaussian(0.25, 2)
        exact = np.float32(level) / np.float32(255)
        # The first floats whose 255-fold is farther than 2^-14 from the level, and those before.
        inside, outside = [], []
        for side in (-1, 1):
            pixel = np.float32((level + side * 2.0**-14) / 255)
            while abs(float(pixel) * 255 - level) <= 2.0**-14:
                pixel = np.nextafter(pixel, np.float32(2 * side))
            outside.append(pixel)
            inside.append(np.nextafter(pixel, exact))
        image = np.array(inside, np.float32).reshape(1, 2, 1)
        assert (image != exact).all()
        found = distribution.pixels(image)
        assert found.tobytes() == np.full((1, 2, 1), exact, "f4").tobytes()
        assert distribution.pixels(found).tobytes() == found.tobytes()
        for pixel in outside:
            with pytest.raises(UserError, match=r"pixel \(0, 1, 0\) is .*, not a multiple"):
                distribution.pixels(np.array([exact, pixel], np.float32).reshape(1, 2, 1))

    @pytest.mark.parametrize("value", [0.5, 1.5 / 255, 256 / 255, -1 / 255, np.nan])
    def test_others_are_refused_by_place(self, value):
        image = np.zeros((4, 5, 3), np.float32)
        image[2, 3, 1] = value
        with pytest.raises(UserError, match=r"pixel \(2, 3, 1\) is .*, not a multiple of 1/255"):
            RoundedGaussian(0.25, 60).pixels(image)


@pytest.mark.parametrize("sigma", [100.5, 1e6])
def test_a_sigma_whose_table_has_no_end_is_refused(sigma):
    with pytest.raises(UserError, match="sigma must be at most 100 under rounded_gaussian noise"):
        RoundedGaussian(sigma, 4)
    assert RoundedGaussian(100.0, 4).radius(0.9) > 0
