from pathlib import Path

import made_logs
import numpy as np
import pytest
from scipy import stats

from tfmacer.guarantee.rule import Rule
from tfmacer.guarantee.stopping import StopRule
from tfmacer.records.logs import Log, Record, read_log, settings_path
from tfmacer.report.comparison import (
    name_runs,
    paired_differences,
    paired_shares,
    seed_groups,
    warnings,
)
from tfmacer.report.summary import Run


def logs(*paths):
    return [Log(Path("/x") / path, (), None) for path in paths]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/macer/certify/test.tsv"], ["macer/test"]),
        (["results/a.tsv"], ["a"]),
        (["runs/macer/certify/test.tsv", "runs/gaussian/certify/test.tsv"], ["macer", "gaussian"]),
        (["r/a/certify/n1.tsv", "r/a/certify/n2.tsv"], ["n1", "n2"]),
        (["r/a/certify/n1.tsv", "r/b/certify/n2.tsv"], ["a/n1", "b/n2"]),
        (["c/noise_0.25/sigma_1.0", "c/noise_0.50/sigma_1.0"], ["noise_0.25", "noise_0.50"]),
        (["a/b.tsv", "a/b/c.tsv"], ["/x/a/b.tsv", "/x/a/b/c.tsv"]),
        (["a/certify/b.tsv", "a/b.tsv"], ["/x/a/certify/b.tsv", "/x/a/b.tsv"]),
    ],
)  # fmt: skip
def test_runs_go_by_what_tells_their_paths_apart(paths, names):
    assert [run.name for run in name_runs(logs(*paths))] == names


def write(tmp_path, name, **others):
    shift = others.pop("shift", 0.0)
    rule = others.pop("rule", Rule(n=2000))
    path = tmp_path / f"{name}.tsv"
    return Run(name, made_logs.write(path, made_logs.settings(rule, **others), shift=shift))


def test_differences_are_paired_by_image(tmp_path):
    """Against scipy's paired t-test, on the images that both have."""
    first = write(tmp_path, "first", skip=2)
    second = write(tmp_path, "second", skip=3, shift=0.5, model_digest="b" * 64)
    (difference,) = paired_differences([first, second], [0.25])
    assert (difference.first, difference.second) == (second, first)
    common = range(0, 40, 6)
    assert difference.images == len(common)
    radius = {
        run.name: [r.radius * r.correct for r in run.log.records if r.idx in common]
        for run in (first, second)
    }
    test = stats.ttest_rel(radius["second"], radius["first"])
    interval = test.confidence_interval(0.95)
    assert difference.acr.value == pytest.approx(
        np.mean(radius["second"]) - np.mean(radius["first"])
    )
    assert (difference.acr.low, difference.acr.high) == pytest.approx((interval.low, interval.high))
    shares = [np.mean(np.array(radius[name]) >= 0.25) for name in ("second", "first")]
    assert difference.certified[0.25].value == pytest.approx(shares[0] - shares[1])


@pytest.mark.parametrize("others", [{"dataset": "letters"}, {"split": "train"}, {"total": 39}])
def test_other_images_are_not_paired(tmp_path, others):
    runs = [write(tmp_path, "a"), write(tmp_path, "b", **others)]
    assert paired_differences(runs, [0.0]) == []


def test_no_image_in_common_is_no_pair(tmp_path):
    runs = [write(tmp_path, "a", skip=2), write(tmp_path, "b", skip=2, start=1)]
    assert paired_differences(runs, [0.0]) == []


def published(name, labels):
    records = [
        Record(idx=i, label=label, predict=label, radius=0.5, correct=True, seconds=1.0)
        for i, label in enumerate(labels)
    ]
    return Run(name, Log(Path(name), tuple(records), None))


def test_published_logs_are_paired_only_where_all_labels_agree(tmp_path):
    labels = [i * 7 % 10 for i in range(30)]
    other = [*labels[:-1], labels[-1] + 1]
    runs = [published("a", labels), published("b", labels), published("c", other)]
    (pair,) = paired_differences(runs, [0.0])
    assert (pair.first.name, pair.second.name) == ("b", "a")
    assert paired_differences([published("a", labels[:19]), published("b", labels[:19])], []) == []
    # Ours and another project's may number the images differently.
    assert paired_differences([write(tmp_path, "ours"), published("a", labels)], [0.0]) == []


def test_decide_runs_are_compared_at_their_radius_alone(tmp_path):
    rule = Rule(n=3000, bound="beta_binomial", stop=StopRule.parse("decide:0.3"))
    (pair,) = paired_differences(
        [write(tmp_path, "a"), write(tmp_path, "b", rule=rule)], [0.0, 0.3]
    )
    assert pair.acr is None
    assert pair.certified[0.0] is None
    assert pair.certified[0.3] is not None


def test_paired_shares_by_hand():
    """Agresti and Min's interval for 10 images, 3 gained, 1 lost: cells 3.5 and 1.5 of 12."""
    first = np.array([1, 1, 1, 1, 1, 1, 1, 0, 0, 0], bool)
    second = np.array([1, 1, 1, 1, 0, 0, 0, 1, 0, 0], bool)
    found = paired_shares(first, second)
    assert found.value == pytest.approx(0.2)
    middle = 2 / 12
    half = 1.959964 * np.sqrt((5 / 12 - middle**2) / 12)
    assert (found.low, found.high) == pytest.approx((middle - half, middle + half), rel=1e-6)


