"""No file mentions one machine or tracker, or contains work left half done."""

import ast
import re
import subprocess

import pytest
import source_tree
from source_tree import ROOT

# Each written so that this file does not match itself.
FORBIDDEN = {
    "a path of one machine": r"(?<![\w.])/(root|home|work|Users)[/]\w",
    "a note to oneself": r"\b(TO[D]O|FIX[M]E|XX[X])\b",
    "a number that only a tracker knows": r"(?i)\bissue[s]? #?\d",
    "a folder that is not part of the project": r"\bshared/(design|seeds|hooks)",
    "a merge left open": r"^[<]{7} |^[>]{7} ",
}
GENERATED = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")
# Checkpoints of trainings that are not done, until they are.
NOT_SOURCE = "results/unfinished"
NOT_TEXT = (".png", ".svg", ".gif", ".keras", ".woff2", ".ico")


def _files():
    """Every file that is, or is about to be, part of the repository."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    names = [name for name in listing.stdout.splitlines() if not name.startswith(NOT_SOURCE)]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def _texts():
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for path in _files()
        if not path.name.endswith((*GENERATED, *NOT_TEXT))
    }


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_contains(what):
    pattern = re.compile(FORBIDDEN[what], re.MULTILINE)
    found = {name: hit.group() for name, text in _texts().items() if (hit := pattern.search(text))}
    assert found == {}


def test_only_commandline_prints():
    """`commandline.say`, `note` and `warn` show foreign text harmlessly; `print` does not."""
    printing = {
        f"{module.path}:{node.lineno}"
        for module in source_tree.modules().values()
        if module.path.parts[0] in ("tfmacer", "export", "serving")
        and module.path.as_posix() != "tfmacer/common/commandline.py"
        for node in ast.walk(ast.parse((ROOT / module.path).read_text("utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "print"
    }
    assert printing == set()


def test_files_are_small():
    """Large data is downloaded or generated, not kept in the repository."""
    large = {path.name for path in _files() if path.stat().st_size > 2_000_000}
    assert large == set()
