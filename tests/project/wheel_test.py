"""What is installed when tfmacer is installed."""

import email
import shutil
import subprocess
import sys
import zipfile

import portpicker
import pytest
import source_tree
from shell import Shell, lines_of
from source_tree import ROOT

from tfmacer.version import __version__

PACKAGES = ("tfmacer", "export", "serving")
EVERY_COMMAND = """\
python -m tfmacer.train --run_dir=run --dataset=mnist5k --network=lenet \\
  --objective=gaussian --sigma=0.5
python -m tfmacer.certify --run_dir=run --out=0.tsv --shard=0/2
python -m tfmacer.certify --run_dir=run --out=1.tsv --shard=1/2
python -m tfmacer.merge --out=log.tsv 0.tsv 1.tsv
python -m tfmacer.verify log.tsv
python -m tfmacer.falsify --run_dir=run --log=log.tsv
python -m tfmacer.report log.tsv --out_dir=report
python -m export.saved_model --run_dir=run --export_dir=export
python -m serving.model_server --model_name=m --model_base_path=export --port=8500 &
python -m serving.sidecar --backend=127.0.0.1:8500 --model_name=m --port=8600 &
"""
DATA = (".csv", ".proto", ".pyi", ".html", ".css", ".js", ".svg", ".typed")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built offline from a copy of the tree: setuptools writes into its sources."""
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


def test_has_only_its_packages_at_the_top_level(wheel):
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
    ports = {"8500": portpicker.pick_unused_port(), "8600": portpicker.pick_unused_port()}
    # A digit, from a package that the wheel brings along.
    digit = (
        "from PIL import Image; from tfmacer.data.datasets import load_split;"
        "image = load_split('mnist5k', 'test').take([0])[0][0, :, :, 0];"
        "Image.fromarray((image * 255).round().astype('uint8')).save('digit.png')"
    )
    with Shell(tmp_path, python) as shell:
        shell.run("-c", digit)
        for line in lines_of(EVERY_COMMAND):
            for port, free in ports.items():
                line = line.replace(port, str(free))
            shell.type(line)
        assert "confidence" in shell.run(
            "-m", "serving.client", f"--target=127.0.0.1:{ports['8600']}", "--n=1000", "digit.png"
        )


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["beam", "otel"])
def test_extras_install_together_with_the_pins(wheel, extra):
    """An extra and the pins agree on every package that both bring."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--dry-run", "-q"]
    files = ["-c", "constraints.txt", "-c", "requirements-dev.txt"]
    subprocess.run([*pip, *files, f"tfmacer[{extra}] @ file://{wheel}"], cwd=ROOT, check=True)
