"""What asking the sidecar, and what an export's checks of its inputs, cost over certifying here.

  python -m benchmarks.serving_overhead

In this process, in this process without the checks, and from the sidecar take turns, so that a
change of the machine's pace meets all, and the medians of the turns are compared; of the checks the
processor time, which others on the machine disturb less. Both servers run on this machine, with as
many threads as the process has.
"""

import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import portpicker
from absl import flags

from serving import certification_pb2 as pb
from serving.certification_pb2_grpc import CertifierStub
from tfmacer.common import commandline
from tfmacer.guarantee.rule import Rule
from tfmacer.votes.driver import Task, draw_certificates
from tfmacer.wire.channel import open_channel

FLAGS = flags.FlagValues()
_N = flags.DEFINE_integer("n", 10_000, "Draws of one certificate.", 100, flag_values=FLAGS)
_TURNS = flags.DEFINE_integer("turns", 9, "Turns of each way.", 1, flag_values=FLAGS)

SHAPE = (28, 28, 1)
SIGMA = 0.25
# Turns that are not counted: the sessions' first runs, and the first sizes of requests.
WARM_UP = 2


@contextlib.contextmanager
def serving(module: str, *arguments: str, stderr: int | None = None) -> Iterator[int]:
    """The process id of a server of ours, from its line `ready` on."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as process:
        assert process.stdout is not None
        try:
            if not any(line.strip() == "ready" for line in process.stdout):
                raise RuntimeError(f"{module} did not start")
            yield process.pid
        finally:
            process.terminate()


def export(folder: Path, *, checked: bool = True) -> None:
    """An untrained LeNet as version 1 below `folder`; its votes without checks where asked for."""
    import tensorflow as tf

    from export.signatures import SmoothedClassifier
    from tfmacer.records.runs import Smoothing
    from tfmacer.training import networks
    from tfmacer.votes.counting import count_votes, inference

    smoothing = Smoothing(sigma=SIGMA, num_classes=10, input_shape=SHAPE, model_digest="0" * 64)
    network = networks.lenet(SHAPE, 10)
    module = SmoothedClassifier(network, smoothing, 100)
    signatures = module.signatures()
    if not checked:
        infer, specs = inference(network), signatures["sample_under_noise"].input_signature

        def bare(*rows: tf.Tensor) -> dict[str, tf.Tensor]:
            votes = count_votes(infer, smoothing, *rows)
            return dict(zip(("counts", "sums", "square_sums"), votes, strict=True))

        signatures["sample_under_noise"] = tf.function(bare, input_signature=specs, autograph=False)
    tf.saved_model.save(module, str(folder / "1"), signatures=signatures)


def in_process(folder: Path, image: npt.NDArray[np.float32]) -> Iterator[tuple[float, float]]:
    """Seconds, by the clock and of the processors, of one certificate after another, drawn here."""
    from tfmacer.votes.local import SavedModelVotes

    source = SavedModelVotes(folder)
    rule = Rule(n0=100, n=_N.value, block_size=source.smoothing.block_size)
    while True:
        started, spent = time.perf_counter(), time.process_time()
        deque(draw_certificates(source, [Task.seeded(1, 0, image)], rule), maxlen=0)
        yield time.perf_counter() - started, time.process_time() - spent


def over_grpc(target: str, image: npt.NDArray[np.float32]) -> Iterator[float]:
    """Seconds of one certificate from the sidecar, again and again."""
    pixels = pb.Pixels(shape=image.shape, float32=image.astype("<f4").tobytes())
    request = pb.CertifyRequest(pixels=pixels, n0=100, n=_N.value)
    with open_channel(target) as channel:
        stub = CertifierStub(channel)
        while True:
            started = time.perf_counter()
            stub.Certify(request)
            yield time.perf_counter() - started


def _main() -> None:
    commandline.load_tensorflow()
    from tfmacer.votes.devices import use_threads

    use_threads()
    image = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    model_port, port = portpicker.pick_unused_port(), portpicker.pick_unused_port()
    with tempfile.TemporaryDirectory() as temporary:
        folder, unchecked = Path(temporary, "checked"), Path(temporary, "unchecked")
        export(folder)
        export(unchecked, checked=False)
        server = (f"--model_base_path={folder}", "--model_name=m", f"--port={model_port}")
        sidecar = (f"--backend=127.0.0.1:{model_port}", "--model_name=m", f"--port={port}")
        with (
            serving("serving.model_server", *server),
            serving("serving.sidecar", *sidecar, "--metrics_port=0", "--seed=1"),
        ):
            ways = (
                in_process(folder, image),
                in_process(unchecked, image),
                over_grpc(f"127.0.0.1:{port}", image),
            )
            rounds = range(WARM_UP + _TURNS.value)
            turns = [tuple(next(way) for way in ways) for _ in rounds][WARM_UP:]
    here = statistics.median(checked[0] for checked, _, _ in turns)
    there = statistics.median(seconds for _, _, seconds in turns)
    checks = statistics.median(checked[1] / bare[1] for checked, bare, _ in turns) - 1
    print(f"n = {_N.value}, {_TURNS.value} turns each, medians")
    print(f"in this process: {here:.3f} s, {_N.value / here:,.0f} draws a second")
    print(f"of which the checks of what comes in: {checks:+.1%} of processor time")
    print(f"from the sidecar: {there:.3f} s, {_N.value / there:,.0f} draws a second")
    print(f"overhead: {there / here - 1:+.1%}")


main = commandline.command(_main, FLAGS, "python -m benchmarks.serving_overhead", __doc__)


if __name__ == "__main__":
    sys.exit(main())
