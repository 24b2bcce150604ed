"""Votes counted in this process: from a network, a Python callable or a loaded SavedModel."""

import json
import os
import platform
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfmacer.errors import UserError
from tfmacer.records.runs import RunDirectory, Smoothing, model_digest
from tfmacer.version import __version__
from tfmacer.votes import noise
from tfmacer.votes.source import Images, Seeds, Votes

# Blocks in flight at once inside one graph call: as many as most machines have cores, and fewer
# where images are so large that the blocks under way would fill the memory. A layer is taken to
# have 64 float32 channels at the image's size, as the widest ones of the usual networks do.
MOST_PARALLEL_BLOCKS = 32
BYTES_IN_FLIGHT = 4 * 2**30


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


def count_votes(
    network: Callable[[tf.Tensor], tf.Tensor],
    smoothing: Smoothing,
    images: tf.Tensor,
    seeds: tf.Tensor,
    offsets: tf.Tensor,
    num_samples: tf.Tensor,
    beta: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Counts, in the graph, what `VoteSource.sample` describes.

    One flat loop over (row, block); every pass is one forward of exactly BLOCK rows, so that a
    vote does not depend on what is asked beside it. Only the sums are carried from pass to pass,
    so the executor runs the forwards of several passes at once.

    Args:
      network: noisy images float32 `[BLOCK, H, W, C]` to logits `[BLOCK, K]`, in inference mode.
      smoothing: what noise, how much of it.
      images: float32 `[B, H, W, C]`.
      seeds: int32 `[B, 2]`.
      offsets: int32 `[B]`.
      num_samples: int32 `[B]`.
      beta: float32 `[B]`.

    Returns:
      `counts` int64 `[B, K]`, adding up to `num_samples` unless logits were not finite; `sums`
      and `square_sums` float64 `[B, K]`.
    """
    block_size, classes = smoothing.block_size, smoothing.num_classes
    draw_block = noise.noisy_block(smoothing)
    starts = tf.cast(offsets, tf.int64)
    stops = starts + tf.cast(num_samples, tf.int64)
    first = starts // block_size
    blocks = tf.where(num_samples > 0, -(-stops // block_size) - first, 0)
    ends = tf.cumsum(blocks)
    total = tf.reduce_sum(blocks)

    def one_block(
        t: tf.Tensor, counts: tf.Tensor, sums: tf.Tensor, square_sums: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        row = tf.searchsorted(ends, t[tf.newaxis], side="right")[0]
        block = first[row] + t - (ends[row] - blocks[row])
        logits = network(draw_block(images[row], seeds[row], block, smoothing))
        logits = tf.ensure_shape(tf.cast(logits, tf.float32), (block_size, classes))
        draws = block * block_size + tf.range(block_size, dtype=tf.int64)
        asked = (draws >= starts[row]) & (draws < stops[row])
        # A draw whose logits are not finite casts no vote; whoever adds the counts sees it missing.
        # (A check op here would be stateful, and stateful ops run the passes one after another.)
        counted = (asked & tf.reduce_all(tf.math.is_finite(logits), axis=-1))[:, tf.newaxis]
        votes = tf.one_hot(tf.argmax(logits, axis=-1), classes, on_value=True, off_value=False)
        soft = tf.cast(tf.nn.softmax(beta[row] * logits), tf.float64)
        soft = tf.where(counted, soft, 0.0)

        def add(total: tf.Tensor, part: tf.Tensor) -> tf.Tensor:
            summed = tf.reduce_sum(tf.cast(part, total.dtype), axis=0)
            return tf.tensor_scatter_nd_add(total, [[row]], summed[tf.newaxis])

        return t + 1, add(counts, votes & counted), add(sums, soft), add(square_sums, soft**2)

    shape = tf.stack([tf.shape(images)[0], classes])
    zeros = [tf.zeros(shape, dtype) for dtype in (tf.int64, tf.float64, tf.float64)]
    _, *votes = tf.while_loop(
        lambda t, *_: t < total,
        one_block,
        [tf.zeros((), tf.int64), *zeros],
        parallel_iterations=parallel_blocks(smoothing),
    )
    return tuple(votes)


def parallel_blocks(smoothing: Smoothing) -> int:
    """How many blocks one graph call may have in flight, 1 to 32.

    With one (images of ImageNet's size), blocks no longer use the cores side by side: give more
    intra-op threads instead.
    """
    height, width, _ = smoothing.input_shape
    layer = smoothing.block_size * height * width * 64 * 4
    return max(1, min(MOST_PARALLEL_BLOCKS, BYTES_IN_FLIGHT // layer))


class _LocalVotes:
    """What the sources in this process share: the smoothing, and how many rows keep them busy."""

    def __init__(self, smoothing: Smoothing) -> None:
        self._smoothing = smoothing

    @property
    def smoothing(self) -> Smoothing:
        """What is smoothed, and how."""
        return self._smoothing

    @property
    def parallelism(self) -> int:
        """How many rows are worth asking for at once: one per core."""
        return os.cpu_count() or 1


class NetworkVotes(_LocalVotes):
    """Votes of any TensorFlow callable from images to logits, a Keras model for one.

    A Keras model is called in inference mode: batch statistics frozen, no dropout.
    """

    def __init__(
        self,
        network: Callable[..., tf.Tensor],
        smoothing: Smoothing,
        *,
        strategy: tf.distribute.Strategy | None = None,
    ) -> None:
        """Traces nothing yet.

        Args:
          network: images float32 `[B, H, W, C]` in [0, 1] to logits `[B, K]`.
          smoothing: its noise, shapes and digest.
          strategy: spreads the rows of a call over its replicas; the network must have been made
            in its scope. None for one device. The votes are the same.
        """
        super().__init__(smoothing)
        noise.noisy_block(smoothing)
        infer = inference(network)
        self._strategy = strategy or tf.distribute.get_strategy()
        self._logits = tf.function(
            lambda images: tf.cast(infer(images), tf.float32),
            input_signature=[tf.TensorSpec([None, *smoothing.input_shape], tf.float32)],
        )
        # One graph for all replicas: run eagerly, they would take turns.
        self._sample = tf.function(
            lambda rows: self._strategy.run(
                lambda row: count_votes(infer, smoothing, *row), args=(rows,)
            ),
            reduce_retracing=True,
        )

    @property
    def parallelism(self) -> int:
        """How many rows are worth asking for at once: one per replica, or per core."""
        replicas: int = self._strategy.num_replicas_in_sync
        return replicas if replicas > 1 else super().parallelism

    def sample(
        self,
        images: Images,
        seeds: Seeds,
        offsets: npt.NDArray[np.int32],
        num_samples: npt.NDArray[np.int32],
        *,
        beta: float = 1.0,
    ) -> Votes:
        """See `VoteSource.sample`."""
        count = len(images)
        replicas = self._strategy.num_replicas_in_sync
        # Every replica gets equally many rows; those beyond the last one draw nothing.
        padding = -count % replicas
        betas = np.full(count, beta, np.float32)
        rows = [
            np.concatenate([values, np.zeros_like(values[:1]).repeat(padding, axis=0)])
            for values in (images, seeds, offsets, num_samples, betas)
        ]
        shares = self._strategy.experimental_distribute_values_from_function(
            lambda context: tuple(
                tf.constant(values[context.replica_id_in_sync_group :: replicas]) for values in rows
            )
        )
        answers = self._sample(shares)
        votes = []
        for answer in answers:
            parts = [part.numpy() for part in self._strategy.experimental_local_results(answer)]
            whole = np.empty((count + padding, parts[0].shape[1]), parts[0].dtype)
            for replica, part in enumerate(parts):
                whole[replica::replicas] = part
            votes.append(whole[:count])
        return Votes(*votes)

    def logits(self, images: Images) -> npt.NDArray[np.float32]:
        """See `VoteSource.logits`."""
        return self._logits(images).numpy()


class SavedModelVotes(_LocalVotes):
    """Votes of an exported model, through its own signatures."""

    def __init__(self, directory: str | Path) -> None:
        self._directory = newest_version(Path(directory))
        self._model = tf.saved_model.load(str(self._directory))
        missing = {"sample_under_noise", "logits", "tfmacer_info"} - set(self._model.signatures)
        if missing:
            raise UserError(
                f"{self._directory}: not an export of tfmacer, "
                f"it has no signature {', '.join(sorted(missing))}"
            )
        info = self._model.signatures["tfmacer_info"](probe=tf.zeros([1], tf.int32))
        text = info["smoothing"].numpy()[0].decode()
        super().__init__(Smoothing.from_json(text, origin=str(self._directory)))

    def sample(
        self,
        images: Images,
        seeds: Seeds,
        offsets: npt.NDArray[np.int32],
        num_samples: npt.NDArray[np.int32],
        *,
        beta: float = 1.0,
    ) -> Votes:
        """See `VoteSource.sample`."""
        answer = self._model.signatures["sample_under_noise"](
            images=tf.constant(images, tf.float32),
            seeds=tf.constant(seeds, tf.int32),
            offsets=tf.constant(offsets, tf.int32),
            num_samples=tf.constant(num_samples, tf.int32),
            beta=tf.fill([len(images)], tf.constant(beta, tf.float32)),
        )
        return Votes(*(answer[name].numpy() for name in Votes._fields))

    def logits(self, images: Images) -> npt.NDArray[np.float32]:
        """See `VoteSource.logits`."""
        answer = self._model.signatures["logits"](images=tf.constant(images, tf.float32))
        return answer["logits"].numpy()


def inference(network: Callable[..., Any]) -> Callable[[tf.Tensor], tf.Tensor]:
    """The network as a function of the images alone, with training behaviour switched off."""
    import keras

    if isinstance(network, keras.Model):
        return lambda images: network(images, training=False)
    return network


def from_callable(function: Callable[..., Any], smoothing: Smoothing) -> NetworkVotes:
    """Votes of a plain Python function: noisy images `[BLOCK, H, W, C]` to logits `[BLOCK, K]`.

    The noise is drawn as for a network, so equal seeds give equal draws; the function itself runs
    outside the graph and may use any library.
    """

    def network(images: tf.Tensor) -> tf.Tensor:
        return tf.numpy_function(
            lambda array: np.asarray(function(array), np.float32), [images], tf.float32
        )

    return NetworkVotes(network, smoothing)


def from_run(directory: str | Path) -> NetworkVotes:
    """Votes of the network in a run directory; see `load_run` for what is raised."""
    return NetworkVotes(*load_run(Path(directory)))


def distribution(name: str) -> tf.distribute.Strategy:
    """The strategy of `--distribution`: `auto` uses all GPUs where there are several."""
    gpus = len(tf.config.list_physical_devices("GPU"))
    if name == "mirrored" or (name == "auto" and gpus > 1):
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def load_run(directory: Path) -> tuple[Any, Smoothing]:
    """The Keras network of a run directory and its smoothing.

    Raises:
      UserError: it is no finished run, or its network is not the one that was recorded.
    """
    import keras

    run = RunDirectory(directory)
    smoothing = run.read_smoothing()
    network = keras.models.load_model(run.model, compile=False)
    found = network_digest(run.model, network)
    if found != smoothing.model_digest:
        raise UserError(
            f"{run.model}: its digest is {found[:16]}..., {run.smoothing.name} records "
            f"{smoothing.model_digest[:16]}...: the network was changed after the run"
        )
    return network, smoothing


def network_digest(path: Path, network: Any) -> str:
    """`tfmacer.records.runs.model_digest` of a network as saved in the `.keras` file at `path`.

    The architecture is the file's own `config.json` without what concerns compiling, so that the
    digest does not depend on how Keras would write the loaded network again, and without the
    addresses in memory by which Keras notes that layers share a policy. Seed states of dropout
    layers are no weights and do not enter.
    """

    def without_addresses(entry: dict[str, Any]) -> dict[str, Any]:
        entry.pop("shared_object_id", None)
        return entry

    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"), object_hook=without_addresses)
    config.pop("compile_config", None)
    values = ((variable.name, variable.numpy()) for variable in network.weights)
    return model_digest(json.dumps(config, sort_keys=True), values)


def weights_digest(model: Any) -> str:
    """A digest of a model that was never saved: a Keras model's weights and configuration.

    For any other callable there is nothing to digest, and the answer is `unknown`.
    """
    import keras

    if not isinstance(model, keras.Model):
        return "unknown"
    values = ((variable.name, variable.numpy()) for variable in model.weights)
    return model_digest(json.dumps(model.get_config(), sort_keys=True, default=str), values)


def leads_with_normalization(network: Any) -> bool:
    """Whether pixels are normalised inside the network, before its first other weights."""
    import keras

    normalizers = (
        keras.layers.Normalization,
        keras.layers.Rescaling,
        keras.layers.BatchNormalization,
    )
    layers = (layer for layer in network.layers if not isinstance(layer, keras.layers.InputLayer))
    for layer in layers:
        if isinstance(layer, normalizers):
            return True
        if layer.weights:
            return isinstance(layer, keras.Model) and leads_with_normalization(layer)
    return False


def environment(intra_op_threads: int | None = None) -> dict[str, Any]:
    """Within what votes repeat bit for bit: device, intra-op threads and library versions.

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
    """Versions of what the votes depend on, for the record."""
    import keras

    return {
        "tfmacer": __version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def newest_version(directory: Path) -> Path:
    """A version directory as it is, or the newest numeric one below a model's base path.

    Raises:
      UserError: there is no SavedModel in either place.
    """
    if (directory / "saved_model.pb").is_file():
        return directory
    versions = [
        child
        for child in (directory.iterdir() if directory.is_dir() else ())
        if child.name.isdigit() and (child / "saved_model.pb").is_file()
    ]
    if not versions:
        raise UserError(f"{directory}: no SavedModel here, nor in a numbered directory below")
    return max(versions, key=lambda child: int(child.name))
