"""published.csv against the papers' texts, and which rows stand beside a run."""

import collections
import dataclasses
import itertools
import re
from pathlib import Path

import made_logs
import pytest

from tfmacer.guarantee.rule import Rule
from tfmacer.records.logs import read_log
from tfmacer.records.runs import RunDirectory
from tfmacer.report import __main__ as report
from tfmacer.report import published
from tfmacer.report.published import Subject, published_rows, rows_beside, subject_of
from tfmacer.report.summary import Run
from tfmacer.report.tables import DASH

TEXTS = Path(__file__).parents[3].parent / "shared" / "seeds"
ROWS = published_rows()
# The largest radius, in units of sigma, that 100,000 draws certify at alpha = 0.001.
REACH = 3.812
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])")


def text_of(name):
    found = list(TEXTS.glob(f"{name}_*.txt"))
    if not found:
        pytest.skip(f"the text of the paper is missing in {TEXTS}")
    return found[0].read_text(encoding="utf-8")


def table_of(paper, number):
    return [row for row in ROWS if (row.paper, row.table) == (paper, number)]


def numbers(line):
    return [float(number) for number in NUMBER.findall(line)]


def ours(row, scale=1.0):
    """Certified accuracies and ACR, as MACER's tables order them."""
    return [*(round(value / scale, 4) for value in row.certified.values()), row.acr]


def between(text, start, end):
    return text.partition(start)[2].partition(end)[0]


def test_every_table_of_results_is_there_with_all_of_its_rows():
    found = collections.Counter((row.paper, row.table) for row in ROWS)
    macer = {"1": 9, "2": 9, "3": 6, "6": 6, "7": 4, "8": 6, "10": 10, "11": 12, "12": 16, "13": 14}
    consistency = {"1": 22, "2": 6, "3": 4, "4": 12, "S2": 18, "S3": 18, "S4": 9, "S5": 9, "S6": 9,
                   "S7": 15}  # fmt: skip
    bubbles = {"1": 2, "2": 2, "3": 2, "4": 6}
    papers = {"MACER": macer, "Consistency": consistency, "Soap bubbles": bubbles}
    assert found == {(p, t): count for p, tables in papers.items() for t, count in tables.items()}


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


# Number in the camera-ready version, and in the version under review.
MACER_TABLES = [("1", "1"), ("2", "2"), ("6", "6"), ("7", "7"),
                ("10", "9"), ("11", "10"), ("12", "11"), ("13", "12")]  # fmt: skip


def macer_lines(text, width):
    """Numbers of the lines that end with `width` certified accuracies and an ACR."""
    found = []
    for line in text.splitlines():
        # The extraction of 000 writes some cells as ^^0^^ or -0- and 0.99 as ^099^.
        cells = [re.sub(r'[\^_"~]', "", cell).strip() for cell in line.split("\t")]
        cells = [re.sub(r"^0(\d\d)$", r"0.\1", cell.strip("-")) for cell in cells if cell]
        values = [float(cell) for cell in cells if re.fullmatch(r"\d+(\.\d+)?", cell)]
        if len(values) >= width + 1 and cells[-1].count("."):
            found.append(values[-width - 1 :])
    return found


@pytest.mark.parametrize(("table", "_"), MACER_TABLES)
def test_macer_against_the_camera_ready_version(table, _):
    wanted = [ours(row, 100) for row in table_of("MACER", table)]
    text = re.split(rf"\nTable {table}: ", text_of("000"))[1]
    assert macer_lines(text, 7 if table == "2" else 10)[: len(wanted)] == wanted


@pytest.mark.parametrize(("table", "under_review"), MACER_TABLES)
def test_macer_against_the_version_under_review(table, under_review):
    """Its titles stand above or below their tables, so the rows are looked for in all of it."""
    text = text_of("001")
    assert f"Table {under_review}: " in text
    wanted = [ours(row, 100) for row in table_of("MACER", table)]
    lines = macer_lines(text, 7 if table == "2" else 10)
    assert wanted in [lines[i : i + len(wanted)] for i in range(len(lines))]


@pytest.mark.parametrize(
    ("table", "changed"), [("10", "num_noise"), ("11", "lambda"), ("12", "gamma"), ("13", "beta")]
)
def test_macer_studies_say_what_they_change(table, changed):
    """In the version under review the value stands before the accuracies."""
    found = macer_lines(text_of("001"), 11)
    for row in table_of("MACER", table):
        assert [float(row.hyperparameters[changed]), *ours(row, 100)] in found


def test_macer_of_150_epochs():
    rows = table_of("MACER", "8")
    found = []
    for line in between(text_of("000"), "\nTable 8: ", "C.4").splitlines():
        cells = [cell.strip("-") for cell in line.split("\t")]
        values = [float(cell) for cell in cells if re.fullmatch(r"\d+(\.\d+)?", cell)]
        if len(values) >= 11:
            found.append(values[-11:])
    assert found == [[*ours(row, 100), row.epochs, row.hours] for row in rows]


def test_macer_costs():
    """From the version under review: 000 has 314 for 31.4, and its poster agrees with 31.4."""
    rows = table_of("MACER", "3")
    lines = between(text_of("001"), "sec/epoch", "Table 3").splitlines()
    found = [numbers(line)[-4:] for line in lines if "-0.25 (" in line]
    assert found == [[r.seconds_per_epoch, r.epochs, r.hours, r.acr] for r in rows]


