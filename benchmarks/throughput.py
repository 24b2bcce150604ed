"""How fast votes are drawn, against the bare network and against other implementations.

  make benchmarks

Each variant runs in a process of its own, because thread counts and frameworks are a process'
affair; the variants take turns, so that a change of the machine's pace meets all of them, and the
medians of the turns are compared. `art` and `torch` run in .venv-bench.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from tfmacer.common import commandline

FLAGS = flags.FlagValues()
_NETWORK = flags.DEFINE_enum(
    "network", "lenet", ["lenet", "resnet20"], "What is certified.", flag_values=FLAGS
)
_N = flags.DEFINE_integer("n", 100_000, "Draws in one turn.", lower_bound=1, flag_values=FLAGS)
_TURNS = flags.DEFINE_integer("turns", 5, "Turns of each variant.", 1, flag_values=FLAGS)
_VARIANTS = flags.DEFINE_list(
    "variants",
    ["tfmacer", "bare"],
    "Of tfmacer, bare, art, torch; rounded_gaussian, generalized_gaussian, mixed_norm, which are "
    "tfmacer with that noise; and philox, which draws by the first generator.",
    flag_values=FLAGS,
)

HERE = Path(__file__).parent
PROJECT = Path(sys.executable)
OTHERS = Path(".venv-bench/bin/python")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way of doing the job: a script that prints draws per second of its second half."""

    python: Path
    arguments: tuple[str, ...]


VARIANTS = {
    "tfmacer": Variant(PROJECT, ("throughput_tfmacer.py", "tfmacer")),
    **{
        family: Variant(PROJECT, ("throughput_tfmacer.py", family))
        for family in ("rounded_gaussian", "generalized_gaussian", "mixed_norm", "philox")
    },
    "bare": Variant(PROJECT, ("throughput_tfmacer.py", "bare")),
    "art": Variant(OTHERS, ("throughput_art.py",)),
    "torch": Variant(OTHERS, ("throughput_torch.py",)),
}


def measure(variant: Variant, network: str, n: int, model: Path) -> float:
    """Draws per second of one turn."""
    script, *rest = variant.arguments
    command = [variant.python, HERE / script, *rest, network, str(n), model]
    done = subprocess.run(
        [str(word) for word in command], check=True, capture_output=True, text=True
    )
    return float(done.stdout.splitlines()[-1])


def compare(names: Sequence[str], network: str, n: int, turns: int) -> dict[str, list[float]]:
    """Draws per second of each variant, turn by turn."""
    rates: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.keras"
        subprocess.run(
            [str(PROJECT), str(HERE / "throughput_tfmacer.py"), "save", network, "0", str(model)],
            check=True,
            capture_output=True,
        )
        for turn in range(turns):
            for name in names:
                rates[name].append(measure(VARIANTS[name], network, n, model))
                print(f"turn {turn + 1}: {name} {rates[name][-1]:,.0f} draws/s", file=sys.stderr)
    return rates


def _main() -> None:
    rates = compare(_VARIANTS.value, _NETWORK.value, _N.value, _TURNS.value)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    first = _VARIANTS.value[0]
    print(
        json.dumps(
            {
                "network": _NETWORK.value,
                "n": _N.value,
                "turns": _TURNS.value,
                "draws_per_second": {name: round(value) for name, value in medians.items()},
                f"{first}_over": {
                    name: round(medians[first] / value, 2) for name, value in medians.items()
                },
            },
            indent=2,
        )
    )


main = commandline.command(_main, FLAGS, "python -m benchmarks.throughput", __doc__)

if __name__ == "__main__":
    sys.exit(main())
