"""Keras networks on disk: loaded, and checked."""

import contextlib
import json
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmacer.common.errors import UserError
from tfmacer.records.runs import RunDirectory, Smoothing
from tfmacer.votes.counting import inference
from tfmacer.votes.digests import network_digest

# Activations that turn logits into probabilities.
NOT_LOGITS = ("softmax", "sigmoid")

# Random images that a network is tried on.
_PROBED = 4


def load_network(path: Path) -> Any:
    """A Keras network from a `.keras` file, without running code of the file's.

    Keras' safe mode refuses functions that the file carries, layers that load a SavedModel, and
    whatever lies outside Keras; a class of the user's own is found where the program has registered
    it.

    Raises:
      UserError: it is no such file, or cannot be loaded so.
    """
    import keras

    # Keras would take other formats, directories and addresses as well.
    if path.suffix != ".keras" or not zipfile.is_zipfile(path):
        raise UserError(f"model {path}: not a .keras file")
    try:
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} in it is damaged")
        with warnings.catch_warnings():
            # Else Keras would leave weights that the file does not have as they were drawn.
            warnings.filterwarnings("error", message="Skipping nested container")
            return keras.models.load_model(path, compile=False, safe_mode=True)
    # A bad file can make Keras raise anything; the remedy is the same.
    except Exception as error:
        if foreign := _unregistered(path):
            raise UserError(
                f"model {path}: cannot be loaded: it has {foreign}, which nothing imported here "
                "has registered; import the module that does, by --import=MODULE"
            ) from error
        # Keras quotes the model's whole configuration before and after the reason.
        reason = str(error).rsplit("Exception encountered: ")[-1].split(" Full object config")[0]
        raise UserError(
            f"model {path}: cannot be loaded: {(reason.splitlines() or [type(error).__name__])[0]}"
        ) from error


def _unregistered(path: Path) -> str:
    """The classes and functions of a `.keras` file that Keras does not know, in words."""
    import keras

    found = []

    def look(entry: dict[str, Any]) -> dict[str, Any]:
        module, name = entry.get("module"), entry.get("class_name")
        if module and name and str(module).split(".")[0] != "keras":
            name = entry.get("config") if name == "function" else name
            if keras.saving.get_registered_object(entry.get("registered_name")) is None:
                found.append(f"{name!r} of the module {module!r}")
        return entry

    # What cannot be read is refused for that, by the caller.
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:
        json.loads(archive.read("config.json"), object_hook=look)
    return ", ".join(dict.fromkeys(found))


def check_saved(network: Any, *, what: str) -> None:
    """Refuses a Keras network that cannot be saved and loaded again.

    Raises:
      UserError: it cannot be saved, or loaded in safe mode, or then answers differently.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        try:
            network.save(path)
        # A user's own layers may raise anything.
        except Exception as error:
            raise UserError(f"{what}: cannot be saved: {_line(error)}") from error
        try:
            again = load_network(path)
        except UserError as error:
            own = _unregistered(path)
            reason = str(error).partition(": cannot be loaded: ")[2].partition(". ")[0]
            raise UserError(
                f"{what}: could not be loaded once it was saved: "
                + (f"{own} must be registered: see " if own else f"{reason}; for layers see ")
                + "keras.saving.register_keras_serializable"
            ) from error
    before, after = (answers(each, network.input_shape[1:], what=what) for each in (network, again))
    if not np.allclose(before, after, rtol=1e-3, atol=1e-3 * np.abs(before).max()):
        raise UserError(
            f"{what}: answers differently once saved and loaded: get_config of a custom layer "
            "leaves something out, or the network draws random numbers"
        )


def check_logits(network: Any, shape: tuple[int, ...], *, what: str) -> int:
    """K of a Keras network that answers with logits; see `answers`.

    Raises:
      UserError: it answers with something else, or with probabilities.
    """
    if (last := last_activation(network)) in NOT_LOGITS:
        raise UserError(f"{what}: ends in a {last}; remove it, logits are expected")
    logits = answers(network, shape, what=what)
    if (logits >= 0).all() and np.abs(logits.sum(axis=1) - 1).max() < 0.01:
        raise UserError(f"{what}: returns probabilities; remove its softmax, logits are expected")
    classes: int = logits.shape[1]
    return classes


def answers(network: Any, shape: tuple[int, ...], *, what: str) -> npt.NDArray[np.float32]:
    """What a network makes of a few random images, in inference mode: `[B, K]`.

    Args:
      network: maps images `[B, H, W, C]` to `[B, K]`.
      shape: `(H, W, C)`.
      what: the network, for the error message.

    Raises:
      UserError: it does not take such images, or answers with something else.
    """
    import tensorflow as tf

    images = np.random.default_rng(0).random((_PROBED, *shape), np.float32)
    try:
        answer = inference(network)(tf.constant(images))
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise UserError(f"{what}: fails on images of {images.shape}: {_line(error)}") from error
    shapes = [tuple(np.shape(part)) for part in tf.nest.flatten(answer)]
    if tf.nest.is_nested(answer) or len(shapes[0]) != 2 or shapes[0][0] != _PROBED:
        raise UserError(
            f"{what}: must return logits [B, K] and nothing else, returned {shapes} for {_PROBED}"
        )
    return np.asarray(answer, np.float32)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]


def last_activation(network: Any) -> str | None:
    """The name of the function that a network applies last, where its structure tells."""
    import keras

    parts = getattr(network, "operations", None)
    if isinstance(network, keras.Sequential):
        parts = network.layers
    if not parts:
        return None
    if isinstance(parts[-1], keras.Model):
        return last_activation(parts[-1])
    activation = getattr(parts[-1], "activation", None)
    name: str = getattr(activation, "__name__", type(parts[-1]).__name__).lower()
    return name


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
