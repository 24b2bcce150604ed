"""Inputs of a trainer, converted to one form; wrong ones are refused in one sentence.

As in Keras, labels may be a column or one-hot and numbers of any type; pixels are float in [0, 1]
or uint8. Shapes and types are looked at when a step is traced; values in the graph, before
anything is computed from them.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfmacer.common.errors import UserError
from tfmacer.data.splits import as_pixels
from tfmacer.training.objective import Objective

# Around the message of an assertion, to find it in that of TensorFlow's error.
_MARK = "<tfmacer>"

_UNSAVED = (
    "a trainer cannot be saved whole; trainer.network.save(PATH) saves the network, "
    "trainer.save_weights(PATH) the weights"
)


@contextlib.contextmanager
def in_one_line() -> Iterator[None]:
    """Turns what an assertion of this module raises within into a `UserError`."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        said = re.search(f"{_MARK}(.*?){_MARK}", error.message, re.DOTALL)
        if said is None:
            raise
        raise UserError(said[1]) from None


class CheckedModel(keras.Model):
    """A Keras model whose methods say in one sentence what is wrong with their inputs."""

    def fit(self, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """As `keras.Model.fit`."""
        for callback in tf.nest.flatten(kwargs.get("callbacks")):
            whole = isinstance(callback, keras.callbacks.ModelCheckpoint)
            if whole and not callback.save_weights_only:
                raise UserError(f"ModelCheckpoint must have save_weights_only=True: {_UNSAVED}")
        with in_one_line():
            return super().fit(*args, **kwargs)

    evaluate = in_one_line()(keras.Model.evaluate)
    predict = in_one_line()(keras.Model.predict)
    train_on_batch = in_one_line()(keras.Model.train_on_batch)
    test_on_batch = in_one_line()(keras.Model.test_on_batch)
    predict_on_batch = in_one_line()(keras.Model.predict_on_batch)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Refuses: Keras could not load what is more than layers.

        Raises:
          UserError: always; it says what can be saved.
        """
        raise UserError(_UNSAVED)


class Examples(NamedTuple):
    """A batch.

    Attributes:
      images: float32 `[B, H, W, C]` in [0, 1].
      labels: int64 `[B]`, 0 to K - 1.
      weights: float32 `[B]`, what each image counts in the losses.
      count: float32 scalar, B. A batch without an image, a replica's share of one that is too
        small for all of them, has a black one here for it, of weight 0, and the count is 0.
    """

    images: tf.Tensor
    labels: tf.Tensor
    weights: tf.Tensor
    count: tf.Tensor


def examples(data: Any, network: keras.Model) -> Examples:
    """Reads `(images, labels)` or `(images, labels, weights)`.

    Args:
      data: images `[B, H, W, C]`, uint8 or floating-point in [0, 1]; labels `[B]`, `[B, 1]` or
        one-hot `[B, K]`, integers in any type; weights `[B]` or `[B, 1]`, finite and 0 or more.
      network: what they are for, which maps images to logits `[B, K]`.

    Raises:
      UserError: shapes or types are others. In a graph, values that are others raise
        `tf.errors.InvalidArgumentError` when it is run: see `in_one_line`.
    """
    images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
    if labels is None:
        raise UserError("labels must be given: images alone cannot be learned from")
    images = pixels(images)
    labels = _labels(tf.convert_to_tensor(labels), _num_classes(network, images))
    weights = tf.ones_like(labels, tf.float32) if weights is None else _weights(weights)
    sizes = [part.shape[0] for part in (images, labels, weights)]
    text = "images, labels and sample weights must be equally many, found {}"
    if len(set(sizes) - {None}) > 1:
        raise UserError(text.format(sizes))
    counts = tf.stack([tf.shape(part)[0] for part in (images, labels, weights)])
    count = _where(counts, tf.reduce_all(counts == counts[0]), text, tf.identity)[0]
    if not images.shape[0]:
        given, black = (images, labels, weights), (1, *images.shape[1:])
        parts = tf.cond(
            count > 0,
            lambda: given,
            lambda: (tf.zeros(black), tf.zeros(1, tf.int64), tf.zeros(1)),
        )
        for part, whole in zip(parts, given, strict=True):
            part.set_shape([None, *whole.shape[1:]])
        images, labels, weights = parts
    return Examples(images, labels, weights, tf.cast(count, tf.float32))


def pixels(images: Any) -> tf.Tensor:
    """Images `[B, H, W, C]` as float32: uint8 is divided by 255, floats must be in [0, 1].

    Raises:
      UserError: another shape or type; values as in `examples`.
    """
    if tf.nest.is_nested(images):
        raise UserError(f"images must be one array [B, H, W, C], got {type(images).__name__}")
    images = tf.convert_to_tensor(images)
    if images.shape.rank != 4:
        raise UserError(f"images must be [B, H, W, C], got {images.shape}")
    if images.dtype == tf.uint8:
        return as_pixels(images)
    if not images.dtype.is_floating:
        raise UserError(f"images must be uint8 or floating-point, got {images.dtype.name}")
    inside = tf.reduce_all((images >= 0) & (images <= 1))
    text = "floating-point pixels must be in [0, 1], found values from {} to {}"
    images = _where(images, inside, text, tf.reduce_min, tf.reduce_max)
    return tf.cast(images, tf.float32)


def check_chunk(noise_chunk: int | None, num_noise: int, objective: Objective) -> None:
    """Refuses a chunk that does not divide the copies, or an objective that needs all at once."""
    if noise_chunk is None:
        return
    if noise_chunk < 1 or num_noise % noise_chunk:
        raise UserError(f"noise_chunk must divide num_noise={num_noise}, got {noise_chunk}")
    if not objective.sees_copies_only:
        raise UserError(
            f"noise_chunk={noise_chunk}: {type(objective).__name__} needs all copies at once; "
            "only gaussian, macer and consistency can be computed a few copies at a time"
        )


def check_sigma(objective: Objective, sigma: float) -> None:
    """Refuses an objective, or one that it holds, of another sigma than the trainer's."""
    part: Any = objective
    while part is not None:
        found = getattr(part, "sigma", sigma)
        if found != sigma:
            raise UserError(f"{type(part).__name__} has sigma={found}, the trainer sigma={sigma}")
        part = getattr(part, "objective", None)


def check_optimizer(optimizer: Any, replicas: int) -> None:
    """Refuses an optimizer that does what the trainer does, or that replicas cannot share."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise UserError(
            "optimizer: LossScaleOptimizer would scale losses twice: the trainer scales those of "
            "networks in float16 itself; give the optimizer within it"
        )
    if steps := optimizer.gradient_accumulation_steps:
        raise UserError(
            f"optimizer: gradient_accumulation_steps={steps} would draw the same noise {steps} "
            "times; noise_chunk takes a batch in parts"
        )
    for name in ("clipnorm", "clipvalue", "global_clipnorm"):
        if replicas > 1 and getattr(optimizer, name) is not None:
            raise UserError(f"optimizer: {name} is for one device; clip_norm is for {replicas}")


def _num_classes(network: keras.Model, images: tf.Tensor) -> int:
    """K of a network; one that is not built yet is built."""
    outputs = getattr(network, "outputs", None)
    if outputs is None:
        outputs = network(keras.KerasTensor((None, *images.shape[1:])), training=False)
    shapes = [tuple(part.shape) for part in tf.nest.flatten(outputs)]
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][1] is None:
        raise UserError(f"the network must return logits [B, K] alone, returns {shapes}")
    classes: int = shapes[0][1]
    return classes


def _labels(labels: tf.Tensor, num_classes: int) -> tf.Tensor:
    """int64 `[B]` of labels in any form."""
    if not (labels.dtype.is_floating or labels.dtype.is_integer):
        raise UserError(f"labels must be numbers, got {labels.dtype.name}")
    form = f"[B], a column [B, 1] or one-hot [B, {num_classes}]"
    if _is_open(labels):
        hot = (tf.rank(labels) == 2) & (tf.shape(labels)[-1] == num_classes)
        return tf.cond(
            hot,
            lambda: _labels(tf.reshape(labels, [-1, num_classes]), num_classes),
            lambda: _labels(_flat(labels, f"labels must be {form}, got {{}}"), num_classes),
        )
    labels = _flat(labels)
    if labels.shape.rank == 2 and labels.shape[1] == num_classes:
        hot = (labels == 1) | (labels == 0)
        once = tf.reduce_sum(tf.cast(labels == 1, tf.int32), axis=1) == 1
        text = f"labels [B, {num_classes}] must be one-hot, found values from {{}} to {{}}"
        right = tf.reduce_all(hot) & tf.reduce_all(once)
        return tf.argmax(_where(labels, right, text, tf.reduce_min, tf.reduce_max), axis=1)
    if labels.shape.rank != 1:
        raise UserError(f"labels must be {form}, got {labels.shape}")
    whole = tf.cast(labels, tf.int64)
    right = (whole >= 0) & (whole < num_classes) & (tf.cast(whole, labels.dtype) == labels)
    text = f"labels must be whole numbers from 0 to {num_classes - 1}, found {{}}"
    return _where(whole, tf.reduce_all(right), text, lambda _: labels[tf.argmin(right)])


def _weights(weights: Any) -> tf.Tensor:
    """float32 `[B]`."""
    text = "sample weights must be [B] or [B, 1], got {}"
    weights = _flat(tf.cast(tf.convert_to_tensor(weights), tf.float32), text)
    if weights.shape.rank != 1:
        raise UserError(text.format(weights.shape))
    right = tf.math.is_finite(weights) & (weights >= 0)
    text = "sample weights must be finite and 0 or more, found {}"
    return _where(weights, tf.reduce_all(right), text, lambda w: w[tf.argmin(right)])


def _is_open(values: tf.Tensor) -> bool:
    """Whether only running a step tells if values have a row or a number for each image.

    So it is once Keras was given both: it traces one step for all.
    """
    return values.shape.rank is None or (values.shape.rank == 2 and values.shape[1] is None)


def _flat(values: tf.Tensor, text: str = "") -> tf.Tensor:
    """Columns as `[B]`; `text` is said where that is not known before, and cannot be."""
    if _is_open(values):
        flat = tf.size(values) == tf.shape(values)[0]
        return tf.reshape(_where(values, flat, text, tf.shape), [-1])
    return values[:, 0] if values.shape.rank == 2 and values.shape[1] == 1 else values


def _where(value: tf.Tensor, right: tf.Tensor, text: str, *found: Any) -> tf.Tensor:
    """`value`, once it is known to be right; else what is `found` in it is said, and no more."""

    def fail() -> tf.Operation:
        said = tf.strings.format(f"{_MARK}{text}{_MARK}", [find(value) for find in found])
        return tf.debugging.Assert(False, [said])

    with tf.control_dependencies([tf.cond(right, tf.no_op, fail)]):
        return tf.identity(value)
