"""Digests of Keras networks: what names a model."""

import collections
import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import Any

from tfmacer.records.runs import UNKNOWN_MODEL, model_digest

# Where a configuration names layers: their own, and those whose outputs they take.
_NAMING = {"name", "keras_history", "input_layers", "output_layers"}

# Of a `.keras` file. What else it holds is a part of the network that is neither of these.
_MEMBERS = ("metadata.json", "config.json", "model.weights.h5", "model.weights.npz")

# Layers of Keras that run code from outside of it.
_FOREIGN_CODE = ("TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")


def network_digest(path: Path, network: Any) -> str:
    """`tfmacer.records.runs.model_digest` of a network as saved in the `.keras` file at `path`.

    The architecture is the file's own `config.json` without what concerns compiling, so that the
    digest does not depend on how Keras would write the loaded network again, and without the
    addresses in memory by which Keras notes that layers share a policy. Seed states of dropout
    layers are no weights and do not enter. Vocabularies are none either: they lie in files of
    their own, which enter where there are any.
    """

    def without_addresses(entry: dict[str, Any]) -> dict[str, Any]:
        entry.pop("shared_object_id", None)
        return entry

    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"), object_hook=without_addresses)
        # Whatever they are called: "./assets/" is unpacked where "assets/" is.
        others = [
            [name, hashlib.sha256(archive.read(name)).hexdigest()]
            for name in archive.namelist()
            if name not in _MEMBERS
        ]
    config.pop("compile_config", None)
    if others:
        config["others"] = others
    values = ((variable.name, variable.numpy()) for variable in network.weights)
    return model_digest(json.dumps(config, sort_keys=True), values)


def weights_digest(model: Any) -> str:
    """A digest of a model that was never saved: a Keras model's weights and configuration.

    For any other callable, and where the code of a layer is not Keras' own, it has a vocabulary or
    an operation takes functions, these do not tell what it computes, and the answer is
    `UNKNOWN_MODEL`. Names that Keras gives count the layers that the process has made before; they
    enter as if the model had been the first.
    """
    import keras

    if not isinstance(model, keras.Model) or not _is_stock(model):
        return UNKNOWN_MODEL
    values = ((variable.name, variable.numpy()) for variable in model.weights)
    try:
        whole = {"class_name": type(model).__name__, "config": model.get_config()}
    except (TypeError, ValueError, NotImplementedError):  # of code that cannot be described
        return UNKNOWN_MODEL
    text = json.dumps(whole, sort_keys=True, default=str)
    if _names_code(text):
        return UNKNOWN_MODEL
    return model_digest(json.dumps(_numbered_anew(text)["config"], sort_keys=True), values)


def _names_code(text: str) -> bool:
    """Whether a configuration has functions as arguments, as that of `keras.ops.map` has.

    It tells their names alone, and whether they are Keras' own it does not tell.
    """
    found = []

    def look(entry: dict[str, Any]) -> dict[str, Any]:
        package = str(entry.get("module") or "keras").split(".")[0]
        found.append(package != "keras" or entry.get("class_name") == "__lambda__")
        return entry

    json.loads(text, object_hook=look)
    return any(found)


def _numbered_anew(text: str) -> Any:
    """The configuration of a model, its layers' automatic names counted from the first.

    Each such name becomes another one wherever it stands, so that the structure stays what it was;
    if one would become a name that was given by hand, all stay.
    """
    names: dict[str, str] = {}
    given: set[str] = set()
    counts: collections.Counter[str] = collections.Counter()

    def find(entry: dict[str, Any]) -> dict[str, Any]:
        kind, config = entry.get("class_name"), entry.get("config")
        if isinstance(kind, str) and isinstance(config, dict) and "name" in config:
            name, stem = str(config["name"]), _automatic_name(kind)
            if not re.fullmatch(rf"{stem}(_\d+)?", name):
                given.add(name)
            elif name not in names:
                names[name] = f"{stem}_{counts[stem]}" if counts[stem] else stem
                counts[stem] += 1
        return entry

    def renamed(value: Any) -> Any:
        if isinstance(value, list):
            return [renamed(each) for each in value]
        if isinstance(value, dict):
            return {key: renamed(each) for key, each in value.items()}
        return names.get(value, value) if isinstance(value, str) else value

    def rename(entry: dict[str, Any]) -> dict[str, Any]:
        for key in _NAMING & entry.keys():
            entry[key] = renamed(entry[key])
        return entry

    whole = json.loads(text, object_hook=find)
    return whole if given & set(names.values()) else json.loads(text, object_hook=rename)


def _automatic_name(kind: str) -> str:
    """What Keras calls the first layer of a class: Conv2DTranspose is conv2d_transpose."""
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", kind)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()


def _is_stock(model: Any) -> bool:
    """Whether a Keras model runs the code of Keras alone, which its configuration then tells.

    Not that of a layer with files beside its weights.
    """
    # Functional models have operations besides layers.
    parts = (
        part
        for layer in model._flatten_layers()
        for part in (layer, *getattr(layer, "operations", ()))
    )
    return all(
        _is_of_keras(type(part))
        and type(part).__name__ not in _FOREIGN_CODE
        and not hasattr(part, "save_assets")
        and all(_is_of_keras(value) for value in vars(part).values() if callable(value))
        for part in parts
    )


def _is_of_keras(code: Any) -> bool:
    module = getattr(code, "__module__", None) or type(code).__module__
    return module.split(".")[0] in ("keras", "tensorflow")
