"""One turn of `benchmarks.training` in adversarial-robustness-toolbox's MACER for TensorFlow.

art NETWORK BATCH COPIES STEPS; prints seconds a step. Its noisy images are scrambled (it repeats
the channel axis and reshapes), which costs the same.
"""

import sys
import time

import keras
import numpy as np
import tensorflow as tf
from art.estimators.certification.randomized_smoothing.macer.tensorflow import TensorFlowV2MACER
from keras import layers

SHAPE = (28, 28, 1)


def lenet() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            layers.Conv2D(20, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(50, 5, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(500, activation="relu"),
            layers.Dense(10),
        ]
    )


def main(network: str, size: int, copies: int, steps: int) -> None:
    if network != "lenet":
        sys.exit("art: LeNet only")
    trainer = TensorFlowV2MACER(
        model=lenet(),
        nb_classes=10,
        input_shape=SHAPE,
        loss_object=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer=keras.optimizers.SGD(1e-4, momentum=0.9),
        scale=0.5,
        lmbda=4.0,
        gaussian_samples=copies,
    )
    rng = np.random.default_rng(0)
    images = rng.random((size * steps, *SHAPE), np.float32)
    # One more epoch than is timed: the step is compiled anew in every call of `fit`.
    ends: list[float] = []
    trainer.fit(
        images,
        rng.integers(0, 10, size * steps),
        batch_size=size,
        nb_epochs=2,
        scheduler=lambda epoch: ends.append(time.perf_counter()),
    )
    print((ends[1] - ends[0]) / steps)


if __name__ == "__main__":
    main(sys.argv[2], *(int(number) for number in sys.argv[3:]))
