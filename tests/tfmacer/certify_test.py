import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from small_exports import write_export

from tfmacer import certify
from tfmacer.records.locked_table import LockedTable
from tfmacer.records.logs import read_log, settings_path
from tfmacer.records.runs import RunDirectory
from tfmacer.votes import devices, models

PLAN = ["--num_examples=40", "--skip=25", "--n=10000", "--alpha=0.01", "--seed=9"]


@pytest.fixture(autouse=True)
def threads_as_they_are(monkeypatch):
    """TensorFlow is already running in the tests' process and keeps its thread counts."""
    monkeypatch.setattr(devices, "use_threads", lambda *_: None)


def run(*flags: object) -> int:
    return certify.main([str(flag) for flag in flags])


def rows(path: Path) -> list[list[str]]:
    """Every column but `time`, sorted by idx."""
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    time_column = lines[0].index("time")
    return sorted(
        (line[:time_column] + line[time_column + 1 :] for line in lines[1:]),
        key=lambda line: int(line[0]),
    )


@pytest.fixture(scope="module")
def reference(tiny_run, tmp_path_factory) -> Path:
    """The log of an uninterrupted run."""
    out = tmp_path_factory.mktemp("reference") / "log.tsv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "use_threads", lambda *_: None)
        assert run(f"--run_dir={tiny_run}", f"--out={out}", *PLAN) == 0
    return out


def test_a_log_holds_every_selected_image_once_with_its_label(reference):
    log = read_log(reference)
    assert [record.idx for record in log.records] == list(range(0, 1000, 25))
    assert all(
        sum(record.draws.counts) == 10_000 and sum(record.draws.select_counts) == 100
        for record in log.records
    )
    assert {record.label for record in log.records} <= set(range(10))
    assert log.settings.seed == 9
    assert log.unfinished is None
    assert log.altered is None


def test_a_second_run_of_the_same_settings_says_that_it_is_finished(reference, tiny_run, capsys):
    before = reference.read_bytes()
    assert run(f"--run_dir={tiny_run}", f"--out={reference}", *PLAN) == 0
    assert "finished already, 40 images" in capsys.readouterr().out
    assert reference.read_bytes() == before


def killed_run(command: list[str], out: Path, moment: float) -> bool:
    """Runs a command and kills it `moment` seconds after its first row; True if it was alive."""
    rows_before = out.read_text().count("\n") if out.exists() else 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if out.exists() and out.read_text().count("\n") > rows_before + 1:
                time.sleep(moment)
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.01)
        return process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("kills", [1, pytest.param(100, marks=pytest.mark.slow, id="100-kills")])
def test_killed_at_any_moment_nothing_is_lost_and_nothing_counted_twice(
    kills, reference, tiny_run, tmp_path
):
    """SIGKILL at random moments; then the finished log equals the uninterrupted one."""
    moments = random.Random(kills)
    # A kill that comes after the end is not counted.
    command = [sys.executable, "-m", "tfmacer.certify", f"--run_dir={tiny_run}", *PLAN]
    killed = 0
    number = 0
    for _ in range(3 * kills):
        if killed == kills:
            break
        out = tmp_path / f"log{number}.tsv"
        alive = killed_run([*command, f"--out={out}"], out, moments.uniform(0, 0.5))
        killed += alive
        if not alive:
            assert rows(out) == rows(reference)
            number += 1
    assert killed == kills
    subprocess.run([*command, f"--out={out}"], check=True, capture_output=True)
    assert rows(out) == rows(reference)


def test_shards_hold_the_rows_of_the_whole(tiny_run, tmp_path):
    plan = ["--num_examples=10", "--skip=25", "--n=1000"]
    assert run(f"--run_dir={tiny_run}", f"--out={tmp_path / 'whole.tsv'}", *plan) == 0
    found = []
    for i in range(3):
        out = tmp_path / f"{i}.tsv"
        assert run(f"--run_dir={tiny_run}", f"--out={out}", f"--shard={i}/3", *plan) == 0
        found += rows(out)
    assert sorted(found, key=lambda row: int(row[0])) == rows(tmp_path / "whole.tsv")


