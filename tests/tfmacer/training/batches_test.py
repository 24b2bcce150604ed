"""Batches: every image once an epoch, the same wherever they are entered, cut as published."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tfmacer.common.errors import UserError
from tfmacer.data import datasets, tfds_splits
from tfmacer.data.splits import ArraySplit
from tfmacer.training import batches

TOTAL, BATCH = 50, 8
STEPS = TOTAL // BATCH


def _split(total=TOTAL, size=5):
    """Images that say their position in their first pixel; labels that say it too."""
    images = np.random.default_rng(0).integers(0, 256, (total, size, size, 1)).astype(np.uint8)
    return ArraySplit("name", "train", images, np.arange(total), total)


def _epoch(split, **options):
    options = {"batch_size": BATCH, "seed": 3} | options
    return list(batches.epoch_batches(split, **options).as_numpy_iterator())


def test_an_epoch_has_every_image_at_most_once_with_its_label():
    split = _split()
    epoch = _epoch(split)
    assert len(epoch) == STEPS
    labels = np.concatenate([labels for _, labels in epoch])
    assert len(set(labels.tolist())) == STEPS * BATCH
    for images, labels in epoch:
        assert (images.dtype, images.shape) == (np.float32, (BATCH, 5, 5, 1))
        for image, label in zip(images, labels, strict=True):
            np.testing.assert_array_equal(image, split.take([label])[0][0])


def test_no_epoch_ends_with_a_wait_for_the_thread_that_tunes_its_pipeline():
    options = batches.epoch_batches(_split(), batch_size=BATCH, seed=3).options()
    assert options.autotune.enabled is False


@pytest.mark.parametrize("augmentation", ["none", "crop_flip"])
@pytest.mark.parametrize("within", [0, 1, STEPS - 1])
def test_an_epoch_entered_midway_is_the_rest_of_it(augmentation, within):
    split = _split()
    whole = _epoch(split, start=2 * STEPS, augmentation=augmentation)
    rest = _epoch(split, start=2 * STEPS + within, augmentation=augmentation)
    assert len(rest) == STEPS - within
    for (images, labels), (expected, expected_labels) in zip(rest, whole[within:], strict=True):
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(labels, expected_labels)


@pytest.mark.parametrize("augmentation", ["none", "crop", "crop_flip"])
def test_shares_of_a_batch_are_its_rows(augmentation):
    split = _split()
    whole = _epoch(split, start=STEPS, augmentation=augmentation)
    for index in range(2):
        share = batches.Share(index, 2)
        part = _epoch(split, start=STEPS, augmentation=augmentation, share=share)
        assert len(part) == STEPS
        rows = slice(4 * index, 4 * index + 4)
        for (images, labels), (expected, expected_labels) in zip(part, whole, strict=True):
            np.testing.assert_array_equal(images, expected[rows])
            np.testing.assert_array_equal(labels, expected_labels[rows])


def test_epochs_and_seeds_have_orders_of_their_own():
    split = _split()
    orders = [
        np.concatenate([labels for _, labels in _epoch(split, start=epoch * STEPS, seed=seed)])
        for epoch, seed in ((0, 3), (1, 3), (2, 3), (0, 4))
    ]
    for one, other in itertools.combinations(orders, 2):
        assert np.mean(one == other) < 0.2


def test_the_order_mixes_classes_as_a_random_one_does():
    """Of labels sorted by class, the counts in batches: mean chi-square 9, its error 0.3."""
    total, size = 5000, 50
    split = ArraySplit(
        "name", "train", np.zeros((total, 1, 1, 1), np.uint8), np.arange(total) * 10 // total, 10
    )
    epochs = [_epoch(split, batch_size=size, start=100 * epoch) for epoch in range(4)]
    counts = [np.bincount(labels, minlength=10) for epoch in epochs for _, labels in epoch]
    chi_square = ((np.array(counts) - size / 10) ** 2 / (size / 10)).sum(axis=1).mean()
    assert chi_square == pytest.approx(9.0, abs=4 * np.sqrt(2 * 9 / 400))


def _windows(image):
    """All 81 windows of an image padded by 4."""
    padded = np.pad(image, [(4, 4), (4, 4), (0, 0)])
    height, width = image.shape[:2]
    corners = itertools.product(range(9), range(9))
    return np.array([padded[y : y + height, x : x + width] for y, x in corners])


def test_crop_takes_every_window_of_the_padded_image_alike():
    image = np.random.default_rng(0).random((6, 7, 2)).astype(np.float32)
    windows = _windows(image)
    images = tf.constant(np.repeat(image[np.newaxis], 8100, axis=0))
    found = batches.crop(images, tf.constant([1, 2], tf.int64)).numpy()
    same = (found[:, np.newaxis] == windows).all(axis=(2, 3, 4))
    assert (same.sum(axis=1) == 1).all()
    counts = same.sum(axis=0)
    # 80 degrees of freedom: mean 80, standard deviation 12.6.
    assert ((counts - 100) ** 2 / 100).sum() < 80 + 4 * 12.6


def test_flip_mirrors_half_of_them_left_to_right():
    image = np.random.default_rng(0).random((6, 7, 2)).astype(np.float32)
    images = tf.constant(np.repeat(image[np.newaxis], 1000, axis=0))
    found = batches.crop_flip(images, tf.constant([1, 2], tf.int64)).numpy()
    straight = (found[:, np.newaxis] == _windows(image)).all(axis=(2, 3, 4)).any(axis=1)
    mirrored = (found[:, np.newaxis, :, ::-1] == _windows(image)).all(axis=(2, 3, 4)).any(axis=1)
    assert (straight ^ mirrored).all()
    assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(1000)


def test_augmentation_differs_between_steps_epochs_and_seeds():
    images = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 6, 6, 1)), 16, axis=0)
    split = ArraySplit("name", "train", images.astype(np.uint8), np.zeros(16, int), 2)
    options = {"batch_size": 8, "augmentation": "crop"}
    draws = [
        images
        for seed, start in ((0, 0), (0, 2), (1, 0))
        for images, _ in _epoch(split, seed=seed, start=start, **options)
    ]
    assert len(draws) == 6
    for one, other in itertools.combinations(draws, 2):
        assert not np.array_equal(one, other)


def test_resized_crops_are_windows_of_the_image_resized_and_mirrored():
    """Of a plane of colour: channel 0 grows downwards, channel 1 to the right."""
    y, x = np.mgrid[:200, :300]
    image = np.stack([y * 255 / 200, x * 255 / 300, 0 * x], axis=-1).astype(np.uint8)
    mirrored = 0
    for i in range(100):
        seed = tf.constant([5, i], tf.int64)
        found = batches.resized_crop_flip(tf.constant(image), seed, (32, 32, 3)).numpy()
        assert found.shape == (32, 32, 3)
        window = tf.random.split(seed, 2, alg="philox")[0]
        top, left, height, width = batches.random_window(tf.constant([200, 300]), window).numpy()
        middle = ((top + height / 2) / 200, (left + width / 2) / 300)
        np.testing.assert_allclose(found.mean(axis=(0, 1))[:2], middle, atol=0.01)
        down = found[-1, :, 0].mean() - found[0, :, 0].mean()
        right = found[:, -1, 1].mean() - found[:, 0, 1].mean()
        np.testing.assert_allclose(
            [down, abs(right)], [height / 200 * 31 / 32, width / 300 * 31 / 32], atol=0.02
        )
        mirrored += right < 0
    assert abs(mirrored / 100 - 0.5) < 4 * 0.5 / np.sqrt(100)


def _torchvision_area(rng, height, width):
    """RandomResizedCrop.get_params, as documented; only the window's share of the area."""
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1.0)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return h * w / (height * width)
    return 0.0


