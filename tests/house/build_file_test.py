"""BUILD lists every module and test, with what each needs."""

import ast
import os
import re
import shutil
import subprocess
import sys

import build_file
import pytest
import source_tree
from source_tree import ROOT

# A test that needs neither TensorFlow nor much of the house: run with its declared files alone.
SMALL = "tests/tfmacer/votes/driver_test"


def _rules():
    """The targets of BUILD as `{name: {attribute: value}}`, read without Bazel."""
    tree = ast.parse((ROOT / "BUILD").read_text(encoding="utf-8"))
    calls = [node.value for node in tree.body if isinstance(node, ast.Expr)]
    rules = [
        {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        | {"kind": call.func.id}
        for call in calls
        if isinstance(call, ast.Call)
    ]
    return {rule["name"]: rule for rule in rules if "name" in rule}


def _needed(rules, name):
    """A target and all it depends on."""
    found, waiting = set(), [name]
    while waiting:
        target = waiting.pop()
        if target not in found:
            found.add(target)
            waiting += [label.removeprefix(":") for label in rules[target].get("deps", [])]
    return found


def test_is_what_the_imports_make_of_it():
    assert (ROOT / "BUILD").read_text(encoding="utf-8") == build_file.generate(), (
        "BUILD is out of date: make build-file"
    )


def test_no_source_file_is_missing():
    listed = {
        (rule["kind"], source)
        for rule in _rules().values()
        for source in rule.get("srcs", [])
        if source.endswith(".py") and source != build_file.RUNNER
    }
    written = {
        ("py_test" if module.path.stem.endswith("_test") else "py_library", module.path.as_posix())
        for module in source_tree.modules().values()
        if module.path.as_posix() != build_file.RUNNER
    }
    assert written - listed == set()
    assert listed - written == set()


def test_files_and_labels_named_exist():
    rules = _rules()
    for rule in rules.values():
        for file in [*rule.get("srcs", []), *rule.get("data", [])]:
            if not file.startswith(":"):
                assert (ROOT / file).is_file(), f"{rule['name']} names {file}"
        assert {label.removeprefix(":") for label in rule.get("deps", [])} <= set(rules)


def test_the_files_declared_suffice_to_run(tmp_path):
    rules = _rules()
    for name in _needed(rules, SMALL):
        for file in [*rules[name].get("srcs", []), *rules[name].get("data", [])]:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, tmp_path / file)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, rules[SMALL]["main"], *rules[SMALL]["args"], "-q"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(tmp_path)},
        check=True,
    )


def test_environments_are_hidden_from_bazel():
    """TensorFlow's wheel carries BUILD files of its own, which need a network."""
    ignored = set((ROOT / ".bazelignore").read_text(encoding="utf-8").split())
    files = [ROOT / "Makefile", *ROOT.glob("benchmarks/*"), *ROOT.glob("docs/**/*.md")]
    texts = [path.read_text(encoding="utf-8") for path in files if path.is_file()]
    named = {name for text in texts for name in re.findall(r"(?<![\w$(])\.venv(?:-\w+)*", text)}
    there = {path.name for path in ROOT.glob(".venv*")}
    assert named | there <= ignored


@pytest.mark.bazel
def test_bazel_reads_the_same_targets_offline():
    query = ["bazel", "--batch", "query"]
    listed = subprocess.run(
        [*query, "//..."], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert sorted(listed) == sorted(f"//:{name}" for name in _rules())


@pytest.mark.bazel
def test_bazel_finds_no_circle():
    """Follows every label of the libraries; a missing file or a circle of deps is an error.

    Those of a test cannot be followed offline: its rule alone drags a C++ toolchain in.
    """
    query = ["bazel", "--batch", "query", "--noimplicit_deps", "--nohost_deps", "--notool_deps"]
    found = subprocess.run(
        [*query, "deps(kind(py_library, //...))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    libraries = [rule for rule in _rules().values() if rule["kind"] == "py_library"]
    sources = {f"//:{source}" for rule in libraries for source in rule.get("srcs", [])}
    assert sources <= set(found)