def test_several_bounds_share_one_pass_over_the_draws(tiny_run, tmp_path):
    out = tmp_path / "log.tsv"
    plan = ["--num_examples=5", "--n=2000", "--beta=2"]
    names = "clopper_pearson,hoeffding,bernstein"
    assert run(f"--run_dir={tiny_run}", f"--out={out}", f"--bound={names}", *plan) == 0
    hard = read_log(out).records
    for name in ("hoeffding", "bernstein"):
        found = read_log(tmp_path / f"log.{name}.tsv")
        soft = found.records
        assert [r.draws.counts for r in soft] == [r.draws.counts for r in hard]
        assert all(abs(sum(r.draws.sums) - 2000) < 0.01 for r in soft)
        assert found.settings.rule.bound == name
    assert all(r.draws.sums is None for r in hard)


def test_an_export_gives_the_log_of_its_run(tiny_run, tiny_export, tmp_path):
    plan = ["--num_examples=6", "--skip=100", "--n=2000"]
    assert run(f"--run_dir={tiny_run}", f"--out={tmp_path / 'a.tsv'}", *plan) == 0
    assert run(f"--saved_model={tiny_export}", f"--out={tmp_path / 'b.tsv'}", *plan) == 0
    assert rows(tmp_path / "a.tsv") == rows(tmp_path / "b.tsv")


def test_a_model_calls_nothing_by_its_description(tiny_run, tmp_path, monkeypatch, capsys):
    """A run and an export whose dataset is a function that would remove the folder `test`."""
    (tmp_path / "test").mkdir()
    theirs = RunDirectory(tmp_path / "theirs")
    shutil.copytree(tiny_run, theirs.root)
    smoothing = dataclasses.replace(theirs.read_smoothing(), dataset="shutil:rmtree")
    theirs.smoothing.write_text(smoothing.to_json())
    network = models.load_run(tiny_run)[0]
    exported = write_export(tmp_path / "export" / "1", network, smoothing)
    monkeypatch.chdir(tmp_path)
    for model in (f"--run_dir={theirs.root}", f"--saved_model={exported}"):
        capsys.readouterr()
        assert run(model, "--out=log.tsv", "--n=500") == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "records the dataset 'shutil:rmtree'" in line
        assert line.endswith("give --dataset")
    assert (tmp_path / "test").is_dir()
    assert not (tmp_path / "log.tsv").exists()
    theirs.smoothing.write_text(dataclasses.replace(smoothing, dataset="cifar10").to_json())
    theirs.flags.write_text("--data_dir=theirs/data\n")
    assert run(f"--run_dir={theirs.root}", "--out=log.tsv", "--n=500") == 1
    assert "the run read cifar10 from 'theirs/data'" in capsys.readouterr().err


def test_a_model_downloads_nothing_by_its_description(tiny_run, tmp_path, downloads, capsys):
    theirs = RunDirectory(tmp_path / "theirs")
    shutil.copytree(tiny_run, theirs.root)
    smoothing = dataclasses.replace(theirs.read_smoothing(), dataset="cifar10")
    theirs.smoothing.write_text(smoothing.to_json())
    command = [f"--run_dir={theirs.root}", f"--out={tmp_path}/log.tsv", "--n=500"]
    assert run(*command, f"--data_dir={tmp_path}") == 1
    assert "is not downloaded on its word: give --data_dir, or" in capsys.readouterr().err
    assert not downloads
    assert run(*command, f"--data_dir={tmp_path}", "--dataset=cifar10") == 1
    assert downloads == ["cifar10"]


def test_several_devices_give_the_log_of_one(tiny_run, tmp_path):
    """Two logical CPU devices under MirroredStrategy, in a process of its own."""
    script = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, 2 * [tf.config.LogicalDeviceConfiguration()])
