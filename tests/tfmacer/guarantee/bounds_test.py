"""Bounds against exact sums in 40 digits, other libraries, and their own promise: coverage."""

import fractions
import functools
import itertools
from statistics import NormalDist

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tfmacer.common.errors import UserError
from tfmacer.guarantee import bounds, stopping

mpmath.mp.dps = 40

LOWERS = [bounds.clopper_pearson_lower, bounds.beta_binomial_lower]
UPPERS = [bounds.clopper_pearson_upper, bounds.beta_binomial_upper]
quantile = NormalDist().inv_cdf

ALPHAS = st.floats(1e-9, 0.5)


@st.composite
def hits_and_n(draw, largest=5000):
    n = draw(st.integers(1, largest))
    return draw(st.integers(0, n)), n


def tail(n, p, hits):
    """P(Bin(n, p) >= hits), summed term by term upward from `hits`, for p below hits / n."""
    p = mpmath.mpf(p)
    log_term = mpmath.loggamma(n + 1) - mpmath.loggamma(hits + 1) - mpmath.loggamma(n - hits + 1)
    term = mpmath.exp(log_term + hits * mpmath.log(p) + (n - hits) * mpmath.log(1 - p))
    total = mpmath.mpf(0)
    while hits <= n and term > total * mpmath.mpf(10) ** -22:
        total += term
        term *= (n - hits) * p / ((hits + 1) * (1 - p))
        hits += 1
    return total


