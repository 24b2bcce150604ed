"""Certificates: recomputed by hand, and their promise kept where the truth is known."""

import dataclasses
import decimal
import itertools
import math
import re
from statistics import NormalDist
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tfmacer.common.errors import UserError
from tfmacer.guarantee import bounds
from tfmacer.guarantee.bounds import BOUNDS
from tfmacer.guarantee.certificate import (
    certify,
    check_reachable,
    decided,
    largest_radius,
    round_down,
)
from tfmacer.guarantee.counts import Counts
from tfmacer.guarantee.distribution import NoiseDistribution
from tfmacer.guarantee.rule import Rule
from tfmacer.guarantee.stopping import StopRule
from tfmacer.noise.gaussian.distribution import Gaussian

NORMAL = NormalDist()
UNIT = Gaussian(1.0, 784)
SEQUENTIAL = ("beta_binomial", "alpha_spending", "late_spending")
VOTE_BOUNDS = ("clopper_pearson", *SEQUENTIAL)
# Ten classes, three of them close.
TEN = np.array([0.34, 0.3, 0.2, 0.06, 0.05, 0.02, 0.01, 0.01, 0.005, 0.005])


def make_counts(counts, select=(10, 0), **soft):
    return Counts(
        select_counts=tuple(select), counts=tuple(counts), n0=sum(select), n=sum(counts), **soft
    )


def make_soft(scores, select_sums, n=1000):
    """Counts whose scores of class 0 alternate between two values, those of class 1 complement."""
    scores = np.resize(scores, n)
    both = np.stack([scores, 1 - scores])
    return Counts(
        select_counts=(0, 10),
        counts=(int((scores > 0.5).sum()), int((scores <= 0.5).sum())),
        n0=10,
        n=n,
        select_sums=select_sums,
        sums=tuple(both.sum(axis=1).tolist()),
        square_sums=tuple(np.square(both).sum(axis=1).tolist()),
    )


class TestRule:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"alpha": 0}, "alpha must lie between 1e-100 and 1, got 0"),
            ({"alpha": 1.0}, "alpha must lie between 1e-100 and 1, got 1.0"),
            ({"alpha": math.nan}, "alpha must lie between 1e-100 and 1, got nan"),
            ({"reject_alpha": -0.1}, "reject_alpha must lie between 1e-100 and 1, got -0.1"),
            ({"n0": 0}, "n0 must be an integer of 1 or more, got 0"),
            ({"n": 1e5}, "n must be an integer of 1 or more, got 100000.0"),
            ({"n": True}, "n must be an integer of 1 or more, got True"),
            ({"block_size": 0}, "block_size must be an integer of 1 or more, got 0"),
            ({"beta": 0.0}, "beta must be positive and finite, got 0.0"),
            ({"beta": math.inf}, "beta must be positive and finite, got inf"),
            ({"bound": "normal"}, "bound must be one of clopper_pearson, .*, got 'normal'"),
            ({"bound": "bernstein", "bilateral": True}, "bilateral needs a bound on votes"),
            (
                {"stop": StopRule.parse("decide:0.5")},
                r"stop=decide:0.5 needs a bound that allows stopping early "
                r"\(beta_binomial, alpha_spending, late_spending\), clopper_pearson holds for a "
                r"fixed n only",
            ),
            ({"stop": "sometimes"}, "stop must be fixed, decide:RADIUS"),
        ],
    )
    def test_out_of_range(self, fields, message):
        with pytest.raises(UserError, match=message):
            Rule(**fields)

    @pytest.mark.parametrize(
        ("bound", "bilateral"),
        [(name, False) for name in BOUNDS] + [(name, True) for name in VOTE_BOUNDS],
    )
    @pytest.mark.parametrize("alpha", [0.05, 0.001])
    def test_too_few_draws_to_certify_anything(self, bound, bilateral, alpha):
        """The message names the least n; with it unanimous draws certify, with one less not."""
        fields = {"bound": bound, "alpha": alpha, "n0": 10, "block_size": 4, "bilateral": bilateral}
        with pytest.raises(UserError, match=f"n = 2 is too small for alpha = {alpha}") as caught:
            Rule(n=2, **fields)
        least = int(re.search(r"n must be (\d+) or more", str(caught.value)).group(1))
        with pytest.raises(UserError, match="is too small"):
            Rule(n=least - 1, **fields)
        rule = Rule(n=least, **fields)
        sums = {"sums": (float(least), 0.0), "square_sums": (float(least), 0.0)}
        soft = {"select_sums": (10.0, 0.0)} | sums if rule.soft else {}
        assert certify(make_counts((least, 0), **soft), rule, UNIT).predict == 0

    def test_ten_draws_are_the_least_at_one_in_a_thousand(self):
        """0.001 ** (1 / 10) = 0.501."""
        with pytest.raises(UserError, match="n must be 10 or more"):
            Rule(n=9, alpha=0.001)

    def test_looks(self):
        assert Rule(n=1000).looks == (1000,)
        assert Rule(n=1000, bound="beta_binomial").looks == (256, 512, 768, 1000)
        assert Rule(n=100, bound="alpha_spending", block_size=40).looks == (40, 80, 100)

    def test_stop_may_be_text(self):
        rule = Rule(bound="beta_binomial", stop="decide:0.25")
        assert rule == Rule(bound="beta_binomial", stop=StopRule("decide", 0.25))

    def test_numpy_integers_become_plain_ones(self):
        assert type(Rule(n=np.int64(5000)).n) is int


