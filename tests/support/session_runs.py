"""Runs an export as a model server does, and tells what the executor ran, where, and compiled.

`python session_runs.py VERSION_DIR REQUESTS.pickle ANSWERS.pickle` does so in a process that
knows nothing of this project (`TF_XLA_FLAGS` is read once, when TensorFlow is loaded): all
requests as they come, then `sample_under_noise` and `logits` with the network in the clusters.
"""

import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
import tensorflow as tf

# XLA compiles a cluster only once it has been asked for it several times.
REPETITIONS = 3

Request = Mapping[str, npt.NDArray[Any]]


class Ran(NamedTuple):
    """What came of asking one signature three times."""

    answers: list[dict[str, npt.NDArray[Any]]]
    placed: list[tuple[str, str]]  # op and device of every node outside of XLA's clusters
    compiled: list[str]  # the programs that XLA compiled meanwhile, as HLO text

    def ops(self) -> set[str]:
        """The ops outside of clusters."""
        return {op for op, _ in self.placed}

    def devices(self, op: str) -> set[str]:
        """The kinds of device, as `CPU` or `GPU`, on which nodes of this op ran."""
        return {device.rsplit(":", 2)[1] for name, device in self.placed if name == op}


def run(
    directory: Path,
    requests: Mapping[str, Request],
    config: tf.compat.v1.ConfigProto | None = None,
    dumps: Path | None = None,
) -> dict[str, Ran]:
    """Asks each signature named in `requests`; `dumps` is the folder of `--xla_dump_to`."""
    found: dict[str, Ran] = {}
    before = _programs(dumps)
    options = tf.compat.v1.RunOptions(output_partition_graphs=True)
    with tf.Graph().as_default(), tf.compat.v1.Session(config=config) as session:
        meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(directory))
        for name, request in requests.items():
            signature = meta.signature_def[name]
            fetches = {alias: info.name for alias, info in signature.outputs.items()}
            feeds = {signature.inputs[alias].name: value for alias, value in request.items()}
            ran = tf.compat.v1.RunMetadata()
            answers = [session.run(fetches, feeds, options, ran) for _ in range(REPETITIONS)]
            placed = [(node.op, node.device) for g in ran.partition_graphs for node in g.node]
            after = _programs(dumps)
            texts = [after[path] for path in sorted(after.keys() - before.keys())]
            found[name], before = Ran(answers, placed, texts), after
    return found


def _programs(dumps: Path | None) -> dict[str, str]:
    paths = dumps.glob("*.before_optimizations.txt") if dumps else ()
    return {path.name: path.read_text() for path in paths}


def _main(directory: Path, requests: Path, answers: Path, dumps: Path) -> None:
    asked = pickle.loads(requests.read_bytes())
    whole = tf.compat.v1.ConfigProto()
    # Otherwise convolutions are fused with what follows them before clusters are formed, and a
    # network stays outside.
    whole.graph_options.rewrite_options.remapping = 2
    numbers = {name: asked[name] for name in ("sample_under_noise", "logits")}
    found = run(directory, asked, None, dumps), run(directory, numbers, whole, dumps)
    answers.write_bytes(pickle.dumps([{k: tuple(v) for k, v in each.items()} for each in found]))


if __name__ == "__main__":
    _main(*map(Path, sys.argv[1:]))
