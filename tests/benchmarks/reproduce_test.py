"""The rows are what the papers did, and each is computed once, over any number of sittings."""

import collections
import dataclasses
import json
import os
import resource
import signal
import threading
import time
from pathlib import Path

import made_logs
import pytest

from benchmarks import reproduce
from benchmarks.reproduce_rows import CERTIFY_500, TABLES, Row, Training
from tfmacer import certify, train
from tfmacer.common.errors import UserError
from tfmacer.records.logs import read_log
from tfmacer.records.runs import RunDirectory
from tfmacer.report.published import published_rows
from tfmacer.training.published import published_weight

ROOT = Path(__file__).parents[2]
ALL = [(table, row) for table, rows in TABLES.items() for row in rows]
TINY = Row(
    training=Training(
        dataset="mnist5k",
        objective="gaussian",
        sigma=0.5,
        epochs=1,
        flags=("--lr_decay_epochs=", "--eval_examples=0"),
    ),
    certify=("--num_examples=4", "--skip=250", "--n=500"),
)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)
    previous = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, previous)


def parsed(flags, arguments):
    """The values of flags, parsed as the command parses them."""
    flags.unparse_flags()
    assert flags(["command", *arguments]) == ["command"]
    return {name: flags[name].value for name in flags}


def values(row):
    return parsed(train.FLAGS, row.training.arguments("runs/x"))


@pytest.mark.parametrize(("table", "row"), ALL, ids=lambda each: getattr(each, "name", each))
def test_a_row_is_what_its_name_says(table, row):
    found = values(row)
    named = f"{found['dataset']}_{found['network']}_{found['objective']}"
    assert row.name.startswith(named)
    assert row.name.endswith(f"_{found['sigma']}_{found['epochs']}")
    assert found["run_dir"] == "runs/x"
    if found["lambda"] is None and found["objective"] not in ("gaussian", "smoothadv"):
        assert published_weight(found["dataset"], found["objective"], found["sigma"]).value > 0
    if row.certify:
        # Evenly over the whole test set, or over what was kept back for choosing.
        chosen = parsed(certify.FLAGS, [*row.certify, "--out=x.tsv", "--run_dir=x"])
        total = 1_000 if found["dataset"] == "mnist5k" else 10_000
        kept = ("train[:50000]", "train[50000:]") if table == "clip" else ("train", "test")
        assert (found["train_split"], chosen["split"]) == kept
        assert chosen["num_examples"] * chosen["skip"] == total
        assert (chosen["n0"], chosen["alpha"], chosen["start"]) == (100, 0.001, 0)


def test_names_tell_rows_and_networks_apart():
    names = collections.Counter((table, row.name) for table, row in ALL)
    assert max(names.values()) == 1
    trained = {(row.training.name, bool(row.certify)): row.training for _, row in ALL}
    assert all(trained[row.training.name, bool(row.certify)] == row.training for _, row in ALL)


def test_table_a_is_the_published_schedule():
    wanted = {"epochs": 90, "learning_rate": 0.01, "momentum": 0.9,
              "lr_decay_epochs": ["30", "60"], "nesterov": True, "weight_decay": 0.0001,
              "clip_norm": None, "lambda": None, "num_noise": None, "seed": 0}  # fmt: skip
    for row in TABLES["A"]:
        found = values(row)
        assert {name: found[name] for name in wanted} == wanted
        # The authors' code makes two steps of each batch of 256 where there are two copies.
        assert found["batch_size"] == (128 if found["objective"] == "consistency" else 256)
    runs = [(row.training.objective, row.training.sigma) for row in TABLES["A"]]
    assert runs[:2] == [("gaussian", 0.5), ("consistency", 0.5)]
    assert set(runs) == {
        *((o, s) for o in ("gaussian", "consistency") for s in (0.25, 0.5, 1.0)),
        ("stability", 0.5),
    }
    assert [row.certify for row in TABLES["A"][:2]] == [CERTIFY_500] * 2


