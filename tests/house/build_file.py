"""Writes BUILD, the Bazel targets of every module and test, from the imports.

`make build-file` runs it; a test compares its output with the file.
"""

import json
import sys

import source_tree
from source_tree import ROOT, Module

HEADER = """\
# Every module and test as a native Bazel target, with its own imports as deps.
# Written by `make build-file`; edit the sources, not this file.

package(default_visibility = ["//visibility:public"])
"""
RUNNER = "tests/house/run_pytest.py"
PUBLIC = ("tfmacer", "export", "serving")
NOT_DATA = (".py", ".pyc", ".pyi")


def generate() -> str:
    """The text of BUILD."""
    known = source_tree.modules()
    targets = [
        _rule("py_library", name=package, deps=_labels(_members(package, known)))
        for package in PUBLIC
    ]
    targets += [_target(module, known) for module in sorted(known.values(), key=lambda m: m.label)]
    targets.append(_rule("filegroup", name="project_files", srcs=_project_files()))
    return "\n".join([HEADER, *targets])


def _project_files() -> list[str]:
    patterns = ("*.md", "*.toml", "*.txt", "*.flags", "Makefile", "LICENSE", "docs/**/*.md")
    return sorted(
        path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern)
    )


def _members(package: str, known: dict[str, Module]) -> list[Module]:
    return [module for module in known.values() if module.name.split(".")[0] == package]


def _target(module: Module, known: dict[str, Module]) -> str:
    attributes = {
        "srcs": [module.path.as_posix()],
        "data": _data(module),
        "deps": _labels(_dependencies(module, known)),
    }
    folder = module.path.parent.as_posix()
    if folder.replace("/", ".") in source_tree.TEST_FOLDERS:
        attributes["imports"] = [folder]
    if folder == "tests/house":
        # These read the work tree itself.
        attributes["data"].append(":project_files")
        attributes["tags"] = ["local"]
    if not module.path.stem.endswith("_test"):
        return _rule("py_library", name=module.label, **attributes)
    attributes["srcs"].append(RUNNER)
    attributes |= {"main": RUNNER, "args": [module.path.as_posix()]}
    attributes["data"].append("pyproject.toml")
    return _rule("py_test", name=module.label, **attributes)


def _dependencies(module: Module, known: dict[str, Module]) -> set[Module | str]:
    """Modules that must lie beside this one, and whole packages it imports by their bare name."""
    found: set[Module | str] = set()
    # A package's lazy names would make a circle of it and its modules: who uses them depends on
    # the whole package instead. The strings are modules started as programs or imported by name.
    names = set(module.imports(lazy=not module.is_package))
    if not module.is_package:
        names |= module.strings() & set(known)
    for name in names:
        target = source_tree.resolve(name, module, known)
        if target is None:
            continue
        whole = target.is_package and target.name in PUBLIC and not module.is_package
        found.add(target.name if whole else target)
        found.update(_packages_above(target, known))
    found.update(_packages_above(module, known))
    found.update(
        other
        for other in known.values()
        if other.path.name == "conftest.py"
        and module.path.is_relative_to(other.path.parent)
        and module.path.stem.endswith("_test")
    )
    return found - {module}


def _packages_above(module: Module, known: dict[str, Module]) -> set[Module]:
    parts = module.name.split(".")
    names = [".".join(parts[:length]) for length in range(1, len(parts))]
    return {known[name] for name in names if name in known}


def _labels(targets: "set[Module | str] | list[Module]") -> list[str]:
    return sorted(f":{target if isinstance(target, str) else target.label}" for target in targets)


def _data(module: Module) -> list[str]:
    """Files of the same folder that the module names: a table, a page, a contract."""
    beside = (ROOT / module.path).parent.rglob("*")
    return sorted(
        path.relative_to(ROOT).as_posix()
        for path in beside
        if path.is_file() and path.suffix not in NOT_DATA and path.name in module.strings()
    )


def _rule(kind: str, **attributes: str | list[str]) -> str:
    lines = [f"{kind}("]
    for name, value in attributes.items():
        if isinstance(value, str) or len(value) == 1:
            lines.append(f"    {name} = {json.dumps(value)},")
        elif value:
            lines += [f"    {name} = [", *(f'        "{item}",' for item in value), "    ],"]
    return "\n".join([*lines, ")", ""])


if __name__ == "__main__":
    (ROOT / "BUILD").write_text(generate(), encoding="utf-8")
    sys.stdout.write("BUILD written\n")
