"""The trainer: one `train_step` for every objective.

trainer = SmoothedTrainer(network, objectives.Macer(sigma=0.25), sigma=0.25, num_noise=16)
trainer.compile(optimizer=SGD(0.01, momentum=0.9))
trainer.fit(images, labels, batch_size=64, epochs=10)
trainer.network.save("model.keras")
"""

import math
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfmacer.errors import UserError
from tfmacer.training.objectives import Batch, Objective
from tfmacer.votes import noise
from tfmacer.votes.source import row_seed

# Names of the streams; certification's are `select` and `estimate`.
TRAIN, TEST = "train", "test"

TRAIN_METRICS = ("loss", "classification", "robustness", "noisy_accuracy", "gradient_norm")
TEST_METRICS = ("accuracy", "noisy_accuracy")


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
        noise_family: str = "gaussian",
        noise_params: Mapping[str, float] | None = None,
        num_noise: int = 1,
        seed: int = 0,
        clip_norm: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Makes a trainer.

        Args:
          network: any Keras classifier that returns logits.
          objective: see `tfmacer.training.objectives`.
          sigma: scale of the noise, in units of pixels in [0, 1]; > 0.
          noise_family: key of `tfmacer.votes.noise.NOISES`.
          noise_params: the family's further parameters; None for none.
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
        self._noise = noise.find(noise.NOISES, noise_family)
        self._noise_params = dict(noise_params or {})
        self.seed = seed
        self.clip_norm = clip_norm
        self._train_means = {name: keras.metrics.Mean(name=name) for name in TRAIN_METRICS}
        self._test_means = {name: keras.metrics.Mean(name=f"test_{name}") for name in TEST_METRICS}
        self.built = True

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits of the network, without noise."""
        return self.network(images, training=training)

    def train_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        """One step on `(images [B, H, W, C], labels [B])`.

        Returns:
          The epoch's running means, and the learning rate and lambda of this step.
        """
        images, labels = data
        step = tf.convert_to_tensor(self.optimizer.iterations)
        batch = self.draw(images, labels, TRAIN, step)
        views = self.objective.views(self.call, batch)
        replicas = self.distribute_strategy.num_replicas_in_sync
        with tf.GradientTape() as tape:
            losses = self.objective.losses(self.logits(views, training=True), batch)
            loss = losses.classification + losses.robustness
            loss += tf.add_n([*self.network.losses, tf.zeros_like(loss)])
            # The optimizer sums the gradients of all replicas.
            scaled = loss / replicas
        rates = {
            "learning_rate": tf.convert_to_tensor(self.optimizer.learning_rate),
            "lambda": self.objective.weight_at(step),
        }
        variables = self.network.trainable_variables
        norm = self._apply(tape.gradient(scaled, variables), variables, replicas)
        values = (*losses[:2], _accuracy(losses.noisy_logits, labels), norm)
        for mean, value in zip(self._train_means.values(), (loss, *values), strict=True):
            mean.update_state(value, sample_weight=tf.shape(images)[0])
        return {name: mean.result() for name, mean in self._train_means.items()} | rates

    def test_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Accuracy on `(images, labels)` without noise and under one draw of it."""
        images, labels = data
        # How many images came before numbers the batch: each has noise of its own, and every
        # evaluation has the same.
        position = tf.cast(self._test_means["accuracy"].count, tf.int64)
        batch = self.draw(images, labels, TEST, position, copies=1)
        clean = self.network(images, training=False)[:, tf.newaxis]
        noisy = self.network(images + batch.noise[:, 0], training=False)[:, tf.newaxis]
        size = tf.shape(images)[0]
        for mean, logits in zip(self._test_means.values(), (clean, noisy), strict=True):
            mean.update_state(_accuracy(logits, labels), sample_weight=size)
        return {name: mean.result() for name, mean in self._test_means.items()}

    def draw(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        stream: str,
        step: tf.Tensor | int,
        copies: int | None = None,
    ) -> Batch:
        """Draws the noise of a batch on this replica.

        Args:
          images: float32 `[B, H, W, C]` in [0, 1].
          labels: int `[B]`.
          stream: name of the stream of noise; streams are independent.
          step: the position in it.
          copies: of each image; `num_noise` for None.
        """
        context = tf.distribute.get_replica_context()
        # int64 throughout: from int32 seeds, fold_in keeps 32 bits and streams may collide.
        seed = tf.constant(row_seed(self.seed, stream, 0), tf.int64)
        for number in (step, context.replica_id_in_sync_group):
            number = tf.cast(number, tf.int64)
            seed = tf.random.experimental.stateless_fold_in(seed, number, alg="philox")
        noise_seed, objective_seed = tf.unstack(tf.random.split(seed, 2, alg="philox"))
        shape = tf.shape(images)
        shape = tf.concat([shape[:1], [copies or self.num_noise], shape[1:]], axis=0)
        drawn = self._noise(shape, noise_seed, self.sigma, self._noise_params)
        return Batch(images, labels, drawn, tf.cast(step, tf.int64), objective_seed)

    def logits(self, views: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The network's logits `[B, v, K]` of views `[B, v, H, W, C]`."""
        shape = tf.shape(views)
        flat = tf.reshape(views, [-1, *views.shape[2:]])
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
