"""Loads an export the way TensorFlow Serving does, in a process that knows nothing else.

`python -m export.check DIR PROBE.npz` restores the SavedModel into a v1 Session and compares its
`logits` with the ones that the network gave where it was exported. Imports TensorFlow and NumPy
only, so that nothing of this project can help the model to load.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

# The same network in another runtime may fuse and order its sums differently, and so round
# differently: a step of bfloat16 is 0.008 of the number.
TOLERANCES = {"float32": 1e-3, "mixed_float16": 0.02, "mixed_bfloat16": 0.1}


def check(directory: Path, images: npt.NDArray[Any], logits: npt.NDArray[Any]) -> None:
    """Runs every numeric signature once and compares `logits`.

    Args:
      directory: a version directory.
      images: float32 `[B, H, W, C]`.
      logits: float32 `[B, K]`, what the network answers to `images`.

    Raises:
      ValueError: the logits differ, or a signature's counts do not add up.
      tf.errors.OpError: it does not load or run.
    """
    graph = tf.Graph()
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(directory))

        def run(name: str, output: str, **inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
            signature = meta.signature_def[name]
            feeds = {signature.inputs[alias].name: value for alias, value in inputs.items()}
            answer: npt.NDArray[Any] = session.run(signature.outputs[output].name, feeds)
            return answer

        found = run("logits", "logits", images=images)
        smoothing = json.loads(run("tfmacer_info", "smoothing", probe=np.zeros(1, np.int32))[0])
        scale = max(1.0, float(np.abs(logits).max()))
        worst = float(np.abs(found - logits).max()) / scale
        if not worst <= TOLERANCES.get(smoothing["precision"], TOLERANCES["float32"]):
            raise ValueError(f"logits differ from the network's by {worst:.2g} of their scale")
        one = np.ones(len(images), np.int32)
        counts = run(
            "sample_under_noise",
            "counts",
            images=images,
            seeds=np.stack([one, one], axis=1),
            offsets=0 * one,
            num_samples=10 * one,
            beta=one.astype(np.float32),
        )
        if (counts.sum(axis=1) != 10).any():
            raise ValueError(f"sample_under_noise counted {counts.sum(axis=1)} of 10 draws a row")
        if not run("serving_default", "counts", images=images).sum(axis=1).all():
            raise ValueError("serving_default counted no votes")


if __name__ == "__main__":
    probe = np.load(sys.argv[2])
    check(Path(sys.argv[1]), probe["images"], probe["logits"])
