"""Keras networks on disk: loaded, and named by a digest of what they are."""

import json
import zipfile
from pathlib import Path
from typing import Any

from tfmacer.errors import UserError
from tfmacer.records.runs import UNKNOWN_MODEL, RunDirectory, Smoothing, model_digest

# Layers of Keras that run what others made.
_FOREIGN_CODE = ("TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer")


def load_network(path: Path) -> Any:
    """A Keras network from a `.keras` file, without running code of the file's.

    Keras' safe mode refuses functions that the file carries, layers that load a SavedModel, and
    whatever lies outside Keras; a class of the user's own is found where the program has registered
    it.

    Raises:
      UserError: it is no such file, or cannot be loaded so.
    """
    import keras

    # Beside `.keras`, Keras would take other formats, directories and addresses.
    if path.suffix != ".keras" or not zipfile.is_zipfile(path):
        raise UserError(f"model {path}: not a .keras file")
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    # What a file can make Keras raise has no end; the remedy is the same.
    except Exception as error:
        # Keras quotes the model's whole configuration before and after the reason.
        reason = str(error).rsplit("Exception encountered: ")[-1].split(" Full object config")[0]
        raise UserError(f"model {path}: cannot be loaded: {reason.splitlines()[0]}") from error


def load_run(directory: Path) -> tuple[Any, Smoothing]:
    """The Keras network of a run directory and its smoothing.

    Raises:
      UserError: it is no finished run, or its network cannot be loaded or is not the one that was
        recorded.
    """
    run = RunDirectory(directory)
    smoothing = run.read_smoothing()
    network = load_network(run.model)
    found = network_digest(run.model, network)
    if found != smoothing.model_digest:
        raise UserError(
            f"{run.model}: its digest is {found[:16]}..., {run.smoothing.name} records "
            f"{smoothing.model_digest[:16]}...: the network was changed after the run"
        )
    return network, smoothing


def network_digest(path: Path, network: Any) -> str:
    """`tfmacer.records.runs.model_digest` of a network as saved in the `.keras` file at `path`.

    The architecture is the file's own `config.json` without what concerns compiling, so that the
    digest does not depend on how Keras would write the loaded network again, and without the
    addresses in memory by which Keras notes that layers share a policy. Seed states of dropout
    layers are no weights and do not enter.
    """

    def without_addresses(entry: dict[str, Any]) -> dict[str, Any]:
        entry.pop("shared_object_id", None)
        return entry

    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"), object_hook=without_addresses)
    config.pop("compile_config", None)
    values = ((variable.name, variable.numpy()) for variable in network.weights)
    return model_digest(json.dumps(config, sort_keys=True), values)


def weights_digest(model: Any) -> str:
    """A digest of a model that was never saved: a Keras model's weights and configuration.

    For any other callable, and where the code of a layer is not Keras' own, these do not tell what
    it computes, and the answer is `UNKNOWN_MODEL`.
    """
    import keras

    if not isinstance(model, keras.Model) or not _is_stock(model):
        return UNKNOWN_MODEL
    values = ((variable.name, variable.numpy()) for variable in model.weights)
    return model_digest(json.dumps(model.get_config(), sort_keys=True, default=str), values)


def _is_stock(model: Any) -> bool:
    """Whether a Keras model runs the code of Keras alone, which its configuration then tells."""
    # Functional models have operations besides layers.
    parts = (
        part
        for layer in model._flatten_layers()
        for part in (layer, *getattr(layer, "operations", ()))
    )
    return all(
        _is_of_keras(type(part))
        and type(part).__name__ not in _FOREIGN_CODE
        and all(_is_of_keras(value) for value in vars(part).values() if callable(value))
        for part in parts
    )


def _is_of_keras(code: Any) -> bool:
    module = getattr(code, "__module__", None) or type(code).__module__
    return module.split(".")[0] in ("keras", "tensorflow")


def leads_with_normalization(network: Any) -> bool:
    """Whether pixels are normalised inside the network, before its first other weights."""
    import keras

    normalizers = (
        keras.layers.Normalization,
        keras.layers.Rescaling,
        keras.layers.BatchNormalization,
    )
    layers = (layer for layer in network.layers if not isinstance(layer, keras.layers.InputLayer))
    for layer in layers:
        if isinstance(layer, normalizers):
            return True
        if layer.weights:
            return isinstance(layer, keras.Model) and leads_with_normalization(layer)
    return False
