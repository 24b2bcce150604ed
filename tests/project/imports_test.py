"""A file imports only what docs/architecture.md names before it."""

import source_tree

PACKAGES = ("tfmacer", "export", "serving")
# What only the demo may use from outside: it stands for a user's shell.
DOORS = ("export", "serving", "tfmacer.train", "tfmacer.certify", "tfmacer.verify",
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


def test_page_and_tree_name_the_same_files():
    named = set(source_tree.places())
    written = {
        module.path.as_posix()
        for module in source_tree.modules().values()
        if module.name.split(".")[0] in PACKAGES and not module.is_package
    }
    stubs = {path for path in named if path.endswith(("_pb2.py", "_pb2_grpc.py"))}
    assert sorted(written - named) == [], "give each a place in the table of docs/architecture.md"
    assert sorted(named - written - stubs) == [], "docs/architecture.md names what is not there"


def test_nothing_imports_the_benchmarks():
    assert [
        module.path for module, target in _edges() if target.path.parts[0] == "benchmarks"
    ] == []


def test_imports_go_upward_in_the_table():
    places = source_tree.places()
    downward = [
        f"{module.path} imports {target.path}"
        for module, target in _edges()
        if not module.is_generated
        and places[target.path.as_posix()].position >= places[module.path.as_posix()].position
    ]
    assert downward == []


def _within(package, name):
    return name == package or name.startswith(f"{package}.")


def test_only_the_demo_comes_in_by_the_front_door():
    intruders = [
        f"{module.path} imports {target.path}"
        for module, target in _edges()
        for door in DOORS
        if _within(door, target.name)
        and not _within(door, module.name)
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
