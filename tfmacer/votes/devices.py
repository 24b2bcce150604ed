"""What this process computes on: threads, devices, library versions."""

import os
import platform
from typing import Any

import numpy as np
import tensorflow as tf

from tfmacer.common.errors import UserError
from tfmacer.version import __version__


def use_threads(intra_op: int = 1, inter_op: int | None = None) -> None:
    """Sets TensorFlow's thread counts for certification; call before anything runs.

    Votes are bitwise repeatable for one intra-op thread count, and blocks running side by side
    with one thread each use the cores better than one block spread over them.

    Raises:
      UserError: TensorFlow has already started with other counts.
    """
    wanted = (intra_op, inter_op or os.cpu_count() or 1)
    try:
        tf.config.threading.set_intra_op_parallelism_threads(wanted[0])
        tf.config.threading.set_inter_op_parallelism_threads(wanted[1])
    except RuntimeError as error:
        raise UserError(
            f"intra_op_threads={wanted[0]}: TensorFlow is already running with other thread counts"
        ) from error


def strategy(name: str) -> tf.distribute.Strategy:
    """The strategy of `--distribution`: `auto` uses all GPUs where there are several."""
    gpus = len(tf.config.list_physical_devices("GPU"))
    if name == "mirrored" or (name == "auto" and gpus > 1):
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def environment(intra_op_threads: int | None = None) -> dict[str, Any]:
    """What votes depend on bit for bit: device, intra-op threads and library versions.

    Args:
      intra_op_threads: as asked for; None takes TensorFlow's own setting (0: one per core).
    """
    if intra_op_threads is None:
        intra_op_threads = tf.config.threading.get_intra_op_parallelism_threads()
    return {
        "device": "GPU" if tf.config.list_physical_devices("GPU") else "CPU",
        "intra_op_threads": intra_op_threads,
        "versions": library_versions(),
    }


def library_versions() -> dict[str, str]:
    """Versions of the libraries that votes depend on, as logs record them."""
    import keras

    return {
        "tfmacer": __version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
