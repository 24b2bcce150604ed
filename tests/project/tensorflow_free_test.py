"""Packages that docs/architecture.md marks as free of TensorFlow never load it."""

import ast
import json
import subprocess
import sys

import source_tree

HEAVY = {"tensorflow", "keras", "tf_keras", "tensorflow_probability", "tensorflow_datasets",
         "tensorflow_serving", "apache_beam"}  # fmt: skip

# Imports the modules one after another and prints, for each, the heavy packages loaded by then.
PROBE = """
import importlib, json, sys
names, heavy = json.loads(sys.argv[1]), set(json.loads(sys.argv[2]))
loaded = {}
for name in names:
    importlib.import_module(name)
    loaded[name] = sorted(heavy & set(sys.modules))
print(json.dumps(loaded))
"""


def _marked(*answers):
    return [
        module
        for module in source_tree.modules().values()
        if (row := source_tree.described_as(module))
        and source_tree.rows()[row].tensorflow in answers
        and not module.is_package
    ]


def _loaded_by(names):
    answer = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(names), json.dumps(sorted(HEAVY))],
        cwd=source_tree.ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(answer.stdout)


def test_importing_them_loads_no_tensorflow():
    modules = [module.name for module in _marked("no", "when run")]
    loaded = _loaded_by(["tfmacer", "export", "serving", *modules])
    assert len(loaded) > 20
    guilty = [name for name, heavy in loaded.items() if heavy]
    assert guilty[:1] == [], f"{guilty[0]} loads {loaded[guilty[0]]}"


def test_the_probe_detects_tensorflow():
    assert _loaded_by(["json", "keras"]) == {"json": [], "keras": ["keras", "tensorflow"]}


def test_they_import_none_even_inside_functions():
    """Follows the imports of each; of a module marked `when run` only those made when it loads."""
    known = source_tree.modules()
    never = set(_marked("no"))
    guilty = []
    for start in sorted(never, key=lambda module: module.name):
        seen, waiting = {start}, [start]
        while waiting:
            module = waiting.pop()
            for name in module.imports(lazy=module in never):
                target = source_tree.resolve(name, module, known)
                if name.split(".")[0] in HEAVY or name.endswith(".load_tensorflow"):
                    guilty.append(f"{start.path}, through {module.path}: {name}")
                elif target is not None and target not in seen:
                    seen.add(target)
                    waiting.append(target)
        if "load_tensorflow" in {getattr(node, "attr", "") for node in ast.walk(start.tree)}:
            guilty.append(f"{start.path} calls load_tensorflow")
    assert guilty == []
