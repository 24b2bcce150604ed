"""The project's source files, what they import, and the rooms that docs/architecture.md gives them.

Read by the tests of this folder.
"""

import ast
import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE_FOLDERS = ("tfmacer", "export", "serving", "benchmarks", "tests")
# What tests import by its bare name: `pythonpath` of pyproject.toml.
TEST_FOLDERS = ("tests.project", "tests.support")


@dataclasses.dataclass(frozen=True)
class Module:
    """One Python file.

    Attributes:
      path: relative to the repository root.
      name: as it is imported, e.g. `tfmacer.votes` for `tfmacer/votes/__init__.py`.
    """

    path: Path
    name: str

    @property
    def is_package(self) -> bool:
        """Whether this is the `__init__.py` of a package."""
        return self.path.name == "__init__.py"

    @property
    def is_generated(self) -> bool:
        """Whether protoc wrote this."""
        return self.path.stem.endswith(("_pb2", "_pb2_grpc"))

    @functools.cached_property
    def tree(self) -> ast.Module:
        """The parsed file."""
        return ast.parse((ROOT / self.path).read_text(encoding="utf-8"))

    def imports(self, *, lazy: bool = True) -> Iterator[str]:
        """Names of what is imported, project or not; `a.b.c` for `from a.b import c`.

        Args:
          lazy: also what is imported inside functions.
        """
        package = self.name if self.is_package else self.name.rpartition(".")[0]
        for node in _statements(self.tree, lazy):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                parents = package.split(".")
                above = parents[: len(parents) - node.level + 1] if node.level else []
                source = ".".join([*above, *filter(None, [node.module])])
                yield from (f"{source}.{alias.name}" for alias in node.names)


def _statements(tree: ast.AST, lazy: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not lazy:
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _statements(node, lazy)


def modules() -> dict[str, Module]:
    """Every Python file of the project by its module name."""
    found = {}
    for folder in SOURCE_FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT)
            parts = relative.with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = Module(relative, name)
    return found


def resolve(name: str, importer: Module, known: dict[str, Module]) -> Module | None:
    """The project's file that `name`, imported by `importer`, comes from; None if not ours."""
    candidates = [name]
    if importer.path.parts[0] == "tests":
        candidates += [f"{folder}.{name}" for folder in TEST_FOLDERS]
    for candidate in candidates:
        for path in (candidate, candidate.rpartition(".")[0]):
            if path in known:
                return known[path]
    return None


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table of packages in docs/architecture.md.

    Attributes:
      position: counts up down the page; a file imports only from rows above its own.
      tensorflow: "no"; "when run": imported without it, needs it at work; "yes"; or "in part".
    """

    position: int
    tensorflow: str


@functools.cache
def rows() -> dict[Path, Row]:
    """The rows by the folder, or file, that each describes."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `([\w/.]+)` \| .* \| ([a-z ]+) \|$", page, re.MULTILINE)
    return {Path(name): Row(position, word) for position, (name, word) in enumerate(found)}


def described_as(module: Module) -> Path | None:
    """The folder or file of the row that speaks of this module; None if there is none.

    A row speaks of the folders within its own too, but for `tfmacer/`, `export/` and `serving/`:
    their rows are of what lies loose in them, and of what `python -m` runs of a package in them.
    """
    path = module.path.parent if module.path.name == "__main__.py" else module.path
    for place in (module.path, *path.parents):
        if place in rows() and (len(place.parts) > 1 or place == path.parent):
            return place
    return None
