"""published.csv, and which of its rows are shown below a run."""

import dataclasses
import itertools

import made_logs
import pytest

from tfmacer.guarantee.rule import Rule
from tfmacer.records.logs import read_log
from tfmacer.records.runs import RunDirectory
from tfmacer.report import __main__ as report
from tfmacer.report import published
from tfmacer.report.cells import DASH
from tfmacer.report.published import Subject, published_rows, rows_beside, subject_of
from tfmacer.report.summary import Run

ROWS = published_rows()
# The largest radius, in units of sigma, that 100,000 draws certify at alpha = 0.001.
REACH = 3.812


def table_of(paper, number):
    return [row for row in ROWS if (row.paper, row.table) == (paper, number)]


# Of each table: its rows, and the sums of their ACRs, of their certified accuracies in percent and
# of their deviations, times and memory, added up when each was compared with the papers' text.
SUMS = {
    ("MACER", "1"): (9, 5.473, 2391.0, 0.0),
    ("MACER", "2"): (9, 6.782, 1519.0, 0.0),
    ("MACER", "3"): (6, 3.052, 0.0, 16451.59),
    ("MACER", "6"): (6, 7.778, 3305.0, 0.0),
    ("MACER", "7"): (4, 1.981, 935.0, 0.0),
    ("MACER", "8"): (6, 3.772, 1681.0, 331.04),
    ("MACER", "10"): (10, 5.549, 2523.0, 0.0),
    ("MACER", "11"): (12, 7.19, 3271.0, 0.0),
    ("MACER", "12"): (16, 9.609, 4342.0, 0.0),
    ("MACER", "13"): (14, 8.586, 3864.0, 0.0),
    ("Consistency", "1"): (22, 13.738, 5862.2, 0.0),
    ("Consistency", "2"): (6, 5.277, 1173.0, 0.0),
    ("Consistency", "3"): (4, 2.653, 0.0, 68.7),
    ("Consistency", "4"): (12, 7.367, 3309.4, 0.0),
    ("Consistency", "S2"): (18, 25.458, 10779.8, 0.0),
    ("Consistency", "S3"): (18, 25.4762, 0.0, 0.0305),
    ("Consistency", "S4"): (9, 15.241, 6361.1, 0.0),
    ("Consistency", "S5"): (9, 13.031, 5506.5, 0.0),
    ("Consistency", "S6"): (9, 12.787, 2915.3, 0.0),
    ("Consistency", "S7"): (15, 6.994, 2993.4, 0.0),
    ("Soap bubbles", "1"): (2, 0.0, 459.0, 0.0),
    ("Soap bubbles", "2"): (2, 0.0, 351.0, 0.0),
    ("Soap bubbles", "3"): (2, 0.0, 404.0, 0.0),
    ("Soap bubbles", "4"): (6, 0.0, 1370.0, 0.0),
}


def test_the_figures_are_the_papers():
    tables = {}
    for row in ROWS:
        tables.setdefault((row.paper, row.table), []).append(row)
    assert tables.keys() == SUMS.keys()
    for table, rows in tables.items():
        columns = [(r.acr, r.acr_sd, r.seconds_per_epoch, r.hours, r.memory_gb) for r in rows]
        acrs, *others = (
            sum(value or 0 for value in column) for column in zip(*columns, strict=True)
        )
        shares = sum(sum(row.certified.values()) for row in rows)
        assert (len(rows), acrs, shares, sum(others)) == pytest.approx(SUMS[table], abs=1e-6), table


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name} {row.sigma}")
def test_a_row_is_possible(row):
    """Accuracies fall with the radius, and the ACR lies between the sums of their steps."""
    radii, shares = list(row.certified), [value / 100 for value in row.certified.values()]
    assert all(0 <= share <= 1 for share in shares)
    assert all(a >= b for a, b in itertools.pairwise(shares))
    assert all(a < b for a, b in itertools.pairwise(radii))
    if row.acr is None or not radii:
        return
    reach = REACH * row.sigma
    assert all(share == 0 for radius, share in row.certified.items() if radius > reach)
    ends = [*(min(radius, reach) for radius in radii[1:]), max(reach, radii[-1])]
    widths = [max(end - start, 0.0) for start, end in zip(radii, ends, strict=True)]
    rounding = max(widths) * (0.005 if row.paper == "MACER" else 0.0005) * len(radii) + 0.0005
    below = sum(width * share for width, share in zip(widths, [*shares[1:], 0.0], strict=True))
    above = sum(width * share for width, share in zip(widths, shares, strict=True))
    assert below - rounding <= row.acr <= above + rounding


def test_what_macer_measured_on_500_images_says_so():
    rows = table_of("MACER", "1")
    assert all(row.images == 500 and "500 contiguous" in row.note for row in rows)
    whole = {(row.sigma, row.method): row.acr for row in table_of("Consistency", "1")}
    for row in rows:
        if row.method == "macer":
            assert f"{whole[row.sigma, 'macer']:.3f}" in row.note


def tables_of(rows):
    return [(row.paper, row.table) for row in rows]


def test_the_whole_test_set_stands_beside_the_500_images():
    found = rows_beside(Subject(dataset="cifar10", sigma=0.25, network="resnet110", method="macer"))
    assert tables_of(found) == [("MACER", "1"), ("Consistency", "1")]
    assert [row.acr for row in found] == [0.556, 0.531]


