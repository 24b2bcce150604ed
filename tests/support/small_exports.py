"""A small exported classifier and the requests to it, for several tests."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from export.signatures import SmoothedClassifier
from tfmacer.records.runs import Smoothing

SHAPE, CLASSES = (8, 8, 1), 4
IMAGES = np.random.default_rng(0).random((3, *SHAPE), np.float32)
ROWS = {
    "images": IMAGES,
    "seeds": np.array([[1, 2], [-3, 4], [1, 2]], np.int32),
    "offsets": np.array([0, 32, 5], np.int32),
    "num_samples": np.array([64, 100, 7], np.int32),
    "beta": np.array([1.0, 4.0, 1.0], np.float32),
}
# Long enough for a cluster of XLA to be compiled while its draws are under way.
MANY = ROWS | {"num_samples": np.array([4096, 1000, 77], np.int32)}
# To every signature.
REQUESTS = {
    "sample_under_noise": MANY,
    "logits": {"images": IMAGES},
    "serving_default": {"images": IMAGES},
    "encoded": {
        "encoded_images": np.array(
            [tf.io.encode_png(np.uint8(255 * image)).numpy() for image in IMAGES], object
        )
    },
    "tfmacer_info": {"probe": np.zeros(2, np.int32)},
}


def small_smoothing(shape=SHAPE, classes=CLASSES, precision="float32") -> Smoothing:
    """Gaussian noise in blocks of 32, of a model without a name."""
    return Smoothing(
        sigma=0.25,
        num_classes=classes,
        input_shape=shape,
        model_digest="0" * 64,
        block_size=32,
        precision=precision,
    )


def small_network() -> keras.Model:
    """A convolution and a dense layer; the same weights at every call."""
    keras.utils.set_random_seed(3)
    layers = [keras.layers.Conv2D(4, 3), keras.layers.Flatten(), keras.layers.Dense(CLASSES)]
    return keras.Sequential([keras.Input(SHAPE), *layers])


def write_export(version: Path, network: keras.Model, smoothing: Smoothing) -> Path:
    """Saves a classifier as a version directory, without the checks of an export."""
    module = SmoothedClassifier(network, smoothing, 100)
    tf.saved_model.save(module, str(version), signatures=module.signatures())
    return version


def write_small_export(version: Path) -> Path:
    return write_export(version, small_network(), small_smoothing())
