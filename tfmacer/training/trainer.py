"""The trainer: one `train_step` for every objective.

trainer = SmoothedTrainer(network, objectives.Macer(sigma=0.25), sigma=0.25, num_noise=16)
trainer.compile(optimizer=SGD(0.01, momentum=0.9))
trainer.fit(images, labels, batch_size=64, epochs=10)
trainer.network.save("model.keras")
"""

import functools
import types
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from tfmacer.common.errors import UserError
from tfmacer.guarantee.distribution import check_sigma
from tfmacer.training import distribution, gradients, inputs, precision
from tfmacer.training.gradients import weighted_mean
from tfmacer.training.losses import accuracy
from tfmacer.training.noise_stream import NoiseStream
from tfmacer.training.objective import Batch, Objective
from tfmacer.training.optimizer import SGD
from tfmacer.votes import models

# Name of evaluation's stream of noise; certification's are `select` and `estimate`.
TEST = "test"

TRAIN_METRICS = ("loss", "classification", "robustness", "noisy_accuracy", "gradient_norm")
TEST_METRICS = ("accuracy", "noisy_accuracy")


class SmoothedTrainer(inputs.CheckedModel):
    """Trains a classifier to be smoothed: `compile`, `fit` and `evaluate` as any Keras model.

    The noise of a step is a function of the seed, the optimizer's iteration count, the replica and
    the number of the copy alone, so that a run restored from a checkpoint continues as if it
    had never stopped. Made in the scope of a `tf.distribute.Strategy`, it takes the gradient of the
    global batch, of which every replica must see an equal share.

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
        noise_chunk: int | None = None,
        seed: int = 0,
        clip_norm: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Makes a trainer.

        Args:
          network: any Keras classifier that returns logits.
          objective: see `tfmacer.training.objectives`.
          sigma: scale of the noise, in units of pixels in [0, 1]; > 0.
          noise_family: key of `tfmacer.noise.families.DISTRIBUTIONS`.
          noise_params: the family's further parameters; None for none.
          num_noise: noisy copies of each image in a step (k); 1 or more.
          noise_chunk: copies of each image in memory at once, a divisor of `num_noise`; see
            `gradients.by_chunks`. None for all.
          seed: of the noise.
          clip_norm: bound on the gradient's global norm, before weight decay; None for none.
          **kwargs: passed on to `keras.Model`.

        Raises:
          UserError: a number out of its range, `noise_chunk` for an objective that needs all
            copies at once, or an objective of another sigma.
        """
        # Whatever the global policy is: the network has its own, and the trainer scales losses.
        super().__init__(**{"dtype": "float32"} | kwargs)
        check_sigma(sigma)
        if num_noise < 1:
            raise UserError(f"num_noise must be 1 or more, got {num_noise}")
        if clip_norm is not None and not clip_norm > 0:
            raise UserError(f"clip_norm must be positive, got {clip_norm}")
        inputs.check_chunk(noise_chunk, num_noise, objective)
        inputs.check_sigma(objective, sigma)
        if (last := models.last_activation(network)) in models.NOT_LOGITS:
            raise UserError(f"the network ends in a {last}; remove it, logits are expected")
        self.network = network
        self.objective = objective
        self.sigma = sigma
        self.num_noise = num_noise
        self.noise_chunk = noise_chunk
        self.noise = NoiseStream(
            sigma=sigma, family=noise_family, params=noise_params or {}, seed=seed
        )
        self.clip_norm = clip_norm
        self.loss_scale = precision.loss_scale(network)
        # Keras orders lists of results by these names: those of `evaluate` have their own.
        self._train_means = {
            name: keras.metrics.Mean(name=f"train_{name}" if name in TEST_METRICS else name)
            for name in TRAIN_METRICS
        }
        self._test_means = {name: keras.metrics.Mean(name=name) for name in TEST_METRICS}
        gradients_of = gradients.at_once if noise_chunk is None else gradients.by_chunks
        self._gradients = functools.partial(gradients_of, self)
        # Hidden from Keras, which would count its variables and metrics among this one's.
        self._hidden = types.SimpleNamespace(single=None)
        self._xla = False
        # Without what updates variables across replicas, which XLA cannot compile.
        self._jitted_gradients = tf.function(self._gradients, jit_compile=True)
        self.built = True

    @property
    def metrics_names(self) -> list[str]:
        """Names of the numbers that `evaluate` returns, in order."""
        return list(TEST_METRICS)

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        *args: Any,
        jit_compile: bool | str = False,
        **kwargs: Any,
    ) -> None:
        """As `keras.Model.compile`, without losses and metrics, which are the objective's.

        XLA (`jit_compile`) is used only where it is asked for, and only for forward pass, loss and
        backward pass: it would drop the assertions on the inputs.

        Raises:
          UserError: a loss or metrics are given, or the optimizer scales losses or accumulates
            gradients, or clips them where there are several replicas.
        """
        given = {
            "loss": loss,
            "loss_weights": loss_weights,
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
        }
        for name, value in given.items():
            if value is not None:
                raise UserError(f"compile: {name} has no meaning here, the objective says both")
        self._xla = jit_compile is True
        nothing = [None] * len(given)
        super().compile(optimizer, *nothing, *args, jit_compile=False, **kwargs)
        inputs.check_optimizer(self.optimizer, self.distribute_strategy.num_replicas_in_sync)
        if isinstance(self.optimizer, SGD):
            self.optimizer.given_sums = True

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits of the network, without noise; uint8 pixels are divided by 255."""
        dtype = keras.backend.standardize_dtype(images.dtype)
        if dtype == "uint8":
            images = keras.ops.cast(images, "float32") / 255
        elif "float" not in dtype:
            raise UserError(f"images must be uint8 or floating-point, got {dtype}")
        return self.network(images, training=training)

    def train_step(self, data: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        """One step on a replica's share of the batch.

        Args:
          data: images, labels and, if they have any, their weights; see `inputs.examples`.

        Returns:
          The epoch's running means over all replicas, and this step's learning rate, lambda and
          epsilon. Weights enter the losses, which are sums of weight x loss divided by the number
          of images, as in Keras; accuracies are without them.
        """
        examples = inputs.examples(data, self.network)
        step = tf.convert_to_tensor(self.optimizer.iterations)
        scale = tf.constant(1.0) if self.loss_scale is None else self.loss_scale.value()
        compute = self._jitted_gradients if self._xla else self._gradients
        found, loss, losses = compute(examples, step, scale)
        right = accuracy(losses.noisy_logits, examples.labels)
        terms = [
            weighted_mean(term, examples.weights)
            for term in (losses.classification, losses.robustness)
        ]
        values = tf.stack([loss, *terms, right])
        # With the moving statistics equal everywhere, an attack sees the same network on every
        # replica, and a checkpoint of one replica is one of all.
        moving = distribution.unshared_statistics(self.distribute_strategy, self.network)
        (values, *means), size = distribution.over_replicas(
            self.distribute_strategy, [values, *found, *moving], examples.count
        )
        found, statistics = means[: len(found)], means[len(found) :]
        for variable, value in zip(moving, statistics, strict=True):
            variable.assign(value)
        rates = {
            "learning_rate": tf.convert_to_tensor(self.optimizer.learning_rate),
            "lambda": self.objective.weight_at(step),
            "epsilon": self.objective.epsilon_at(step),
        }
        norm, weight = gradients.apply(self, found, scale)
        sizes = [size] * 4 + [size * weight]
        for mean, value, each in zip(
            self._train_means.values(), (*tf.unstack(values), norm), sizes, strict=True
        ):
            mean.update_state(value, sample_weight=each)
        return {name: mean.result() for name, mean in self._train_means.items()} | rates

    def test_step(self, data: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
        """Accuracy on `data`, by weight if it has any, without noise and under one draw of it."""
        images, labels, weights, _ = inputs.examples(data, self.network)
        # What came before numbers the batch, images or the sum of their weights: each batch has
        # noise of its own, and every evaluation has the same.
        before = tf.convert_to_tensor(self._test_means["accuracy"].count)
        whole = tf.floor(before)
        part = tf.cast((before - whole) * 2.0**24, tf.int64)
        position = tf.cast(whole, tf.int64) + part * 2**32
        batch = self.draw(images, labels, TEST, position, copies=1)
        clean = self.network(images, training=False)[:, tf.newaxis]
        noisy = self.network(images + batch.noise[:, 0], training=False)[:, tf.newaxis]
        accuracies, size = distribution.over_replicas(
            self.distribute_strategy,
            [accuracy(logits, labels, weights) for logits in (clean, noisy)],
            tf.reduce_sum(weights),
        )
        for mean, value in zip(self._test_means.values(), accuracies, strict=True):
            mean.update_state(value, sample_weight=size)
        return {name: mean.result() for name, mean in self._test_means.items()}

    def predict_step(self, data: tuple[tf.Tensor, ...]) -> tf.Tensor:
        """The network's logits without noise."""
        images, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self(inputs.pixels(images))

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
        seeds, objective_seed = self.noise.seeds(stream, step, copies or self.num_noise)
        step = tf.cast(step, tf.int64)
        return Batch(images, labels, self.noise.copies(images, seeds), step, objective_seed)

    def logits(self, views: tf.Tensor, training: bool = False) -> tf.Tensor:
        """The network's logits `[B, v, K]` of views `[B, v, H, W, C]`, float32 at least."""
        shape = tf.shape(views)
        flat = tf.reshape(views, [-1, *views.shape[2:]])
        logits = precision.at_least_float32(self.network(flat, training=training))
        return tf.reshape(logits, [shape[0], shape[1], logits.shape[-1]])

    @property
    def steps_taken(self) -> int:
        """The optimizer's iteration count, wherever its variables are."""
        parts = self.distribute_strategy.experimental_local_results(self.optimizer.iterations.value)
        return int(parts[0])

    def single(self) -> "SmoothedTrainer":
        """This trainer, or where it is distributed one of a copy of the network on one device.

        For what looks at the network between steps: variables of several replicas, or of several
        machines, cannot be read everywhere without the others taking part.
        """
        strategy = self.distribute_strategy
        if strategy.num_replicas_in_sync == 1:
            return self
        if self._hidden.single is None:
            description = keras.saving.serialize_keras_object(self.network)
            self._hidden.single = SmoothedTrainer(
                # Made from what this process holds, so there is nothing to be safe from.
                keras.saving.deserialize_keras_object(description, safe_mode=False),
                self.objective,
                sigma=self.sigma,
                noise_family=self.noise.family,
                noise_params=self.noise.params,
                num_noise=self.num_noise,
                seed=self.noise.seed,
            )
            self._hidden.single.compile()
        single: SmoothedTrainer = self._hidden.single
        for here, there in zip(single.network.variables, self.network.variables, strict=True):
            here.assign(strategy.experimental_local_results(there.value)[0])
        return single