@pytest.mark.parametrize("size", [(200, 300), (256, 256)])
def test_windows_are_as_large_and_as_placed_as_torchvisions(size):
    seeds = tf.stack([tf.range(2000, dtype=tf.int64), tf.zeros(2000, tf.int64)], axis=1)
    draw = tf.function(lambda seed: batches.random_window(tf.constant(size), seed))
    windows = tf.map_fn(draw, seeds, fn_output_signature=tf.int32).numpy()
    top, left, height, width = windows.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= size[0]).all()
    assert (left + width <= size[1]).all()
    assert (width / height).min() > 0.73
    assert (width / height).max() < 1.37
    areas = height * width / np.prod(size)
    rng = np.random.default_rng(0)
    expected = np.array([_torchvision_area(rng, *size) for _ in range(20_000)])
    error = expected.std() / np.sqrt(2000)
    assert areas.mean() == pytest.approx(expected.mean(), abs=4 * error)
    quantiles = [0.1, 0.25, 0.5, 0.75, 0.9]
    np.testing.assert_allclose(
        np.quantile(areas, quantiles), np.quantile(expected, quantiles), atol=0.05
    )
    room = (size[0] - height) > 50
    assert (top[room] / (size[0] - height[room])).mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((10, 1000), (0, 493, 10, 13)), ((1000, 10), (493, 0, 13, 10))],
)
def test_where_no_window_fits_the_centre_is_taken(size, expected):
    """At least 8 % of 10,000 pixels at 4:3 would be 33 x 24."""
    window = batches.random_window(tf.constant(size), tf.constant([1, 2], tf.int64))
    assert tuple(window.numpy()) == expected


