import fcntl
import multiprocessing
import os
import subprocess
import sys

import pytest
from processes import ROOT

from tfmacer.common.errors import refusal
from tfmacer.common.unfinished import held, remove_leftovers
from tfmacer.records.runs import write_atomically


def test_only_what_nobody_holds_is_removed(tmp_path):
    mine, other = tmp_path / ".1.a.tmp", tmp_path / ".1.b.tmp"
    for folder in (mine, other, tmp_path / "1"):
        (folder / "variables").mkdir(parents=True)
    with held(lambda: mine):
        remove_leftovers(tmp_path, ".[0-9]*.tmp")
        assert sorted(os.listdir(tmp_path)) == [".1.a.tmp", "1"]
    remove_leftovers(tmp_path, ".[0-9]*.tmp")
    assert os.listdir(tmp_path) == ["1"]


def test_what_a_killed_write_left_is_removed_by_the_next(tmp_path):
    script = """
import os, pathlib, sys
os.fsync = lambda _: os.kill(os.getpid(), 9)
from tfmacer.records.runs import write_atomically
write_atomically(pathlib.Path(sys.argv[1]), "half")
"""
    path, similar = tmp_path / "log[1].tsv", tmp_path / ".log1.tsv.7.tmp"
    similar.write_text("of another file")
    killed = subprocess.run([sys.executable, "-c", script, path], check=False, cwd=ROOT)
    assert killed.returncode == -9
    assert len(os.listdir(tmp_path)) == 2
    write_atomically(path, "whole")
    assert sorted(os.listdir(tmp_path)) == [similar.name, path.name]
    assert path.read_text() == "whole"


def _write_often(path):
    for _ in range(200):
        write_atomically(path, f"{os.getpid()}\n" * 100)


def test_two_processes_that_write_the_same_file_leave_each_other_alone(tmp_path):
    path = tmp_path / "log.tsv"
    writers = [multiprocessing.get_context("fork").Process(target=_write_often, args=(path,))
               for _ in range(2)]  # fmt: skip
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert os.listdir(tmp_path) == [path.name]
    assert path.read_text() in [f"{writer.pid}\n" * 100 for writer in writers]


def test_what_was_removed_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    made, lock = [], fcntl.flock

    def make():
        made.append(tmp_path / f".1.{len(made)}.tmp")
        made[-1].mkdir()
        return made[-1]

    def removed_meanwhile(descriptor, operation):
        if len(made) == 1:
            made[0].rmdir()
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with held(make) as folder:
        assert folder == made[1]
        remove_leftovers(tmp_path, ".[0-9]*.tmp")
        assert os.listdir(tmp_path) == [folder.name]


def test_a_pipe_among_the_leftovers_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / ".1.a.tmp")
    remove_leftovers(tmp_path, ".[0-9]*.tmp")
    assert not os.listdir(tmp_path)


def test_a_full_disk_is_said_of_the_file(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "log.tsv"
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="log.tsv") as error:
        write_atomically(path, "text")
    assert refusal(error.value) == f"{path}: No space left on device"
    assert not os.listdir(tmp_path)
