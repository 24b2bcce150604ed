import dataclasses
import math
from pathlib import Path

import made_logs
import numpy as np
import published_logs
import pytest
from scipy import special, stats

from tfmacer.guarantee.counts import Counts
from tfmacer.guarantee.rule import Rule
from tfmacer.guarantee.stopping import StopRule
from tfmacer.records.logs import Log, Record, read_log
from tfmacer.report.summary import Run, mean_difference, mean_radius, share, share_interval

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "results"


def record(idx, label, predict, radius, **others):
    return Record(idx=idx, label=label, predict=predict, radius=radius, seconds=2.0, **others)


def run(*records, settings=None):
    return Run("run", Log(Path("log.tsv"), tuple(records), settings))


FIVE = run(
    record(0, 1, 1, 0.5),
    record(1, 1, 1, 1.5),
    record(2, 1, 0, 2.5),  # wrong: its radius counts for nothing
    record(3, 1, -1, 0.0),  # abstained
    record(4, -1, 1, 3.5),  # no label: left out
)


def test_acr_and_certified_accuracy_by_hand():
    assert FIVE.acr.value == pytest.approx((0.5 + 1.5) / 4)
    assert [FIVE.certified(r).value for r in (0.0, 0.5, 0.500001, 1.5, 1.6, 2.5)] == [
        0.5, 0.5, 0.25, 0.25, 0.0, 0.0,
    ]  # fmt: skip
    assert FIVE.abstention.value == 0.2
    assert FIVE.seconds == 2.0
    assert list(FIVE.idx) == [0, 1, 2, 3]