def consistency_cells(start, end):
    """The lines of a table, in cells, without what sets their type."""
    text = re.sub(r"<.*?>|\\[a-z]+|[*${}]", " ", between(text_of("003"), start, end))
    return [line.split("\t") for line in text.splitlines()]


def consistency_rows(start, end, width):
    """ACR and accuracies of a table whose cells hold a value for each model of a group."""
    found = []
    for cells in consistency_cells(start, end):
        columns = [numbers(cell) for cell in cells[-width:]]
        if len(columns) == width and columns[0] and columns[-1]:
            height = max(len(column) for column in columns)
            # Where a group has nothing but zeros, some are missing.
            short = [column for column in columns if len(column) < height]
            assert all(set(column) == {0.0} for column in short)
            columns = [column if len(column) == height else [0.0] * height for column in columns]
            found += [list(values) for values in zip(*columns, strict=True)]
    return found


MODEL = re.compile(
    r"(Gaussian|\+ Consistency|SmoothAdv|\+ Hyperparameter search|\+ Best HP|Stability|MACER)"
    r"(?: training)?(?: \[\d+\])?(?: *\( *= *([\d,]+) *\))?"
)
METHODS = {"+ Hyperparameter search": "smoothadv", "+ Best HP": "smoothadv"}


def consistency_models(start, end):
    """Method and lambda of each row, as far as the table says it."""
    found, method = [], ""
    for cells in consistency_cells(start, end):
        for name, weight in MODEL.findall(cells[1]) if len(cells) > 6 else []:
            if name == "+ Consistency":
                method = "smoothadv_consistency" if method == "smoothadv" else "consistency"
            else:
                method = METHODS.get(name, name.lower())
            found.append((method, weight))
    return found


CONSISTENCY = {
    "1": ("Table 1: Comparison of approximate", "Table 2: ", 11),
    "2": ("Table 2: Comparison of approximate", "configurations: (a)", 9),
    "4": ("Table 4: Comparison of ACR", "presented in Figure 3(a)", 9),
    "S2": ("Table 2: Comparison of approximate certified test accuracy on MNIST", "Figure 1: ", 12),
    "S4": ("Table 4: Comparison of approximate", "Table 5: ", 12),
    "S5": ("Table 5: Comparison of approximate", "Table 6: ", 12),
    "S6": ("Table 6: Comparison of approximate", "Table 7: ", 9),
    "S7": ("Table 7: Comparison of our method", "# Overview on prior", 11),
}


@pytest.mark.parametrize("table", CONSISTENCY)
def test_consistency(table):
    found = consistency_rows(*CONSISTENCY[table])
    wanted = [[row.acr, *row.certified.values()] for row in table_of("Consistency", table)]
    assert found == wanted


@pytest.mark.parametrize("table", ["1", "2", "4", "S2", "S7"])
def test_consistency_names_the_models(table):
    start, end, _ = CONSISTENCY[table]
    rows = table_of("Consistency", table)
    found = consistency_models(start, end)
    assert [method for method, _ in found] == [row.method for row in rows]
    for (_, weight), row in zip(found, rows, strict=True):
        assert weight in ("", row.hyperparameters.get("lambda"))


def test_consistency_over_seeds():
    text = between(text_of("003"), "Table 3: Comparison of ACR for", "# D Detailed")
    # The sign is \\pm, \\scriptstyle\\pm or a character, with bold face inside or around it.
    text = re.sub(r"</?b>|\\(?!pm)[a-z]+|[${}]", " ", text)
    pairs = re.findall(r"(\d\.\d{4})\s*(?:\\pm|±)\s*(\d\.\d{4})", text)
    found = collections.Counter((float(mean), float(deviation)) for mean, deviation in pairs)
    rows = table_of("Consistency", "S3")
    assert found == collections.Counter((row.acr, row.acr_sd) for row in rows)


def test_consistency_costs():
    text = between(text_of("003"), "Table 3: Comparison of training time", "CIFAR-10 using one GPU")
    cells = [line.split("\t") for line in text.splitlines() if "G\t" in line]
    found = [
        tuple(float(re.sub(r"[^\d.]", "", cell.replace("</b>", ""))) for cell in line[-3:])
        for line in cells
    ]
    rows = table_of("Consistency", "3")
    assert found == [(row.acr, row.memory_gb, row.hours) for row in rows]


@pytest.mark.parametrize(("table", "start"), [("1", 0), ("2", 1), ("3", 2), ("4", 3)])
def test_soap_bubbles(table, start):
    text = re.sub(r"[\^_]|-(?=\d)", "", text_of("004")).replace("3T\t", "37\t")
    body = re.split(r"RAD[Ii]US \(", text)[start + 1]
    lines = [line for line in body.splitlines() if "(%)" in line]
    count = len(table_of("Soap bubbles", table))
    found = [numbers(line.partition("(%)")[2]) for line in lines[:count]]
    assert found == [list(row.certified.values()) for row in table_of("Soap bubbles", table)]


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
        settings = dataclasses.replace(log.settings, split="test", **noise)
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
