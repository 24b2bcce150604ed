import hashlib
import json
import xml.etree.ElementTree as ElementTree

import made_logs
import numpy as np
import pytest

from benchmarks.reproduce_rows import TABLES
from benchmarks.studies import __main__ as studies
from benchmarks.studies import comparison, cost
from benchmarks.studies.figure import figure
from benchmarks.studies.points import STUDIES
from tfmacer.guarantee.rule import Rule
from tfmacer.report.summary import Estimate, Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of MACER's study, each value better than the last; gamma 2 is missing."""
    results = tmp_path_factory.mktemp("results")
    for study in STUDIES["macer"]():
        for i, point in enumerate(study.points):
            path = results / "macer" / f"{point.row}.tsv"
            if not point.row.endswith("gamma2_0.5_30") and not path.exists():
                digest = hashlib.sha256(point.row.encode()).hexdigest()
                known = made_logs.settings(
                    Rule(n=500), total=30, sigma=study.sigma, model_digest=digest
                )
                made_logs.write(path, known, shift=0.2 * i)
    return results


@pytest.fixture(scope="module")
def runs(folder):
    return studies._runs(folder / "macer", STUDIES["macer"]())


def words(plot):
    found = plot.figure.findobj(lambda each: hasattr(each, "get_text"))
    return {text.get_text() for text in found}


@pytest.mark.parametrize("name", STUDIES)
def test_the_studies_hold_every_row_of_their_table(name):
    points = [point.row for study in STUDIES[name]() for point in study.points]
    assert set(points) == {row.name for row in TABLES[name]}
    for study in STUDIES[name]():
        assert study.default in study.points
        assert len(study.points) == len(study.values) * len(study.lines)


@pytest.mark.parametrize(
    ("name", "place", "value", "acr", "clean", "large"),
    [
        # Read off the papers' tables at the study's sigma, minus the row of the default.
        ("macer", 0, "1", 0.306 - 0.712, 0.36 - 0.60, 0.05 - 0.23),
        ("macer", 1, "0", 0.515 - 0.711, 0.69 - 0.60, 0.06 - 0.21),
        ("macer", 2, "16", 0.695 - 0.712, 0.57 - 0.60, 0.24 - 0.23),
        ("macer", 3, "64", 0.579 - 0.712, 0.45 - 0.60, 0.21 - 0.23),
        ("macer", 4, "1", None, None, None),
        ("consistency", 0, "20", 1.720 - 1.740, 0.930 - 0.950, 0.234 - 0.203),
        ("consistency", 3, "8", 1.762 - 1.740, 0.950 - 0.950, 0.215 - 0.203),
        ("consistency", 4, "50", 0.456 - 1.740, 0.152 - 0.950, 0.106 - 0.200),
    ],
)
def test_what_the_papers_print(name, place, value, acr, clean, large):
    study = STUDIES[name]()[place]
    point = next(point for point in study.points if point.value == value)
    found = [measure.theirs for measure in comparison.measures(study, point, {})]
    assert found == [None if x is None else pytest.approx(x, abs=1e-9) for x in (acr, clean, large)]


def test_differences_are_those_of_the_same_images(runs):
    study = STUDIES["macer"]()[0]
    one, usual = runs[study.points[0].row], runs[study.default.row]
    acr, clean, large = comparison.measures(study, study.points[0], runs)
    mine, theirs = ({r.idx: r.radius * r.correct for r in run.log.records} for run in (one, usual))
    assert acr.ours.value == pytest.approx(np.mean([mine[i] - theirs[i] for i in mine]))
    assert acr.ours.low <= acr.ours.value <= acr.ours.high < 0
    assert large.ours.value == pytest.approx(
        np.mean([mine[i] >= 1.5 for i in mine]) - np.mean([theirs[i] >= 1.5 for i in theirs])
    )
    assert clean.ours.value <= 0


@pytest.mark.parametrize(
    ("ours", "theirs", "below", "direction"),
    [
        ((-0.2, -0.3, -0.1), -0.4, False, comparison.SAME),
        ((0.2, 0.1, 0.3), 0.4, False, comparison.SAME),
        ((0.2, 0.1, 0.3), -0.4, False, comparison.OPPOSITE),
        ((0.2, -0.1, 0.5), -0.4, False, comparison.UNRESOLVED),
        ((0.2, 0.1, 0.3), 0.0, False, comparison.ABSENT),
        ((0.2, 0.1, 0.3), None, False, comparison.ABSENT),
        ((-0.2, -0.3, -0.1), None, True, comparison.SAME),
        ((0.2, 0.1, 0.3), None, True, comparison.OPPOSITE),
        (None, -0.4, False, comparison.ABSENT),
    ],
)
def test_directions(ours, theirs, below, direction):
    measure = comparison.Measure(Estimate(*ours) if ours else None, theirs, below)
    assert measure.direction == direction


