"""Radii of two norms are never mixed, and what attacks found is shown beside what is certified."""

import csv
import dataclasses
import json
import re

import made_logs
import numpy as np
import pytest

from tfmacer.common.errors import UserError
from tfmacer.noise.mixed_norm import likelihood_ratio
from tfmacer.records.locked_table import LockedTable
from tfmacer.records.logs import Log, read_log, settings_path
from tfmacer.report import __main__ as report
from tfmacer.report import plots, tables
from tfmacer.report.cautions import warnings
from tfmacer.report.comparison import paired_differences, seed_groups
from tfmacer.report.summary import Run


@pytest.fixture(autouse=True)
def no_table(monkeypatch):
    """The table behind l-infinity radii takes its time to make; a report does without."""

    def made(*_):
        raise AssertionError("the table was made")

    monkeypatch.setattr(likelihood_ratio, "mixed_norm_noise", made)


def write_linf(path) -> Log:
    """A mixed-norm log whose radii are a quarter of the Gaussian's."""
    gaussian = made_logs.settings()
    settings = made_logs.settings(
        noise_family="mixed_norm", noise_params={"k": 1.0}, model_digest="c" * 64
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with LockedTable(path, settings) as writer:
        for idx in list(writer.missing):
            record = made_logs.record(gaussian, idx)
            writer.append(dataclasses.replace(record, radius=round(record.radius / 4, 9)))
    return read_log(path)


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    macer = made_logs.settings(model_digest="b" * 64)
    return {
        "gaussian": made_logs.write(folder / "gaussian.tsv", made_logs.settings()),
        "macer": made_logs.write(folder / "macer.tsv", macer, shift=0.5),
        "mixed": write_linf(folder / "mixed.tsv"),
    }


@pytest.fixture
def runs(logs):
    return [Run(name, log) for name, log in logs.items()]


def texts(figure):
    return {text.get_text() for text in figure.findobj(lambda x: hasattr(x, "get_text"))}


def test_a_run_knows_its_norm_and_no_law_is_asked(runs):
    assert [run.norm for run in runs] == ["l2", "l2", "linf"]
    assert Run("published", Log(None, (), None)).norm == "l2"
    mixed = runs[2]
    unanimous = [r.radius for r in mixed.log.records if max(r.draws.counts) == r.draws.n]
    assert mixed.largest_radius == (unanimous[0] if unanimous else None)


def test_l2_balls_hold_linf_balls_of_radius_over_sqrt_d(runs):
    """The images have 4 numbers: half of the radius, rounded down, and nothing else changes."""
    gaussian = runs[0]
    converted = gaussian.in_linf()
    assert converted.norm == "linf"
    assert converted.converted
    assert converted.name == "gaussian, l2 / sqrt(d)"
    assert (converted.radii <= gaussian.radii / 2).all()
    np.testing.assert_allclose(converted.radii, gaussian.radii / 2, atol=1.1e-9)
    assert converted.largest_radius == pytest.approx(gaussian.largest_radius / 2)
    assert converted.certified(0.0) == gaussian.certified(0.0)
    assert runs[2].in_linf() is None
    assert Run("published", Log(None, (), None)).in_linf() is None


def test_radii_of_different_norms_are_not_subtracted(runs):
    pairs = paired_differences([*runs, runs[0].in_linf()], [0.0])
    named = {(pair.first.name, pair.second.name) for pair in pairs}
    assert named == {("macer", "gaussian"), ("gaussian, l2 / sqrt(d)", "mixed")}


def test_a_run_and_its_conversion_are_no_two_seeds(runs):
    assert seed_groups([runs[0], runs[0].in_linf()]) == []


def test_norms_have_plots_of_their_own(runs):
    drawn = {plot.name: plot for plot in plots.draw_all([*runs, runs[0].in_linf()])}
    assert {"radius_accuracy", "radius_accuracy_linf", "radius_by_class_linf"} <= set(drawn)
    l2, other = drawn["radius_accuracy"], drawn["radius_accuracy_linf"]
    assert [curve.run.name for curve in l2.curves] == ["gaussian", "macer"]
    assert [curve.run.name for curve in other.curves] == ["mixed", "gaussian, l2 / sqrt(d)"]
    assert "certified l2 radius (pixels in [0, 1])" in texts(l2.figure)
    assert "certified l-infinity radius (pixels in [0, 1])" in texts(other.figure)
    assert "l-infinity" in other.title
    # The colour of a run is also that of its conversion.
    assert other.curves[1].colour == l2.curves[0].colour
    assert len({curve.colour for curve in (*l2.curves, other.curves[0])}) == 3


def test_the_report_says_which_norm(logs, tmp_path, capsys):
    paths = [str(log.path) for log in logs.values()]
    assert report.main([*paths, f"--out_dir={tmp_path}"]) == 0
    markdown = (tmp_path / "report.md").read_text()
    titles = re.findall(r"^## (.*)$", markdown, re.MULTILINE)
    assert "Certified accuracy, l2" in titles
    assert "Certified accuracy, l-infinity" in titles
    assert "radii are in two norms and shown apart: l-infinity in mixed, l2 in" in markdown
    assert "certified l-infinity radius of at least r" in markdown
    with open(tmp_path / "results.csv") as file:
        assert [line["norm"] for line in csv.DictReader(file)] == ["l2", "l2", "linf"]
    printed = capsys.readouterr().out
    assert "Certified accuracy, l-infinity" in printed


def test_linf_is_compared_by_the_rule_where_asked(logs, tmp_path):
    paths = [str(log.path) for log in logs.values()]
    assert report.main([*paths, f"--out_dir={tmp_path}", "--linf", "--radii=0,0.1"]) == 0
    markdown = (tmp_path / "report.md").read_text()
    section = markdown.partition("## Certified accuracy, l-infinity")[2].partition("##")[0]
    for name in ("mixed", "gaussian, l2 / sqrt(d)", "macer, l2 / sqrt(d)"):
        assert f"| {name} | 40 |" in section
    assert "their radii here are those of the l-infinity balls inside" in section
    # The page's settings are of the logs, each once.
    html = (tmp_path / "report.html").read_text()
    assert html.count('<th scope="col">gaussian</th>') == 1
    assert '<th scope="col">gaussian, l2 / sqrt(d)</th>' not in html
    assert "l-infinity" in html


def test_one_norm_alone_is_named_too(logs, tmp_path):
    assert report.main([str(logs["mixed"].path), f"--out_dir={tmp_path}"]) == 0
    assert "## Certified accuracy, l-infinity" in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "radius_accuracy.png").exists()


