"""The committed stubs are what `make protos` writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from source_tree import ROOT

PROTOS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("tfmacer", "serving")
    for path in (ROOT / folder).rglob("*.proto")
)


def test_there_are_contracts():
    assert "serving/certification.proto" in PROTOS


@pytest.mark.parametrize("proto", PROTOS)
def test_stubs_are_fresh(proto, tmp_path):
    outputs = ["--python_out", "--mypy_out"]
    if "\nservice " in (ROOT / proto).read_text(encoding="utf-8"):
        outputs += ["--grpc_python_out", "--mypy_grpc_out"]
    arguments = [f"{output}={tmp_path}" for output in outputs]
    plugins = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I.", *arguments, proto],
        cwd=ROOT,
        env=os.environ | {"PATH": plugins},
        check=True,
    )
    written = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(written) == len(outputs)
    for path in written:
        committed = ROOT / path.relative_to(tmp_path)
        assert committed.read_text() == path.read_text(), f"{committed.name}: make protos"
