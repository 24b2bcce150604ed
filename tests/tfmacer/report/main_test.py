import csv
import shutil

import made_logs
import published_logs
import pytest

from tfmacer.guarantee.rule import Rule
from tfmacer.report import __main__ as report

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"


def run(*arguments):
    return report.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    made_logs.write(folder / "gaussian" / "certify" / "test.tsv", made_logs.settings())
    settings = made_logs.settings(Rule(n=3000), model_digest="b" * 64)
    made_logs.write(folder / "macer" / "certify" / "test.tsv", settings, shift=0.5)
    (folder / "macer" / "notes.txt").write_text("not a log\n")
    return folder


def test_a_directory_of_runs_gives_every_file(logs, tmp_path, capsys):
    out = tmp_path / "new" / "report"
    assert run(logs, f"--out_dir={out}") == 0
    plots = ["log_probability_gap", "p_true", "radius_accuracy", "radius_by_class"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [
            *(f"{plot}.{kind}" for plot in plots for kind in ("png", "svg")),
            "report.html", "report.md", "report.tex",
            "results.csv", "differences.csv", "seeds.csv",
        ]
    )  # fmt: skip
    with open(out / "results.csv") as file:
        assert [line["run"] for line in csv.DictReader(file)] == ["gaussian", "macer"]
    markdown = (out / "report.md").read_text()
    for text in ("| gaussian | 40 |", "| macer | gaussian | 40 |", "Dataset-level", "differ in n"):
        assert text in markdown
    assert (out / "report.tex").read_text().count("\\toprule") == 3
    # Long lines are wrapped where the terminal ends.
    printed = " ".join(capsys.readouterr().out.split())
    assert "ACR of macer minus gaussian, 40 images: +" in printed
    assert (
        "warning: compare with care: the runs differ in n: 2000 (gaussian), 3000 (macer)"
        in " ".join(printed.split())
    )
    assert f"report: {out / 'report.html'}" in printed


def test_files_and_directories_may_overlap_and_follow_the_flags(logs, tmp_path):
    one = logs / "gaussian" / "certify" / "test.tsv"
    assert run(f"--out_dir={tmp_path}", one, logs, one, "--radii=0,0.125") == 0
    with open(tmp_path / "results.csv") as file:
        lines = list(csv.DictReader(file))
    assert [line["run"] for line in lines] == ["gaussian", "macer"]
    assert "certified_0.125" in lines[0]
    assert "certified_0.25" not in lines[0]


def test_one_log_goes_by_its_run(logs, tmp_path):
    assert run(logs / "macer" / "certify" / "test.tsv", f"--out_dir={tmp_path}") == 0
    assert "| macer/test | 40 |" in (tmp_path / "report.md").read_text()
    assert "Paired differences" not in (tmp_path / "report.md").read_text()


def test_a_report_is_the_same_every_time(logs, tmp_path):
    log = logs / "gaussian" / "certify" / "test.tsv"
    for name in "ab":
        assert run(log, f"--out_dir={tmp_path / name}") == 0
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_directories_hold_logs_without_an_ending(tmp_path):
    folder = tmp_path / "cifar10" / "noise_0.25" / "test"
    folder.mkdir(parents=True)
    (folder / "sigma_0.25").write_text(HEADER + "0\t1\t1\t.5\t1\t1\n")
    (folder / "predict").write_text("idx\tlabel\tpredict\tcorrect\ttime\n0\t1\t1\t1\t1\n")
    assert report.find_logs([tmp_path]) == [folder / "sigma_0.25"]


def test_a_link_to_itself_is_one_line(tmp_path, capsys):
    (tmp_path / "log.tsv").symlink_to("log.tsv")
    assert run(tmp_path / "log.tsv", f"--out_dir={tmp_path / 'out'}") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "log.tsv: cannot be read: Too many levels of symbolic links" in line


def test_published_logs_give_their_means(tmp_path):
    for name in published_logs.LOGS:
        published_logs.write(tmp_path, name)
    assert run(tmp_path, f"--out_dir={tmp_path / 'out'}") == 0
    with open(tmp_path / "out" / "results.csv") as file:
        lines = list(csv.DictReader(file))
    assert [line["acr"] for line in lines] == ["0.40250", "1.00983", "1.48405", "1.60605"]
    with open(tmp_path / "out" / "differences.csv") as file:
        (pair,) = csv.DictReader(file)
    assert pair["acr"] == "0.12200"
    assert pair["images"] == "20"
    assert "1.484 (" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["LOGS"], "--out_dir is missing"),
        (["--out_dir=OUT"], "name the logs to report on"),
        (["none.tsv", "--out_dir=OUT"], "none.tsv: cannot be read"),
        (["LOGS/macer/notes.txt", "--out_dir=OUT"], "notes.txt: not a certification log"),
        (["EMPTY", "--out_dir=OUT"], "no certification log in this directory"),
        (["LOGS", "--out_dir=OUT", "--radii=0,x"], "--radii: 'x' is not a radius"),
        (["LOGS", "--out_dir=OUT", "--radii=-1"], "--radii: '-1' is not a radius"),
        (["LOGS", "--out_dir=LOGS/macer/notes.txt"], "notes.txt: cannot be written"),
        (["LOGS", "--out_dir=OUT", "--colour=red"], "colour"),
    ],
)
def test_mistakes_are_one_line(logs, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    names = {"LOGS": str(logs), "OUT": "out", "EMPTY": "empty"}
    for name, value in names.items():
        arguments = [text.replace(name, value) for text in arguments]
    assert run(*arguments) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_log_without_labels_has_nothing_to_report(tmp_path, capsys):
    (tmp_path / "log").write_text(HEADER + "0\t-1\t1\t.5\t0\t1\n")
    assert run(tmp_path / "log", f"--out_dir={tmp_path / 'out'}") == 1
    assert "no log holds an image with a true label" in capsys.readouterr().err


def test_a_log_under_way_is_reported_with_a_warning(logs, tmp_path, capsys):
    shutil.copytree(logs, tmp_path / "runs")
    log = tmp_path / "runs" / "macer" / "certify" / "test.tsv"
    log.write_text(log.read_text()[:-30])
    assert run(tmp_path / "runs", f"--out_dir={tmp_path / 'out'}") == 0
    assert "unfinished: 1 of 40 images" in " ".join(capsys.readouterr().out.split())