def test_table_b_scales_the_schedule_and_nothing_else():
    copies = {"consistency": 2, "smoothmix": 4, "smoothadv": 4, "smoothadv_consistency": 4}
    base = values(TABLES["A"][0])
    for row in TABLES["B"][:-1]:
        found = values(row)
        assert found["batch_size"] * copies.get(found["objective"], 1) == base["batch_size"]
        assert found["epochs"] * 6 == base["epochs"]
        assert [6 * int(e) for e in found["lr_decay_epochs"]] == [30, 60]
        free = {
            "objective",
            "sigma",
            "run_dir",
            "epochs",
            "lr_decay_epochs",
            "clip_norm",
            "batch_size",
        }
        free |= {"epsilon_warmup_epochs", "lambda_schedule", "lambda_warmup_epochs"}
        assert {n for n in found if found[n] != base[n]} <= free
        # Ours has no published warm-up: a sixth of its epochs, as it was chosen.
        length = 15 if found["objective"] == "macer" else 10
        for warmup in ("epsilon_warmup_epochs", "lambda_warmup_epochs"):
            assert found[warmup] is None or 6 * found[warmup] == pytest.approx(length, rel=1e-4)
    last = values(TABLES["B"][-1])
    assert (last["objective"], last["epochs"], last["clip_norm"]) == ("macer", 90, 5.0)
    assert last["lambda_warmup_epochs"] == 15
    assert last["lr_decay_epochs"] == ["30", "60"]


def test_the_rows_of_other_initial_weights_are_those_of_table_b():
    """Each by the flags of a row there, into a run directory of its own."""
    in_b = {(row.training.objective, row.training.sigma): row for row in TABLES["B"][:-1:4]}
    for row in TABLES["initial"]:
        other = in_b[row.training.objective, row.training.sigma]
        assert row.training.name != other.training.name
        assert dataclasses.replace(row.training, variant="") == other.training
        assert row.certify == other.certify


def test_clipping_is_chosen_without_the_test_images():
    rows = [values(row) for row in TABLES["clip"]]
    assert {(found["lambda_schedule"], found["clip_norm"]) for found in rows[1:]} == {
        ("deferred", None), ("deferred", 10), ("linear", 5), ("linear", 1), ("constant", 1)
    }  # fmt: skip
    for found in rows:
        assert found["eval_examples"] == 0
        # A fifth of Table B's schedule.
        assert (found["epochs"], found["lr_decay_epochs"]) == (3, ["1", "2"])


def test_the_study_of_macer_changes_one_hyperparameter_at_a_time():
    base = {"num_noise": 16, "lambda": 16.0, "gamma": 8.0, "beta": 16.0, "clip_norm": None}
    seen = collections.defaultdict(set)
    for row in TABLES["macer"]:
        found = {name: values(row)[name] for name in base}
        changed = {name for name in base if found[name] != base[name]}
        assert len(changed) <= 1 or changed == {"lambda", "clip_norm"}
        for name in changed if len(changed) == 1 else set():
            seen[name].add(found[name])
    wanted = {"num_noise": {1, 4}, "lambda": {0, 1, 4}, "gamma": {2, 4, 16}, "beta": {1, 4, 64}}
    assert seen == wanted | {"clip_norm": {0.5, 1, 5}}


@pytest.mark.parametrize("table", ["S4", "S5", "S6"])
def test_the_study_of_consistency_holds_every_row_of_the_paper(table):
    defaults = {"num_noise": "2", "lambda": "5", "consistency_loss": "default"}
    ours = set()
    for row in TABLES["consistency"]:
        found = values(row)
        if found["objective"] == "consistency":
            chosen = (int(found["lambda"]), found["num_noise"], found["consistency_loss"])
            ours.add((found["sigma"], *map(str, chosen)))
    for row in published_rows():
        if (row.paper, row.table) == ("Consistency", table) and row.method == "consistency":
            asked = defaults | dict(row.hyperparameters)
            key = (row.sigma, asked["lambda"], asked["num_noise"], asked["consistency_loss"])
            assert key in ours or asked["lambda"] == "0"


