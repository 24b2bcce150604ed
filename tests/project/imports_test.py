"""Imports run one way: up the table of docs/architecture.md, and without a cycle."""

import graphlib

import source_tree

PACKAGES = ("tfmacer", "export", "serving")
# Only the demo may import these from outside: it acts as a user's shell would.
ENTRANCES = ("export", "serving", "tfmacer.train", "tfmacer.certify", "tfmacer.verify",
         "tfmacer.merge", "tfmacer.falsify", "tfmacer.demo")  # fmt: skip


def _edges():
    known = source_tree.modules()
    for module in known.values():
        if module.name.split(".")[0] not in PACKAGES or module.is_package:
            continue
        for name in module.imports():
            target = source_tree.resolve(name, module, known)
            if target is not None and not target.is_package:
                yield module, target


def test_the_table_has_a_row_for_each_package():
    described = {
        module.path: source_tree.described_as(module)
        for module in source_tree.modules().values()
        if module.name.split(".")[0] in PACKAGES and not module.is_package
    }
    assert [str(path) for path, row in described.items() if row is None] == []
    assert source_tree.rows().keys() - set(described.values()) == set(), "nothing is there"


def test_imports_go_up_the_table():
    rows = {
        module: source_tree.rows()[source_tree.described_as(module)]
        for edge in _edges()
        for module in edge
    }
    assert [
        f"{module.path} imports {target.path}"
        for module, target in _edges()
        if rows[target].position > rows[module].position and not target.is_generated
    ] == []


def test_no_imports_form_a_cycle():
    targets = {}
    for module, target in _edges():
        targets.setdefault(module.name, []).append(target.name)
    graphlib.TopologicalSorter(targets).prepare()


def test_nothing_imports_the_benchmarks():
    assert [
        module.path for module, target in _edges() if target.path.parts[0] == "benchmarks"
    ] == []


def _within(package, name):
    return name == package or name.startswith(f"{package}.")


def test_only_the_demo_imports_commands_and_servers():
    intruders = [
        f"{module.path} imports {target.path}"
        for module, target in _edges()
        for entrance in ENTRANCES
        if _within(entrance, target.name)
        and not _within(entrance, module.name)
        and module.name != "tfmacer.demo"
    ]
    assert intruders == []


def test_package_files_import_nothing_of_ours_when_loaded():
    """`import tfmacer.guarantee.bounds` must not bring the rest of the project along."""
    known = source_tree.modules()
    eager = [
        f"{module.path} imports {name}"
        for module in known.values()
        if module.is_package
        for name in module.imports(lazy=False)
        if source_tree.resolve(name, module, known) not in (None, known["tfmacer.version"])
    ]
    assert eager == []
