"""One turn of `benchmarks.throughput` in adversarial-robustness-toolbox: NETWORK N MODEL."""

import sys
import time

import keras
import numpy as np
import tensorflow as tf
from art.estimators.certification.randomized_smoothing import TensorFlowV2RandomizedSmoothing


def main(n: int, path: str) -> None:
    model = keras.models.load_model(path, compile=False)
    shape = model.input_shape[1:]
    classifier = TensorFlowV2RandomizedSmoothing(
        model=model,
        nb_classes=10,
        input_shape=shape,
        loss_object=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        scale=0.5,
        alpha=0.001,
        sample_size=100,
    )
    image = np.random.default_rng(0).random((1, *shape)).astype(np.float32)
    classifier.certify(image, n=2000, batch_size=256)
    started = time.perf_counter()
    classifier.certify(image, n=n, batch_size=256)
    print(n / (time.perf_counter() - started))


if __name__ == "__main__":
    main(int(sys.argv[2]), sys.argv[3])