class TestCounts:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"counts": (90, 9)}, r"counts must be 2 counts of 0 or more that add up to n = 100"),
            ({"counts": (110, -10)}, "counts must be 2 counts of 0 or more"),
            ({"counts": (100,)}, "counts must be of 2 classes or more, got 1"),
            ({"select_counts": (9, 1, 0)}, "select_counts must be 2 counts"),
            ({"select_counts": (9, 2)}, "add up to n0 = 10"),
            ({"n": 0}, "n must be an integer of 1 or more, got 0"),
            ({"sums": (1.0,)}, "sums must be 2 numbers between 0 and 100"),
            ({"sums": (-0.1, 1.0)}, "sums must be 2 numbers between 0 and 100"),
            ({"square_sums": (100.1, 1.0)}, "square_sums must be 2 numbers between 0 and 100"),
            ({"select_sums": (10.1, 1.0)}, "select_sums must be 2 numbers between 0 and 10"),
            ({"sums": (math.nan, 1.0)}, "sums must be 2 numbers between 0 and 100"),
        ],
    )
    def test_out_of_range(self, fields, message):
        good = {"select_counts": (9, 1), "counts": (90, 10), "n0": 10, "n": 100}
        with pytest.raises(UserError, match=message):
            Counts(**(good | fields))


