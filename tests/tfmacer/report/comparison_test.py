import dataclasses
from pathlib import Path

import made_logs
import numpy as np
import pytest
from scipy import optimize, special, stats

from tfmacer.guarantee.rule import Rule
from tfmacer.guarantee.stopping import StopRule
from tfmacer.records.locked_table import LockedTable
from tfmacer.records.logs import Log, Record, read_log, settings_path
from tfmacer.report.cautions import warnings
from tfmacer.report.comparison import (
    name_runs,
    paired_differences,
    paired_shares,
    seed_groups,
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
    by_image = np.subtract(radius["second"], radius["first"])
    # Student's interval with two more images: the largest difference in either direction.
    more = [*by_image, max(abs(by_image)), -max(abs(by_image))]
    interval = stats.ttest_1samp(more, 0).confidence_interval(0.95)
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


def test_other_pixels_under_the_same_idx_are_not_paired_and_said(tmp_path):
    """A folder whose pictures were exchanged between two runs."""
    first, second = write(tmp_path, "a"), write(tmp_path, "b", model_digest="b" * 64)
    (pair,) = paired_differences([first, second], [0.0])
    assert pair.images == 40
    changed = dataclasses.replace(second.log.records[7], pixels_sha256="0" * 64)
    records = (*second.log.records[:7], changed, *second.log.records[8:])
    other = Run("c", dataclasses.replace(second.log, records=records))
    assert paired_differences([first, other], [0.0]) == []
    assert "c: other pixels than a under the same idx: not compared with it" in told([first, other])


def test_no_image_in_common_is_no_pair(tmp_path):
    runs = [write(tmp_path, "a", skip=2), write(tmp_path, "b", skip=2, start=1)]
    assert paired_differences(runs, [0.0]) == []


def published(name, labels, radius=0.5):
    records = [
        Record(idx=i, label=label, predict=label, radius=radius, seconds=1.0)
        for i, label in enumerate(labels)
    ]
    return Run(name, Log(Path(name), tuple(records), None))


def test_published_logs_are_paired_only_where_all_labels_agree(tmp_path):
    labels = [i * 7 % 10 for i in range(30)]
    other = [*labels[:-1], labels[-1] + 1]
    runs = [published("a", labels), published("b", labels, 0.6), published("c", other)]
    (pair,) = paired_differences(runs, [0.0])
    assert (pair.first.name, pair.second.name) == ("b", "a")
    few = [published("a", labels[:19]), published("b", labels[:19], 0.6)]
    assert paired_differences(few, []) == []
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


def shares(gained, lost, total):
    """As many images as that, of which the first run alone certifies some and the second some."""
    first = np.arange(total) < gained
    second = (np.arange(total) >= gained) & (np.arange(total) < gained + lost)
    return paired_shares(first, second)


@pytest.mark.parametrize(
    ("gained", "lost", "total"), [(3, 1, 10), (0, 0, 50), (12, 2, 50), (0, 7, 20), (80, 95, 2000)]
)
def test_paired_shares_have_score_intervals(gained, lost, total):
    """At each end d, the score statistic is the quantile, with the likeliest q found by search."""
    found = shares(gained, lost, total)
    assert found.value == pytest.approx((gained - lost) / total)

    def statistic(d):
        def cost(q):
            return -(
                special.xlogy(gained, q + d)
                + special.xlogy(lost, q)
                + special.xlogy(total - gained - lost, 1 - 2 * q - d)
            )

        span = (max(0.0, -d), (1 - d) / 2)
        q = optimize.minimize_scalar(cost, bounds=span, options={"xatol": 1e-13}).x
        return (gained - lost - total * d) / np.sqrt(total * (2 * q + d - d**2))

    quantile = stats.norm.ppf(0.985)
    assert statistic(found.low) == pytest.approx(quantile, rel=1e-4)
    assert statistic(found.high) == pytest.approx(-quantile, rel=1e-4)


def test_paired_shares_at_the_ends():
    assert 0 < shares(10, 0, 10).low < shares(10, 0, 10).high == 1
    assert -1 == shares(0, 10, 10).low < shares(0, 10, 10).high < 0


def test_paired_shares_that_never_differ_still_have_a_width():
    same = np.ones(50, bool)
    found = paired_shares(same, same)
    assert found.value == 0
    assert found.low < -0.01
    assert found.high > 0.01


@pytest.mark.parametrize("total", [10, 20, 50, 100])
def test_paired_shares_cover_the_truth(total):
    """Exactly, over all outcomes, at shares of every size; Agresti-Min's cover down to 0.862."""
    outcomes = [(b, c) for b in range(total + 1) for c in range(total + 1 - b)]
    ends = np.array([(e.low, e.high) for e in (shares(b, c, total) for b, c in outcomes)])
    b, c = np.array(outcomes).T
    few = np.array([0.05, 0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 6.5, 8, 10]) / total
    values = np.unique(np.concatenate([few[few < 0.5], np.linspace(0.05, 0.9, 12)]))
    covered = []
    for gained in values:
        for lost in values[values <= gained]:
            if gained + lost <= 1:
                cells = np.array([gained, lost, max(1 - gained - lost, 0.0)])
                table = np.stack([b, c, total - b - c], 1)
                chance = stats.multinomial.pmf(table, total, cells / cells.sum())
                truth = gained - lost
                inside = (ends[:, 0] <= truth + 1e-12) & (truth <= ends[:, 1] + 1e-12)
                covered.append(chance[inside].sum())
    assert min(covered) >= 0.95
    assert np.median(covered) < 0.985  # and is not much wider than it must be


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
    runs = [published("r/seed_1/x", [1] * 30), published("r/seed_2/x", [1] * 30, 0.6)]
    assert len(seed_groups(runs)) == 1


def told(runs):
    return "\n".join(warnings(runs))


def test_runs_alike_have_no_warnings(tmp_path):
    runs = [write(tmp_path, "a"), write(tmp_path, "b", model_digest="b" * 64, shift=0.5)]
    assert warnings(runs) == []


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
    runs = [
        write(tmp_path, name, warnings=("contiguous",), model_digest=64 * name) for name in "ab"
    ]
    assert warnings(runs) == ["all runs: contiguous"]
    assert warnings([*runs, write(tmp_path, "c", model_digest="c" * 64)]) == ["a, b: contiguous"]
    assert warnings(runs[:1]) == ["a: contiguous"]


def test_certificates_that_their_votes_do_not_give_are_said_though_sealed(tmp_path):
    log = made_logs.write(tmp_path / "log.tsv", made_logs.settings())
    assert "does not follow" not in told([Run("mine", log)])
    with LockedTable(tmp_path / "theirs.tsv", log.settings) as writer:
        for record in log.records:
            radius = 5.0 if record.predict >= 0 else 0.0
            writer.append(dataclasses.replace(record, radius=radius))
    theirs = Run("theirs", read_log(tmp_path / "theirs.tsv"))
    assert "theirs: does not follow from its votes: idx" in told([Run("mine", log), theirs])


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
        idx=50, label=-1, predict=1, radius=1.0, seconds=1.0)), None)  # fmt: skip
    assert "1 images without a true label" in told([Run("part", unlabelled)])


def test_published_logs_are_warned_of(tmp_path):
    whole = published("whole", [1] * 10_000)
    assert "rounded up" in told([whole])
    assert "contiguous" not in told([whole])
    assert "30 contiguous images (idx 0 to 29)" in told([published("part", [1] * 30)])
