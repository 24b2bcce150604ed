"""Votes counted in this process: from a network, a Python callable or a loaded SavedModel."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfmacer.common.errors import UserError
from tfmacer.noise.families import check_family
from tfmacer.records.runs import Smoothing
from tfmacer.votes.admission import check_saved_model
from tfmacer.votes.counting import count_votes, inference
from tfmacer.votes.models import load_run
from tfmacer.votes.source import Images, Ints, Seeds, Votes


class _LocalVotes:
    """What the sources in this process share: the smoothing, and how many rows keep them busy."""

    def __init__(self, smoothing: Smoothing) -> None:
        self.smoothing = smoothing

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
        check_family(smoothing.noise_family)
        self.network = network
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
        self, images: Images, seeds: Seeds, offsets: Ints, num_samples: Ints, *, beta: float = 1.0
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
        """Loads the model, after it was seen that it only computes.

        Args:
          directory: a version directory, or its parent (newest).

        Raises:
          UserError: there is none, it may not be loaded, or it is no export of tfmacer.
        """
        self._directory = newest_version(Path(directory))
        check_saved_model(self._directory)
        try:
            self._model = tf.saved_model.load(str(self._directory))
            missing = {"sample_under_noise", "logits", "tfmacer_info"} - set(self._model.signatures)
            if missing:
                raise UserError(f"it has no signature {', '.join(sorted(missing))}")
            info = self._model.signatures["tfmacer_info"](probe=tf.zeros([1], tf.int32))
            text = info["smoothing"].numpy()[0].decode()
        # A bad file can make TensorFlow raise anything; the remedy is the same.
        except Exception as error:
            raise UserError(f"{self._directory}: not an export of tfmacer: {error}") from error
        super().__init__(Smoothing.from_json(text, origin=str(self._directory)))

    def sample(
        self, images: Images, seeds: Seeds, offsets: Ints, num_samples: Ints, *, beta: float = 1.0
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


def from_callable(function: Callable[..., Any], smoothing: Smoothing) -> NetworkVotes:
    """Votes of a plain Python function: noisy images `[BLOCK, H, W, C]` to logits `[BLOCK, K]`.

    The noise is drawn as for a network, so equal seeds give equal draws; the function itself runs
    outside the graph and may use any library but TensorFlow, which on one core waits for itself;
    a TensorFlow model is a `NetworkVotes`.
    """

    def network(images: tf.Tensor) -> tf.Tensor:
        return tf.numpy_function(
            lambda array: np.asarray(function(array), np.float32), [images], tf.float32
        )

    return NetworkVotes(network, smoothing)


def from_run(directory: str | Path, strategy: tf.distribute.Strategy | None = None) -> NetworkVotes:
    """Votes of the network in a run directory; see `load_run` for what is raised."""
    strategy = strategy or tf.distribute.get_strategy()
    with strategy.scope():
        network, smoothing = load_run(Path(directory))
    return NetworkVotes(network, smoothing, strategy=strategy)


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
        if child.name.isdecimal() and (child / "saved_model.pb").is_file()
    ]
    if not versions:
        raise UserError(f"{directory}: no SavedModel here, nor in a numbered directory below")
    return max(versions, key=lambda child: int(child.name))
