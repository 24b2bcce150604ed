"""The sidecar's image: the Dockerfile as Docker's own parser reads it, and what goes in."""

import ast
import fnmatch
import json
import subprocess
import sys
import urllib.request
from pathlib import PurePosixPath

import dockerfile
import portpicker
import pytest
import sidecar_requirements
from deployment import DEPLOY, parse
from fake_backend import FakeBackend
from processes import ROOT

from serving.sidecar import __main__ as sidecar


def _commands(name=None):
    found = dockerfile.parse_file(str(DEPLOY / "Dockerfile"))
    return [command for command in found if name in (None, command.cmd)]


def _copied():
    """What comes from the repository, by where it goes."""
    return {
        command.value[-1]: command.value[0]
        for command in _commands("COPY")
        if not any(flag.startswith("--from") for flag in command.flags)
    }


def test_bases_are_pinned_and_of_this_python():
    bases = [command.value[0] for command in _commands("FROM")]
    version = f"python:{sys.version_info[0]}.{sys.version_info[1]}."
    assert bases
    assert all(base.startswith(version) for base in bases)
    assert len(set(bases)) == 1


def test_it_does_not_run_as_root():
    (user,) = (command.value[0] for command in _commands("USER"))
    assert int(user.split(":")[0]) >= 1000


def test_what_is_copied_exists_and_reaches_the_builder():
    assert _copied() == {
        "/tmp/requirements.txt": "serving/deploy/requirements.txt",
        "tfmacer": "tfmacer",
        "serving": "serving",
    }
    for source in _copied().values():
        assert (ROOT / source).exists(), source
        assert _sent(source), source
    assert not _sent("tests/conftest.py")
    assert not _sent("serving/deploy/compose.yaml")
    assert not _sent("runs/demo")


def _sent(path):
    """Whether Dockerfile.dockerignore lets a path through: the last line that matches decides."""
    sent = True
    for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        names = [path, *(str(parent) for parent in PurePosixPath(path).parents)][:-1]
        if any(fnmatch.fnmatch(name, pattern) for name in names):
            sent = line.startswith("!")
    return sent


def test_requirements_are_those_that_the_sidecar_imports():
    text = (DEPLOY / "requirements.txt").read_text(encoding="utf-8")
    assert text == sidecar_requirements.generate(), "out of date: make constraints"
    names = {line.partition("==")[0] for line in text.splitlines() if "==" in line}
    assert {"grpcio", "numpy", "prometheus-client", "protobuf", "scipy"} <= names
    assert not any(name.startswith(("tensorflow", "keras", "tf-keras")) for name in names)


def test_it_starts_the_sidecar_and_names_its_ports():
    (entry,) = _commands("ENTRYPOINT")
    assert entry.value == ("python", "-m", "serving.sidecar")
    values = parse(sidecar.FLAGS, ["--backend=b:1", "--model_name=m"])
    (ports,) = (command.value for command in _commands("EXPOSE"))
    assert {str(values["port"]), str(values["metrics_port"])} <= set(ports)


def test_its_health_check_asks_a_running_sidecar():
    (check,) = _commands("HEALTHCHECK")
    kind, program, flag, code = check.value
    assert (kind, program, flag) == ("CMD", "python", "-c")
    ast.parse(code)
    port = parse(sidecar.FLAGS, ["--backend=b:1", "--model_name=m"])["metrics_port"]
    assert f"127.0.0.1:{port}/metrics" in code


@pytest.mark.slow
def test_what_goes_in_is_enough(tmp_path):
    """A new environment as the Dockerfile makes it, and a sidecar in it that answers."""
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    requirements = DEPLOY / "requirements.txt"
    subprocess.run([*pip, "install", "-q", "--no-deps", "-r", requirements], check=True)
    subprocess.run([*pip, "check"], check=True)
    application = tmp_path / "app"
    application.mkdir()
    for target, source in _copied().items():
        if not target.startswith("/"):
            (application / target).symlink_to(ROOT / source)
    backend = FakeBackend()
    backend.port, port, metrics = (portpicker.pick_unused_port() for _ in range(3))
    backend.start(backend.port)
    command = [python, "-m", "serving.sidecar", f"--backend=127.0.0.1:{backend.port}"]
    flags = ["--model_name=m", f"--port={port}", f"--metrics_port={metrics}"]
    try:
        with subprocess.Popen(
            [*command, *flags], cwd=application, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert any(line.strip() == "ready" for line in process.stdout)
                url = f"http://127.0.0.1:{metrics}/metrics"
                assert b"tfmacer_model_available 1.0" in urllib.request.urlopen(url).read()
            finally:
                process.terminate()
    finally:
        backend.stop()
    installed = subprocess.run(
        [*pip, "list", "--format=json"], capture_output=True, text=True, check=True
    )
    assert "tensorflow" not in {found["name"] for found in json.loads(installed.stdout)}
