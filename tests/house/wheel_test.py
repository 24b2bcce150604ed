"""What is installed when tfmacer is installed."""

import email
import shutil
import subprocess
import sys
import zipfile

import pytest
import source_tree
from source_tree import ROOT

from tfmacer.version import __version__

PACKAGES = ("tfmacer", "export", "serving")
DATA = (".csv", ".proto", ".pyi", ".html", ".css", ".js", ".svg", ".typed")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built offline from a copy of the tree: setuptools writes beside its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / "source" / package, ignore=ignore)
    for file in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, folder / "source")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
         "--no-index", f"--wheel-dir={folder}", folder / "source"],
        check=True,
    )  # fmt: skip
    return next(folder.glob("tfmacer-*.whl"))


def _names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def _metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"tfmacer-{__version__}.dist-info/METADATA").decode()
    return email.message_from_string(text)


def test_takes_no_more_top_level_names_than_its_packages(wheel):
    tops = {name.split("/")[0] for name in _names(wheel)}
    assert tops == {*PACKAGES, f"tfmacer-{__version__}.dist-info"}


def test_holds_every_module(wheel):
    written = {
        module.path.as_posix()
        for module in source_tree.modules().values()
        if module.name.split(".")[0] in PACKAGES
    }
    assert {name for name in _names(wheel) if name.endswith(".py")} == written


def test_holds_the_data_that_the_code_reads(wheel):
    written = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in DATA
    }
    assert "serving/certification.proto" in written
    assert written <= _names(wheel)


@pytest.mark.parametrize("package", PACKAGES)
def test_says_that_it_is_typed(package, wheel):
    assert f"{package}/py.typed" in _names(wheel)


def test_metadata(wheel):
    metadata = _metadata(wheel)
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == "<3.12,>=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert f"tfmacer-{__version__}.dist-info/licenses/LICENSE" in _names(wheel)


def test_requires_the_pins(wheel):
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = {line.partition("#")[0].strip() for line in lines} - {""}
    required = _metadata(wheel).get_all("Requires-Dist")
    assert {line for line in required if "extra ==" not in line} == pins


@pytest.mark.slow
def test_installed_alone_it_runs(wheel, tmp_path):
    """In an empty environment and another folder, with what the wheel itself asks for."""
    python = tmp_path / "environment" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "environment"], check=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-q", "-c", ROOT / "constraints.txt", wheel], check=True)
    subprocess.run([*pip, "check"], check=True)
    commands = ("tfmacer.train", "tfmacer.certify", "tfmacer.verify", "tfmacer.merge",
                "tfmacer.report", "export.saved_model", "serving.model_server",
                "serving.sidecar", "serving.client")  # fmt: skip
    for command in commands:
        answer = subprocess.run(
            [python, "-m", command, "--help"], cwd=tmp_path, capture_output=True, text=True
        )
        assert answer.returncode == 0, answer.stderr
        assert f"python -m {command}" in answer.stdout


@pytest.mark.slow
def test_beam_installs_beside_the_pins(wheel):
    """The extra `beam` and the pins agree on every package that both bring."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--dry-run", "-q"]
    files = ["-c", "constraints.txt", "-c", "requirements-dev.txt"]
    subprocess.run([*pip, *files, f"tfmacer[beam] @ file://{wheel}"], cwd=ROOT, check=True)
