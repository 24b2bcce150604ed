"""A module of a user's own, `my_parts`: a small dataset and a network for it."""

MODULE = """
import keras
import numpy as np

def digits(split):
    rng = np.random.default_rng(split == "test")
    labels = rng.integers(0, 3, 40)
    images = rng.integers(0, 100, (40, 4, 4, 1)).astype(np.uint8)
    images[np.arange(40), labels, labels] = 255
    return images, labels, 3

def network(shape, num_classes):
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(),
                             keras.layers.BatchNormalization(),
                             keras.layers.Dense(num_classes)])
"""
