"""How a distributed run scales: the same images by one worker process, then by two.

  python -m benchmarks.beam_scaling --run_dir=RUN

Each worker computes in one thread, on the direct runner. Starting up (Beam, TensorFlow, the network
and its graph, until every worker has made its first part) is reported apart; the speed is that of
the parts made between then and the moment when the first worker had nothing left to do.
"""

import dataclasses
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from tfmacer import certify
from tfmacer.common import commandline
from tfmacer.common.errors import UserError
from tfmacer.distributed.partial_results import PartialResults
from tfmacer.records.partial_results import PartialResult

FLAGS = flags.FlagValues()
_RUN_DIR = flags.DEFINE_string("run_dir", None, "What is certified.", flag_values=FLAGS)
_WORKERS = flags.DEFINE_list("workers", ["1", "2"], "Numbers of processes.", flag_values=FLAGS)
_IMAGES = flags.DEFINE_integer("num_examples", 400, "Images of a run.", 1, flag_values=FLAGS)
_N = flags.DEFINE_integer("n", 10_000, "Draws for each image.", 1, flag_values=FLAGS)
_TURNS = flags.DEFINE_integer("turns", 3, "Turns of each number.", 1, flag_values=FLAGS)


@dataclasses.dataclass(frozen=True)
class Turn:
    """One run.

    Attributes:
      startup: seconds from the command to the moment when every worker was warm.
      images_per_second: of all workers together, while all were warm and at work.
    """

    startup: float
    images_per_second: float


def warm_speed(parts: Sequence[PartialResult], began: float) -> Turn:
    """What the times of a run's parts say.

    A part that lies in the stretch in part only counts in proportion.

    Raises:
      UserError: a worker made no more than its first part.
    """
    by_worker: dict[str, list[PartialResult]] = {}
    for part in sorted(parts, key=lambda part: part.started):
        by_worker.setdefault(part.worker, []).append(part)
    warm = max(each[0].finished for each in by_worker.values())
    end = min(each[-1].finished for each in by_worker.values())
    if not warm < end:
        raise UserError("too few images: some worker has made no part since all were warm")
    images = 0.0
    for part in itertools.chain(*by_worker.values()):
        inside = min(part.finished, end) - max(part.started, warm)
        images += len(part.records[0]) * max(inside, 0) / (part.finished - part.started)
    return Turn(warm - began, images / (end - warm))


def measure(run_dir: str, workers: int, images: int, n: int) -> Turn:
    """One run with this many workers.

    Raises:
      UserError: it failed.
    """
    found: list[PartialResult] = []
    look = PartialResults.look

    def keep(parts: PartialResults) -> None:
        look(parts)
        found[:] = parts.found.values()

    PartialResults.look = keep  # type: ignore[method-assign]
    began = time.time()
    try:
        with tempfile.TemporaryDirectory() as folder:
            status = certify.main(
                [
                    f"--run_dir={run_dir}",
                    f"--out={Path(folder) / 'log.tsv'}",
                    f"--num_examples={images}",
                    f"--n={n}",
                    "--runner=direct",
                    "--worker_threads=1",
                    f"--pipeline_option=direct_num_workers={workers}",
                ]
            )
    finally:
        PartialResults.look = look  # type: ignore[method-assign]
    if status:
        raise UserError(f"the run with {workers} workers ended with status {status}")
    return warm_speed(found, began)


def _main() -> None:
    if _RUN_DIR.value is None:
        raise UserError("--run_dir must be given: what is certified")
    numbers = [int(text) for text in _WORKERS.value]
    turns: dict[int, list[Turn]] = {number: [] for number in numbers}
    for _, number in itertools.product(range(_TURNS.value), numbers):
        turns[number].append(measure(_RUN_DIR.value, number, _IMAGES.value, _N.value))
        print(f"{number} workers: {turns[number][-1]}", file=sys.stderr, flush=True)
    speeds = {
        number: statistics.median(turn.images_per_second for turn in each)
        for number, each in turns.items()
    }
    first = numbers[0]
    answer = {
        f"{number} workers": {
            "startup_seconds": round(statistics.median(turn.startup for turn in turns[number]), 1),
            "images_per_second": round(speeds[number], 2),
            "of_linear": round(speeds[number] / speeds[first] * first / number, 2),
        }
        for number in numbers
    }
    print(json.dumps(answer, indent=2))


main = commandline.command(_main, FLAGS, "python -m benchmarks.beam_scaling", __doc__)


if __name__ == "__main__":
    sys.exit(main())
