"""The base classifiers of the papers, from stock Keras layers.

Each maps images in [0, 1] to logits in float32. Its first layer normalises: noise is added before
it, so that sigma and every radius are in units of pixels. Saved as `.keras`, each loads with
stock `keras.models.load_model` in safe mode.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import keras
from keras import layers

from tfmacer.common.errors import UserError
from tfmacer.data.datasets import load_function
from tfmacer.records.runs import RunDirectory
from tfmacer.votes.models import check_logits, check_saved, load_network

Shape = tuple[int, int, int]


class Statistics(NamedTuple):
    """Mean and standard deviation of each channel of a dataset's pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


# Those of the papers' code (Cohen et al.; Jeong and Shin), which leave MNIST as it is. The MACER
# paper's own code normalises nothing.
IDENTITY = Statistics((0.0,), (1.0,))
STATISTICS = {
    "cifar10": Statistics((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet2012": Statistics((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

Tensor: TypeAlias = Any  # keras.KerasTensor
Builder = Callable[[Shape, int, Statistics], keras.Model]

# Weights are drawn as in the papers' code: convolutions of networks with batch normalisation from
# N(0, 2 / (k^2 x filters)), which it sets; all else, biases included, by PyTorch's defaults,
# uniform within 1 / sqrt(inputs of a unit).
_HE = functools.partial(keras.initializers.VarianceScaling, 2.0, "fan_out", "untruncated_normal")
_DEFAULT = functools.partial(keras.initializers.VarianceScaling, 1 / 3, "fan_in", "uniform")


def lenet(shape: Shape, num_classes: int, statistics: Statistics = IDENTITY) -> keras.Model:
    """LeNet as the papers' code has it: 431,080 parameters for 28x28x1 images and 10 classes.

    Args:
      shape: `(H, W, C)`; sides of 16 or more.
      num_classes: K.
      statistics: what the first layer normalises by.
    """
    images = keras.Input(shape, name="images")
    x = _normalization(statistics)(images)
    for number, filters in ((1, 20), (2, 50)):
        drawn = _drawn(25 * x.shape[-1])
        x = layers.Conv2D(filters, 5, **drawn, name=f"conv{number}")(x)
        # Rectified after the maximum, which is the same function, for a quarter of the work.
        x = _relu(layers.MaxPooling2D(name=f"pool{number}")(x), f"conv{number}")
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(500, activation="relu", **_drawn(x.shape[-1]), name="hidden")(x)
    return keras.Model(images, _logits(x, num_classes), name="lenet")


def resnet(
    shape: Shape, num_classes: int, statistics: Statistics = IDENTITY, *, depth: int
) -> keras.Model:
    """ResNet of 6n + 2 layers for 32x32 images (He et al., CVPR 2016, section 4.2).

    As in the code of Cohen et al., MACER and those after them: shortcuts across a change of size
    are convolutions of 1x1 with batch normalisation. 272,474 parameters at depth 20, 1,730,714 at
    110, for 10 classes.

    Args:
      shape: `(H, W, C)`; sides divisible by 4.
      num_classes: K.
      statistics: what the first layer normalises by.
      depth: 6n + 2, e.g. 20 or 110.
    """
    images = keras.Input(shape, name="images")
    x = _normalization(statistics)(images)
    x = _relu(_batch_norm(_conv(x, 16, 3, name="conv")))
    for stage, filters in enumerate((16, 32, 64), start=1):
        for block in range(1, (depth - 2) // 6 + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            x = _basic_block(x, filters, stride, f"stage{stage}_block{block}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(images, _logits(x, num_classes), name=f"resnet{depth}")


def densenet40(shape: Shape, num_classes: int, statistics: Statistics = IDENTITY) -> keras.Model:
    """DenseNet of 40 layers and growth rate 12 (Huang et al., CVPR 2017), with bottlenecks.

    As in Jeong and Shin's code: three blocks of six layers of two convolutions, and transitions
    that pool and nothing else. 211,978 parameters for 10 classes.

    Args:
      shape: `(H, W, C)`; sides divisible by 4.
      num_classes: K.
      statistics: what the first layer normalises by.
    """
    images = keras.Input(shape, name="images")
    x = _conv(_normalization(statistics)(images), 24, 3, name="conv")
    for block in (1, 2, 3):
        for layer in range(1, 7):
            name = f"block{block}_layer{layer}"
            new = x
            for part, (filters, size) in enumerate(((48, 1), (12, 3)), start=1):
                new = _relu(_batch_norm(new, f"{name}_{part}"), f"{name}_{part}")
                new = _conv(new, filters, size, name=f"{name}_{part}")
            x = layers.Concatenate(name=f"{name}_concat")([x, new])
        if block < 3:
            x = layers.AveragePooling2D(2, name=f"transition{block}_pool")(x)
    x = _relu(_batch_norm(x, "last"), "last")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(images, _logits(x, num_classes, "zeros"), name="densenet40")


def resnet50(shape: Shape, num_classes: int, statistics: Statistics = IDENTITY) -> keras.Model:
    """ResNet-50 (He et al., CVPR 2016): 25,557,032 parameters for 1000 classes.

    As in PyTorch's collection, from which the papers took it: convolutions without bias, and the
    stride of a stage in its first 3x3 convolution.

    Args:
      shape: `(H, W, C)`, e.g. `(224, 224, 3)`.
      num_classes: K.
      statistics: what the first layer normalises by.
    """
    images = keras.Input(shape, name="images")
    x = _normalization(statistics)(images)
    x = _relu(_batch_norm(_conv(x, 64, 7, 2, name="conv")))
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    x = layers.MaxPooling2D(3, 2, name="pool1")(x)
    for stage, (filters, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for block in range(1, blocks + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            x = _bottleneck_block(x, filters, stride, f"stage{stage}_block{block}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(images, _logits(x, num_classes), name="resnet50")


NETWORKS: dict[str, Builder] = {
    "lenet": lenet,
    "resnet20": functools.partial(resnet, depth=20),
    "resnet110": functools.partial(resnet, depth=110),
    "densenet40": densenet40,
    "resnet50": resnet50,
}


def build(name: str, dataset: str, shape: Shape, num_classes: int) -> keras.Model:
    """A network for a dataset's images.

    Args:
      name: a key of `NETWORKS`, or `package.module:function`, called with `shape` and
        `num_classes`, which returns a Keras model from images in [0, 1] to logits.
      dataset: whose statistics to normalise by.
      shape: `(H, W, C)`.
      num_classes: K.

    Raises:
      UserError: no such network, or not one for such images.
    """
    if name in NETWORKS:
        try:
            return NETWORKS[name](shape, num_classes, STATISTICS.get(dataset, IDENTITY))
        except ValueError as error:
            raise UserError(f"--network={name} cannot take images of {shape}: {error}") from error
    if ":" not in name:
        raise UserError(
            f"--network must be one of {', '.join(NETWORKS)} or package.module:function, "
            f"got {name!r}"
        )
    return _check(name, load_function(name, "--network")(shape, num_classes), shape, num_classes)


def copy_weights(source: Path, network: keras.Model) -> None:
    """Copies the weights of a saved network into another of the same architecture.

    Args:
      source: a run directory or a `.keras` file.
      network: where they go.

    Raises:
      UserError: there is no such network, or its weights do not fit.
    """
    path = RunDirectory(source).model if source.is_dir() else source
    try:
        found = load_network(path)
    except UserError as error:
        raise UserError(f"--init_from={source}: cannot be used: {error}") from error
    if unlike := difference(*([w.shape for w in each.weights] for each in (found, network))):
        raise UserError(f"--init_from={source}: is another network: {unlike}")
    network.set_weights(found.get_weights())


def difference(found: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> str | None:
    """Where the shapes of two lists of weights differ first, in words; None where they do not."""
    if len(found) != len(wanted):
        return f"it has {len(found)} weights, this one {len(wanted)}"
    for number, (there, here) in enumerate(zip(found, wanted, strict=True), start=1):
        if tuple(there) != tuple(here):
            return f"its weight {number} is of {tuple(there)}, of {tuple(here)} in this one"
    return None


def _check(name: str, network: object, shape: Shape, num_classes: int) -> keras.Model:
    """A user's network, if it takes such images and returns such logits."""
    if not isinstance(network, keras.Model):
        raise UserError(f"--network={name}: returned {type(network).__name__}, not a keras.Model")
    found = tuple(getattr(network, name, None) for name in ("input_shape", "output_shape"))
    if found != ((None, *shape), (None, num_classes)):
        raise UserError(
            f"--network={name}: maps {found[0]} to {found[1]}, "
            f"must map {(None, *shape)} to {(None, num_classes)}"
        )
    check_logits(network, shape, what=f"--network={name}")
    check_saved(network, what=f"--network={name}")
    return network


def _basic_block(x: Tensor, filters: int, stride: int, name: str) -> Tensor:
    y = _relu(_batch_norm(_conv(x, filters, 3, stride, f"{name}_1"), f"{name}_1"), f"{name}_1")
    y = _batch_norm(_conv(y, filters, 3, name=f"{name}_2"), f"{name}_2")
    return _joined(x, y, stride, name)


def _bottleneck_block(x: Tensor, filters: int, stride: int, name: str) -> Tensor:
    y = _relu(_batch_norm(_conv(x, filters, 1, name=f"{name}_1"), f"{name}_1"), f"{name}_1")
    y = _conv(y, filters, 3, stride, f"{name}_2")
    y = _relu(_batch_norm(y, f"{name}_2"), f"{name}_2")
    y = _batch_norm(_conv(y, 4 * filters, 1, name=f"{name}_3"), f"{name}_3")
    return _joined(x, y, stride, name)


def _joined(x: Tensor, y: Tensor, stride: int, name: str) -> Tensor:
    """The end of a block: what it computed of x, added to x in y's form."""
    if x.shape[-1] != y.shape[-1]:
        shortcut = f"{name}_shortcut"
        x = _batch_norm(_conv(x, y.shape[-1], 1, stride, shortcut), shortcut)
    return _relu(layers.Add(name=f"{name}_add")([x, y]), name)


def _normalization(statistics: Statistics) -> keras.layers.Layer:
    # The deviation enters squared; given as constants, both are configuration and not weights.
    return layers.Normalization(
        mean=list(statistics.mean),
        variance=[std * std for std in statistics.std],
        name="normalization",
    )


def _conv(x: Tensor, filters: int, size: int, stride: int = 1, name: str = "") -> Tensor:
    """Convolution without bias, padded by size // 2 on every side as PyTorch pads."""
    if stride > 1 and size > 1:
        # Keras' "same" would pad less at the top and left when striding.
        x = layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
    return layers.Conv2D(
        filters,
        size,
        stride,
        padding="valid" if stride > 1 else "same",
        use_bias=False,
        kernel_initializer=_HE(),
        name=f"{name}_conv" if name != "conv" else name,
    )(x)


def _batch_norm(x: Tensor, name: str = "conv") -> Tensor:
    # PyTorch's momentum (0.1 of the new) and epsilon. The moving variance is of the N values of a
    # batch as they are, where PyTorch's is multiplied by N / (N - 1).
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)


def _relu(x: Tensor, name: str = "conv") -> Tensor:
    return layers.ReLU(name=f"{name}_relu")(x)


def _logits(features: Tensor, num_classes: int, bias: str | None = None) -> Tensor:
    drawn = _drawn(features.shape[-1])
    if bias is not None:
        drawn["bias_initializer"] = bias
    # float32 whatever the policy: the smallest margins between logits decide votes.
    return layers.Dense(num_classes, dtype="float32", **drawn, name="logits")(features)


def _drawn(inputs: int) -> dict[str, Any]:
    """PyTorch's default weights of a layer whose units have so many inputs."""
    bound = inputs**-0.5
    bias = keras.initializers.RandomUniform(-bound, bound)
    return {"kernel_initializer": _DEFAULT(), "bias_initializer": bias}
