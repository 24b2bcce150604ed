"""Reads serving/deploy/: its files, and the commands that they start."""

import copy
from pathlib import Path
from typing import Any

import yaml
from absl import flags

DEPLOY = Path(__file__).parents[2] / "serving" / "deploy"
# TensorFlow Serving's own, that the embedded server does without.
ONLY_TENSORFLOW_SERVING = {"batching_parameters_file"}


def read_yaml(name: str) -> Any:
    """A file with one document."""
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def manifests() -> dict[tuple[str, str], dict[str, Any]]:
    """What the files of kubernetes/ that kustomization.yaml names describe, by kind and name."""
    files = read_yaml("kubernetes/kustomization.yaml")["resources"]
    documents = [
        document
        for file in files
        for document in yaml.safe_load_all((DEPLOY / "kubernetes" / file).read_text())
    ]
    return {(found["kind"], found["metadata"]["name"]): found for found in documents}


def containers() -> dict[str, dict[str, Any]]:
    """The containers of the pod, by name."""
    pod = manifests()["Deployment", "tfmacer"]["spec"]["template"]["spec"]
    return {container["name"]: container for container in pod["containers"]}


def commands() -> dict[str, tuple[list[str], list[str]]]:
    """Arguments of the model server and of the sidecar, by the file that starts them."""
    services = read_yaml("compose.yaml")["services"]
    pod = containers()
    return {
        "compose.yaml": (services["model_server"]["command"], services["sidecar"]["command"]),
        "kubernetes": (pod["model-server"]["args"], pod["sidecar"]["args"]),
    }


def parse(values: flags.FlagValues, arguments: list[str]) -> dict[str, Any]:
    """The values of all flags of a command after these arguments, as absl reads them."""
    values = copy.deepcopy(values)
    values.unparse_flags()
    rest = values(["command", *arguments])[1:]
    assert rest == [], f"not flags: {rest}"
    return values.flag_values_dict()


def named(arguments: list[str]) -> dict[str, str]:
    """`--name=value` arguments as a dictionary; a bare `--name` is true."""
    pairs = (argument.removeprefix("--").partition("=") for argument in arguments)
    return {name: value if equals else "true" for name, equals, value in pairs}
