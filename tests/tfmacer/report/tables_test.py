import csv
import io
from pathlib import Path

import made_logs
import pytest
import rich.console

from tfmacer.guarantee.rule import Rule
from tfmacer.guarantee.stopping import StopRule
from tfmacer.records.logs import Log, Record
from tfmacer.report import cells, csv_tables, formats, tables
from tfmacer.report.cells import DASH, MINUS, Cell, Table
from tfmacer.report.comparison import Group, name_runs, paired_differences
from tfmacer.report.summary import Estimate, Run


def published(name, radii):
    records = [
        Record(idx=i, label=1, predict=1 if r else -1, radius=r, seconds=1.0)
        for i, r in enumerate(radii)
    ]
    return Run(name, Log(Path(f"{name}.tsv"), tuple(records), None))


RUNS = [
    published("one", [0.0, 0.3, 0.6, 0.9] * 10),
    published("two & a half", [0.0, 0.0, 0.5, 1.2345678] * 10),
]


@pytest.mark.parametrize(
    ("largest", "radii"),
    [
        (0.0, [0.0]),
        (0.05, [0.0, 0.01, 0.02, 0.03, 0.04, 0.05]),
        (0.3, [round(i * 0.025, 3) for i in range(13)]),
        (0.98, [0.0, 0.25, 0.5, 0.75]),
        (1.0, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (7.9, [i * 0.5 for i in range(16)]),
        (1000.0, [i * 100.0 for i in range(11)]),
        (1e12, [i * 1e11 for i in range(11)]),
    ],
)  # fmt: skip
def test_radii_go_in_round_steps_to_the_largest(largest, radii):
    assert tables.radii_of([published("x", [0.0, largest])]) == radii


def test_radii_hold_what_decide_runs_answer_for(tmp_path):
    rule = Rule(n=3000, bound="beta_binomial", stop=StopRule.parse("decide:0.3"))
    decide = Run("d", made_logs.write(tmp_path / "d.tsv", made_logs.settings(rule, total=5)))
    assert tables.radii_of([decide, published("x", [0.9])]) == [0.0, 0.25, 0.3, 0.5, 0.75]


def test_decide_runs_get_no_acr_and_the_table_says_why(tmp_path):
    rule = Rule(n=3000, bound="beta_binomial", stop=StopRule.parse("decide:0.3"))
    decide = Run("d", made_logs.write(tmp_path / "d.tsv", made_logs.settings(rule)))
    table = tables.results([decide, *RUNS], [0.0, 0.3])
    assert texts(table)[0][2:5] == [DASH, DASH, DASH]
    assert texts(table)[0][5] == f"{100 * decide.certified(0.3).value:.1f}"
    assert "stop=decide answers for one radius alone" in table.note
    assert "stop=decide" not in tables.results(RUNS, [0.0]).note
    assert "nan" not in csv_tables.results_csv([decide], [0.0])


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def test_results_by_hand():
    table = tables.results(RUNS, [0.0, 0.5, 1.0])
    assert table.header == (
        "run", "images", "ACR", "s.e.", "r=0.00", "r=0.50", "r=1.00", "abstains", "clean", "draws",
    )  # fmt: skip
    assert texts(table) == [
        ["one", "40", "0.450", "0.054", "75.0", "50.0", "0.0", "25.0", DASH, DASH],
        ["two & a half", "40", "0.434", "0.081", "50.0", "50.0", "25.0", "50.0", DASH, DASH],
    ]
    # Clopper-Pearson for 30 of 40, 0.58804 to 0.87307, rounded outward.
    assert table.rows[0][4].interval == f"58.8{DASH}87.4"


def test_radii_with_more_digits_keep_them():
    assert "r=0.125" in tables.results(RUNS, [0.0, 0.125]).header


def test_csv_has_the_acr_with_five_decimals():
    lines = list(csv.DictReader(io.StringIO(csv_tables.results_csv(RUNS, [0.0, 0.5]))))
    assert [line["run"] for line in lines] == ["one", "two & a half"]
    assert lines[0]["acr"] == "0.45000"
    assert lines[1]["acr"] == "0.43364"
    assert lines[0]["certified_0.5"] == "0.50000"
    assert lines[0]["clean_accuracy"] == ""
    assert float(lines[0]["acr_low"]) < 0.45 < float(lines[0]["acr_high"])
    assert lines[0]["images"] == "40"
    assert lines[0]["log"] == "one.tsv"


def test_differences_and_their_csv():
    pairs = paired_differences(RUNS, [0.0, 1.0])
    table = tables.differences(pairs, [0.0, 1.0])
    assert texts(table) == [["two & a half", "one", "40", f"{MINUS}0.016", f"{MINUS}25.0", "+25.0"]]
    (line,) = csv.DictReader(io.StringIO(csv_tables.differences_csv(pairs, [0.0, 1.0])))
    assert (line["first"], line["second"]) == ("two & a half", "one")
    assert line["acr"] == "-0.01636"
    assert line["certified_1"] == "0.25000"


def test_groups_have_mean_and_deviation():
    """ACRs 0.45 and 0.43364: mean 0.44182, deviation 0.01636 / sqrt(2) = 0.01157."""
    table = tables.groups([Group("runs", tuple(RUNS))], [1.0])
    assert texts(table) == [["runs", "2", "0.442 ± 0.012", "12.5 ± 17.7"]]
    text = csv_tables.groups_csv([Group("runs", tuple(RUNS))], [1.0])
    (line,) = csv.DictReader(io.StringIO(text))
    assert (line["runs"], line["norm"], line["seeds"]) == ("runs", "l2", "2")
    assert (line["acr_mean"], line["acr_deviation"]) == ("0.44182", "0.01157")
    assert (line["certified_1_mean"], line["certified_1_deviation"]) == ("0.12500", "0.17678")


def test_dataset_bounds_are_of_runs_that_know_alpha(tmp_path):
    ours = Run("ours", made_logs.write(tmp_path / "a.tsv", made_logs.settings()))
    table = tables.dataset_bounds([*RUNS, ours], [0.0])
    ((name, images, alpha, bound),) = texts(table)
    assert (name, images, alpha) == ("ours", "40", "0.001")
    # P(Bin(40, 0.001) > 1) is 0.00076: one wrong certificate of 40 is allowed for.
    assert float(bound) == pytest.approx(100 * (ours.certified(0.0).value - 1 / 40), abs=0.05)
    other, mine = csv.DictReader(io.StringIO(csv_tables.results_csv([RUNS[0], ours], [0.0])))
    assert other["dataset_bound_0"] == ""
    assert mine["dataset_bound_0"] == f"{ours.certified(0.0).value - 1 / 40:.5f}"


TABLE = Table(
    "A title",
    "A note.",
    ("run", "50%"),
    ((Cell("a_b|c"), Cell("1.0", f"0.5{DASH}1.5", 1.0)), (Cell("[d]"), Cell(f"{MINUS}2.0"))),
)


def test_markdown():
    assert formats.markdown(TABLE) == (
        f"## A title\n\n| run | 50% |\n| --- | --- |\n| a_b\\|c | 1.0 (0.5{DASH}1.5) |\n"
        f"| \\[d\\] | {MINUS}2.0 |\n\nA note.\n"
    )


def test_a_document_opens_with_its_warnings_and_shows_the_plots():
    text = formats.document([TABLE], ["radius_accuracy"], ["beware"])
    assert text.index("- beware") < text.index("## A title")
    assert "![radius_accuracy](radius_accuracy.png)" in text
    assert "Before you compare" not in formats.document([TABLE], [], [])


def test_ends_of_intervals_are_rounded_outward_and_estimates_to_the_nearest():
    estimate = Estimate(0.66666, 0.6619999, 0.6621)
    assert cells.acr_cell(Estimate(0.66666, 0.3, 0.7000001)) == Cell(
        "0.667", f"0.299{DASH}0.701", 0.66666
    )
    assert cells.signed_cell(estimate, 1, 100) == Cell("+66.7", "+66.1 to +66.3", 0.66666)
    negative = Estimate(-0.0104, -0.0204, 0.0001)
    assert cells.signed_cell(negative, 3, 1).interval == f"{MINUS}0.021 to +0.001"


def test_a_dataset_bound_is_never_printed_above_itself(tmp_path, monkeypatch):
    """397 of 600 are 66.1666..., which is 66.2 to the nearest."""
    ours = Run("ours", made_logs.write(tmp_path / "a.tsv", made_logs.settings(total=3)))
    monkeypatch.setattr(Run, "dataset_bound", lambda *_: 397 / 600)
    assert texts(tables.dataset_bounds([ours], [0.0]))[0][3] == "66.1"
    (line,) = csv.DictReader(io.StringIO(csv_tables.results_csv([ours], [0.0])))
    assert line["dataset_bound_0"] == "0.66166"
    low, value, high = (float(line[f"abstention{end}"]) for end in ("_low", "", "_high"))
    assert low <= ours.abstention.low <= value <= ours.abstention.high <= high


HOSTILE = (
    "=cmd|x <img src=x onerror=alert(1)> [l](javascript:0) $a$ \x1b]0;t\x07 \u202egnp.exe\n| a |"
)


def test_names_of_runs_are_shown_and_not_obeyed(tmp_path):
    """In every format; the name comes from the file's."""
    path = tmp_path / f"{HOSTILE.replace('/', '')}.tsv"
    (run,) = name_runs([made_logs.write(path, made_logs.settings(total=5))])
    table = tables.results([run], [0.0])
    texts = [
        formats.document([table], [], [f"{run.name}: altered"]),
        formats.latex(table),
        on_terminal(table, 200),
        csv_tables.results_csv([run], [0.0]),
        csv_tables.differences_csv([], [0.0]),
    ]
    for text in texts:
        assert all(line.isprintable() for line in text.split("\n"))
    document = texts[0]
    assert "<img" not in document
    assert "&lt;img src=x onerror=alert(1)&gt; \\[l\\]" in document
    assert len([line for line in document.splitlines() if line.startswith("| ")]) == 3
    (line,) = csv.DictReader(io.StringIO(texts[3]))
    assert line["run"].startswith("'=cmd")
    assert line["acr"] == f"{run.acr.value:.5f}"


def test_latex_is_booktabs_and_escaped():
    assert formats.latex(TABLE) == (
        "% A title. A note.\n"
        "\\begin{tabular}{lr}\n\\toprule\nrun & 50\\% \\\\\n\\midrule\n"
        "a\\_b|c & 1.0 {\\scriptsize 0.5--1.5} \\\\\n[d] & $-$2.0 \\\\\n"
        "\\bottomrule\n\\end{tabular}\n"
    )


def test_the_note_of_a_latex_table_stays_a_comment():
    head, *_ = formats.latex(tables.results(RUNS, [0.0])).splitlines()
    assert head.startswith("% Certified accuracy. ")


def on_terminal(table, width):
    file = io.StringIO()
    console = rich.console.Console(file=file, width=width)
    console.print(*formats.terminal(table, width), sep="\n")
    return file.getvalue()


def test_terminal_shows_every_cell_as_it_is():
    shown = on_terminal(TABLE, 80)
    for text in ("A title", "a_b|c", "[d]", f"1.0 (0.5{DASH}1.5)", f"{MINUS}2.0", "50%"):
        assert text in shown


@pytest.mark.parametrize(("width", "parts"), [(40, 3), (80, 2), (200, 1)])
def test_a_narrow_terminal_cuts_no_number_and_names_only_between_words(width, parts):
    interval = f"1.414{DASH}1.442"
    rows = tuple(
        (Cell(f"mnist_lenet_{method}-clip5_0.5_15"), Cell("1.428", interval))
        for method in ("gaussian", "consistency", "macer", "stability", "smoothadv")
    )
    table = Table(title="ACRs", note="", header=("run", "ACR"), rows=rows)
    shown = on_terminal(table, width)
    assert shown.count("ACRs") == parts
    assert shown.count(f"({interval})") == len(rows)
    for piece in ("gaussian-", "consistency-", "macer-", "stability-", "smoothadv-"):
        assert shown.count(piece) == 1
    assert max(map(len, shown.splitlines())) <= width