def test_mnist_of_the_consistency_paper():
    found = rows_beside(Subject(dataset="mnist", sigma=0.5, network="lenet", method="gaussian"))
    assert tables_of(found) == [("MACER", "6"), ("Consistency", "S2"), ("Consistency", "S3")]
    assert [row.acr for row in found] == [1.453, 1.553, 1.5581]


def test_networks_and_methods_are_kept_apart_where_known():
    subject = {"dataset": "cifar10", "sigma": 0.5}
    (row,) = rows_beside(Subject(**subject, network="resnet20", method="macer"))
    assert row.acr == 0.661
    methods = {row.method for row in rows_beside(Subject(**subject, network="resnet20"))}
    assert methods == {"gaussian", "consistency", "smoothadv", "stability", "macer"}
    assert rows_beside(Subject(**subject, method="smoothmix")) == []
    assert rows_beside(Subject(dataset="mnist5k", sigma=0.5)) == []


def test_a_study_stands_beside_a_run_of_its_hyperparameters():
    flags = {"num_noise": "4", "lambda": "12.0", "gamma": "8.0", "beta": "16.0", "epochs": "440"}
    subject = {"dataset": "cifar10", "sigma": 0.25, "method": "macer"}
    found = rows_beside(Subject(**subject, flags=flags))
    assert tables_of(found) == [("MACER", "1"), ("MACER", "10"), ("Consistency", "1")]
    assert found[1].acr == 0.517
    without = {name: value for name, value in flags.items() if name != "beta"}
    assert len(rows_beside(Subject(**subject, flags=without))) == 2


def mnist_log(path, **others):
    rule = Rule(n=2000)
    return made_logs.write(path, made_logs.settings(rule, dataset="mnist", **others))


def test_a_run_directory_says_what_a_run_is(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    log = mnist_log(directory.certify / "test.tsv", sigma=1.0)
    assert subject_of(Run("run", log)) == Subject(dataset="mnist", sigma=1.0)
    directory.flags.write_text("--network=lenet\n--objective=macer\n--lambda=6.0\n--seed=1\n")
    flags = {"network": "lenet", "objective": "macer", "lambda": "6.0"}
    assert subject_of(Run("run", log)) == Subject(
        dataset="mnist", sigma=1.0, network="lenet", method="macer", flags=flags
    )


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("mnist_lenet_macer_0.5_15", "macer"),
        ("mnist_lenet_macer-clip1_0.5_15", "macer"),
        ("mnist_lenet_smoothadv_consistency_0.5_15", "smoothadv_consistency"),
        ("other", None),
    ],
)
def test_or_the_name_of_a_log(name, method, tmp_path):
    subject = subject_of(Run(name, mnist_log(tmp_path / f"{name}.tsv")))
    assert (subject.method, subject.network) == (method, "lenet" if method else None)


def test_what_the_papers_do_not_report_has_no_rows(tmp_path):
    for split in ("train", "train[50000:]"):
        log = mnist_log(tmp_path / f"{split}.tsv", split=split)
        assert subject_of(Run("train", log)) is None
    params = {"rounded_gaussian": {}, "generalized_gaussian": {"k": 1.0}}
    for family, known in (("rounded_gaussian", True), ("generalized_gaussian", False)):
        noise = {"noise_family": family, "noise_params": params[family]}
        settings = made_logs.changed(log.settings, split="test", **noise)
        other = dataclasses.replace(log, settings=settings)
        assert (subject_of(Run(family, other)) is not None) == known
    foreign = tmp_path / "foreign.tsv"
    foreign.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t.5\t1\t1\n")
    assert subject_of(Run("foreign", read_log(foreign))) is None


def test_the_table_puts_rows_below_their_run_and_notes_below_all(tmp_path):
    log = made_logs.write(
        tmp_path / "cifar10_resnet110_macer_0.25_440.tsv",
        made_logs.settings(dataset="cifar10", sigma=0.25),
    )
    table = published.table([Run("mine", log)], [0.0, 0.25, 0.3])
    assert table.header == ("run", "images", "ACR", "r=0.00", "r=0.25", "r=0.30")
    mine, paper, whole = table.rows
    assert [mine[0].text, mine[1].text] == ["mine", "40"]
    assert paper[0].text == (
        "MACER, Table 1: macer num_noise=16 lambda=12 gamma=8 beta=16 epochs=440 [1]"
    )
    assert [cell.text for cell in paper[1:]] == ["500", "0.556", "81", "71", DASH]
    assert [cell.text for cell in whole[1:]] == ["10,000", "0.531", "79.5", "69", DASH]
    assert "[1] 500 contiguous test images" in table.note
    assert "[2] network trained by Zhai et al." in table.note
    assert all(len(row) == len(table.header) for row in table.rows)


def test_the_command_puts_it_into_every_format(tmp_path):
    mnist_log(tmp_path / "logs" / "mnist_lenet_gaussian_0.5_90.tsv")
    arguments = [str(tmp_path / "logs"), f"--out_dir={tmp_path / 'out'}"]
    assert report.main(arguments) == 0
    assert "Beside published" not in (tmp_path / "out" / "report.md").read_text()
    assert report.main([*arguments, "--published"]) == 0
    for name in ("report.md", "report.html", "report.tex"):
        text = (tmp_path / "out" / name).read_text()
        assert "Beside published results" in text
        assert "Consistency, Table S2: gaussian epochs=90" in text
    line = next(
        line
        for line in (tmp_path / "out" / "report.md").read_text().splitlines()
        if line.startswith("| Consistency, Table S2")
    )
    assert line.startswith("| Consistency, Table S2: gaussian epochs=90 | 10,000 | 1.553 | 99.2 |")