class FakeSitting:
    """Commands that take no time; the one named ends the sitting, or fails."""

    def __init__(self, *, ends=None, fails=None):
        self.ends, self.fails, self.ran = ends, fails, []

    def run(self, module, arguments):
        name = module.removeprefix("tfmacer.")
        given = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
        directory = RunDirectory(Path(given["run_dir"]))
        self.ran.append((name, sorted(path.name for path in directory.checkpoints.glob("*"))))
        if name == self.fails:
            raise UserError(f"{module} ended with status 1")
        getattr(self, f"_{name}")(directory, given)
        if name == self.ends:
            raise reproduce.SittingOverError
        return 2048

    def _train(self, directory, given):
        directory.checkpoints.mkdir(parents=True, exist_ok=True)
        directory.flags.write_text(f"--sigma={given['sigma']}\n")
        directory.metrics.write_text("epoch,seconds\n1,9.5\n2,3.5\n")
        for step in (10, 20):
            for ending in ("index", "data-00000-of-00001"):
                (directory.checkpoints / f"step-{step}.{ending}").write_text(str(step))
            os.utime(directory.checkpoints / f"step-{step}.index", (step, step))
        (directory.checkpoints / "checkpoint").write_text("step-20")
        if self.ends != "train":
            directory.model.write_text("network")
            directory.smoothing.write_text("{}")

    def _certify(self, directory, given):
        images = 2 if self.ends == "certify" else None
        made_logs.write(Path(given["out"]), made_logs.settings(total=5), images=images)


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "TABLES", {"A": [TINY]})
    (found,) = reproduce.jobs("A", None, tmp_path / "runs", tmp_path / "results")
    return found


def elsewhere(job, tmp_path):
    """The same job where only the results have come along."""
    return reproduce.Job(job.table, job.row, tmp_path / "other", job.results)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_a_row_is_trained_certified_and_copied(job):
    sitting = FakeSitting()
    reproduce.compute(job, sitting)
    assert [name for name, _ in sitting.ran] == ["train", "certify"]
    assert job.state == "done"
    assert files(job.results) == [
        f"A/mnist5k_lenet_gaussian_0.5_1.{end}" for end in ("metrics.csv", "tsv", "tsv.json")
    ]
    assert read_log(job.result).records == read_log(job.log).records
    metrics = job.result.parent / f"{job.row.name}.metrics.csv"
    assert metrics.read_text() == job.directory.metrics.read_text()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[:-9], "1 of 5 images have no row, the first is idx 4"),
        (lambda text: text.replace("0.", "1.", 1), "idx 0: radius is 1."),
        (lambda text: "", "not a certification log"),
    ],
)
def test_a_result_that_is_not_whole_is_not_done(job, capsys, damage, said):
    reproduce.compute(job, FakeSitting())
    whole = job.result.read_text()
    job.result.write_text(damage(whole))
    assert job.state.startswith("damaged: ")
    assert said in job.state
    assert job.needed_again
    sitting = FakeSitting()
    reproduce.compute(job, sitting)
    assert [name for name, _ in sitting.ran] == ["train", "certify"]
    assert job.state == "done"
    assert job.result.read_text() == whole


def test_an_interrupted_training_goes_on_elsewhere_from_its_newest_checkpoint(job, tmp_path):
    with pytest.raises(reproduce.SittingOverError):
        reproduce.compute(job, FakeSitting(ends="train"))
    checkpoint = ["checkpoint", "step-20.data-00000-of-00001", "step-20.index"]
    assert sorted(path.name for path in (job.unfinished / "checkpoints").iterdir()) == checkpoint
    there = elsewhere(job, tmp_path)
    assert there.state == "2 of 1 epochs"
    sitting = FakeSitting()
    reproduce.compute(there, sitting)
    assert sitting.ran[0] == ("train", checkpoint)
    assert not job.unfinished.exists()


def test_an_interrupted_certification_keeps_the_network_and_the_rows(job, tmp_path):
    with pytest.raises(reproduce.SittingOverError):
        reproduce.compute(job, FakeSitting(ends="certify"))
    log = f"certify/{job.row.name}.tsv"
    kept = ["flags.txt", "metrics.csv", "model.keras", "smoothing.json", log, f"{log}.json"]
    assert files(job.unfinished) == sorted(kept)
    there = elsewhere(job, tmp_path)
    assert there.state == "trained, 2 images certified"
    reproduce.compute(there, FakeSitting())
    assert len(read_log(there.result).records) == 5
    assert not job.unfinished.exists()