# Attacks


@pytest.fixture
def attacked(logs, tmp_path):
    """Copies of two logs with their attacks: sound, and flipped within more than alpha allows."""
    found = {}
    for name, false in (("gaussian", 0), ("macer", 5)):
        log = logs[name]
        with LockedTable(tmp_path / f"{name}.tsv", log.settings) as writer:
            for record in log.records:
                writer.append(record)
        found[name] = made_logs.write_attacks(read_log(tmp_path / f"{name}.tsv"), false=false)
    return found


def test_attacks_beside_a_log_are_found_and_shown(attacked, tmp_path, capsys):
    out = tmp_path / "report"
    assert report.main([str(tmp_path), f"--out_dir={out}"]) == 0
    markdown = (out / "report.md").read_text()
    section = markdown.partition("## Certified against attack")[2].partition("##")[0]
    for name, found in attacked.items():
        (line,) = [text for text in section.splitlines() if text.startswith(f"| {name} |")]
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        flipped = [r for r in found.rows if r.attack_radius is not None]
        assert cells[1] == "pgd (l2), 20 steps, 32 copies"
        assert cells[2:5] == [str(len(found.rows)), str(len(found.within)), str(found.allowed)]
        ratio = np.median([r.attack_radius / r.radius for r in flipped])
        assert cells[7:] == [f"{ratio:.2f}", str(len(found.rows) - len(flipped))]
    assert (out / "attack_radius.png").exists()
    assert "attack_radius" in markdown
    printed = " ".join(capsys.readouterr().out.split())
    assert "Certified against attack" in printed
    assert "warning: macer: false certificates: 5 of" in printed
    assert "gaussian: false certificates" not in printed
    assert "attacked in" in (out / "report.html").read_text()


def test_every_attack_is_a_point_at_its_two_radii(attacked):
    for name, found in attacked.items():
        run = Run(name, read_log(found.path.with_name(f"{name}.tsv")), (found,))
        plot = plots.attack_radius([run])
        points = np.concatenate([c.get_offsets() for c in plot.figure.axes[0].collections[:-1]])
        expected = [(r.radius, r.attack_radius or r.searched) for r in found.rows]
        np.testing.assert_allclose(sorted(points.tolist()), sorted(expected))
        below = [y < x for x, y in points]
        assert sum(below) == len(found.within)
        assert f"flipped within: {len(found.within)}" in texts(plot.figure) or not any(below)
        assert plot.image("png")
    assert plots.attack_radius([Run("none", run.log)]) is None