from tfmacer import certify
from tfmacer.votes import devices, models
devices.strategy = lambda name: tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
sys.exit(certify.main(sys.argv[1:]))
"""
    plan = ["--num_examples=7", "--skip=100", "--n=2000"]
    two = [sys.executable, "-c", script, f"--run_dir={tiny_run}", f"--out={tmp_path / 'two.tsv'}"]
    subprocess.run([*two, *plan], check=True, capture_output=True)
    assert run(f"--run_dir={tiny_run}", f"--out={tmp_path / 'one.tsv'}", *plan) == 0
    assert rows(tmp_path / "two.tsv") == rows(tmp_path / "one.tsv")


def test_a_network_without_normalisation_is_warned_of(tiny_run, tmp_path, capsys):
    """On standard error and in the log's settings; wherever in the network it comes first."""
    network = models.load_run(tiny_run)[0]
    assert models.leads_with_normalization(network)
    assert models.leads_with_normalization(keras.Sequential([keras.Input((28, 28, 1)), network]))
    bare = keras.Sequential([keras.Input((28, 28, 1)), *network.layers[1:]])
    run_of_bare = RunDirectory(tmp_path / "bare")
    run_of_bare.root.mkdir()
    bare.save(run_of_bare.model)
    digest = models.network_digest(run_of_bare.model, bare)
    smoothing = dataclasses.replace(RunDirectory(tiny_run).read_smoothing(), model_digest=digest)
    run_of_bare.smoothing.write_text(smoothing.to_json())
    said = "no normalisation layer leads the network"
    for model, warned in ((tiny_run, False), (run_of_bare.root, True)):
        out = tmp_path / f"{warned}.tsv"
        plan = ["--num_examples=2", "--skip=500", "--n=500"]
        assert run(f"--run_dir={model}", f"--out={out}", *plan) == 0
        assert (said in capsys.readouterr().err) == warned
        assert (said in settings_path(out).read_text()) == warned


def test_folders_with_and_without_labels_are_certified(tiny_run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
    for i, image in enumerate(pixels):
        for folder in (tmp_path / "labelled" / "ab"[i % 2], tmp_path / "bare"):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i}.png")
    logs = {}
    for kind in ("labelled", "bare"):
        out = tmp_path / f"{kind}.tsv"
        flags = [f"--dataset=folder:{tmp_path / kind}", f"--out={out}", "--n=500"]
        assert run(f"--run_dir={tiny_run}", *flags) == 0
        logs[kind] = read_log(out).records
    assert [record.label for record in logs["labelled"]] == [0, 0, 0, 1, 1, 1]
    assert {(record.label, record.correct) for record in logs["bare"]} == {(-1, False)}
    # The first file of both is the same image at the same position: the same noise, the same votes.
    assert logs["labelled"][0].draws == logs["bare"][0].draws
    wrong = tmp_path / "bare" / "0.png"
    Image.fromarray(pixels[0][:, :20]).save(wrong)
    Image.fromarray(pixels[1][:, :20]).save(tmp_path / "bare" / "1.png")
    for i in range(2, 6):
        (tmp_path / "bare" / f"{i}.png").unlink()
    flags = [f"--dataset=folder:{tmp_path / 'bare'}", f"--out={tmp_path / 'no.tsv'}", "--n=500"]
    assert run(f"--run_dir={tiny_run}", *flags) == 1


def test_a_folder_of_more_classes_than_the_models_is_refused(tiny_run, tmp_path, capsys):
    for i in range(11):
        (tmp_path / "photos" / f"{i:02d}").mkdir(parents=True)
        picture = Image.fromarray(np.zeros((28, 28), np.uint8))
        picture.save(tmp_path / "photos" / f"{i:02d}" / "0.png")
    dataset, out = f"--dataset=folder:{tmp_path / 'photos'}", tmp_path / "log.tsv"
    assert run(f"--run_dir={tiny_run}", dataset, f"--out={out}") == 1
    assert "photos has 11 classes, the model 10" in capsys.readouterr().err
    assert not out.exists()


