"""The pins are what the packages import, and what is installed here."""

import importlib.metadata
import re
import sys
import tomllib

import source_tree
from source_tree import ROOT

PACKAGES = ("tfmacer", "export", "serving")
# Never imported by us: the package named needs it and does not declare it.
UNDECLARED = {
    "importlib-resources": "tensorflow-datasets",
    "tensorboard": "tensorflow",
    "tf-keras": "tensorflow-probability",
}
# Imported by scripts that `make test-clients` runs in environments of their own.
ELSEWHERE = {"ovmsclient", "min-tfs-client"}


def _canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def _pins(file):
    """The version of each package that a file pins."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    pairs = [line.partition("==") for line in lines if line]
    return {_canonical(name): version for name, _, version in pairs}


def _extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for extra in project["optional-dependencies"].values() for line in extra]
    return {_canonical(re.split(r"[\[=<>]", line)[0]) for line in lines}


def _imported(*folders):
    """Distributions that the modules of these folders import, each with a file that does."""
    providers = importlib.metadata.packages_distributions()
    known = source_tree.modules()
    found = {}
    for module in known.values():
        if module.path.parts[0] not in folders:
            continue
        for name in module.imports():
            top = name.split(".")[0]
            ours = top in PACKAGES or source_tree.resolve(name, module, known)
            if ours or top in sys.stdlib_module_names:
                continue
            for provider in _providers(name, providers.get(top, [top])):
                found.setdefault(_canonical(provider), module.path.as_posix())
    return found


def _providers(name, distributions):
    """Of the distributions that share a top-level name, the one that this import means."""
    if name.startswith("google."):
        return ["protobuf"]
    parts = name.split(".") if len(distributions) > 1 else []
    for length in range(len(parts), 0, -1):
        stem = "/".join(parts[:length])
        places = {f"{stem}.py", f"{stem}/__init__.py"}
        owners = [d for d in distributions if places & set(map(str, importlib.metadata.files(d)))]
        if owners:
            return owners
    return distributions


def test_everything_imported_is_pinned():
    pinned = set(_pins("requirements.txt")) | _extras()
    imported = _imported(*PACKAGES)
    assert {name: file for name, file in imported.items() if name not in pinned} == {}


def test_everything_pinned_is_imported():
    unused = set(_pins("requirements.txt")) - set(_imported(*PACKAGES)) - set(UNDECLARED)
    assert unused == set()


def test_everything_the_tests_import_is_pinned():
    pinned = {*_pins("requirements.txt"), *_pins("requirements-dev.txt"), *_extras()}
    imported = _imported("tests")
    missing = {name: file for name, file in imported.items() if name not in pinned}
    assert {name: file for name, file in missing.items() if name not in ELSEWHERE} == {}


def test_pins_are_exact():
    for file in ("requirements.txt", "requirements-dev.txt", "constraints.txt"):
        loose = [
            name for name, version in _pins(file).items() if not re.fullmatch(r"[\w.]+", version)
        ]
        assert loose == [], file


def test_installed_versions_are_the_pins():
    """So that passing tests are evidence for the pins."""
    pins = [_pins(f) for f in ("requirements.txt", "requirements-dev.txt", "constraints.txt")]
    installed = {name: importlib.metadata.version(name) for file in pins for name in file}
    assert installed == pins[0] | pins[1] | pins[2]


def test_no_package_is_pinned_twice():
    names = [
        name
        for file in ("requirements.txt", "requirements-dev.txt", "constraints.txt")
        for name in _pins(file)
    ]
    assert sorted(names) == sorted(set(names))


def test_extras_and_tests_pin_the_same_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for extra in project["optional-dependencies"].values() for line in extra]
    extras = {
        _canonical(name): version for name, _, version in (line.partition("==") for line in lines)
    }
    pinned = _pins("requirements-dev.txt")
    both = extras.keys() & pinned.keys()
    assert "apache-beam" in both
    assert {name: extras[name] for name in both} == {name: pinned[name] for name in both}