def test_paired_shares_that_never_differ_still_have_a_width():
    same = np.ones(50, bool)
    found = paired_shares(same, same)
    assert found.value == 0
    assert found.low < -0.01
    assert found.high > 0.01


def test_paired_shares_cover_the_truth():
    """P(first only) = 0.15, P(second only) = 0.05: the truth is +0.1; 95 % of 2000 intervals.

    The binomial standard deviation of the coverage is 0.5 %; four of them are allowed.
    """
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        outcome = rng.choice(4, 100, p=[0.15, 0.05, 0.5, 0.3])
        found = paired_shares(np.isin(outcome, (0, 2)), np.isin(outcome, (1, 2)))
        covered += found.low <= 0.1 <= found.high
    assert covered / 2000 > 0.93


def test_runs_that_differ_in_a_seed_alone_are_grouped(tmp_path):
    runs = [
        write(tmp_path, "macer_seed0", model_digest="a" * 64),
        write(tmp_path, "macer_seed1", model_digest="b" * 64),
        write(tmp_path, "gaussian", model_digest="c" * 64),
        write(tmp_path, "again", model_digest="c" * 64, seed=8, warnings=("x",)),
        write(tmp_path, "macer_seed2", model_digest="d" * 64, rule=Rule(n=3000)),
        write(tmp_path, "alone", model_digest="e" * 64),
    ]
    assert [(group.name, [run.name for run in group.runs]) for group in seed_groups(runs)] == [
        ("macer", ["macer_seed0", "macer_seed1"]),
        ("gaussian", ["gaussian", "again"]),
    ]


def test_models_without_a_seed_in_their_path_are_no_group(tmp_path):
    runs = [
        write(tmp_path, "a", model_digest="a" * 64),
        write(tmp_path, "b", model_digest="b" * 64),
    ]
    assert seed_groups(runs) == []


def test_published_logs_of_several_seeds_are_grouped():
    runs = [published("r/seed_1/x", [1] * 30), published("r/seed_2/x", [1] * 30)]
    assert len(seed_groups(runs)) == 1


def told(runs):
    return "\n".join(warnings(runs))


def test_runs_alike_have_no_warnings(tmp_path):
    assert warnings([write(tmp_path, "a"), write(tmp_path, "b", shift=0.5)]) == []


@pytest.mark.parametrize(
    ("others", "text"),
    [
        ({"rule": Rule(n=3000)}, "the runs differ in n: 2000 (a), 3000 (b)"),
        ({"rule": Rule(n=2000, alpha=0.01)}, "the runs differ in alpha: 0.001 (a), 0.01 (b)"),
        ({"sigma": 0.25}, "the runs differ in sigma: 0.5 (a), 0.25 (b)"),
        ({"rule": Rule(n=2000, bilateral=True)}, "the runs differ in bilateral"),
        ({"dataset": "other"}, "(a), other (b)"),
        ({"split": "train[90%:]"}, "(a), train[90%:] (b)"),
        ({"warnings": ("contiguous images",)}, "b: contiguous images"),
    ],
)
def test_what_makes_runs_incomparable_is_said(tmp_path, others, text):
    assert text in told([write(tmp_path, "a"), write(tmp_path, "b", **others)])


def test_all_differences_are_one_warning(tmp_path):
    runs = [
        write(tmp_path, "a"),
        write(tmp_path, "b", rule=Rule(n=3000, alpha=0.01)),
        write(tmp_path, "c", rule=Rule(n=3000)),
    ]
    assert warnings(runs) == [
        "compare with care: the runs differ in n: 2000 (a), 3000 (b); alpha: 0.001 (a), 0.01 (b)"
    ]


def test_a_warning_that_several_runs_share_is_said_once(tmp_path):
    runs = [write(tmp_path, name, warnings=("contiguous",)) for name in "ab"]
    assert warnings(runs) == ["all runs: contiguous"]
    assert warnings([*runs, write(tmp_path, "c")]) == ["a, b: contiguous"]
    assert warnings(runs[:1]) == ["a: contiguous"]


def test_unfinished_altered_and_unlabelled_runs_are_said(tmp_path):
    path = tmp_path / "part.tsv"
    log = made_logs.write(path, made_logs.settings(), images=10)
    assert "unfinished: 30 of 40 images have no row" in told([Run("part", log)])
    text = path.read_text()
    path.write_text(text.replace(log.records[0].digest, "0" * 16))
    assert "altered" in told([Run("part", read_log(path))])
    path.write_text(text)
    settings_path(path).write_text(made_logs.settings().to_json())
    unlabelled = Log(path, (*log.records, Record(
        idx=50, label=-1, predict=1, radius=1.0, correct=False, seconds=1.0)), None)  # fmt: skip
    assert "1 images without a true label" in told([Run("part", unlabelled)])


def test_published_logs_are_warned_of(tmp_path):
    whole = published("whole", [1] * 10_000)
    assert "rounded up" in told([whole])
    assert "contiguous" not in told([whole])
    assert "30 contiguous images (idx 0 to 29)" in told([published("part", [1] * 30)])
