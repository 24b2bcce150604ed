"""docs/quickstart.ipynb runs as it stands, from its first cell to its last."""

import os
import sys
from pathlib import Path

import nbclient
import nbformat
import portpicker
import pytest
from source_tree import ROOT

PATIENCE = 600


@pytest.mark.slow
def test_every_cell_runs(tmp_path, monkeypatch):
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    for port in ("8500", "8600"):
        free = str(portpicker.pick_unused_port())
        for cell in notebook.cells:
            cell.source = cell.source.replace(port, free)
    # The notebook's shell finds this environment's python, and this tree's packages.
    here = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{here}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    client = nbclient.NotebookClient(
        notebook, timeout=PATIENCE, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "certified radius:" in printed
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2


def test_is_kept_without_outputs():
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    assert [cell for cell in notebook.cells if cell.get("outputs")] == []
