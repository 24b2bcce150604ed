"""The trainer: one `train_step` for every objective.

trainer = SmoothedTrainer(network, objectives.Macer(sigma=0.25), sigma=0.25, num_noise=16)
trainer.compile(optimizer=SGD(0.01, momentum=0.9))
trainer.fit(images, labels, batch_size=64, epochs=10)
trainer.network.save("model.keras")
"""

import math
from typing import Any

import keras
import tensorflow as tf

from tfmacer.errors import UserError
from tfmacer.training.objectives import Batch, Objective
from tfmacer.votes.source import row_seed

# Names of the streams; certification's are `select` and `estimate`.
TRAIN, TEST = "train", "test"


class SmoothedTrainer(keras.Model):
    """Trains a classifier to be smoothed: `compile`, `fit` and `evaluate` as any Keras model.

    The noise of a step is a function of the seed, the optimizer's iteration count and the replica
    alone, so that a run restored from a checkpoint goes on as if it had never stopped.

    Attributes:
      network: the classifier trained; maps images in [0, 1] to logits `[B, K]`.
      objective: what is minimised.
    """

    def __init__(
        self,
        network: keras.Model,
        objective: Objective,
        *,
        sigma: float,
        num_noise: int = 1,
        seed: int = 0,
        clip_norm: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Makes a trainer.

        Args:
          network: any Keras classifier that returns logits.
          objective: see `tfmacer.training.objectives`.
          sigma: scale of the Gaussian noise, in units of pixels in [0, 1]; > 0.
          num_noise: noisy copies of each image in a step (k); 1 or more.
          seed: of the noise.
          clip_norm: bound on the gradient's global norm, before weight decay; None for none.
          **kwargs: passed on to `keras.Model`.

        Raises:
          UserError: a number out of its range.
        """
        super().__init__(**kwargs)
        if not (math.isfinite(sigma) and sigma > 0):
            raise UserError(f"sigma must be positive and finite, got {sigma}")
        if num_noise < 1:
            raise UserError(f"num_noise must be 1 or more, got {num_noise}")
        if clip_norm is not None and not clip_norm > 0:
            raise UserError(f"clip_norm must be positive, got {clip_norm}")
        self.network = network
        self.objective = objective
        self.sigma = sigma
        self.num_noise = num_noise
        self.seed = seed
        self.clip_norm = clip_norm
        names = ("loss", "classification", "robustness", "noisy_accuracy", "gradient_norm")
        self._train_means = {name: keras.metrics.Mean(name=name) for name in names}
        names = ("accuracy", "noisy_accuracy")
        self._test_means = {name: keras.metrics.Mean(name=f"test_{name}") for name in names}
        self.built = True

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits of the network, without noise."""
        return self.network(images, training=training)

    def train_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One step on `(images [B, H, W, C], labels [B])`; returns the epoch's running means."""
        images, labels = data
        step = tf.convert_to_tensor(self.optimizer.iterations)
        batch = self._draw(images, labels, self._seed(TRAIN, step), step)
        views = self.objective.views(self.call, batch)
        replicas = self.distribute_strategy.num_replicas_in_sync
        with tf.GradientTape() as tape:
            losses = self.objective.losses(self._logits(views, training=True), batch)
            loss = losses.classification + losses.robustness
            loss += tf.add_n([*self.network.losses, tf.zeros_like(loss)])
            # The optimizer sums the gradients of all replicas.
            scaled = loss / replicas
        variables = self.network.trainable_variables
        norm = self._apply(tape.gradient(scaled, variables), variables, replicas)
        values = (*losses[:2], _accuracy(losses.noisy_logits, labels), norm)
        for mean, value in zip(self._train_means.values(), (loss, *values), strict=True):
            mean.update_state(value, sample_weight=tf.shape(images)[0])
        return {name: mean.result() for name, mean in self._train_means.items()}

    def test_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Accuracy on `(images, labels)` without noise and under one draw of it."""
        images, labels = data
        # How many images came before numbers the batch: each has noise of its own, and every
        # evaluation has the same.
        position = tf.cast(self._test_means["accuracy"].count, tf.int64)
        batch = self._draw(images, labels, self._seed(TEST, position), position, copies=1)
        clean = self.network(images, training=False)[:, tf.newaxis]
        noisy = self.network(images + batch.noise[:, 0], training=False)[:, tf.newaxis]
        size = tf.shape(images)[0]
        for mean, logits in zip(self._test_means.values(), (clean, noisy), strict=True):
            mean.update_state(_accuracy(logits, labels), sample_weight=size)
        return {name: mean.result() for name, mean in self._test_means.items()}

    def _seed(self, stage: str, position: tf.Tensor) -> tf.Tensor:
        """Philox seed int64 `[2]` of one step on this replica."""
        context = tf.distribute.get_replica_context()
        replica = tf.cast(context.replica_id_in_sync_group, tf.int64)
        # int64 throughout: from int32 seeds, fold_in keeps 32 bits and streams may collide.
        seed = tf.constant(row_seed(self.seed, stage, 0), tf.int64)
        for number in (position, replica):
            seed = tf.random.experimental.stateless_fold_in(seed, tf.cast(number, tf.int64))
        return seed

    def _draw(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        seed: tf.Tensor,
        step: tf.Tensor,
        copies: int | None = None,
    ) -> Batch:
        noise_seed, objective_seed = tf.unstack(tf.random.split(seed, 2, alg="philox"))
        shape = tf.shape(images)
        shape = tf.concat([shape[:1], [copies or self.num_noise], shape[1:]], axis=0)
        noise = self.sigma * tf.random.stateless_normal(shape, noise_seed, alg="philox")
        return Batch(images, labels, noise, step, objective_seed)

    def _logits(self, views: tf.Tensor, training: bool) -> tf.Tensor:
        """Logits `[B, v, K]` of views `[B, v, H, W, C]`."""
        shape = tf.shape(views)
        flat = tf.reshape(views, [-1, *self.network.input_shape[1:]])
        logits = self.network(flat, training=training)
        return tf.reshape(logits, [shape[0], shape[1], logits.shape[-1]])

    def _apply(
        self, gradients: list[tf.Tensor], variables: list[keras.Variable], replicas: int
    ) -> tf.Tensor:
        """Clips, applies, and returns the global norm before clipping."""
        if replicas > 1:
            context = tf.distribute.get_replica_context()
            gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        norm = tf.linalg.global_norm(gradients)
        if self.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm, use_norm=norm)
        # Summed above already, for the norm of the whole; the optimizer sums once more.
        self.optimizer.apply([g / replicas for g in gradients], variables)
        return norm


def _accuracy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Share of the copies `[B, k, K]` whose largest logit is that of the label."""
    hits = tf.argmax(logits, axis=-1) == tf.cast(labels, tf.int64)[:, tf.newaxis]
    return tf.reduce_mean(tf.cast(hits, tf.float32))
