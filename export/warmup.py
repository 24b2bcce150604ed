"""Warm-up requests that a model server replays when it loads a version.

Besides sparing the first client the cost of the first run, they turn a half-copied model, which
the server would otherwise call available, into an error at load time.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

from tfmacer.records.runs import Smoothing

FILE_NAME = "tf_serving_warmup_requests"


def write_warmup(folder: Path, smoothing: Smoothing, *, model_name: str = "tfmacer") -> None:
    """Writes a request for each signature that takes numbers, below `assets.extra`."""
    image = np.full((1, *smoothing.input_shape), 0.5, np.float32)
    row = np.zeros(1, np.int32)
    requests: dict[str, dict[str, npt.NDArray[Any]]] = {
        "serving_default": {"images": image},
        "logits": {"images": image},
        "tfmacer_info": {"probe": row},
        "sample_under_noise": {
            "images": image,
            "seeds": np.zeros((1, 2), np.int32),
            "offsets": row,
            "num_samples": row + smoothing.block_size,
            "beta": np.ones(1, np.float32),
        },
    }
    with tf.io.TFRecordWriter(str(folder / FILE_NAME)) as writer:
        for signature, inputs in requests.items():
            request = predict_pb2.PredictRequest(
                model_spec=model_pb2.ModelSpec(name=model_name, signature_name=signature),
                inputs={name: tf.make_tensor_proto(value) for name, value in inputs.items()},
            )
            log = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            writer.write(log.SerializeToString())
