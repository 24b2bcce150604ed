"""How long a training step takes, against the bare network and against other implementations.

  python -m benchmarks.training --network=lenet --variants=tfmacer,bare,art,torch
  python -m benchmarks.training --network=lenet --variants=tfmacer,bfloat16,jit,chunk

`tfmacer` is MACER's step as `tfmacer.train` takes it, with its input pipeline, metrics and
callbacks; `bfloat16`, `jit` and `chunk` (a quarter of the copies at once) are its options; `bare`
is forward and backward of the same network on as many images, noised beforehand. Each variant runs
in a process of its own; they take turns, so that a change of the machine's pace meets all of them,
and the medians of the turns are compared. `art` and `torch` run in .venv-bench, which
`make benchmarks` installs.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from tfmacer.common import commandline
from tfmacer.common.errors import UserError

HERE = Path(__file__).parent
OTHERS = Path(".venv-bench/bin/python")

# The interpreter and script of each variant; the script's first argument is the variant.
VARIANTS = {
    **dict.fromkeys(
        ("tfmacer", "bare", "bfloat16", "jit", "chunk"),
        (Path(sys.executable), "training_tfmacer.py"),
    ),
    "art": (OTHERS, "training_art.py"),
    "torch": (OTHERS, "training_torch.py"),
}

FLAGS = flags.FlagValues()
_NETWORK = flags.DEFINE_enum(
    "network", "lenet", ["lenet", "resnet20"], "What is trained.", flag_values=FLAGS
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images in a step.", 1, flag_values=FLAGS)
_NUM_NOISE = flags.DEFINE_integer("num_noise", 16, "Noisy copies of each.", 1, flag_values=FLAGS)
_STEPS = flags.DEFINE_integer("steps", 20, "Steps timed in one turn.", 1, flag_values=FLAGS)
_TURNS = flags.DEFINE_integer("turns", 5, "Turns of each variant.", 1, flag_values=FLAGS)
_VARIANTS = flags.DEFINE_list(
    "variants", ["tfmacer", "bare"], f"Of {', '.join(VARIANTS)}.", flag_values=FLAGS
)


def measure(variant: str, network: str, batch_size: int, num_noise: int, steps: int) -> float:
    """Seconds a step, of one turn."""
    python, script = VARIANTS[variant]
    numbers = [str(number) for number in (batch_size, num_noise, steps)]
    done = subprocess.run(
        [str(python), str(HERE / script), variant, network, *numbers],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{variant}: {done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1])


def compare(names: Sequence[str], turns: int, *what: int | str) -> dict[str, list[float]]:
    """Seconds a step of each variant, turn by turn."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns):
        for name in names:
            seconds[name].append(measure(name, *what))
            print(f"turn {turn + 1}: {name} {seconds[name][-1]:.4f} s a step", file=sys.stderr)
    return seconds


def _main() -> None:
    if not set(_VARIANTS.value) <= set(VARIANTS):
        raise UserError(f"--variants must be of {', '.join(VARIANTS)}")
    what = (_NETWORK.value, _BATCH_SIZE.value, _NUM_NOISE.value, _STEPS.value)
    seconds = compare(_VARIANTS.value, _TURNS.value, *what)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = _VARIANTS.value[0]
    print(
        json.dumps(
            {
                **dict(zip(("network", "batch_size", "num_noise", "steps"), what, strict=True)),
                "turns": _TURNS.value,
                "seconds_a_step": {name: round(value, 4) for name, value in medians.items()},
                f"of_{first}": {
                    name: round(value / medians[first], 3) for name, value in medians.items()
                },
            },
            indent=2,
        )
    )


main = commandline.command(_main, FLAGS, "python -m benchmarks.training", __doc__)

if __name__ == "__main__":
    sys.exit(main())
