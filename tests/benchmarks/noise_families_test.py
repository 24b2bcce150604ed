import numpy as np
import pytest
from scipy import stats

from benchmarks import noise_families


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def test_extremes_of_the_pure_family_are_those_of_whole_vectors(generator):
    """Vectors drawn face by face, 40,000 of them, against the three numbers drawn directly."""
    vectors = noise_families.toy_draws("pure", 2.0, 40_000, generator)
    m, largest, smallest = noise_families.pure_extremes(5, 2.0, 40_000, generator)
    for mine, theirs in (
        (m, np.abs(vectors).max(axis=1)),
        (largest, vectors.max(axis=1)),
        (smallest, vectors.min(axis=1)),
    ):
        assert stats.ks_2samp(mine, theirs).pvalue > 1e-3


@pytest.mark.parametrize("family", ["l2", "mixed"])
def test_toy_draws_at_k_0_are_gaussian(family, generator):
    z = noise_families.toy_draws(family, 0.0, 20_000, generator)
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    assert stats.kstest((z**2).sum(axis=1), stats.chi2(5).cdf).pvalue > 1e-3


@pytest.mark.parametrize("family", ["l2", "mixed", "pure"])
def test_toy_draws_follow_the_density(family, generator):
    """Draws of k = 2, weighted by densities, give the moments of draws of k = 1."""
    z = noise_families.toy_draws(family, 2.0, 200_000, generator)
    log_weights = [noise_families.toy_log_density(family, z, k) for k in (1.0, 2.0)]
    weights = np.exp(log_weights[0] - log_weights[1])
    other = noise_families.toy_draws(family, 1.0, 200_000, generator)
    expected = np.average((z**2).sum(axis=1), weights=weights)
    assert (other**2).sum(axis=1).mean() == pytest.approx(expected, rel=0.02)


def test_the_l2_family_needs_what_a_gaussian_needs():
    found = noise_families.needed_l2(784, 100)
    np.testing.assert_allclose(found, noise_families.LEVELS, atol=2e-4)


def test_the_mixed_family_needs_more_as_k_grows(generator):
    small, large = (noise_families.needed_mixed(784, k, generator)[1] for k in (0.0, 250.0))
    assert small == pytest.approx(0.9, abs=0.02)
    assert large > 0.99


def test_the_pure_family_fails_in_high_dimensions(generator):
    """Theorem 4 of the paper: nothing short of certainty is certified."""
    needed = [noise_families.needed_pure(d, d / 2, generator)[1] for d in (5, 50, 784)]
    assert needed == sorted(needed)
    assert 0.9 < needed[0] < 0.97
    assert needed[-1] > 0.999


def test_the_toy_ranks_the_pure_family_last(generator, monkeypatch):
    monkeypatch.setattr(noise_families, "DRAWS", 4000)
    accuracies = np.array([0.6, 0.8])
    l2, mixed, pure = (
        noise_families.toy_frontier(family, accuracies, generator)
        for family in ("l2", "mixed", "pure")
    )
    assert (pure > l2 + 0.05).all()
    assert (pure > mixed + 0.05).all()
