"""What may be concluded from the certificates of a data set."""

import numpy as np
import pytest
from scipy import stats

from tfmacer.common.errors import UserError
from tfmacer.guarantee.dataset import dataset_lower_bound


@pytest.mark.parametrize(
    ("num_examples", "alpha", "rho"),
    [(10_000, 0.001, 0.001), (500, 0.001, 0.01), (1, 0.5, 0.1), (100, 0.3, 1e-6)],
)
def test_takes_off_the_fewest_that_suffice(num_examples, alpha, rho):
    found = dataset_lower_bound(num_examples, num_examples, alpha, rho)
    wrong = round((1 - found) * num_examples)
    assert stats.binom.sf(wrong, num_examples, alpha) <= rho
    assert stats.binom.sf(wrong - 1, num_examples, alpha) > rho


def test_beyond_the_expected_number():
    """With alpha = rho = 0.001 and 10,000 images, 0.0011 more than the expected share."""
    found = dataset_lower_bound(9000, 10_000, 0.001, 0.001)
    assert 0.9 - found - 0.001 == pytest.approx(0.0011, abs=1e-12)


def test_coverage():
    """Images whose certificates hold with chance 1 - alpha exactly; the share known."""
    rng, runs, n, alpha, rho = np.random.default_rng(3), 20_000, 400, 0.02, 0.05
    robust = 300
    # A certificate of an image that is not robust is wrong with chance alpha; all others hold.
    correct = robust + rng.binomial(n - robust, alpha, size=runs)
    most = {k: dataset_lower_bound(int(k), n, alpha, rho) for k in set(correct)}
    failures = sum(most[k] > robust / n for k in correct)
    assert failures <= stats.binom.isf(1e-9, runs, rho)


def test_not_below_zero():
    assert dataset_lower_bound(1, 10_000, 0.001, 0.001) == 0


def test_out_of_range():
    with pytest.raises(UserError, match="got 11 of 10"):
        dataset_lower_bound(11, 10, 0.001, 0.001)