def test_a_network_that_another_row_needs_is_kept(job, tmp_path, monkeypatch):
    other = Row(training=TINY.training, certify=TINY.certify, variant="soft4")
    monkeypatch.setattr(reproduce, "TABLES", {"A": [TINY], "soft": [other]})
    reproduce.compute(job, FakeSitting())
    # Without the log, which is whole in the results.
    assert files(job.unfinished) == ["flags.txt", "metrics.csv", "model.keras", "smoothing.json"]
    (second,) = reproduce.jobs("soft", None, tmp_path / "other", job.results)
    reproduce.compute(second, FakeSitting())
    assert second.result.name == "mnist5k_lenet_gaussian-soft4_0.5_1.tsv"
    assert not job.unfinished.exists()


def test_what_was_kept_elsewhere_meanwhile_is_taken_up(job, tmp_path, monkeypatch):
    other = Row(training=TINY.training, certify=TINY.certify, variant="soft4")
    monkeypatch.setattr(reproduce, "TABLES", {"A": [TINY], "soft": [other]})
    reproduce.compute(job, FakeSitting())
    (second,) = reproduce.jobs("soft", None, tmp_path / "other", job.results)
    with pytest.raises(reproduce.SittingOverError):
        reproduce.compute(second, FakeSitting(ends="certify"))
    assert second.unfinished.is_dir()
    # Where the network was trained a row of it is stopped before it has done anything.
    (here,) = reproduce.jobs("soft", None, job.runs, job.results)
    with pytest.raises(reproduce.SittingOverError):
        reproduce.compute(here, FakeSitting(ends="train"))
    assert len(read_log(here.log).records) == 2
    assert here.state == "trained, 2 images certified"
    assert (here.unfinished / "certify" / here.log.name).is_file()


def test_a_later_checkpoint_elsewhere_is_taken_up(job, tmp_path):
    with pytest.raises(reproduce.SittingOverError):
        reproduce.compute(job, FakeSitting(ends="train"))
    (job.unfinished / "metrics.csv").write_text("epoch,seconds\n1,9\n2,3\n3,3\n")
    (job.unfinished / "checkpoints" / "step-30.index").touch()
    reproduce.take_up(job)
    assert (job.directory.checkpoints / "step-30.index").is_file()
    assert job.directory.metrics.read_text().endswith("3,3\n")


def test_a_checkpoint_within_the_first_epoch_is_taken_up(job, tmp_path):
    with pytest.raises(reproduce.SittingOverError):
        reproduce.compute(job, FakeSitting(ends="train"))
    (job.unfinished / "metrics.csv").unlink()
    there = elsewhere(job, tmp_path)
    reproduce.take_up(there)
    assert files(there.directory.root) == files(job.unfinished)


def test_the_data_is_where_the_flag_says_for_every_command(job):
    there = dataclasses.replace(job, data_dir="/data/two")
    sitting, given = FakeSitting(), []
    ran = sitting.run
    sitting.run = lambda module, arguments: (given.append(arguments), ran(module, arguments))[1]
    reproduce.compute(there, sitting)
    assert [arguments.count("--data_dir=/data/two") for arguments in given] == [1, 1]


def test_a_log_with_missing_images_is_no_result(job):
    sitting = FakeSitting()
    sitting._certify = lambda directory, given: made_logs.write(
        Path(given["out"]), made_logs.settings(total=5), images=3
    )
    with pytest.raises(UserError, match="2 of 5 images have no row"):
        reproduce.compute(job, sitting)
    assert not job.result.exists()


def test_cost_is_measured_from_the_start(tmp_path):
    row = Row(training=TINY.training)
    job = reproduce.Job("cost", row, tmp_path / "runs", tmp_path / "results")
    for _ in range(2):
        sitting = FakeSitting()
        reproduce.compute(job, sitting)
        assert sitting.ran == [("train", [])]
    assert json.loads(job.result.read_text()) == {
        "objective": "gaussian", "sigma": 0.5, "seconds_per_epoch": 3.5, "peak_memory_mib": 2,
    }  # fmt: skip
    with pytest.raises(reproduce.SittingOverError):
        reproduce.compute(job, FakeSitting(ends="train"))
    assert not job.unfinished.exists()


def run(tmp_path, *arguments):
    return reproduce.main(
        [f"--runs_dir={tmp_path / 'runs'}", f"--results_dir={tmp_path / 'results'}", *arguments]
    )


