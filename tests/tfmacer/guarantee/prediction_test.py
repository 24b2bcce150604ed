"""PREDICT, and the test behind it."""

import numpy as np
import pytest
from scipy import stats

from tfmacer.common.errors import UserError
from tfmacer.guarantee.prediction import binomial_test_p_value, predict

TEN = np.array([0.34, 0.3, 0.2, 0.06, 0.05, 0.02, 0.01, 0.01, 0.005, 0.005])


class TestPredict:
    def test_answers_where_the_test_rejects(self):
        """60 of 70 between the first two: far beyond chance; the third does not matter."""
        prediction = predict((60, 10, 9), 0.001)
        assert prediction.predict == 0
        assert prediction.p_value == pytest.approx(stats.binomtest(60, 70).pvalue, rel=1e-9)

    @pytest.mark.parametrize("counts", [(50, 50), (55, 45), (0, 0, 0), (40, 38, 22)])
    def test_abstains(self, counts):
        assert predict(counts, 0.001).predict == -1

    def test_is_two_sided(self):
        """59 of 100: one tail is 0.044, both are 0.089."""
        assert predict((59, 41), 0.05).predict == -1
        assert predict((59, 41), 0.09).predict == 0

    def test_numpy_counts(self):
        assert predict(np.array([1, 99]), 0.05) == predict((1, 99), 0.05)

    def test_alpha_out_of_range(self):
        with pytest.raises(UserError, match="alpha must lie between"):
            predict((9, 1), 1.5)

    @pytest.mark.parametrize("p", [np.array([0.5, 0.5]), np.array([0.4, 0.4, 0.2]), TEN])
    def test_rarely_another_class(self, p):
        """The answer is not the smoothed class with chance alpha at most, the top two tied."""
        rng, runs, alpha = np.random.default_rng(6), 20_000, 0.05
        answers = [predict(c, alpha).predict for c in rng.multinomial(100, p, runs).tolist()]
        # Where several classes tie for first, the smoothed classifier's is the lowest of them.
        failures = sum(answer > 0 for answer in answers)
        assert failures <= stats.binom.isf(1e-9, runs, alpha)


class TestBinomialTest:
    @pytest.mark.parametrize("n", [1, 2, 9, 100, 1001, 100_000])
    def test_is_scipy_s(self, n):
        for hits in {0, n // 3, n // 2, (n + 1) // 2, int(0.51 * n), n - 1, n}:
            found = binomial_test_p_value(hits, n)
            assert found == pytest.approx(stats.binomtest(hits, n).pvalue, rel=1e-9)
            assert found <= 1

    def test_exact(self):
        """9 heads of 10: twice (10 + 1) / 1024; 2 ** (1 - n) is the least there is."""
        assert binomial_test_p_value(9, 10) == pytest.approx(22 / 1024, rel=1e-9)
        assert binomial_test_p_value(0, 10) == pytest.approx(2 / 1024, rel=1e-9)

    def test_without_tosses(self):
        assert binomial_test_p_value(0, 0) == 1