def test_standard_error_and_interval_of_the_acr():
    """S / sqrt(n) with n - 1 in s; the interval is Student's with a 0 and a 1.5 more."""
    assert FIVE.standard_error == pytest.approx(np.sqrt(np.var([0.5, 1.5, 0, 0], ddof=1) / 4))
    error = np.sqrt(np.var([0.5, 1.5, 0, 0, 0, 1.5], ddof=1) / 6)
    # The quantile is that of 5 degrees of freedom. No mean of radii is below 0.
    assert FIVE.acr.high == pytest.approx(3.5 / 6 + 2.5705818 * error)
    assert FIVE.acr.low == max(0.0, 3.5 / 6 - 2.5705818 * error)
    found = mean_difference(np.array([0.1, -0.3, 0.0]))
    test = stats.ttest_1samp([0.1, -0.3, 0.0, 0.3, -0.3], 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((test.low, test.high))
    assert found.value == pytest.approx(-0.2 / 3)


def test_radii_that_are_all_the_same_leave_room_for_others():
    found = mean_radius(np.full(30, 1.9))
    assert (found.value, found.low < 1.75 < 1.9 < found.high) == (pytest.approx(1.9), True)


# Of networks that are right on nearly all images, on most of them, and on half.
RADII = ("B/mnist_lenet_consistency_0.25_15", "B/mnist_lenet_gaussian_0.5_15",
         "B/mnist_lenet_macer_1.0_15", "clip/mnist_lenet_macer-validation-constant-clip1_0.5_3",
         "families/mnist_lenet_gaussian-mixed_norm-k50-n10000_0.5168_15")  # fmt: skip


def radii_of(name):
    return Run(name, read_log(RESULTS / f"{name}.tsv")).radii


def coverage(values, images, interval, repeats=2000):
    """How often the interval of so many values, drawn at random, holds the mean of all."""
    rng = np.random.default_rng(0)
    mean = values.mean()
    found = (interval(values[rng.integers(len(values), size=images)]) for _ in range(repeats))
    return sum(each.low <= mean <= each.high for each in found) / repeats


@pytest.mark.parametrize("images", [10, 50])
@pytest.mark.parametrize("name", RADII)
def test_intervals_of_the_acr_hold_from_ten_images_on(name, images):
    """On radii of real networks; 95 % less three binomial standard deviations of 0.5 %.

    Student's interval covers 0.43, 0.58, 0.78, 0.91 of the time for the first of them.
    """
    assert coverage(radii_of(name), images, mean_radius) > 0.935


@pytest.mark.parametrize(
    "pair", [(RADII[0], RADII[1]), ("B/mnist_lenet_macer_0.25_15", RADII[0]), (RADII[2], RADII[1])]
)
def test_intervals_of_differences_hold_from_200_images_on(pair):
    """Student's are down to 0.917."""
    first, second = map(radii_of, pair)
    assert coverage(first - second, 200, mean_difference) > 0.935


def test_one_image_has_a_mean_and_no_interval():
    alone = run(record(0, 1, 1, 0.5))
    assert alone.acr.value == 0.5
    assert math.isnan(alone.acr.low)
    assert math.isnan(alone.standard_error)


def test_no_labelled_image_has_no_numbers():
    nothing = run(record(0, -1, 1, 0.5))
    assert nothing.acr is None
    assert nothing.certified(0.0) is None
    assert run().abstention is None
    assert mean_radius(np.array([])) is None
    assert mean_difference(np.array([])) is None


@pytest.mark.parametrize(("count", "total"), [(0, 10), (3, 10), (10, 10), (250, 500)])
def test_shares_have_clopper_pearson_intervals(count, total):
    """Against the defining equations: each end leaves 2.5 % in the binomial tail beyond."""
    low, high = share(count, total).low, share(count, total).high
    if count == 0:
        assert low == 0
    else:
        assert stats.binom.sf(count - 1, total, low) == pytest.approx(0.025)
    if count == total:
        assert high == 1
    else:
        assert stats.binom.cdf(count, total, high) == pytest.approx(0.025)


def test_share_intervals_of_many_counts_are_those_of_each():
    counts = np.arange(21)
    low, high = share_interval(counts, 20)
    for count in counts:
        one = share(int(count), 20)
        assert (one.low, one.high) == (low[count], high[count])


def test_clean_accuracy_is_the_base_networks():
    known = run(record(0, 1, -1, 0.0, clean=1), record(1, 1, 1, 0.3, clean=0))
    assert known.clean.value == 0.5
    assert FIVE.clean is None


def made(tmp_path, rule, **others):
    return Run("made", made_logs.write(tmp_path / "log.tsv", made_logs.settings(rule, **others)))


def test_decide_has_one_radius_and_no_acr(tmp_path):
    rule = Rule(n=3000, bound="beta_binomial", stop=StopRule.parse("decide:0.3"))
    decided = made(tmp_path, rule)
    assert decided.decides == 0.3
    assert decided.acr is None
    assert decided.abstention is None
    assert decided.certified(0.0) is None
    assert decided.certified(0.25) is None
    assert decided.certified(0.3).value == np.mean(decided.radii >= 0.3)
    assert decided.draws < 3000
    # Votes that were stopped by what they showed are biased.
    assert len(decided.p_true) == len(decided.log_gap) == 0


@pytest.mark.parametrize("stop", ["precision:0.2", "budget:60.0"])
def test_other_early_stops_keep_their_acr(tmp_path, stop):
    rule = Rule(n=3000, bound="beta_binomial", stop=StopRule.parse(stop))
    assert made(tmp_path, rule).acr is not None


def test_largest_radius_is_that_of_unanimous_votes(tmp_path):
    """alpha^(1/n) is the Clopper-Pearson bound of n of n votes."""
    assert made(tmp_path, Rule(n=2000)).largest_radius == pytest.approx(
        0.5 * special.ndtri(0.001 ** (1 / 2000)), rel=1e-6
    )
    assert FIVE.largest_radius is None


def test_dataset_bound_takes_off_the_binomial_quantile(tmp_path):
    """With alpha = 0.1 and 40 images, P(Bin(40, 0.1) > q) <= 0.01 first at q = 9."""
    found = made(tmp_path, Rule(n=2000, alpha=0.1))
    assert stats.binom.sf(9, 40, 0.1) <= 0.01 < stats.binom.sf(8, 40, 0.1)
    certified = found.certified(0.25).value
    assert found.dataset_bound(0.25, 0.01) == pytest.approx(certified - 9 / 40)
    assert FIVE.dataset_bound(0.0, 0.01) is None


def test_p_true_and_log_gap_by_hand(tmp_path):
    settings = made_logs.settings()
    draws = Counts(n0=100, n=2000, select_counts=(100, 0, 0, 0), counts=(1500, 400, 100, 0))
    found = run(
        record(0, 0, 0, 0.5, draws=draws),
        record(1, 3, 0, 0.5, draws=draws),
        record(2, -1, 0, 0.5, draws=draws),
        settings=settings,
    )
    assert list(found.p_true) == [0.75, 0.0]
    assert found.log_gap == pytest.approx([np.log(1500.5 / 400.5), np.log(0.5 / 1500.5)])
    assert len(dataclasses.replace(found, log=FIVE.log).p_true) == 0


@pytest.mark.parametrize("name", published_logs.LOGS)
def test_acr_of_published_logs(name, tmp_path):
    run = Run(name, read_log(published_logs.write(tmp_path, name)))
    assert run.acr.value == pytest.approx(published_logs.LOGS[name][1])
