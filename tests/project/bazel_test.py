"""BUILD names a target for each package and each test, and Bazel runs them without a network."""

import re
import subprocess
import sys

import pytest
from source_tree import ROOT

# Needs no TensorFlow.
SMALL = "//:tests/tfmacer/guarantee/stopping_test"


def _bazel(*arguments):
    command = ["bazel", "--batch", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_environments_are_hidden_from_bazel():
    """TensorFlow's wheel carries BUILD files of its own, which need a network."""
    ignored = set((ROOT / ".bazelignore").read_text(encoding="utf-8").split())
    files = [ROOT / "Makefile", *ROOT.glob("benchmarks/*"), *ROOT.glob("docs/**/*.md")]
    texts = [path.read_text(encoding="utf-8") for path in files if path.is_file()]
    named = {name for text in texts for name in re.findall(r"(?<![\w$(])\.venv(?:-\w+)*", text)}
    there = {path.name for path in ROOT.glob(".venv*")}
    assert named | there <= ignored


@pytest.mark.bazel
def test_each_package_and_each_test_is_a_target():
    tests = {path.relative_to(ROOT).with_suffix("") for path in ROOT.glob("tests/**/*_test.py")}
    found = set(_bazel("query", "//...").split())
    assert found >= {f"//:{name.as_posix()}" for name in tests}
    assert found >= {"//:tfmacer", "//:export", "//:serving"}


@pytest.mark.bazel
def test_bazel_runs_a_test():
    printed = _bazel("test", SMALL, f"--test_env=PYTHON={sys.executable}", "--test_output=all")
    assert re.search(r"\d+ passed", printed)
