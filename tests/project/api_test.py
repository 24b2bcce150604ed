"""`make api` writes a page for every module."""

import subprocess

import pytest
import source_tree
from source_tree import ROOT


@pytest.mark.slow
def test_every_module_has_a_page(tmp_path):
    subprocess.run(["make", "api", f"API={tmp_path}"], cwd=ROOT, check=True)
    expected = {
        tmp_path / f"{module.name.replace('.', '/')}.html"
        for module in source_tree.modules().values()
        if module.path.parts[0] in ("tfmacer", "export", "serving")
        and not module.is_generated
        and not module.name.endswith(("__main__", "tfmacer.demo"))
    }
    assert len(expected) > 100
    assert {page.as_posix() for page in expected if not page.is_file()} == set()
    assert "lower bound" in (tmp_path / "tfmacer" / "guarantee" / "bounds.html").read_text()
