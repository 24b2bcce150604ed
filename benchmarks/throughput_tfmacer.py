"""One turn of `benchmarks.throughput`: VARIANT NETWORK N MODEL; prints draws per second."""

import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parents[1]))

from tfmacer.certification.images import certify_images
from tfmacer.noise.generators import LATEST, PHILOX
from tfmacer.training import networks
from tfmacer.votes import devices, local

# Variants that certify, by their noise, with parameters as for research.
NOISES = {
    "tfmacer": ("gaussian", {}),
    "rounded_gaussian": ("rounded_gaussian", {}),
    "generalized_gaussian": ("generalized_gaussian", {"k": 100.0}),
    "mixed_norm": ("mixed_norm", {"k": 10.0}),
    "philox": ("gaussian", {}),
}
SHAPES = {"lenet": ("mnist", (28, 28, 1)), "resnet20": ("cifar10", (32, 32, 3))}
BATCH = 256


def main(variant: str, network: str, n: int, path: str) -> None:
    dataset, shape = SHAPES[network]
    if variant == "save":
        keras.utils.set_random_seed(0)
        networks.build(network, dataset, shape, 10).save(path)
        return
    if variant in NOISES:
        devices.use_threads()
    model = keras.models.load_model(path, compile=False)
    # Of eight bits, which rounded noise asks for.
    image = np.random.default_rng(0).integers(0, 256, (1, *shape), np.uint8) / np.float32(255)
    if variant in NOISES:
        family, params = NOISES[variant]
        smoothing = local.Smoothing(
            sigma=0.5,
            num_classes=10,
            input_shape=shape,
            model_digest="-",
            noise_family=family,
            noise_params=params,
            generator=PHILOX if variant == "philox" else LATEST,
        )
        source = local.NetworkVotes(model, smoothing)
        certify_images(source, image, n=2 * BATCH)
        started = time.perf_counter()
        certify_images(source, image, n=n)
        print(n / (time.perf_counter() - started))
        return

    @tf.function
    def forward(images: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(model(images, training=False))

    # A bare forward has no noise to draw: the same noisy batch again and again.
    noisy = tf.constant(image + np.random.default_rng(1).normal(0, 0.5, (BATCH, *shape)), "float32")
    forward(noisy)
    started = time.perf_counter()
    for _ in range(n // BATCH):
        forward(noisy)
    print(n // BATCH * BATCH / (time.perf_counter() - started))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