def test_several_attacks_on_one_log_stand_side_by_side(logs, tmp_path):
    log = logs["gaussian"]
    ones = [
        made_logs.write_attacks(log, tmp_path / f"{name}.tsv", attack=name, clip=name == "ddn")
        for name in ("pgd", "ddn")
    ]
    (run,) = report.with_attacks([Run("gaussian", log)], [one.path for one in ones])
    assert len(run.attacks) == 2
    rows = tables.attacks([run]).rows
    assert [row[1].text for row in rows] == [
        "pgd (l2), 20 steps, 32 copies",
        "ddn (l2), 20 steps, 32 copies, clipped",
    ]
    assert len(plots.attack_radius([run]).figure.axes) == 2


def test_attacks_on_other_certificates_are_refused(logs, attacked, tmp_path):
    gaussian = Run("gaussian", logs["gaussian"])
    named = attacked["macer"].path
    with pytest.raises(UserError, match="is of none of the logs of this report"):
        report.with_attacks([gaussian], [named])
    named.rename(attacked["gaussian"].path)
    named.with_name(named.name + ".json").rename(named.with_name("gaussian.falsified.tsv.json"))
    log = read_log(tmp_path / "gaussian.tsv")
    with pytest.raises(UserError, match="is of other certificates than those of gaussian.tsv"):
        report.with_attacks([Run("gaussian", log)], [])


def test_attacks_that_say_otherwise_of_their_log_are_refused(attacked):
    """An alpha of their own would allow more flips."""
    found = attacked["macer"]
    log = read_log(found.path.with_name("macer.tsv"))
    for path in (found.path, settings_path(found.path)):
        path.unlink()
    made_logs.write_attacks(log, false=5, certificate_alpha=0.5)
    with pytest.raises(UserError, match="certificate_alpha is 0.5, that of macer.tsv is"):
        report.with_attacks([Run("macer", log)], [])


def test_an_unfinished_attack_is_warned_of(attacked):
    found = attacked["gaussian"]
    text = found.path.read_text()
    found.path.write_text(text[: text.rindex("\n", 0, -1) + 1])
    (run,) = report.with_attacks([Run("a", read_log(found.path.with_name("gaussian.tsv")))], [])
    (warning,) = [text for text in warnings([run]) if "unfinished" in text]
    count = len(found.settings.images)
    assert f"gaussian.falsified.tsv: 1 of {count} images have no row" in warning


def test_the_command_takes_the_flag(logs, tmp_path, capsys):
    named = made_logs.write_attacks(logs["gaussian"], tmp_path / "elsewhere.tsv").path
    out = tmp_path / "out"
    paths = [str(logs["gaussian"].path), f"--out_dir={out}"]
    assert report.main([*paths, f"--falsification={named}"]) == 0
    assert (out / "attack_radius.svg").exists()
    assert report.main([*paths, "--falsification=missing.tsv"]) == 1
    assert "missing.tsv" in capsys.readouterr().err


def test_the_page_shows_the_radii_of_each_norm_under_the_pointer(logs, tmp_path):
    paths = [str(log.path) for log in logs.values()]
    assert report.main([*paths, f"--out_dir={tmp_path}"]) == 0
    html = (tmp_path / "report.html").read_text()
    found = [json.loads(text.replace("&#34;", '"')) for text in
             re.findall(r'data-hover="(.*?)"', html)]  # fmt: skip
    assert [[run["name"] for run in one["runs"]] for one in found] == [
        ["gaussian", "macer"],
        ["mixed"],
    ]


def test_soft_runs_take_the_gap_of_the_mean_softmax(tmp_path):
    rule = made_logs.Rule(n=2000, bound="bernstein")
    run = Run("soft", made_logs.write(tmp_path / "soft.tsv", made_logs.settings(rule)))
    assert run.scores == "mean softmax"
    first = run.log.records[0]
    sums = np.array(first.draws.sums)
    expected = np.log(sums[first.label] / np.delete(sums, first.label).max())
    assert run.log_gap[0] == pytest.approx(expected)
    assert "soft, by mean softmax: median" in " ".join(texts(plots.log_gap([run]).figure))
    note = plots.log_gap([run]).note
    assert "This is not Figure 1 of Jeong and Shin" in note
