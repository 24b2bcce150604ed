"""The same log, however the work is spread, lost and tried again."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from tfmacer import certify
from tfmacer.common.errors import UserError
from tfmacer.records.logs import read_log
from tfmacer.votes import devices

pytest.importorskip("apache_beam", reason="Apache Beam, the extra beam, is not installed")

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import create_runner

from tfmacer.distributed import launch
from tfmacer.distributed.job import Job
from tfmacer.distributed.launch import make_parts
from tfmacer.distributed.partial_results import PartialResults
from tfmacer.distributed.runners import direct_workers, parse_options

# Four blocks of 16 images.
PLAN = ["--num_examples=64", "--skip=15", "--n=6000", "--seed=9"]
TWO = ["--runner=direct", "--pipeline_option=direct_num_workers=2"]
HERE = ["--runner=direct", "--pipeline_option=direct_running_mode=in_memory"]
PATIENCE = 120.0


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
def plain(tiny_run, tmp_path_factory) -> Path:
    """The log of a run without a runner."""
    out = tmp_path_factory.mktemp("plain") / "log.tsv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "use_threads", lambda *_: None)
        assert run(f"--run_dir={tiny_run}", f"--out={out}", *PLAN) == 0
    return out


def wait_for(condition, what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE} seconds"
        time.sleep(0.02)


def parts(out: Path) -> list[Path]:
    return list(out.with_name(f"{out.name}.parts").glob("*-*.json"))


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(plain, tiny_run, tmp_path, capfd):
    out = tmp_path / "log.tsv"
    killed = []

    def kill_a_worker() -> None:
        wait_for(lambda: parts(out), "a part")
        worker = json.loads(parts(out)[0].read_text())["worker"]
        killed.append(int(worker.rpartition(":")[2]))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    assert run(f"--run_dir={tiny_run}", f"--out={out}", *PLAN, *TWO) == 0
    killer.join()
    assert killed != [os.getpid()]
    assert "a worker process was lost" in capfd.readouterr().err
    assert rows(out) == rows(plain)
    assert read_log(out).settings.environment == read_log(plain).settings.environment
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.tsv", "log.tsv.json"]


def test_a_killed_run_is_finished_by_another(plain, tiny_run, tmp_path, monkeypatch):
    """Its workers end as well, and no part is made twice."""
    out = tmp_path / "log.tsv"
    command = [sys.executable, "-m", "tfmacer.certify", f"--run_dir={tiny_run}", f"--out={out}"]
    one = ["--runner=direct", "--pipeline_option=direct_num_workers=1"]
    with subprocess.Popen([*command, *PLAN, *one], stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: parts(out), "a part")
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert not out.exists()
    wait_for(lambda: not any(worker.is_running() for worker in workers), "the end of the workers")
    before = {path.name for path in parts(out)}
    made = []
    write = Job.write
    monkeypatch.setattr(
        Job,
        "write",
        lambda job, block, part: made.append(Path(job.path(block)).name) or write(job, block, part),
    )
    assert run(f"--run_dir={tiny_run}", f"--out={out}", *PLAN, *HERE) == 0
    assert rows(out) == rows(plain)
    assert made
    assert not before & set(made)


def test_several_bounds_and_a_finished_run(tiny_run, tmp_path, capsys):
    plan = ["--num_examples=5", "--skip=9", "--n=2000", "--bound=clopper_pearson,bernstein"]
    for name, runner in (("a", []), ("b", HERE)):
        assert run(f"--run_dir={tiny_run}", f"--out={tmp_path / name}.tsv", *plan, *runner) == 0
    assert rows(tmp_path / "a.tsv") == rows(tmp_path / "b.tsv")
    # With several intra-op threads, as the tests' process has, sums may move in their last digits.
    soft = [read_log(tmp_path / f"{name}.bernstein.tsv").records for name in "ab"]
    for plain, distributed in zip(*soft, strict=True):
        assert (plain.idx, plain.draws.counts) == (distributed.idx, distributed.draws.counts)
        assert plain.draws.sums == pytest.approx(distributed.draws.sums, rel=1e-6, abs=1e-6)
        assert plain.p_lower == pytest.approx(distributed.p_lower, rel=1e-6)
    capsys.readouterr()
    before = (tmp_path / "b.tsv").read_bytes()
    assert run(f"--run_dir={tiny_run}", f"--out={tmp_path / 'b.tsv'}", *plan, *HERE) == 0
    assert "finished already, 5 images" in capsys.readouterr().out
    assert (tmp_path / "b.tsv").read_bytes() == before


def interrupted(*_):
    raise KeyboardInterrupt


def folder(path: Path) -> str:
    """Four pictures in two classes; the flag that names them."""
    for i in range(4):
        picture = path / "ab"[i % 2] / f"{i}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((28, 28), 60 * i, np.uint8)).save(picture)
    return f"--dataset=folder:{path}"


@pytest.mark.parametrize("finished", [True, False], ids=["log", "parts"])
def test_exchanged_pictures_are_noticed_in_logs_and_parts(
    tiny_run, tmp_path, monkeypatch, capsys, finished
):
    out = tmp_path / "log.tsv"
    command = [f"--run_dir={tiny_run}", folder(tmp_path / "photos"), f"--out={out}", "--n=500"]
    if not finished:
        with monkeypatch.context() as patch:
            patch.setattr(launch, "join", interrupted)
            assert run(*command, *HERE) == 130
    else:
        assert run(*command, *HERE) == 0
        assert [record.name for record in read_log(out).records] == [
            "a/0.png", "a/2.png", "b/1.png", "b/3.png",
        ]  # fmt: skip
    Image.fromarray(np.full((28, 28), 1, np.uint8)).save(tmp_path / "photos" / "b" / "1.png")
    capsys.readouterr()
    assert run(*command, *HERE) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert "idx 2 (b/1.png) was certified with pixels of SHA-256" in line
    assert ("log.tsv:" if finished else "log.tsv.parts:") in line
    assert out.exists() == finished


def job(parts_dir: Path, plain: Path, run_dir: str = "/nowhere", **others) -> Job:
    settings = (read_log(plain).settings,)
    fields = {
        "saved_model": None,
        "distribution": "auto",
        "worker_threads": 1,
        "intra_op_threads": 1,
        "data_dir": None,
        "download": False,
        "modules": (),
    }
    return Job(run_dir=run_dir, settings=settings, parts_dir=str(parts_dir), **(fields | others))


def test_every_selected_image_is_in_one_block(plain, tmp_path):
    blocks = job(tmp_path, plain).blocks
    assert [index for block in blocks for index in block] == list(range(0, 960, 15))
    assert [len(block) for block in blocks] == [16] * 4


def test_a_torn_part_is_missing(plain, tmp_path):
    one = job(tmp_path / "parts", plain)
    found = PartialResults(one)
    Path(one.path(one.blocks[0])).write_text('{"records": [')
    found.look()
    assert found.missing == one.blocks


def test_only_the_parts_are_removed(plain, tmp_path):
    """The directory may be one that holds other things, too."""
    names = ("thesis.tex", "settings.json.old", "deep/00000000-1.json")
    others = [tmp_path / "parts" / name for name in names]
    for other in others:
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_text("mine")
    one = job(tmp_path / "parts", plain)
    found = PartialResults(one)
    for name in (one.path(one.blocks[0]), f"{one.path(one.blocks[1])}.0123.tmp"):
        Path(name).write_text("{}")
    found.remove()
    left = [path for path in (tmp_path / "parts").rglob("*") if path.is_file()]
    assert sorted(left) == sorted(others)
    alone = PartialResults(job(tmp_path / "alone", plain))
    alone.remove()
    assert not (tmp_path / "alone").exists()


def test_parts_of_other_settings_are_refused(plain, tmp_path, tiny_run, capsys):
    PartialResults(job(tmp_path / "log.tsv.parts", plain))
    flags = [f"--run_dir={tiny_run}", f"--out={tmp_path / 'log.tsv'}", *PLAN, "--n=1000", *HERE]
    assert run(*flags) == 1
    assert "was made with other settings: n is 6000, not 1000" in capsys.readouterr().err


def test_a_workers_mistake_is_one_line(plain, tmp_path):
    """The worker finds no network."""
    one = job(tmp_path / "parts", plain)
    found = PartialResults(one)
    options = ["direct_running_mode=in_memory"]
    with pytest.raises(UserError, match=r"^--runner=direct: /nowhere: not a finished run dir\S+:"):
        make_parts(one, found, "direct", options)


def test_workers_end_with_the_command_that_started_them(plain, tmp_path, tiny_run):
    with subprocess.Popen(["true"]) as process:
        process.wait()
    one = job(tmp_path / "parts", plain, str(tiny_run), launcher=process.pid)
    with pytest.raises(UserError, match=r"process \d+, has ended"):
        make_parts(one, PartialResults(one), "direct", ["direct_running_mode=in_memory"])


def test_settings_of_another_log_are_not_overwritten(plain, tmp_path, tiny_run, capsys):
    out = tmp_path / "log.tsv"
    theirs = dataclasses.replace(read_log(plain).settings, seed=1)
    for text, message in (
        ("{}", "log.tsv.json: not usable as a log's settings: its digest is missing"),
        (theirs.to_json(), "log.tsv: was made with other settings: seed is 1, not 9"),
    ):
        Path(f"{out}.json").write_text(text)
        assert run(f"--run_dir={tiny_run}", f"--out={out}", *PLAN, *HERE) == 1
        assert message in capsys.readouterr().err
        assert Path(f"{out}.json").read_text() == text
    assert not out.exists()


def test_a_log_begun_without_a_runner_is_refused(plain, tmp_path, tiny_run, capsys):
    out = tmp_path / "log.tsv"
    lines = plain.read_text().splitlines(keepends=True)
    out.write_text("".join(lines[:5]))
    Path(f"{out}.json").write_text(Path(f"{plain}.json").read_text())
    assert run(f"--run_dir={tiny_run}", f"--out={out}", *PLAN, *HERE) == 1
    assert "begun without --runner, 60 of 64 images have no row" in capsys.readouterr().err


def test_a_missing_beam_is_named(monkeypatch, tiny_run, tmp_path, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run(f"--run_dir={tiny_run}", f"--out={tmp_path / 'x.tsv'}", "--runner=flink") == 1
    assert capsys.readouterr().err == (
        "error: --runner=flink needs Apache Beam: pip install 'tfmacer[beam]'\n"
    )


@pytest.mark.parametrize(
    ("options", "processes"),
    [
        ([], os.cpu_count()),
        (["direct_num_workers=3"], 3),
        (["direct_num_workers=0"], os.cpu_count()),
        (["direct_num_workers=3", "direct_running_mode=multi_threading"], 1),
    ],
)
def test_processes_of_the_direct_runner(options, processes):
    assert direct_workers(options) == processes


def test_the_guides_runners_and_options_are_beams():
    """Flink, Spark, Dataflow and job servers do not run here; only their names are checked."""
    guide = Path("docs/guide.md").read_text()
    section = guide.partition("### Many processes, many machines")[2].partition("\n### ")[0]
    runners = set(re.findall(r"--runner=(\w+)", section))
    assert runners == {"direct", "dask", "flink", "spark", "dataflow", "portable"}
    for name in runners - {"direct", "dask", "dataflow"}:  # the last two need packages of theirs
        assert create_runner(name).__class__.__name__.lower() == f"{name}runner"
    options = set(re.findall(r"--pipeline_option=([a-z_]+)=", section))
    assert {"flink_master", "spark_master_url", "job_endpoint", "environment_type"} <= options
    assert options - {"dask_client_address"} <= PipelineOptions([]).get_all_options().keys()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("direct_num_workers=many", "invalid int value: 'many'"),
        ("direct_num_workers=-1", "direct_num_workers=-1: must be 0 or more"),
        ("direct_running_mode=telepathy", "invalid choice: 'telepathy'"),
        ("direct_nonsense=3", "--pipeline_option=direct_nonsense: Beam has no such option"),
    ],
)
def test_wrong_options_are_one_line(option, message, tiny_run, tmp_path, capfd):
    flags = [f"--run_dir={tiny_run}", f"--out={tmp_path / 'x.tsv'}", *PLAN, *HERE[:1]]
    assert run(*flags, f"--pipeline_option={option}") == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_an_option_that_takes_several_values_keeps_them_all():
    given = ["experiments=one", "experiments=two", "streaming", "parallelism=2", "parallelism=3"]
    parsed = parse_options("flink", given).get_all_options()
    assert {"one", "two"} <= set(parsed["experiments"])
    assert (parsed["streaming"], parsed["parallelism"]) == (True, 3)