def test_rows_that_are_there_are_skipped_and_one_failure_stops_no_other(
    tmp_path, monkeypatch, capsys
):
    second = Row(training=TINY.training, certify=TINY.certify, variant="n500")
    monkeypatch.setattr(reproduce, "TABLES", {"A": [TINY, second]})
    monkeypatch.setattr(reproduce, "Sitting", lambda minutes: FakeSitting(fails="certify"))
    assert run(tmp_path, "--table=A") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.count("certify ended with status 1") == 2
    sitting = FakeSitting()
    monkeypatch.setattr(reproduce, "Sitting", lambda minutes: sitting)
    assert run(tmp_path, "--table=A", f"--row={TINY.name}") == 0
    assert run(tmp_path, "--table=A") == 0
    assert run(tmp_path, "--table=A") == 0
    assert [name for name, _ in sitting.ran] == ["train", "certify"] * 2
    capsys.readouterr()
    assert run(tmp_path, "--list") == 0
    assert capsys.readouterr().out.split() == ["A", TINY.name, "done", "A", second.name, "done"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "--table must be given"), (["--table=Z"], "--table"),
     (["--table=A", "--row=x"], "--row=x: no such row"),
     (["--table=A", "--max_minutes=-1"], "max_minutes")],
)  # fmt: skip
def test_mistakes_are_one_line(tmp_path, capsys, arguments, message):
    assert run(tmp_path, *arguments) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


SLEEPER = """
import pathlib, signal, sys, time
def saved(*_):
    pathlib.Path("saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, saved)
pathlib.Path("started").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("by", ["time", "signal"])
def test_a_sitting_that_is_over_ends_its_command(tmp_path, monkeypatch, by):
    (tmp_path / "sleeper.py").write_text(SLEEPER)
    monkeypatch.chdir(tmp_path)
    sitting = reproduce.Sitting(None)

    def end_it():
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        if by == "time":
            sitting._end = 0.0
        else:
            sitting.stop = True

    thread = threading.Thread(target=end_it)
    thread.start()
    with pytest.raises(reproduce.SittingOverError):
        sitting.run("sleeper", [])
    thread.join()
    assert (tmp_path / "saved").exists()
    with pytest.raises(reproduce.SittingOverError):
        sitting.run("sleeper", [])


def test_a_command_that_the_same_signal_ended_did_not_fail(tmp_path, monkeypatch):
    """As `timeout 60 python -m benchmarks.reproduce`, which signals the whole process group."""
    (tmp_path / "sleeper.py").write_text(
        "import os, pathlib, time\n"
        "pathlib.Path('new').write_text(str(os.getpid()))\n"
        "pathlib.Path('new').rename('pid')\n"
        "time.sleep(60)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reproduce, "_POLL_SECONDS", 1.0)
    sitting = reproduce.Sitting(None)

    def end_both():
        while not (tmp_path / "pid").exists():
            time.sleep(0.01)
        sitting.stop = True
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)

    thread = threading.Thread(target=end_both)
    thread.start()
    with pytest.raises(reproduce.SittingOverError):
        sitting.run("sleeper", [])
    thread.join()


def test_a_command_gives_its_memory_or_its_failure():
    sitting = reproduce.Sitting(1.0)
    # Linux counts what the forked copy of this process held before it became the command.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert 1_000 < sitting.run("json.tool", ["--help"]) <= max(100_000, own)
    with pytest.raises(UserError, match="python -m json.tool ended with status 2"):
        sitting.run("json.tool", ["--no-such-flag"])


@pytest.mark.slow
def test_a_tiny_row_from_training_to_result(tmp_path, monkeypatch):
    """With the real commands; stopped at once by SIGTERM first, as a scheduler would."""
    monkeypatch.setattr(reproduce, "TABLES", {"A": [TINY]})
    assert run(tmp_path, "--table=A", "--max_minutes=0") == 0
    assert not (tmp_path / "results").exists()
    assert run(tmp_path, "--table=A") == 0
    log = read_log(tmp_path / "results" / "A" / "mnist5k_lenet_gaussian_0.5_1.tsv")
    assert [record.idx for record in log.records] == [0, 250, 500, 750]
    settings = log.settings
    assert (settings.rule.n, settings.classifier.sigma) == (500, 0.5)
    assert settings.images.dataset == "mnist5k"
    assert log.altered is None