def test_a_stream_is_entered_midway_and_shuffled_anew_each_epoch(monkeypatch):
    monkeypatch.setattr(tfds_splits, "MEMORY_LIMIT", 100)
    with tfds.testing.mock_data(num_examples=23):
        split = datasets.load_split("cifar10", "train")
        assert isinstance(split, tfds_splits.StreamSplit)
        options = {"batch_size": 4, "augmentation": "crop_flip"}
        whole, rest, again = (_epoch(split, start=s, **options) for s in (5, 7, 10))
    assert len(whole) == 5
    assert len(rest) == 3
    for (images, labels), (expected, expected_labels) in zip(rest, whole[2:], strict=True):
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(labels, expected_labels)
    assert not np.array_equal(whole[0][0], again[0][0])


def test_imagenet_is_streamed_in_resized_crops():
    with tfds.testing.mock_data(num_examples=5):
        split = datasets.load_split("imagenet2012", "train")
        options = {"batch_size": 2, "augmentation": "resized_crop_flip"}
        epoch, again = (_epoch(split, **options) for _ in range(2))
        shares = [_epoch(split, share=batches.Share(index, 2), **options) for index in range(2)]
        with pytest.raises(UserError, match="one of resized_crop_flip for imagenet2012"):
            batches.check_trainable(split, "crop")
    assert len(epoch) == 2
    for index, share in enumerate(shares):
        for (images, labels), (whole, all_labels) in zip(share, epoch, strict=True):
            np.testing.assert_array_equal(images, whole[index : index + 1])
            np.testing.assert_array_equal(labels, all_labels[index : index + 1])
    assert epoch[0][0].shape == (2, 224, 224, 3)
    np.testing.assert_array_equal(epoch[1][0], again[1][0])


@pytest.mark.parametrize("augmentation", ["resized_crop_flip", "flop"])
def test_augmentations_that_are_not_for_these_images(augmentation):
    with pytest.raises(UserError, match="--augmentation must be one of none, crop, crop_flip"):
        _epoch(_split(), augmentation=augmentation)


def test_images_without_labels_are_not_trained_on():
    images = np.zeros((8, 2, 2, 1), np.uint8)
    split = ArraySplit("name", "train", images, np.array([0, 1] * 3 + [1, -1]), 2)
    with pytest.raises(UserError, match="--dataset=name has images without labels"):
        _epoch(split)