class TestCertify:
    def test_one_sided(self):
        """Sigma 0.25, 950 of 1000 votes: the 0.001 quantile of Beta(950, 51) is the bound."""
        certificate = certify(
            make_counts((50, 950), (1, 9)), Rule(n0=10, n=1000), Gaussian(0.25, 784)
        )
        assert certificate.p_lower == pytest.approx(stats.beta.ppf(0.001, 950, 51), rel=1e-12)
        expected = 0.25 * NORMAL.inv_cdf(stats.beta.ppf(0.001, 950, 51))
        assert certificate.radius == pytest.approx(expected, rel=1e-9)
        assert certificate.predict == 1
        assert not certificate.abstained
        assert certificate.p_upper_second is None
        assert (certificate.norm, certificate.distribution.family) == ("l2", "gaussian")
        assert certificate.draws == Counts(n0=10, n=1000, select_counts=(1, 9), counts=(50, 950))
        assert not certificate.stopped_early

    def test_bilateral(self):
        """Each side at half of alpha; the runner-up's bound is that of the largest other count."""
        counts = make_counts((550, 50, 200, 200), (9, 1, 0, 0))
        certificate = certify(counts, Rule(n0=10, n=1000, bilateral=True), UNIT)
        lower = stats.beta.ppf(0.0005, 550, 451)
        upper = stats.beta.isf(0.0005, 201, 800)
        assert certificate.p_lower == pytest.approx(lower, rel=1e-9)
        assert certificate.p_upper_second == pytest.approx(upper, rel=1e-9)
        expected = (NORMAL.inv_cdf(lower) - NORMAL.inv_cdf(upper)) / 2
        assert certificate.radius == pytest.approx(expected, rel=1e-9)

    def test_runner_up_gets_no_more_than_is_left(self):
        certificate = certify(
            make_counts((990, 10)), Rule(n0=10, n=1000, bilateral=True, alpha=0.1), UNIT
        )
        left = 1 - certificate.p_lower
        assert left <= certificate.p_upper_second <= left + 1e-15
        assert certificate.radius <= UNIT.radius(certificate.p_lower)

    @pytest.mark.parametrize(
        ("first", "second", "one_sided", "bilateral"),
        [
            (0.45, 0.2, 0.0, 0.344),
            (0.7, 0.1, 0.512, 0.887),
            (0.9, 0.03, 1.265, 1.559),
            (0.99, 0.003, 2.29, 2.49),
            (0.55, 0.2, 0.113, 0.470),
        ],
    )
    def test_gain_of_bilateral(self, first, second, one_sided, bilateral):
        """In units of sigma, at n = 100,000 and alpha = 0.001, as computed before elsewhere."""
        n = 100_000
        a, b = round(first * n), round(second * n)
        # The rest is spread over so many classes that none comes near the second.
        rest = np.full(50, (n - a - b) // 50)
        rest[0] += n - a - b - rest.sum()
        counts = make_counts((a, b, *rest.tolist()), (10, *[0] * 51))
        for both, radius in ((False, one_sided), (True, bilateral)):
            found = certify(counts, Rule(n0=10, bilateral=both), UNIT).radius
            assert found == pytest.approx(radius, abs=0.005)

    def test_bilateral_loses_little_where_there_is_no_runner_up(self):
        counts = make_counts((99_999, 1))
        one_sided, bilateral = (
            certify(counts, Rule(n0=10, bilateral=both), UNIT).radius for both in (False, True)
        )
        assert 0 < one_sided - bilateral < 0.05

    def test_class_is_chosen_by_the_selection_draws_alone(self):
        certificate = certify(make_counts((400, 600), (6, 4)), Rule(n0=10, n=1000), UNIT)
        assert certificate.abstained
        assert (certificate.predict, certificate.radius) == (-1, 0)
        assert certificate.p_lower == bounds.clopper_pearson_lower(400, 1000, 0.001)

    def test_ties_go_to_the_lowest_class(self):
        rule = Rule(n0=10, n=1000)
        assert certify(make_counts((0, 900, 100), (0, 5, 5)), rule, UNIT).predict == 1

    def test_radius_that_would_be_recorded_as_none_is_none(self):
        """p_lower a little above one half: a radius below 1e-9 is an abstention."""
        certificate = certify(make_counts((950, 50)), Rule(n0=10, n=1000), Gaussian(1e-10, 784))
        assert certificate.p_lower > 0.9
        assert (certificate.predict, certificate.radius) == (-1, 0)

    @pytest.mark.parametrize("bound", SEQUENTIAL)
    def test_early_looks(self, bound):
        rule = Rule(n0=10, n=5000, bound=bound)
        certificate = certify(make_counts((500, 12)), rule, UNIT)
        assert certificate.stopped_early
        number = rule.looks.index(512) + 1
        assert (
            certificate.p_lower
            == {
                "beta_binomial": bounds.beta_binomial_lower(500, 512, 0.001),
                "alpha_spending": bounds.clopper_pearson_lower(
                    500, 512, 0.001 * bounds.look_share(number, len(rule.looks))
                ),
                "late_spending": bounds.clopper_pearson_lower(
                    500, 512, 0.001 * 0.1 / (len(rule.looks) - 1)
                ),
            }[bound]
        )

    @pytest.mark.parametrize("bound", BOUNDS)
    def test_counts_between_looks_are_refused(self, bound):
        """An alpha-spending bound at a number of draws that depends on them would not hold."""
        rule = Rule(n0=10, n=5000, bound=bound)
        with pytest.raises(UserError, match="n is 500, the rule's looks are at .*5000 draws"):
            certify(make_counts((480, 20)), rule, UNIT)

    def test_other_selection_draws_are_refused(self):
        with pytest.raises(UserError, match="n0 is 10, the rule takes 100 selection draws"):
            certify(make_counts((950, 50)), Rule(n=1000), UNIT)

    def test_certificates_cannot_be_changed(self):
        certificate = certify(make_counts((950, 50)), Rule(n0=10, n=1000), UNIT)
        with pytest.raises(dataclasses.FrozenInstanceError):
            certificate.radius = 9.0

    @given(
        hits=st.integers(0, 999),
        bound=st.sampled_from(VOTE_BOUNDS),
        bilateral=st.booleans(),
    )
    def test_more_votes_never_shrink_the_radius(self, hits, bound, bilateral):
        rule = Rule(n0=10, n=1000, bound=bound, bilateral=bilateral)
        less = certify(make_counts((hits, 1000 - hits)), rule, UNIT)
        more = certify(make_counts((hits + 1, 999 - hits)), rule, UNIT)
        assert less.radius <= more.radius

    def test_a_distribution_is_all_that_another_noise_needs(self):
        """Laplace noise certifies l1 balls of radius -scale ln(2 (1 - p))."""

        @dataclasses.dataclass(frozen=True)
        class Laplace(NoiseDistribution):
            family: ClassVar[str] = "laplace"
            norm: ClassVar[str] = "l1"
            note: ClassVar[str] = "and nothing more"
            left_out = 0.0

            def _radius(self, p_lower, p_upper_second):
                return max(-self.sigma * math.log(2 * (1 - p_lower)), 0.0)

            def _probability(self, radius):
                return 1 - math.exp(-radius / self.sigma) / 2

        noise = Laplace(0.5, 784, "philox")
        certificate = certify(make_counts((950, 50)), Rule(n0=10, n=1000), noise)
        assert (certificate.norm, certificate.distribution.family) == ("l1", "laplace")
        assert certificate.radius == -0.5 * math.log(2 * (1 - certificate.p_lower))
        assert "all pixels at l1 distance" in certificate.statement()
        assert certificate.statement().endswith("; and nothing more.")


class TestSoft:
    @pytest.mark.parametrize("bound", ["hoeffding", "bernstein"])
    def test_radius(self, bound):
        """Scores of 0.85 and 0.95 in turn: mean 0.9, unbiased variance 0.0025 n / (n - 1)."""
        counts = make_soft([0.85, 0.95], (6.0, 4.0))
        certificate = certify(counts, Rule(n0=10, n=1000, bound=bound, beta=2.0), UNIT)
        log_term = math.log(2 / 0.001)
        p = {
            "hoeffding": 0.9 - math.sqrt(math.log(1000) / 2000),
            "bernstein": 0.9 - math.sqrt(2 * 0.0025 / 999 * log_term) - 7 * log_term / (3 * 999),
        }[bound]
        assert certificate.p_lower == pytest.approx(p, abs=1e-12)
        assert certificate.radius == pytest.approx(NORMAL.inv_cdf(p), abs=1e-10)
        assert (certificate.rule.beta, certificate.rule.bound) == (2.0, bound)
        assert certificate.draws == counts

    def test_class_is_that_of_the_largest_selection_sum(self):
        """Even where more selection draws voted for another class."""
        counts = make_soft([0.9], (5.5, 4.5))
        assert counts.select_counts[1] > counts.select_counts[0]
        rule = Rule(n0=10, n=1000, bound="hoeffding")
        assert certify(counts, rule, UNIT).predict == 0
        assert certify(make_soft([0.9], (4.5, 5.5)), rule, UNIT).abstained

    def test_both_kinds_from_one_pass(self):
        counts = make_soft([0.9], (5.5, 4.5))
        hard = certify(counts, Rule(n0=10, n=1000), UNIT)
        soft = certify(counts, Rule(n0=10, n=1000, bound="bernstein"), UNIT)
        assert (hard.draws.sums, hard.draws.select_sums, hard.draws.square_sums) == (None,) * 3
        assert soft.draws.sums is not None
        assert (hard.predict, soft.predict) == (-1, 0)

    @pytest.mark.parametrize("missing", ["select_sums", "sums", "square_sums"])
    def test_sums_are_needed(self, missing):
        counts = dataclasses.replace(make_soft([0.9], (5.5, 4.5)), **{missing: None})
        with pytest.raises(UserError, match=f"{missing} is missing"):
            certify(counts, Rule(n0=10, n=1000, bound="bernstein"), UNIT)

    def test_scores_rounded_above_one(self):
        counts = dataclasses.replace(
            make_soft([1.0], (10.0, 0.0)), sums=(1000.0001, 0.0), square_sums=(1000.0002, 0.0)
        )
        rule = Rule(n0=10, n=1000, bound="hoeffding")
        assert certify(counts, rule, UNIT).p_lower == bounds.hoeffding_lower(1.0, 1000, 0.001)

    @pytest.mark.parametrize("bound", ["hoeffding", "bernstein"])
    def test_coverage(self, bound):
        """Scores of class 0 drawn from Beta(8, 4), so that their mean is 2/3."""
        rng, runs, n, alpha = np.random.default_rng(0), 2000, 200, 0.2
        rule = Rule(n0=10, n=n, bound=bound, alpha=alpha)
        truth, failures = NORMAL.inv_cdf(2 / 3), 0
        for _ in range(runs):
            select, scores = rng.beta(8, 4, size=10), rng.beta(8, 4, size=n)
            votes = int((scores > 0.5).sum())
            counts = Counts(
                select_counts=(10, 0),
                counts=(votes, n - votes),
                n0=10,
                n=n,
                select_sums=(select.sum(), 10 - select.sum()),
                sums=(scores.sum(), n - scores.sum()),
                square_sums=(np.square(scores).sum(), np.square(1 - scores).sum()),
            )
            certificate = certify(counts, rule, UNIT)
            failures += certificate.radius > (truth if certificate.predict == 0 else 0.0)
        assert failures <= stats.binom.isf(1e-9, runs, alpha)


class TestCoverage:
    """Votes with known probabilities: no more wrong certificates than a true alpha explains."""

    @staticmethod
    def wrong(certificate, p):
        """Whether the certificate says more than is true of class probabilities p."""
        if certificate.abstained:
            return False
        first = p[certificate.predict]
        second = np.delete(p, certificate.predict).max()
        truth = (NORMAL.inv_cdf(first) - NORMAL.inv_cdf(second)) / 2
        return certificate.radius > max(truth, 0.0)

    @pytest.mark.parametrize("bilateral", [False, True])
    @pytest.mark.parametrize("p", [TEN, np.array([0.52, 0.48]), np.array([0.5, 0.5])])
    def test_fixed(self, p, bilateral):
        rng, runs, n0, n, alpha = np.random.default_rng(1), 6000, 20, 500, 0.1
        rule = Rule(n0=n0, n=n, alpha=alpha, bilateral=bilateral)
        selects, counts = rng.multinomial(n0, p, size=runs), rng.multinomial(n, p, size=runs)
        failures = sum(
            self.wrong(certify(make_counts(c, s), rule, UNIT), p)
            for s, c in zip(selects.tolist(), counts.tolist(), strict=True)
        )
        assert failures <= stats.binom.isf(1e-9, runs, alpha)
        if len(p) == 2:  # with ten classes one side rarely certifies, or the others leave room
            assert failures > 0.2 * alpha * runs

    def test_bilateral_bounds_themselves(self):
        """Stronger than the radius: p_A below its bound or any other class above it, ever."""
        rng, runs, alpha = np.random.default_rng(2), 6000, 0.1
        rule = Rule(n0=20, n=500, alpha=alpha, bilateral=True)
        failures = 0
        selects, counts = rng.multinomial(20, TEN, runs), rng.multinomial(500, TEN, runs)
        for select, count in zip(selects.tolist(), counts.tolist(), strict=True):
            certificate = certify(make_counts(count, select), rule, UNIT)
            selected = int(np.argmax(select))
            failures += (
                certificate.p_lower > TEN[selected]
                or np.delete(TEN, selected).max() > certificate.p_upper_second
            )
        assert 0.2 * alpha * runs < failures <= stats.binom.isf(1e-9, runs, alpha)

    @pytest.mark.parametrize("bilateral", [False, True])
    @pytest.mark.parametrize("bound", SEQUENTIAL)
    def test_stopping_at_the_best_look(self, bound, bilateral):
        """Whoever stops at the most flattering look is wrong at most alpha of the time."""
        rng, runs, alpha = np.random.default_rng(3), 1200, 0.1
        p = TEN if bilateral else np.array([0.55, 0.45])
        rule = Rule(n0=20, n=1500, alpha=alpha, bound=bound, bilateral=bilateral, block_size=50)
        steps = np.diff((0, *rule.looks))
        failures = 0
        for _ in range(runs):
            select = rng.multinomial(20, p).tolist()
            runs_of_votes = np.cumsum([rng.multinomial(step, p) for step in steps], axis=0)
            failures += any(
                self.wrong(certify(make_counts(counts, select), rule, UNIT), p)
                for counts in runs_of_votes.tolist()
            )
        assert failures <= stats.binom.isf(1e-9, runs, alpha)
        if not bilateral:
            # The beta-binomial sequence pays for looks before the first of these, too.
            assert failures > 0.02 * alpha * runs


class TestLinearClassifier:
    """A linear f: its smoothed class probability is Phi(margin / sigma), its radius the margin."""

    def test_noise_votes_and_certificate(self):
        """From pixels on: sign(w x + b) under noise; the distance to the boundary is the truth."""
        rng, runs, n, alpha, sigma = np.random.default_rng(4), 400, 400, 0.1, 0.5
        weights, offset, image = (
            np.array([0.6, -1.2, 0.3, 2.0]),
            0.1,
            np.array([0.9, 0.2, 0.4, 0.1]),
        )
        truth = (weights @ image + offset) / np.linalg.norm(weights)
        assert truth > 0
        rule, distribution, failures = Rule(n0=10, n=n, alpha=alpha), Gaussian(sigma, 784), 0
        for _ in range(runs):
            noise = rng.normal(0, sigma, size=(10 + n, 4))
            votes = (image + noise) @ weights + offset > 0
            select, hits = int(votes[:10].sum()), int(votes[10:].sum())
            certificate = certify(
                make_counts((hits, n - hits), (select, 10 - select)), rule, distribution
            )
            failures += certificate.radius > (truth if certificate.predict == 0 else 0.0)
        assert 0.2 * alpha * runs < failures <= stats.binom.isf(1e-9, runs, alpha)

    @pytest.mark.parametrize("bound", VOTE_BOUNDS)
    @pytest.mark.parametrize("margin", [0.2, 0.5, 1.0])
    def test_radius_approaches_the_margin(self, bound, margin):
        sigma, rng = 0.5, np.random.default_rng(5)
        p = NORMAL.cdf(margin / sigma)
        shares = []
        for n in (1000, 30_000, 1_000_000):
            rule = Rule(n0=10, n=n, bound=bound)
            hits = rng.binomial(n, p, size=20).tolist()
            radii = [
                certify(make_counts((h, n - h)), rule, Gaussian(sigma, 784)).radius for h in hits
            ]
            shares.append(np.mean(radii) / margin)
        assert shares[0] < shares[1] < shares[2] < 1
        assert shares[2] > 0.95


class TestDecided:
    @pytest.mark.parametrize("stop", ["fixed", "budget:1"])
    def test_never(self, stop):
        rule = Rule(n0=10, n=5000, bound="beta_binomial", stop=stop)
        assert not any(decided(make_counts((n, 0)), rule, UNIT) for n in rule.looks)

    @pytest.mark.parametrize("bilateral", [False, True])
    @pytest.mark.parametrize("bound", SEQUENTIAL)
    def test_decide(self, bound, bilateral):
        """Radius 1 needs p_A = 0.841: clear either way at 512 draws, or not."""
        rule = Rule(n0=10, n=5000, bound=bound, bilateral=bilateral, stop="decide:1.0")
        for hits, expected in ((512, True), (300, True), (430, False)):
            counts = make_counts((hits, 512 - hits))
            assert decided(counts, rule, UNIT) is expected
        assert certify(make_counts((512, 0)), rule, UNIT).radius >= 1.0

    @given(hits=st.integers(400, 1024), bound=st.sampled_from(SEQUENTIAL))
    def test_decide_is_these_two_tests(self, hits, bound):
        """Certified where the lower bound reaches Phi(r), given up where the upper one does not."""
        rule = Rule(
            n0=10, n=5000, bound=bound, alpha=0.01, reject_alpha=0.2, stop=StopRule("decide", 0.7)
        )
        counts, needed = make_counts((hits, 1024 - hits)), NORMAL.cdf(0.7)
        share = {
            "beta_binomial": 1.0,
            "alpha_spending": 1 / 20,
            "late_spending": 0.1 / (len(rule.looks) - 1),
        }[bound]
        lower = BOUNDS[bound].lower(hits, 1024, 0.01 * share)
        upper = BOUNDS[bound].upper(hits, 1024, 0.2 * share)
        assert decided(counts, rule, UNIT) is (lower >= needed or upper < needed)

    @pytest.mark.parametrize("bound", SEQUENTIAL)
    def test_exact_error_rates(self, bound):
        """For an image exactly at the radius, the chance of either answer, over all looks."""
        radius, alpha, reject_alpha = 0.5, 0.02, 0.1
        rule = Rule(
            n0=10,
            n=1500,
            alpha=alpha,
            reject_alpha=reject_alpha,
            bound=bound,
            block_size=100,
            stop=StopRule("decide", radius),
        )
        p, chances = NORMAL.cdf(radius), {True: 0.0, False: 0.0}
        alive, before = np.array([1.0]), 0
        for n in rule.looks:
            step = stats.binom.pmf(np.arange(n - before + 1), n - before, p)
            alive, before = np.convolve(alive, step), n
            for hits in np.flatnonzero(alive > 1e-9).tolist():
                counts = make_counts((hits, n - hits))
                if decided(counts, rule, UNIT):
                    chances[certify(counts, rule, UNIT).radius >= radius] += alive[hits]
                    alive[hits] = 0.0
        # The beta-binomial sequence pays for looks before the first of these, too.
        assert 0.02 * alpha < chances[True] <= alpha
        assert 0.02 * reject_alpha < chances[False] <= reject_alpha

    @pytest.mark.parametrize("bound", SEQUENTIAL)
    def test_one_sided_futility_does_not_stop_a_bilateral_run(self, bound):
        """A class with 45 % of the votes against 20 %: no one-sided radius, but a bilateral one."""
        fields = {"n0": 10, "n": 20_000, "bound": bound, "stop": "decide:0.25", "block_size": 320}

        def votes(n):
            return make_counts((9 * n // 20, n // 5, *[n // 20] * 7), (10, *[0] * 8))

        one_sided, bilateral = Rule(**fields), Rule(bilateral=True, **fields)
        assert decided(votes(1280), one_sided, UNIT)
        assert not decided(votes(1280), bilateral, UNIT)
        assert decided(votes(20_000), bilateral, UNIT)
        assert certify(votes(20_000), bilateral, UNIT).radius >= 0.25

    @pytest.mark.parametrize("bound", SEQUENTIAL)
    def test_bilateral_gives_up_rarely_what_is_true(self, bound):
        """Ten classes whose bilateral radius is just the one asked for."""
        rng, runs, reject_alpha = np.random.default_rng(7), 600, 0.2
        radius = (NORMAL.inv_cdf(TEN[0]) - NORMAL.inv_cdf(TEN[1])) / 2
        rule = Rule(
            n0=10,
            n=1000,
            bound=bound,
            bilateral=True,
            reject_alpha=reject_alpha,
            block_size=50,
            stop=StopRule("decide", radius),
        )
        steps, given_up = np.diff((0, *rule.looks)), 0
        for _ in range(runs):
            votes = np.cumsum([rng.multinomial(step, TEN) for step in steps], axis=0)
            first = next(
                (
                    counts
                    for counts in (make_counts(row, (10, *[0] * 9)) for row in votes.tolist())
                    if decided(counts, rule, UNIT)
                ),
                None,
            )
            given_up += first is not None and certify(first, rule, UNIT).radius < radius
        assert given_up <= stats.binom.isf(1e-9, runs, reject_alpha)

    @given(first=st.integers(200, 500), second=st.integers(100, 300))
    def test_bilateral_gives_up_by_limits_that_hold_for_all_other_classes(self, first, second):
        """The upper limit of p_A, and a lower limit of p_B shared among the four other classes."""
        rest = 1024 - first - second
        counts = make_counts(
            (first, second, *[rest // 3] * 2, rest - 2 * (rest // 3)), [10] + [0] * 4
        )
        rule = Rule(
            n0=10,
            n=2000,
            bound="beta_binomial",
            bilateral=True,
            reject_alpha=0.1,
            stop=StopRule("decide", 0.3),
        )
        upper = bounds.beta_binomial_upper(first, 1024, 0.05)
        lower = bounds.beta_binomial_lower(max(counts.counts[1:]), 1024, 0.05 / 4)
        impossible = UNIT.radius(upper, lower) < 0.3
        certified = certify(counts, rule, UNIT).radius >= 0.3
        assert decided(counts, rule, UNIT) is (impossible or certified)

    def test_bilateral_gives_up_what_is_plainly_false(self):
        rule = Rule(n0=10, n=20_000, bound="beta_binomial", bilateral=True, stop="decide:0.5")
        assert decided(make_counts((1600, 1472)), rule, UNIT)

    @pytest.mark.parametrize("bilateral", [False, True])
    @pytest.mark.parametrize("bound", SEQUENTIAL)
    def test_precision(self, bound, bilateral):
        """Stops once the certified radius is within the part of the largest possible one."""
        rule = Rule(n0=10, n=40_000, bound=bound, bilateral=bilateral, stop="precision:0.1")
        stopped = [
            decided(make_counts((round(0.9 * n), n - round(0.9 * n))), rule, UNIT)
            for n in rule.looks
        ]
        assert not stopped[0]
        assert stopped[-1]
        assert stopped == sorted(stopped)
        first = rule.looks[stopped.index(True)]
        hits = round(0.9 * first)
        assert certify(make_counts((hits, first - hits)), rule, UNIT).radius >= 0.9 * 1.28

    def test_precision_of_unanimous_draws_is_against_what_n_draws_certify(self):
        """No miss bounds nothing from above, but n = 40,000 draws cannot certify more than this."""
        rule = Rule(n0=10, n=40_000, bound="beta_binomial", stop="precision:0.1")
        enough = 0.9 * largest_radius(rule, UNIT)
        for n in rule.looks:
            radius = certify(make_counts((n, 0)), rule, UNIT).radius
            assert decided(make_counts((n, 0)), rule, UNIT) is (radius >= enough)

    def test_precision_stops_where_nothing_can_be_certified(self):
        rule = Rule(n0=10, n=40_000, bound="beta_binomial", stop="precision:0.1")
        assert decided(make_counts((200, 568)), rule, UNIT)


class TestLargestRadius:
    @pytest.mark.parametrize("bound", BOUNDS)
    def test_is_that_of_unanimous_draws(self, bound):
        rule = Rule(n0=10, n=10_000, bound=bound)
        sums = {"sums": (10_000.0, 0.0), "square_sums": (10_000.0, 0.0)}
        soft = {"select_sums": (10.0, 0.0)} | sums if rule.soft else {}
        found = certify(make_counts((10_000, 0), **soft), rule, UNIT).radius
        assert largest_radius(rule, UNIT) == found > 1

    def test_bilateral(self):
        rule = Rule(n0=10, n=10_000, bilateral=True)
        found = certify(make_counts((10_000, 0)), rule, UNIT).radius
        assert largest_radius(rule, UNIT) == pytest.approx(found, rel=1e-9)

    def test_known_value(self):
        assert largest_radius(Rule(), Gaussian(0.5, 784)) == pytest.approx(0.5 * 3.81, abs=0.005)

    def test_radius_out_of_reach(self):
        rule = Rule(n=1000, bound="beta_binomial", stop="decide:3")
        with pytest.raises(UserError, match=r"stop=decide:3.0: n = 1000 .* a radius of 2\.\d+ at"):
            check_reachable(rule, UNIT)
        check_reachable(rule, Gaussian(2.0, 784))
        check_reachable(Rule(), UNIT)


class TestStatement:
    @pytest.mark.parametrize(
        ("dimension", "generator", "part"),
        [
            # 2^-23 of pairs, 75,266 of them, and 2^-63 of numbers.
            (150_528, "philox", "9.0e-3"),
            (784, "philox", "4.7e-5"),
            (784, "philox-boxmuller", "8.6e-17"),
        ],
    )
    def test_certified(self, dimension, generator, part):
        distribution = Gaussian(0.25, dimension, generator)
        certificate = certify(make_counts((9900, 100)), Rule(n0=10, n=10_000), distribution)
        shown = f"{round_down(certificate.radius):.9f}"
        assert certificate.statement() == (
            "Except with probability 0.001 over the random draws, the smoothed classifier answers "
            "class 0 for these pixels and for all pixels at l2 distance below "
            f"{shown} from them. The smoothed classifier answers the class of largest score, which "
            "is the frequency with which the noisy network votes for it; the noise is gaussian "
            "with sigma = 0.25, in units of pixels in [0, 1]. 10 draws selected the class and "
            "10000 independent ones bounded its score (clopper_pearson bound). The probability is "
            "that of this image alone: among N certificates up to 0.001 x N wrong ones are to be "
            "expected. Nothing is said about the network without noise, or about whether the "
            "class is right; the noise is taken as exact: neither the rounding of floating-point "
            f"numbers is covered, nor what the generator {generator} never draws, at most {part} "
            f"of the noise's probability in {dimension} dimensions."
        )

    def test_abstained(self):
        text = certify(make_counts((500, 500)), Rule(n0=10, n=1000), UNIT).statement()
        assert text.startswith("Abstained: nothing is certified for these pixels.")
        assert "Except with probability" not in text

    def test_what_else_matters(self):
        soft = certify(
            make_soft([0.9], (9.0, 1.0)), Rule(n0=10, n=1000, bound="bernstein", beta=4.0), UNIT
        )
        assert "the mean over the noise of softmax(4.0 x logits)" in soft.statement()
        bilateral = certify(make_counts((900, 100)), Rule(n0=10, n=1000, bilateral=True), UNIT)
        assert "bounded its score and every other class's" in bilateral.statement()
        early = certify(make_counts((512, 0)), Rule(n0=10, bound="beta_binomial"), UNIT)
        assert "stopping before all planned draws were taken" in early.statement()


class TestRoundDown:
    @pytest.mark.parametrize(
        ("value", "decimals", "text"),
        [
            (1.2367, 3, "1.236"),
            (0.99996, 3, "0.999"),
            (0.3, 9, "0.299999999"),  # the float 0.3 is a little less than three tenths
            (0.1, 9, "0.100000000"),
            (-0.99996, 3, "-0.999"),
            (2.0, 0, "2"),
        ],
    )
    def test_examples(self, value, decimals, text):
        assert f"{round_down(value, decimals):.{decimals}f}" == text

    def test_what_has_no_digits_to_lose_stays(self):
        assert round_down(math.inf) == math.inf
        assert round_down(1e300) == 1e300

    @given(value=st.floats(0, 1e6), decimals=st.integers(0, 9))
    def test_exact(self, value, decimals):
        """Compared as exact decimal numbers, as found and as written."""
        found = round_down(value, decimals)
        written = decimal.Decimal(f"{found:.{decimals}f}")
        step = decimal.Decimal(10) ** -decimals
        assert decimal.Decimal(value) - step < written <= decimal.Decimal(value)
        assert found <= value
        assert float(written) == found
        assert round_down(found + float(step), decimals) >= found

    @given(values=st.lists(st.floats(0, 100), min_size=2, max_size=20))
    def test_keeps_the_order(self, values):
        rounded = [round_down(value, 3) for value in sorted(values)]
        assert all(one <= following for one, following in itertools.pairwise(rounded))
