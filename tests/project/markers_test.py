"""Tests that need more than `make test` gives are skipped there, and say which target runs them."""

import re
import shutil
import subprocess
import sys

from source_tree import ROOT

MARKERS = ("slow", "browser", "bazel", "clients")


def _pytest(folder, *arguments):
    """Runs pytest with this project's conftest on one test of each marker and one without."""
    shutil.copy(ROOT / "tests" / "conftest.py", folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    marked = [f"@pytest.mark.{marker}\ndef test_{marker}(): pass\n" for marker in MARKERS]
    (folder / "some_test.py").write_text(
        "\n".join(["import pytest", "def test_plain(): pass", *marked])
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", *arguments]
    done = subprocess.run([*command, "some_test.py"], cwd=folder, capture_output=True, text=True)
    return done.stdout


def test_plain_run_skips_all_and_names_the_targets(tmp_path):
    output = _pytest(tmp_path)
    assert "1 passed, 4 skipped" in output
    for marker in MARKERS:
        assert f"make test-{marker}" in output


def test_a_target_runs_its_own(tmp_path):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for marker in MARKERS:
        assert re.search(rf"^\t\$\(PYTEST\) --run={marker} -m {marker}$", makefile, re.MULTILINE)
    output = _pytest(tmp_path, "--run=slow", "-m", "slow")
    assert "test_slow PASSED" in output
    assert "1 passed, 4 deselected" in output
