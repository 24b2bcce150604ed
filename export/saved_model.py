"""Writes a smoothed classifier as a SavedModel that TensorFlow Serving can host.

The signatures draw the noise and count the votes inside the graph, so the export works from any
TensorFlow code without this project:

  python -m export.saved_model --run_dir=runs/cifar10_macer_0.25 --export_dir=models/cifar
  python -m export.saved_model --model=my.keras --sigma=0.25 --export_dir=models/mine

The model is written beside its place, linted, loaded in a fresh process as a server would load
it, compared with the network, and only then renamed to DIR/<version>/.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import flags

from tfmacer.common import commandline
from tfmacer.common.errors import UserError, naming
from tfmacer.common.unfinished import held, remove_leftovers
from tfmacer.records.runs import BLOCK_SIZE, RunDirectory, Smoothing

FLAGS = flags.FlagValues()
_IMPORT = commandline.define_import(FLAGS)
_RUN_DIR = flags.DEFINE_string("run_dir", None, "Run directory to export.", flag_values=FLAGS)
_MODEL = flags.DEFINE_string(
    "model",
    None,
    "A .keras file to export instead of a run: images [B, H, W, C] in [0, 1] to logits [B, K].",
    flag_values=FLAGS,
)
_SIGMA = flags.DEFINE_float(
    "sigma",
    None,
    "Scale of the noise for --model, in units of pixels in [0, 1].",
    lower_bound=1e-9,
    flag_values=FLAGS,
)
_EXPORT_DIR = flags.DEFINE_string(
    "export_dir",
    None,
    "The model's base path; the export becomes a numbered folder in it.",
    required=True,
    flag_values=FLAGS,
)
_VERSION = flags.DEFINE_integer(
    "version",
    None,
    "Version number; default: one more than the highest there.",
    lower_bound=1,
    upper_bound=2**63 - 1,
    flag_values=FLAGS,
)
_NUM_SAMPLES = flags.DEFINE_integer(
    "num_samples",
    100,
    "Noisy draws behind a prediction of serving_default and encoded.",
    lower_bound=1,
    upper_bound=1_000_000,
    flag_values=FLAGS,
)


def export(
    network: Any, smoothing: Smoothing, export_dir: Path, *, version: int, num_samples: int = 100
) -> Path:
    """Exports a network as `export_dir/<version>/`, checked before it appears there.

    Args:
      network: Keras model from images `[B, H, W, C]` in [0, 1] to logits `[B, K]`.
      smoothing: its noise, shapes and digest.
      export_dir: the model's base path.
      version: number of the new version.
      num_samples: draws behind a prediction of `serving_default` and `encoded`.

    Returns:
      The version's directory.

    Raises:
      UserError: the version exists, or the export is not fit to be served.
    """
    from tfmacer.votes.models import check_logits

    target = export_dir / str(version)
    if target.exists():
        raise UserError(f"version: {target} exists already; give another --version")
    found = check_logits(network, smoothing.input_shape, what="the network")
    if found != smoothing.num_classes:
        raise UserError(f"the network has {found} classes, {smoothing.num_classes} are recorded")

    def unwritable(error: OSError) -> UserError:
        return UserError(f"export_dir {export_dir}: cannot be written: {error.strerror}")

    try:
        export_dir.mkdir(parents=True, exist_ok=True)
        # No number, so that a server polling the base path never sees it half written.
        remove_leftovers(export_dir, ".[0-9]*.tmp")
    except OSError as error:
        raise unwritable(error) from error

    def make() -> Path:
        try:
            return Path(tempfile.mkdtemp(prefix=f".{version}.", suffix=".tmp", dir=export_dir))
        except OSError as error:
            raise unwritable(error) from error

    with naming(export_dir), held(make) as scratch:
        try:
            _write(network, smoothing, scratch, num_samples)
            _verify(network, smoothing, scratch)
            for path in (*scratch.rglob("*"), scratch):
                _fsync(path)
            scratch.chmod(0o755)
            _appear(scratch, target)
            _fsync(export_dir)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def describe(network: Any, path: Path, sigma: float) -> Smoothing:
    """The smoothing of a Keras model that was not trained here.

    Raises:
      UserError: its shapes are not those of an image classifier that returns logits.
    """
    from tfmacer.votes.devices import library_versions
    from tfmacer.votes.digests import network_digest
    from tfmacer.votes.models import check_logits

    shape = network.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:]:
        raise UserError(f"model {path}: expected images [B, H, W, C] as its input, found {shape}")
    return Smoothing(
        sigma=sigma,
        num_classes=check_logits(network, shape[1:], what=f"model {path}"),
        input_shape=shape[1:],
        block_size=BLOCK_SIZE,
        precision=network.dtype_policy.name,
        model_digest=network_digest(path, network),
        versions=library_versions(),
    )


def _write(network: Any, smoothing: Smoothing, folder: Path, num_samples: int) -> None:
    import tensorflow as tf

    from export.signatures import SmoothedClassifier
    from export.warmup import write_warmup

    module = SmoothedClassifier(network, smoothing, num_samples)
    tf.saved_model.save(module, str(folder), signatures=module.signatures())
    extra = folder / "assets.extra"
    extra.mkdir()
    (extra / "smoothing.json").write_text(smoothing.to_json())
    write_warmup(extra, smoothing)


def _verify(network: Any, smoothing: Smoothing, folder: Path) -> None:
    import numpy as np

    from export.lint import lint

    if findings := lint(folder, len(network.weights)):
        raise UserError(f"the export is not fit to be served: {'; '.join(findings)}")
    images = np.random.default_rng(0).random((2, *smoothing.input_shape), np.float32)
    with tempfile.TemporaryDirectory() as temporary:
        probe = Path(temporary) / "probe.npz"
        np.savez(probe, images=images, logits=np.asarray(network(images, training=False), "f4"))
        command = [sys.executable, "-m", "export.check", str(folder), str(probe)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"the export does not load in a Session: {last}")


def _appear(scratch: Path, target: Path) -> None:
    try:
        os.rename(scratch, target)
    except OSError as error:
        if not target.exists():
            raise
        # Another export was faster; a rename never replaces what is in a directory.
        raise UserError(f"version: {target} exists by now; give another --version") from error


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _next_version(export_dir: Path) -> int:
    names = [child.name for child in export_dir.iterdir()] if export_dir.is_dir() else []
    following = 1 + max((int(name) for name in names if name.isdecimal()), default=0)
    if following >= 2**63:
        raise UserError(f"export_dir {export_dir}: holds version {following - 1}: give --version")
    return following


def load_model(path: Path, sigma: float) -> tuple[Any, Smoothing]:
    """Loads a `.keras` file and describes it as a classifier smoothed with N(0, sigma^2 I)."""
    from tfmacer.votes.models import load_network

    network = load_network(path)
    return network, describe(network, path, sigma)


def _main() -> None:
    run_dir, model, sigma = _RUN_DIR.value, _MODEL.value, _SIGMA.value
    if (run_dir is None) == (model is None):
        raise UserError("give exactly one of --run_dir and --model")
    if (model is None) != (sigma is None):
        raise UserError("--sigma goes with --model, and --model needs it; a run records its own")
    export_dir = Path(_EXPORT_DIR.value or "")
    version = _VERSION.value or _next_version(export_dir)
    if (export_dir / str(version)).exists():
        raise UserError(f"--version={version}: {export_dir / str(version)} exists already")
    if run_dir is not None:
        RunDirectory(Path(run_dir)).read_smoothing()
    elif not Path(model or "").is_file():
        raise UserError(f"--model={model}: no such file")

    commandline.load_tensorflow(_IMPORT.value)
    from tfmacer.votes.models import load_run

    if model is not None and sigma is not None:
        network, smoothing = load_model(Path(model), sigma)
    else:
        network, smoothing = load_run(Path(run_dir or ""))
    path = export(network, smoothing, export_dir, version=version, num_samples=_NUM_SAMPLES.value)
    commandline.say(path)


main = commandline.command(_main, FLAGS, "python -m export.saved_model", __doc__)


if __name__ == "__main__":
    sys.exit(main())
