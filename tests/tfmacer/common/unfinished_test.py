import os
import subprocess
import sys

from processes import ROOT

from tfmacer.common.unfinished import held, remove_leftovers
from tfmacer.records.runs import write_atomically


def test_only_what_nobody_holds_is_removed(tmp_path):
    mine, other = tmp_path / ".1.a.tmp", tmp_path / ".1.b.tmp"
    for folder in (mine, other, tmp_path / "1"):
        (folder / "variables").mkdir(parents=True)
    with held(mine):
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