def test_the_table_counts_its_directions(runs):
    study = STUDIES["macer"]()[1]
    table = comparison.table(study, runs)
    assert [row[0].text for row in table.rows] == ["0", "1", "4", "16 (default)"]
    judged = [cell.interval for row in table.rows for cell in row[3::2]]
    for word in (comparison.SAME, comparison.OPPOSITE, comparison.UNRESOLVED):
        assert f"{judged.count(word)} {word}" in table.note
    # Better and better towards the default, which the paper's ACR is too; its clean one is not.
    assert table.rows[0][3].interval == comparison.SAME
    assert table.rows[3][2].text == ""


def test_the_figure_draws_each_value_once_and_leaves_out_what_is_missing(runs):
    plot = figure("macer", STUDIES["macer"](), runs)
    assert len(plot.figure.axes) == 10
    for study, left in zip(STUDIES["macer"](), plot.figure.axes[::2], strict=True):
        present = [runs[point.row] for point in study.drawn if point.row in runs]
        assert len(left.get_lines()) == len(present)
        for run, line in zip(present, left.get_lines(), strict=True):
            assert line.get_ydata()[0] == pytest.approx(100 * run.certified(0.0).value)
    usual = runs[STUDIES["macer"]()[0].default.row].acr.value
    assert {f"16: ACR {usual:.3f}", f"clip off: ACR {usual:.3f}"} <= words(plot)
    assert not any(text.startswith("2: ACR") for text in words(plot))
    assert figure("macer", STUDIES["macer"](), {}) is None


def run(folder, out, table):
    return studies.main([f"--table={table}", f"--results_dir={folder}", f"--out_dir={out}"])


def test_the_command_writes_the_page_and_the_figure(folder, tmp_path, capsys):
    assert run(folder, tmp_path / "out", "macer") == 0
    missing = "mnist5k_lenet_macer-gamma2_0.5_30"
    assert f"without a result: {missing}" in capsys.readouterr().out
    page = (tmp_path / "out" / "macer.md").read_text()
    assert page.count("\n## ") == 5
    assert f"Without a result: `{missing}`." in page
    assert "![Studies of macer](macer.png)" in page
    picture = ElementTree.fromstring((tmp_path / "out" / "macer.svg").read_bytes())
    assert picture.tag.endswith("svg")
    assert (tmp_path / "out" / "macer.png").stat().st_size > 10_000


def test_soft_bounds_are_compared_with_hard_ones(tmp_path, capsys):
    (first, *_) = STUDIES["soft"]()
    for point in first.points[:3]:
        soft = {"bound": "bernstein", "beta": float(point.value)} if point.value != "hard" else {}
        known = made_logs.settings(Rule(n=500, **soft), total=30)
        made_logs.write(tmp_path / "soft" / f"{point.row}.tsv", known)
    assert run(tmp_path, tmp_path / "out", "soft") == 0
    table = comparison.table(first, {
        point.row: Run(point.row, made_logs.read_log(tmp_path / "soft" / f"{point.row}.tsv"))
        for point in first.points[:3]
    })  # fmt: skip
    assert [row[0].text for row in table.rows] == ["hard (default)", "1", "4", "16", "64"]
    assert [row[3].text for row in table.rows[1:]] == ["below"] * 4
    assert [row[3].interval for row in table.rows[1:]] == [comparison.SAME] * 2 + [""] * 2
    assert capsys.readouterr().out.count("without a result") == 12


def test_costs_are_over_gaussian_training(tmp_path, capsys):
    results = tmp_path / "cost"
    results.mkdir()
    for objective, seconds, memory in (("gaussian", 4.0, 500), ("macer", 50.0, 750)):
        name = f"mnist_lenet_{objective}_0.5_2.json"
        values = {"seconds_per_epoch": seconds, "peak_memory_mib": memory}
        (results / name).write_text(json.dumps(values))
    assert run(tmp_path, tmp_path / "out", "cost") == 0
    assert capsys.readouterr().out.count("without a result") == 5
    shown = cost.table(cost.read(results)).rows
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in shown}
    # 504.0 / 31.4 s an epoch; 14.1 / 4.6 hours and 9.4 / 2.9 GB.
    assert rows["macer"] == ["50.0", "12.50", "16.05", "3.07", "750", "1.50", "3.24"]
    assert rows["gaussian"] == ["4.0", "1.00", "1.00", "1.00", "500", "1.00", "1.00"]
    assert rows["smoothadv"][1:4] == [cost.ABSENT, "63.38", "5.02"]
    assert not list((tmp_path / "out").glob("*.png"))
    (results / "mnist_lenet_gaussian_0.5_2.json").write_text("{}")
    assert run(tmp_path, tmp_path / "out", "cost") == 1
    assert "is no cost of a training" in capsys.readouterr().err


@pytest.mark.parametrize("table", ["macer", "cost"])
def test_without_results_there_is_one_line(tmp_path, capsys, table):
    assert run(tmp_path, tmp_path / "out", table) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no result; python -m benchmarks.reproduce --table={table}" in line
