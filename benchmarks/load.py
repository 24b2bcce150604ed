"""How model server and sidecar bear mixed load: times, refusals, memory. On this machine alone.

  python -m benchmarks.load --seconds=300 --clients=16

An untrained LeNet behind the embedded model server, the sidecar in front, and clients that predict,
certify, listen to streams, hang up midway and give too little time. More of them come at once than
the sidecar lets in, so some calls are refused; any other failure is counted as one.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import portpicker
import psutil
from absl import flags
from scipy import stats

from benchmarks.serving_overhead import SHAPE, export, serving
from serving import certification_pb2 as pb
from serving.certification_pb2_grpc import CertifierStub
from tfmacer.common import commandline
from tfmacer.wire.channel import open_channel

FLAGS = flags.FlagValues()
_SECONDS = flags.DEFINE_float("seconds", 300, "Length of the load.", 1, flag_values=FLAGS)
_CLIENTS = flags.DEFINE_integer("clients", 16, "Clients at once.", 1, 256, flag_values=FLAGS)
_SEED = flags.DEFINE_integer("seed", 0, "Of what the clients ask for.", flag_values=FLAGS)

# Fewer than the clients, so that refusals are part of the load.
PLACES = 12
SAMPLE_SECONDS = 0.5
# No call is waited for longer than this.
PATIENCE = 60.0
BUSY = "RESOURCE_EXHAUSTED"
# What ends a call as it should, by what the client does.
EXPECTED: Mapping[str, frozenset[str]] = {
    "Predict": frozenset({"OK", BUSY}),
    "Certify": frozenset({"OK", BUSY}),
    "Certify, stop rule": frozenset({"OK", BUSY}),
    "CertifyStream": frozenset({"OK", BUSY}),
    "Certify, hung up": frozenset({"OK", BUSY, "CANCELLED"}),
    "CertifyStream, hung up": frozenset({"OK", BUSY, "CANCELLED"}),
    "Certify, too little time": frozenset({"OK", BUSY, "DEADLINE_EXCEEDED"}),
    "CertifyStream, too little time": frozenset({"OK", BUSY, "DEADLINE_EXCEEDED"}),
}


@dataclasses.dataclass(frozen=True)
class Result:
    """One call: what was done, how it ended (a gRPC status, or what was wrong), in seconds."""

    kind: str
    outcome: str
    seconds: float

    @property
    def expected(self) -> bool:
        """Whether this was an answer, a declared refusal or the client's own doing."""
        return self.outcome in EXPECTED[self.kind]