@pytest.fixture
def photos(tmp_path):
    """A folder of six pictures in two classes; the flag that names it."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
    for i, image in enumerate(pixels):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return f"--dataset=folder:{tmp_path / 'photos'}"


@pytest.mark.parametrize("kept", [6, 3], ids=["finished", "unfinished"])
def test_a_log_of_exchanged_pictures_is_not_gone_on_with(tiny_run, photos, tmp_path, capsys, kept):
    out = tmp_path / "log.tsv"
    command = [f"--run_dir={tiny_run}", photos, f"--out={out}", "--n=500"]
    command.append("--bound=clopper_pearson,bernstein")
    assert run(*command) == 0
    log = read_log(out)
    assert log.settings.images.class_names == ("a", "b")
    assert [r.name for r in log.records] == [f"{'ab'[i % 2]}/{i}.png" for i in (0, 2, 4, 1, 3, 5)]
    lines = out.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[: kept + 1]))
    before = out.read_bytes()
    changed = tmp_path / "photos" / "a" / "2.png"
    picture = changed.read_bytes()
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(changed)
    capsys.readouterr()
    assert run(*command) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert "log.tsv: idx 1 (a/2.png) was certified with pixels of SHA-256" in line
    assert out.read_bytes() == before
    changed.write_bytes(picture)
    assert run(*command) == 0


def test_a_log_of_the_first_version_is_not_gone_on_with(tiny_run, photos, tmp_path, capsys):
    out = tmp_path / "log.tsv"
    command = [f"--run_dir={tiny_run}", photos, f"--out={out}", "--n=500"]
    assert run(*command) == 0
    log = read_log(out)
    for path in (out, settings_path(out)):
        path.unlink()
    with LockedTable(out, dataclasses.replace(log.settings, format_version=1)) as writer:
        for record in log.records:
            writer.append(record)
    capsys.readouterr()
    assert run(*command) == 1
    assert "format_version is 1, not 2: only since version 2" in capsys.readouterr().err


@pytest.mark.parametrize("moment", ["first", "last"])
def test_a_log_that_is_removed_meanwhile_is_no_success(
    tiny_run, photos, tmp_path, capsys, monkeypatch, moment
):
    out = tmp_path / "log.tsv"
    append = LockedTable.append

    def removing(writer, record):
        append(writer, record)
        if len(writer.rows) == (1 if moment == "first" else 6):
            out.unlink()

    monkeypatch.setattr(LockedTable, "append", removing)
    assert run(f"--run_dir={tiny_run}", photos, f"--out={out}", "--n=500") == 1
    captured = capsys.readouterr()
    assert (
        "log.tsv: was removed while it was written to (No such file or directory)" in captured.err
    )
    assert "done" not in captured.out


def test_an_edited_description_is_refused_and_an_old_one_is_said_once(
    tiny_run, photos, tmp_path, capsys
):
    theirs = RunDirectory(tmp_path / "theirs")
    shutil.copytree(tiny_run, theirs.root)
    text = theirs.smoothing.read_text()
    command = [f"--run_dir={theirs.root}", photos, f"--out={tmp_path / 'log.tsv'}", "--n=500"]
    theirs.smoothing.write_text(text.replace('"sigma": 0.25', '"sigma": 0.5'))
    assert run(*command) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "smoothing.json: not a usable smoothing description: altered" in line
    first = json.loads(text) | {"format_version": 1}
    del first["digest"]
    theirs.smoothing.write_text(json.dumps(first))
    assert run(*command) == 0
    said = [x for x in capsys.readouterr().err.splitlines() if "smoothing.json" in x]
    assert said == [
        f"warning: {theirs.smoothing}: written by an earlier version, without a digest: nothing "
        "tells whether it was altered since"
    ]


def test_a_contiguous_part_of_a_split_is_warned_of_and_recorded(tiny_run, tmp_path, capsys):
    out = tmp_path / "log.tsv"
    assert run(f"--run_dir={tiny_run}", f"--out={out}", "--num_examples=3", "--n=500") == 0
    assert "warning: a contiguous part of the split (3 of 1000)" in capsys.readouterr().err
    assert "contiguous" in json.loads((tmp_path / "log.tsv.json").read_text())["warnings"][0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out=x.tsv"], "exactly one of --run_dir, --saved_model and --server"),
        (["--run_dir=/nowhere"], "--out must be given"),
        (["--run_dir=/nowhere", "--out=x.csv"], "--out=x.csv: a log's name ends with .tsv"),
        (["--run_dir=/nowhere", "--out=x.tsv"], "/nowhere: not a finished run directory"),
        (["--run_dir=RUN", "--out=x.tsv", "--n=6"], "n = 6 is too small for alpha = 0.001"),
        (["--run_dir=RUN", "--out=x.tsv", "--alpha=2"], "alpha must lie between"),
        (["--run_dir=RUN", "--out=x.tsv", "--sigma=1"], "--sigma=1.0 is not the model's own, 0.25"),
        (["--run_dir=RUN", "--out=x.tsv", "--shard=3/3"], "shard must be i/N"),
        (["--run_dir=RUN", "--out=x.tsv", "--stop=never"], "stop must be "),
        (["--run_dir=RUN", "--out=x.tsv", "--bound=normal"], "'normal'"),
        (["--run_dir=RUN", "--out=x.tsv", "--stop=decide:9"], "9.0"),
        (
            ["--run_dir=RUN", "--out=x.tsv", "--stop=decide:1", "--bound=clopper_pearson"],
            "clopper_pearson holds for a fixed n only",
        ),
        (["--server=localhost:1", "--out=x.tsv"], "--model_name goes with --server"),
        (["--saved_model=/nowhere", "--out=x.tsv"], "--saved_model=/nowhere: no such directory"),
        (["--run_dir=RUN", "--out=x.tsv", "--tls"], "--tls goes with --server"),
        (["--run_dir=RUN", "--out=x.tsv", "--allow_plaintext"], "--allow_plaintext goes with"),
        (
            ["--server=tf:8500", "--model_name=m", "--out=x.tsv"],
            "--server=tf:8500: not a loopback address",
        ),
        (
            ["--server=localhost:1", "--model_name=m", "--out=x.tsv", "--tls_ca=no.pem"],
            "--tls_ca needs --tls",
        ),
        (
            ["--server=tf:1", "--model_name=m", "--out=x.tsv", "--tls", "--tls_ca=no.pem"],
            "--tls_ca=no.pem: cannot be read",
        ),
        (["--run_dir=RUN", "--out=x.tsv", "--num_examples=0"], "num_examples"),
        (["--run_dir=RUN", "--out=x.tsv", "--start=1000"], "start is 1000"),
        (["--run_dir=RUN", "--out=x.tsv", "--parts_dir=y"], "--parts_dir goes with --runner"),
        (["--run_dir=RUN", "--out=x.tsv", "--part_timeout=9"], "--part_timeout goes with --runner"),
        (
            ["--run_dir=RUN", "--out=x.tsv", "--runner=direct", "--part_timeout=9"],
            "--part_timeout is for other runners",
        ),
        (["--run_dir=RUN", "--out=x.tsv", "--runner=direct", "--shard=0/2"], "leave --shard out"),
        (["--run_dir=RUN", "--out=a[1]/x.tsv", "--runner=direct"], "which Beam takes for patterns"),
        (["--run_dir=RUN", "--out=x.tsv", "--runner=direct", "--parts_dir=a*"], "--parts_dir=a*:"),
        (["--run_dir=RUN", "--out=x.tsv", "--runner=direct", "--stop=budget:1"], "the clock"),
        (["--run_dir=RUN", "--out=x.tsv", "--runner=samza"], "--runner=samza"),
        (
            ["--server=localhost:1", "--model_name=m", "--out=x.tsv", "--runner=direct"],
            "--server draws by itself",
        ),
        (
            ["--run_dir=RUN", "--out=x.tsv", "--runner=direct", "--pipeline_option=--a=b"],
            "--pipeline_option=--a=b: must be NAME=VALUE",
        ),
        (["--run_dir=RUN", "--out=x.tsv", "--unknown"], "Unknown command line flag 'unknown'"),
        (["--run_dir=RUN", "--out=x.tsv", "extra"], "'extra'"),
    ],
)
def test_bad_flags_get_one_line_and_write_nothing(
    flags, message, tiny_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert run(*(flag.replace("RUN", str(tiny_run)) for flag in flags)) in (1, 2)
    error = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
    assert len(error) == 1
    assert message in error[0]
    assert list(tmp_path.iterdir()) == []
