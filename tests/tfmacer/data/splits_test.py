"""Images and labels by position."""

import numpy as np
import pytest
import tensorflow as tf

from tfmacer.data.splits import ArraySplit, as_pixels


def test_take_gives_what_stands_at_each_position():
    images = np.arange(5 * 2 * 3 * 1, dtype=np.uint8).reshape(5, 2, 3, 1)
    split = ArraySplit("name", "part", images, np.arange(5) % 3, 3)
    found, labels = split.take([0, 2, 4])
    np.testing.assert_array_equal(found, images[::2].astype(np.float32) / 255)
    assert labels.tolist() == [0, 2, 1]
    empty, none = split.take([])
    assert empty.shape == (0, 2, 3, 1)
    assert none.shape == (0,)


def test_floating_point_pixels_stay_as_they_are():
    images = np.random.default_rng(0).random((3, 2, 2, 1)).astype(np.float32)
    found, _ = ArraySplit("name", "part", images, np.zeros(3, int), 2).take([1])
    np.testing.assert_array_equal(found, images[1:2])


def test_every_byte_has_its_own_pixel():
    pixels = as_pixels(tf.constant(range(256), tf.uint8))
    np.testing.assert_array_equal(pixels, np.arange(256, dtype=np.float32) / np.float32(255))


@pytest.mark.parametrize(("labels", "expected"), [([0, 1, 1], True), ([0, -1, 1], False)])
def test_labelled(labels, expected):
    split = ArraySplit("name", "part", np.zeros((3, 1, 1, 1), np.uint8), np.array(labels), 2)
    assert split.labelled is expected
