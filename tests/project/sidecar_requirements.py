"""Writes serving/deploy/requirements.txt: of the pins, those that the sidecar's image needs.

`make constraints` runs it; a test compares its output with the file.
"""

import importlib.metadata
import re
import sys

import source_tree
from packaging.requirements import Requirement
from source_tree import ROOT, Module

HEADER = """\
# What the sidecar imports, and what that brings along; no TensorFlow.
# Written by `make constraints`; edit requirements.txt, not this file.

"""
COMMAND = "serving.sidecar.__main__"
# Loaded by commands that need it, through the module that all commands share.
NEVER = {"tensorflow"}


def canonical(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(*files: str) -> dict[str, str]:
    """The version of every package that these files pin."""
    lines = [
        line.partition("#")[0].strip()
        for file in files
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines()
    ]
    return {canonical(name): version for name, _, version in (x.partition("==") for x in lines)}


def generate() -> str:
    """The text of serving/deploy/requirements.txt."""
    pinned = pins("requirements.txt", "constraints.txt")
    # What is imported and not pinned there comes with an extra: whoever wants one installs it.
    wanted, waiting = set(), _imported() & set(pins("requirements.txt"))
    while waiting:
        name = waiting.pop()
        wanted.add(name)
        waiting |= _required(name) - wanted
    missing = wanted - set(pinned)
    if missing:
        raise SystemExit(f"not pinned yet: {', '.join(sorted(missing))}: make constraints")
    return HEADER + "".join(f"{name}=={pinned[name]}\n" for name in sorted(wanted))


def _imported() -> set[str]:
    """Distributions that the command and what it imports of ours import, functions included."""
    known = source_tree.modules()
    providers = importlib.metadata.packages_distributions()
    found: set[str] = set()
    for module in _closure(known):
        for name in module.imports():
            top = name.split(".")[0]
            ours = source_tree.resolve(name, module, known)
            if ours is None and top not in sys.stdlib_module_names and top not in NEVER:
                # Several distributions share the name `google`; the one of ours is protobuf.
                names = ["protobuf"] if name.startswith("google.") else providers.get(top, [top])
                found |= {canonical(provider) for provider in names}
    return found


def _closure(known: dict[str, Module]) -> list[Module]:
    seen, waiting = [known[COMMAND]], [known[COMMAND]]
    while waiting:
        module = waiting.pop()
        for name in module.imports():
            target = source_tree.resolve(name, module, known)
            if target is not None and target not in seen:
                seen.append(target)
                waiting.append(target)
    return seen


def _required(distribution: str) -> set[str]:
    """What a distribution itself asks for, here, without extras."""
    lines = importlib.metadata.requires(distribution) or []
    requirements = [Requirement(line) for line in lines]
    return {
        canonical(requirement.name)
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }


if __name__ == "__main__":
    (ROOT / "serving/deploy/requirements.txt").write_text(generate(), encoding="utf-8")