class Client:
    """Asks one question after another, chosen by its seed."""

    def __init__(self, target: str, seed: int) -> None:
        """Opens a connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = open_channel(target, options=options)
        self._stub = CertifierStub(self.channel)
        self._rng = np.random.default_rng(seed)
        self._kinds: dict[str, Callable[[pb.Pixels], str]] = {
            "Predict": self._predict,
            "Certify": self._certify,
            "Certify, stop rule": self._certify_with_a_stop_rule,
            "CertifyStream": self._stream,
            "Certify, hung up": self._hang_up,
            "CertifyStream, hung up": self._hang_up_a_stream,
            "Certify, too little time": self._certify_in_no_time,
            "CertifyStream, too little time": self._stream_in_no_time,
        }

    def ask(self) -> Result:
        """One call, to its end."""
        kind = str(self._rng.choice(list(self._kinds)))
        image = self._rng.random(SHAPE).astype("<f4")
        pixels = pb.Pixels(shape=SHAPE, float32=image.tobytes())
        started = time.monotonic()
        try:
            outcome = self._kinds[kind](pixels)
        except grpc.RpcError as error:
            outcome = error.code().name if isinstance(error, grpc.Call) else repr(error)
        return Result(kind, outcome, time.monotonic() - started)

    def rest(self) -> None:
        """What a refused caller does before it tries again."""
        time.sleep(self._rng.uniform(0.5, 2))

    def _request(self, pixels: pb.Pixels, **fields: Any) -> pb.CertifyRequest:
        return pb.CertifyRequest(
            pixels=pixels, n0=int(self._rng.integers(1, 200)), alpha=0.01, **fields
        )

    def _n(self) -> int:
        return int(self._rng.integers(300, 2000))

    def _predict(self, pixels: pb.Pixels) -> str:
        n = int(self._rng.integers(10, 300))
        answer = self._stub.Predict(pb.PredictRequest(pixels=pixels, n=n), timeout=PATIENCE)
        return _checked(answer, pixels, n)

    def _certify(self, pixels: pb.Pixels) -> str:
        n = self._n()
        answer = self._stub.Certify(self._request(pixels, n=n), timeout=PATIENCE)
        return _checked(answer, pixels, n)

    def _certify_with_a_stop_rule(self, pixels: pb.Pixels) -> str:
        request = self._request(pixels, n=self._n(), precision=0.2)
        return _checked(self._stub.Certify(request, timeout=PATIENCE), pixels)

    def _stream(self, pixels: pb.Pixels) -> str:
        request = self._request(pixels, n=self._n())
        return _checked_stream(self._stub.CertifyStream(request, timeout=PATIENCE), pixels)

    def _hang_up(self, pixels: pb.Pixels) -> str:
        call = self._stub.Certify.future(self._request(pixels, n=2000), timeout=PATIENCE)
        time.sleep(self._rng.uniform(0, 0.1))
        call.cancel()
        return "CANCELLED" if call.cancelled() else _checked(call.result(), pixels)

    def _hang_up_a_stream(self, pixels: pb.Pixels) -> str:
        call = self._stub.CertifyStream(self._request(pixels, n=2000), timeout=PATIENCE)
        next(call)
        call.cancel()
        return _checked_stream(call, pixels)

    def _certify_in_no_time(self, pixels: pb.Pixels) -> str:
        request = self._request(pixels, n=2000, budget=1.0)
        answer = self._stub.Certify(request, timeout=self._rng.uniform(0.01, 2))
        return _checked(answer, pixels)

    def _stream_in_no_time(self, pixels: pb.Pixels) -> str:
        request = self._request(pixels, n=2000)
        call = self._stub.CertifyStream(request, timeout=self._rng.uniform(0.01, 2))
        return _checked_stream(call, pixels)


def _checked(answer: Any, pixels: pb.Pixels, n: int | None = None) -> str:
    """`OK`, or what is wrong with an answer: other pixels than were sent, counts that miss some.

    Only a certificate that says so may have fewer votes than the `n` that was asked for.
    """
    if answer.pixels_sha256 != hashlib.sha256(pixels.float32).hexdigest():
        return "answer about other pixels"
    if isinstance(answer, pb.Certificate) and answer.stopped_early:
        n = None
    if sum(answer.counts) != answer.n or n not in (None, answer.n):
        return f"{sum(answer.counts)} votes, n={answer.n}, asked for {n}"
    return "OK"


def _checked_stream(certificates: Iterable[pb.Certificate], pixels: pb.Pixels) -> str:
    radius = 0.0
    for certificate in certificates:
        if (outcome := _checked(certificate, pixels)) != "OK":
            return outcome
        if certificate.radius < radius:
            return f"the radius fell from {radius} to {certificate.radius}"
        radius = certificate.radius
    return "OK"


def load(target: str, *, seconds: float, clients: int, seed: int = 0) -> list[Result]:
    """Asks for so many seconds, from so many clients at once, and waits for what is under way."""
    end = time.monotonic() + seconds

    def run(number: int) -> list[Result]:
        client = Client(target, seed * 1000 + number)
        results = []
        with client.channel:
            while time.monotonic() < end:
                results.append(client.ask())
                if results[-1].outcome == BUSY:
                    client.rest()
        return results

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        return [result for results in pool.map(run, range(clients)) for result in results]


class Memory:
    """Resident memory of processes, looked at twice a second while the block runs."""

    def __init__(self, processes: Mapping[str, int]) -> None:
        """Takes process ids by name."""
        self._processes = {name: psutil.Process(pid) for name, pid in processes.items()}
        self._times: list[float] = []
        self._bytes: dict[str, list[int]] = {name: [] for name in processes}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            for name, process in self._processes.items():
                self._bytes[name].append(process.memory_info().rss)
            self._times.append(time.monotonic())

    def ends(self, name: str) -> tuple[int, int]:
        """Bytes at the first and the last look."""
        return self._bytes[name][0], self._bytes[name][-1]

    def slope(self, name: str) -> float:
        """Bytes a second in the second half: what a server needs to run at all comes before.

        The median of the slopes between all pairs of looks (Theil and Sen): one step, as when an
        allocator takes another arena, does not count as growth.
        """
        half = len(self._times) // 2
        return float(stats.theilslopes(self._bytes[name][half:], self._times[half:]).slope)


def tell(results: Sequence[Result], memory: Memory, names: Sequence[str]) -> Iterator[str]:
    """The lines of the report."""
    yield f"{'':32} {'calls':>7} {'p50':>8} {'p95':>8} {'p99':>8}  ended as"
    for kind in EXPECTED:
        mine = [result for result in results if result.kind == kind]
        answered = [result.seconds for result in mine if result.outcome == "OK"]
        times = (
            [f"{value:.3f}s" for value in np.percentile(answered, [50, 95, 99])]
            if answered
            else "---"
        )
        ends = collections.Counter(result.outcome for result in mine).most_common()
        yield (
            f"{kind:32} {len(mine):7} "
            + " ".join(f"{value:>8}" for value in times)
            + "  "
            + ", ".join(f"{outcome} {count}" for outcome, count in ends)
        )
    for name in names:
        first, last = memory.ends(name)
        yield (
            f"{name}: {first / 2**20:.0f} MiB at first, {last / 2**20:.0f} MiB at last, "
            f"{60 * memory.slope(name) / 2**20:+.2f} MiB a minute in the second half"
        )
    wrong = sum(not result.expected for result in results)
    yield f"{len(results)} calls, {wrong} ended as none should"


def sidecar_flags(model_port: int, port: int) -> list[str]:
    """A sidecar that lets fewer calls in than there are clients."""
    return [
        f"--backend=127.0.0.1:{model_port}",
        "--model_name=m",
        f"--port={port}",
        f"--max_certifications={PLACES}",
        f"--max_certifications_per_client={PLACES}",
    ]


def _main() -> None:
    commandline.load_tensorflow()
    model_port, port = portpicker.pick_unused_port(), portpicker.pick_unused_port()
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder))
        server = (f"--model_base_path={folder}", "--model_name=m", f"--port={model_port}")
        sidecar = (*sidecar_flags(model_port, port), "--metrics_port=0")
        with (
            serving("serving.model_server", *server, stderr=subprocess.DEVNULL) as first,
            serving("serving.sidecar", *sidecar, stderr=subprocess.DEVNULL) as second,
            Memory({"model server": first, "sidecar": second}) as memory,
        ):
            results = load(
                f"127.0.0.1:{port}",
                seconds=_SECONDS.value,
                clients=_CLIENTS.value,
                seed=_SEED.value,
            )
    for line in tell(results, memory, ("model server", "sidecar")):
        print(line)


main = commandline.command(_main, FLAGS, "python -m benchmarks.load", __doc__)


if __name__ == "__main__":
    sys.exit(main())
