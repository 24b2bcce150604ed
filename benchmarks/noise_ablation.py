"""One network under noise of several exponents k: Table 4 of Filling the Soap Bubbles, in kind.

  python -m benchmarks.noise_ablation --run_dir=RUN --out_dir=DIR

The network of a run on Gaussian noise is certified again and again, without training it anew,
under noise of `--family` whose most likely length is that of the Gaussian: for k, sigma times
sqrt((d - 1) / (d - 1 - k)), as the paper takes it. k = 0 is the Gaussian itself. Each k gets a run
directory of its own below DIR, where its log is; started again, it goes on. What is printed is
certified accuracy in percent, in the norm of the family.
"""

import dataclasses
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from tfmacer import certify
from tfmacer.common import commandline
from tfmacer.common.errors import UserError
from tfmacer.noise.families import DISTRIBUTIONS
from tfmacer.noise.radii import linf_from_l2
from tfmacer.records.logs import Log, read_log
from tfmacer.records.runs import RunDirectory, write_atomically

FLAGS = flags.FlagValues()
_RUN_DIR = flags.DEFINE_string("run_dir", None, "Run on Gaussian noise.", flag_values=FLAGS)
_OUT_DIR = flags.DEFINE_string("out_dir", None, "Where the logs go.", flag_values=FLAGS)
_FAMILY = flags.DEFINE_enum(
    "family",
    "generalized_gaussian",
    ["generalized_gaussian", "mixed_norm"],
    "Noise family.",
    flag_values=FLAGS,
)
_KS = flags.DEFINE_list("k", ["0", "25", "100", "250", "500"], "Exponents.", flag_values=FLAGS)
_RADII = flags.DEFINE_list(
    "radii", None, "Columns; default: the paper's, of the norm.", flag_values=FLAGS
)
_IMAGES = flags.DEFINE_integer("num_examples", 500, "Images.", 1, flag_values=FLAGS)
_SKIP = flags.DEFINE_integer("skip", 20, "Step between them.", 1, flag_values=FLAGS)
_N = flags.DEFINE_integer("n", 10_000, "Draws for each.", 1, flag_values=FLAGS)

RADII = {
    "l2": tuple(0.25 * i for i in range(1, 10)),
    "linf": tuple(2 * i / 255 for i in range(1, 7)),
}


def with_noise(run: RunDirectory, family: str, k: float, root: Path) -> RunDirectory:
    """A run directory with the network of another one, smoothed by other noise.

    Args:
      run: on Gaussian noise.
      family: of the noise.
      k: its exponent; 0 keeps the Gaussian.
      root: the directory to make, or made before.

    Raises:
      UserError: the run is not on Gaussian noise, or k is out of range.
    """
    smoothing = run.read_smoothing()
    if smoothing.noise_family != "gaussian":
        raise UserError(f"--run_dir={run.root}: its noise is {smoothing.noise_family}, no Gaussian")
    dimension = math.prod(smoothing.input_shape)
    if k and not 0 < k < dimension - 1:
        raise UserError(f"--k={k:g}: must lie between 0 and {dimension - 1}")
    if k:
        smoothing = dataclasses.replace(
            smoothing,
            sigma=smoothing.sigma * math.sqrt((dimension - 1) / (dimension - 1 - k)),
            noise_family=family,
            noise_params={"k": k},
        )
    made = RunDirectory(root)
    made.root.mkdir(parents=True, exist_ok=True)
    for source, copy in ((run.model, made.model), (run.flags, made.flags)):
        if source.is_file() and not copy.is_file():
            shutil.copy(source, copy)
    write_atomically(made.smoothing, smoothing.to_json())
    return made


def accuracies(log: Log, norm: str, radii: Sequence[float]) -> list[float]:
    """Certified accuracy in percent at each radius; of an l2 log in linf, by the l2 ball's cube."""
    assert log.settings is not None
    dimension = math.prod(log.settings.classifier.input_shape)
    convert = norm == "linf" and log.settings.classifier.distribution.norm == "l2"
    reached = [
        linf_from_l2(record.radius, dimension) if convert else record.radius
        for record in log.records
        if record.correct
    ]
    return [100 * sum(r >= radius for r in reached) / len(log.records) for radius in radii]


def _numbers(name: str, texts: Sequence[str]) -> list[float]:
    try:
        return [float(text) for text in texts]
    except ValueError as error:
        raise UserError(f"--{name}={','.join(texts)}: must be numbers") from error


def _main() -> None:
    if _RUN_DIR.value is None or _OUT_DIR.value is None:
        raise UserError("--run_dir and --out_dir must be given")
    norm = DISTRIBUTIONS[_FAMILY.value].norm
    radii = _numbers("radii", _RADII.value) if _RADII.value else list(RADII[norm])
    logs = {}
    for k in _numbers("k", _KS.value):
        name = f"{_FAMILY.value}_k{k:g}" if k else "gaussian"
        run = with_noise(
            RunDirectory(Path(_RUN_DIR.value)), _FAMILY.value, k, Path(_OUT_DIR.value) / name
        )
        log = run.certify / f"{name}.tsv"
        flags_given = [
            f"--num_examples={_IMAGES.value}",
            f"--skip={_SKIP.value}",
            f"--n={_N.value}",
        ]
        if status := certify.main([f"--run_dir={run.root}", f"--out={log}", *flags_given]):
            raise UserError(f"{log}: certification ended with status {status}")
        logs[k] = read_log(log)
    print(f"k, then certified accuracy (%) at {norm} radius", *(f"{r:.4g}" for r in radii))
    for k, log in logs.items():
        print(f"{k:g}", *(f"{share:.1f}" for share in accuracies(log, norm, radii)))


main = commandline.command(_main, FLAGS, "python -m benchmarks.noise_ablation", __doc__)


if __name__ == "__main__":
    sys.exit(main())