class TestClopperPearson:
    @pytest.mark.parametrize("alpha", [0.1, 1e-3, 1e-9])
    @pytest.mark.parametrize("n", [1, 10, 999, 100_000, 1_469_021])
    def test_tail_is_alpha_and_not_more(self, n, alpha):
        for hits in {1, n, n - 1, n // 2, n // 6, int(0.9 * n), int(0.9995 * n)} - {0}:
            lower = bounds.clopper_pearson_lower(hits, n, alpha)
            assert 0.9999 * alpha < tail(n, lower, hits) <= alpha
            # The tail of the other side, P(Bin(n, u) <= n - hits), is P(Bin(n, 1 - u) >= hits).
            # Near u = 1 the numbers lie so far apart that it jumps by a few parts in a hundred.
            upper = bounds.clopper_pearson_upper(n - hits, n, alpha)
            assert 0.95 * alpha < tail(n, 1 - mpmath.mpf(upper), hits) <= alpha

    @pytest.mark.parametrize(("hits", "n"), [(1, 10), (7, 10), (99, 100), (90_123, 100_000)])
    def test_is_half_of_the_two_sided_interval(self, hits, n):
        interval = stats.binomtest(hits, n).proportion_ci(1 - 2 * 0.001, method="exact")
        assert bounds.clopper_pearson_lower(hits, n, 0.001) == pytest.approx(interval.low, 1e-9)
        assert bounds.clopper_pearson_upper(hits, n, 0.001) == pytest.approx(interval.high, 1e-9)

    @pytest.mark.parametrize(
        ("n", "radius"), [(10**2, 1.50), (10**3, 2.46), (10**4, 3.20), (10**5, 3.81), (10**6, 4.35)]
    )
    def test_largest_radius_in_units_of_sigma(self, n, radius):
        """The largest radius of n draws at alpha = 0.001, where all of them agree."""
        lower = bounds.clopper_pearson_lower(n, n, 0.001)
        assert lower == pytest.approx(0.001 ** (1 / n), abs=2e-12)
        assert quantile(lower) == pytest.approx(radius, abs=0.01)

    def test_nothing_seen_bounds_nothing(self):
        assert bounds.clopper_pearson_lower(0, 9, 0.1) == 0
        assert bounds.clopper_pearson_upper(9, 9, 0.1) == 1

    def test_exact_coverage(self):
        """For each p, the chance that the bound exceeds it: at most alpha, and near it for some."""
        n, alpha = 60, 0.02
        lowers = np.array([bounds.clopper_pearson_lower(k, n, alpha) for k in range(n + 1)])
        uppers = np.array([bounds.clopper_pearson_upper(k, n, alpha) for k in range(n + 1)])
        failures = []
        for p in np.linspace(0.005, 0.995, 397):
            mass = stats.binom.pmf(np.arange(n + 1), n, p)
            failures.append((mass[lowers > p].sum(), mass[uppers < p].sum()))
        assert 0.8 * alpha < np.max(failures) <= alpha


class TestScores:
    @pytest.mark.parametrize("alpha", [0.3, 1e-3])
    @pytest.mark.parametrize(("mean", "variance", "n"), [(0.9, 0.04, 1000), (0.999, 1e-4, 10**5)])
    def test_formulas(self, mean, variance, n, alpha):
        m, v, a = mpmath.mpf(mean), mpmath.mpf(variance), mpmath.mpf(alpha)
        hoeffding = m - mpmath.sqrt(-mpmath.log(a) / (2 * n))
        log_term = mpmath.log(2 / a)
        bernstein = m - mpmath.sqrt(2 * v * log_term / n) - 7 * log_term / (3 * (n - 1))
        for found, exact in (
            (bounds.hoeffding_lower(mean, n, alpha), hoeffding),
            (bounds.bernstein_lower(mean, variance, n, alpha), bernstein),
        ):
            assert exact - 1e-14 < found <= exact

    def test_clipped(self):
        assert bounds.hoeffding_lower(0.1, 10, 0.001) == 0
        assert bounds.bernstein_lower(0.1, 0.01, 10, 0.001) == 0

    def test_round_off_in_the_variance_counts_as_none(self):
        none = bounds.bernstein_lower(0.9, 0.0, 500, 0.01)
        assert bounds.bernstein_lower(0.9, -1e-9, 500, 0.01) == none
        assert bounds.unbiased_variance(7 * 0.1, 7 * 0.1 * 0.1 - 1e-12, 7) == 0

    def test_variance_is_the_unbiased_one(self):
        scores = np.random.default_rng(0).beta(5, 1, size=400)
        variance = bounds.unbiased_variance(scores.sum(), np.square(scores).sum(), 400)
        assert variance == pytest.approx(np.var(scores, ddof=1), rel=1e-12)

    def test_bernstein_needs_two(self):
        with pytest.raises(UserError, match="n of 2 or more, got 1"):
            bounds.bernstein_lower(1.0, 0.0, 1, 0.1)

    @pytest.mark.parametrize(
        "distribution", [stats.beta(8, 2), stats.beta(0.2, 0.1), stats.bernoulli(0.7)]
    )
    def test_coverage(self, distribution):
        """No more failures than a true rate of alpha explains (all but a chance of 1e-9)."""
        n, alpha, runs = 200, 0.2, 5000
        scores = distribution.rvs(size=(runs, n), random_state=np.random.default_rng(1)).astype(
            float
        )
        means, variances = scores.mean(axis=1), scores.var(axis=1, ddof=1)
        hoeffding = sum(bounds.hoeffding_lower(m, n, alpha) > distribution.mean() for m in means)
        bernstein = sum(
            bounds.bernstein_lower(m, v, n, alpha) > distribution.mean()
            for m, v in zip(means, variances, strict=True)
        )
        assert max(hoeffding, bernstein) <= stats.binom.isf(1e-9, runs, alpha)

    def test_hoeffding_falls_short_for_the_widest_scores_only(self):
        """With scores of 0 and 1 in equal shares it fails often enough to make coverage a test."""
        n, alpha, runs = 200, 0.2, 5000
        means = np.random.default_rng(2).binomial(n, 0.5, size=runs) / n
        failures = sum(bounds.hoeffding_lower(m, n, alpha) > 0.5 for m in means)
        assert failures > 0.15 * alpha * runs

    def test_bernstein_beats_hoeffding_where_scores_hardly_vary(self):
        bernstein = bounds.bernstein_lower(0.97, 0.001, 10_000, 0.001)
        assert bernstein > bounds.hoeffding_lower(0.97, 10_000, 0.001) + 0.01


def evidence(hits, n, p):
    """The restricted mixture, in 40 digits: its two integrals as incomplete beta functions."""
    half, p = mpmath.mpf(1) / 2, mpmath.mpf(p)
    mixture = mpmath.betainc(half + hits, half + n - hits, p, 1) / mpmath.betainc(half, half, p, 1)
    return mixture / (p**hits * (1 - p) ** (n - hits))


@functools.cache
def certify_from(p, alpha, largest):
    """For n = 1, 2, ...: the fewest hits whose lower confidence sequence exceeds p."""
    fewest, needed = [], 0
    for n in range(1, largest + 1):
        # One more draw, a hit or a miss, changes the fewest hits by one at most.
        while needed <= n and bounds.beta_binomial_lower.__wrapped__(needed, n, alpha) <= p:
            needed += 1
        fewest.append(needed)
    return fewest


def chance_to_cross(p, thresholds):
    """Exact chance that the hits of a p-coin ever reach the threshold, looking at every draw."""
    alive, crossed = np.array([1.0]), 0.0
    for threshold in thresholds:
        alive = np.append(alive * (1 - p), 0.0) + np.append(0.0, alive * p)
        crossed += alive[threshold:].sum()
        alive[threshold:] = 0.0
    return crossed


class TestBetaBinomial:
    @pytest.mark.parametrize("alpha", [0.05, 1e-3, 1e-9])
    @pytest.mark.parametrize(
        ("hits", "n"), [(1, 1), (2, 7), (7, 7), (55, 100), (999, 1000), (700, 1000), (3, 1000)]
    )
    def test_evidence_at_the_bound_is_the_threshold(self, hits, n, alpha):
        found = bounds.beta_binomial_lower(hits, n, alpha)
        assert 1 / alpha <= evidence(hits, n, found) < (1 + 1e-8) / alpha

    @pytest.mark.parametrize("hits", [0, 5, 60, 100])
    def test_evidence_falls_with_p(self, hits):
        """So that one crossing exists, and bisection finds it."""
        with mpmath.workdps(400):  # far above the frequency its two integrals nearly vanish
            values = [evidence(hits, 100, p) for p in np.linspace(0.001, 0.999, 200)]
        assert all(first > second for first, second in itertools.pairwise(values))

    def test_evidence_is_a_supermartingale_under_every_smaller_p(self):
        """One draw does not raise it on average, at p and at any probability below p."""
        for p in (0.2, 0.5, 0.9):
            for hits, n in [(0, 0), (3, 5), (9, 10), (0, 6)]:
                now = evidence(hits, n, p)
                hit, miss = evidence(hits + 1, n + 1, p), evidence(hits, n + 1, p)
                for truth in (p, 0.5 * p, 0.01 * p):
                    t = mpmath.mpf(truth)
                    assert t * hit + (1 - t) * miss <= now * (1 + mpmath.mpf(10) ** -30)

    @pytest.mark.parametrize(
        ("hits", "sequence", "fixed"), [(10**5, 0.99992, 0.99993), (90_000, 0.89542, 0.89704)]
    )
    def test_price_of_looking_all_the_time(self, hits, sequence, fixed):
        found = bounds.beta_binomial_lower(hits, 10**5, 0.001)
        assert found == pytest.approx(sequence, abs=6e-6)
        assert bounds.clopper_pearson_lower(hits, 10**5, 0.001) == pytest.approx(fixed, abs=6e-6)

    @pytest.mark.parametrize(
        ("p", "rate"), [(0.1, 0.0092), (0.5, 0.0168), (0.84, 0.0172), (0.977, 0.0154)]
    )
    def test_exact_coverage_peeking_at_every_draw(self, p, rate):
        """The chance that the sequence ever exceeds p: at most alpha, and not far below it.

        In between lies, to the digits given, what a computation by other means had found for 2000
        draws at 0.02: between 0.0092 at p = 0.1 and 0.0172.
        """
        chance = chance_to_cross(p, certify_from(p, 0.02, 2000))
        assert chance <= 0.02
        assert chance == pytest.approx(rate, abs=6e-5)

    def test_upper_mirrors_lower(self):
        for hits, n in [(0, 5), (3, 10), (10, 10), (12, 40_000)]:
            upper = bounds.beta_binomial_upper(hits, n, 0.01)
            exact = 1 - mpmath.mpf(bounds.beta_binomial_lower(n - hits, n, 0.01))
            assert exact <= upper <= exact + 1e-15

    @pytest.mark.parametrize(("truth", "draws"), [(0.5, 27), (0.7, 153), (0.95, 126), (0.99, 58)])
    def test_draws_to_decide(self, truth, draws):
        """Mean draws until p_A >= 0.841 is certified or refuted, each at 0.001.

        Exactly, against figures that others had simulated; hence the tolerance.
        """
        p, alpha, largest = 0.841, 0.001, 1500
        certify = certify_from(p, alpha, largest)
        misses = certify_from(1 - p, alpha, largest)
        alive, mean = np.array([1.0]), 0.0
        for n in range(largest):
            mean += alive.sum()
            alive = np.append(alive * (1 - truth), 0.0) + np.append(0.0, alive * truth)
            alive[certify[n] :] = 0.0
            alive[: max(n + 2 - misses[n], 0)] = 0.0
        assert alive.sum() < 1e-4
        assert mean == pytest.approx(draws, rel=0.07)


LOOKS = (64, 128, 192, 256, 320, 448, 576, 768, 1000)


def chance_of_failure(name, p, looks, alpha, watched=None):
    """Probability that a lower bound exceeds p at any look (watched), by dynamic programming."""
    bound = bounds.BOUNDS[name]
    alive, failed, before = np.array([1.0]), 0.0, 0
    for number, n in enumerate(looks, 1):
        step = stats.binom.pmf(np.arange(n - before + 1), n - before, p)
        alive, before = np.convolve(alive, step), n
        if watched is None or n in watched:
            share = bound.share(number, len(looks))
            wrong = [bound.lower(hits, n, alpha * share) > p for hits in range(n + 1)]
            failed += alive[wrong].sum()
            alive[wrong] = 0.0
    return failed


class TestAlphaSpending:
    @pytest.mark.parametrize("num_looks", [1, 2, 7, 24])
    def test_shares_add_up_to_one(self, num_looks):
        shares = [bounds.look_share(look, num_looks) for look in range(1, num_looks + 1)]
        assert sum(map(fractions.Fraction, shares)) == pytest.approx(1, abs=1e-15)

    def test_share_depends_on_the_number_of_the_look_alone(self):
        """Every look but the last has the same part of alpha in schedules of any length."""
        assert {bounds.look_share(3, length) for length in (4, 9, 100)} == {1 / 12}

    @pytest.mark.parametrize("look", [0, 6])
    def test_look_outside_the_schedule(self, look):
        with pytest.raises(UserError, match="look must lie between 1 and 5"):
            bounds.look_share(look, 5)

    def test_is_clopper_pearson_at_the_look_s_part(self):
        bound = bounds.BOUNDS["alpha_spending"]
        assert bound.share(2, 4) == pytest.approx(1 / 6)
        assert bound.lower(90, 100, 0.01) == bounds.clopper_pearson_lower(90, 100, 0.01)
        assert bound.upper(90, 100, 0.01) == bounds.clopper_pearson_upper(90, 100, 0.01)

    @pytest.mark.parametrize("p", [0.1, 0.5, 0.84, 0.977])
    def test_exact_coverage_over_all_looks(self, p):
        failed = chance_of_failure("alpha_spending", p, LOOKS, 0.02)
        # A union bound is never exact; close to p = 1 it is the further from it, as counts are few.
        assert 0.1 * 0.02 < failed <= 0.02


class TestLateSpending:
    @pytest.mark.parametrize("num_looks", [1, 2, 7, 24])
    def test_shares_add_up_to_one(self, num_looks):
        shares = [bounds.late_share(look, num_looks) for look in range(1, num_looks + 1)]
        assert sum(map(fractions.Fraction, shares)) == pytest.approx(1, abs=1e-15)

    def test_most_is_for_the_last_look(self):
        assert [bounds.late_share(look, 5) for look in range(1, 6)] == pytest.approx(
            [0.025, 0.025, 0.025, 0.025, 0.9]
        )
        assert bounds.late_share(1, 1) == 1.0

    @pytest.mark.parametrize("look", [0, 6])
    def test_look_outside_the_schedule(self, look):
        with pytest.raises(UserError, match="look must lie between 1 and 5"):
            bounds.late_share(look, 5)

    @pytest.mark.parametrize("p", [0.1, 0.5, 0.84, 0.977])
    def test_exact_coverage_over_all_looks(self, p):
        failed = chance_of_failure("late_spending", p, LOOKS, 0.02)
        assert 0.3 * 0.02 < failed <= 0.02

    @pytest.mark.parametrize("p", [0.5, 0.84])
    def test_exact_coverage_of_a_run_to_the_end(self, p):
        """What a run that meets no deadline can fail by: nearly all that it may."""
        failed = chance_of_failure("late_spending", p, LOOKS, 0.02, watched=LOOKS[-1:])
        assert 0.75 * 0.02 < failed <= 0.9 * 0.02

    @pytest.mark.parametrize(("n", "cost"), [(1000, 4e-3), (10_000, 1e-3), (100_000, 3e-4)])
    @pytest.mark.parametrize("p", [0.7, 0.9, 0.99])
    def test_a_run_to_the_end_costs_a_small_part_of_the_radius(self, p, n, cost):
        """The figures of docs/method.md, with quantiles of SciPy's beta distribution."""
        hits, num_looks = int(p * n), len(stopping.looks(n, 256))
        late = bounds.BOUNDS["late_spending"]
        share = late.share(num_looks, num_looks)
        radius = stats.norm.ppf(late.lower(hits, n, 0.001 * share))
        whole = stats.norm.ppf(stats.beta.ppf(0.001, hits, n - hits + 1))
        assert (1 - cost) * whole < radius < whole


class TestAnyBound:
    @pytest.mark.parametrize("lower", LOWERS)
    @given(counts=hits_and_n(), alpha=ALPHAS)
    def test_more_hits_raise_it(self, lower, counts, alpha):
        hits, n = counts
        if hits < n:
            assert lower(hits, n, alpha) < lower(hits + 1, n, alpha)

    @pytest.mark.parametrize("lower", LOWERS)
    @given(counts=hits_and_n(), alpha=ALPHAS)
    def test_more_confidence_lowers_it(self, lower, counts, alpha):
        assert lower(*counts, alpha / 2) <= lower(*counts, alpha)

    @pytest.mark.parametrize(("lower", "upper"), list(zip(LOWERS, UPPERS, strict=True)))
    @given(counts=hits_and_n(), alpha=ALPHAS)
    def test_bounds_enclose_the_frequency(self, lower, upper, counts, alpha):
        hits, n = counts
        assert 0 <= lower(hits, n, alpha) <= hits / n <= upper(hits, n, alpha) <= 1

    @given(counts=hits_and_n(), alpha=ALPHAS)
    def test_a_sequence_costs_more_than_a_fixed_number(self, counts, alpha):
        fixed = bounds.clopper_pearson_lower(*counts, alpha)
        assert bounds.beta_binomial_lower(*counts, alpha) <= fixed

    @given(mean=st.floats(0, 1), n=st.integers(2, 10**6), alpha=ALPHAS)
    def test_scores(self, mean, n, alpha):
        for lower in (
            lambda m, n: bounds.hoeffding_lower(m, n, alpha),
            lambda m, n: bounds.bernstein_lower(m, 0.01, n, alpha),
        ):
            assert 0 <= lower(mean, n) <= lower(mean, 2 * n) <= mean
            assert lower(mean / 2, n) <= lower(mean, n)

    @pytest.mark.parametrize("bound", [*LOWERS, *UPPERS])
    @pytest.mark.parametrize(
        ("hits", "n", "alpha", "message"),
        [
            (-1, 5, 0.1, "hits must lie between 0 and n, .* got -1 of 5"),
            (6, 5, 0.1, "got 6 of 5"),
            (0, 0, 0.1, "got 0 of 0"),
            (1, 5, 0.0, "alpha must lie between 0 and 1, got 0.0"),
            (1, 5, float("nan"), "alpha must lie between 0 and 1, got nan"),
        ],
    )
    def test_out_of_range(self, bound, hits, n, alpha, message):
        with pytest.raises(UserError, match=message):
            bound(hits, n, alpha)

    def test_registry(self):
        anytime = {name for name, bound in bounds.BOUNDS.items() if bound.anytime}
        soft = {n for n, bound in bounds.BOUNDS.items() if isinstance(bound, bounds.ScoreBound)}
        assert anytime == {"beta_binomial", "alpha_spending", "late_spending"}
        assert soft == {"hoeffding", "bernstein"}
        assert set(bounds.BOUNDS) == anytime | soft | {"clopper_pearson"}
