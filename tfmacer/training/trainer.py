"""The trainer: one `train_step` for every objective.

trainer = SmoothedTrainer(network, objectives.Macer(sigma=0.25), sigma=0.25, num_noise=16)
trainer.compile(optimizer=SGD(0.01, momentum=0.9))
trainer.fit(images, labels, batch_size=64, epochs=10)
trainer.network.save("model.keras")
"""

import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfmacer.common.errors import UserError
from tfmacer.guarantee.distribution import check_sigma
from tfmacer.noise.samplers import training_noise
from tfmacer.training import inputs, precision
from tfmacer.training.objectives import Batch, Losses, Objective
from tfmacer.training.optimizer import SGD
from tfmacer.votes import models
from tfmacer.votes.source import row_seed

# Names of the streams; certification's are `select` and `estimate`.
TRAIN, TEST = "train", "test"

TRAIN_METRICS = ("loss", "classification", "robustness", "noisy_accuracy", "gradient_norm")
TEST_METRICS = ("accuracy", "noisy_accuracy")


class Slopes(NamedTuple):
    """What one replica computes of a step.

    Attributes:
      gradients: of the loss, times the scale asked for; one for each trainable variable.
      loss: scalar, weighted mean over this replica's images and the network's own regularisation.
      losses: the objective's.
    """

    gradients: list[tf.Tensor]
    loss: tf.Tensor
    losses: Losses


class SmoothedTrainer(inputs.CheckedModel):
    """Trains a classifier to be smoothed: `compile`, `fit` and `evaluate` as any Keras model.

    The noise of a step is a function of the seed, the optimizer's iteration count, the replica and
    the number of the copy alone, so that a run restored from a checkpoint goes on as if it had
    never stopped. Made in the scope of a `tf.distribute.Strategy`, it takes the gradient of the
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
            `_slopes_by_chunks`. None for all.
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
        _check_chunk(noise_chunk, num_noise, objective)
        _check_sigma(objective, sigma)
        if (last := models.last_activation(network)) in models.NOT_LOGITS:
            raise UserError(f"the network ends in a {last}; remove it, logits are expected")
        self.network = network
        self.objective = objective
        self.sigma = sigma
        self.num_noise = num_noise
        self.noise_chunk = noise_chunk
        self._noise = training_noise(noise_family)
        self._noise_family = noise_family
        self._noise_params = dict(noise_params or {})
        self.seed = seed
        self.clip_norm = clip_norm
        self.loss_scale = precision.loss_scale(network)
        # Keras orders lists of results by these names: those of `evaluate` have their own.
        self._train_means = {
            name: keras.metrics.Mean(name=f"train_{name}" if name in TEST_METRICS else name)
            for name in TRAIN_METRICS
        }
        self._test_means = {name: keras.metrics.Mean(name=name) for name in TEST_METRICS}
        slopes = self._slopes_at_once if noise_chunk is None else self._slopes_by_chunks
        self._slopes = slopes
        # Hidden from Keras, which would count its variables and metrics among this one's.
        self._hidden = types.SimpleNamespace(single=None)
        self._xla = False
        # Without what updates variables across replicas, which XLA cannot compile.
        self._jitted_slopes = tf.function(slopes, jit_compile=True)
        self.built = True

    @property
    def metrics_names(self) -> list[str]:
        """What the numbers are that `evaluate` returns, in order."""
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
        """As `keras.Model.compile`, but for what the objective is instead of.

        XLA (`jit_compile`) is used only where it is asked for, and for forward, loss and backward
        alone: it would drop the assertions on what is given.

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
        _check_optimizer(self.optimizer, self.distribute_strategy.num_replicas_in_sync)
        if isinstance(self.optimizer, SGD):
            self.optimizer.given_sums = True

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits of the network, without noise."""
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
        images, labels, weights, size = inputs.examples(data, self.network)
        step = tf.convert_to_tensor(self.optimizer.iterations)
        scale = tf.constant(1.0) if self.loss_scale is None else self.loss_scale.value()
        slopes = self._jitted_slopes if self._xla else self._slopes
        gradients, loss, losses = slopes(images, labels, weights, step, scale)
        accuracy = _accuracy(losses.noisy_logits, labels)
        terms = (_mean(term, weights) for term in (losses.classification, losses.robustness))
        values = tf.stack([loss, *terms, accuracy])
        # With the moving statistics equal everywhere, an attack sees the same network on every
        # replica, and a checkpoint of one replica is one of all.
        moving = self._moving_statistics()
        (values, *means), size = self._over_replicas([values, *gradients, *moving], size)
        gradients, statistics = means[: len(gradients)], means[len(gradients) :]
        for variable, value in zip(moving, statistics, strict=True):
            variable.assign(value)
        rates = {
            "learning_rate": tf.convert_to_tensor(self.optimizer.learning_rate),
            "lambda": self.objective.weight_at(step),
            "epsilon": self.objective.epsilon_at(step),
        }
        norm, weight = self._apply(gradients, scale)
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
        accuracies, size = self._over_replicas(
            [_accuracy(logits, labels, weights) for logits in (clean, noisy)],
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
        seeds, objective_seed = self._seeds(stream, step, copies or self.num_noise)
        step = tf.cast(step, tf.int64)
        return Batch(images, labels, self._copies(images, seeds), step, objective_seed)

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
            options = {name: getattr(self, name) for name in ("sigma", "num_noise", "seed")}
            self._hidden.single = SmoothedTrainer(
                # Made from what this process holds, so there is nothing to be safe from.
                keras.saving.deserialize_keras_object(description, safe_mode=False),
                self.objective,
                noise_family=self._noise_family,
                noise_params=self._noise_params,
                **options,
            )
            self._hidden.single.compile()
        single: SmoothedTrainer = self._hidden.single
        for here, there in zip(single.network.variables, self.network.variables, strict=True):
            here.assign(strategy.experimental_local_results(there.value)[0])
        return single

    def _seeds(
        self, stream: str, step: tf.Tensor | int, copies: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Seeds int64 `[copies, 2]` of each copy's noise, and `[2]` of the objective's choices."""
        context = tf.distribute.get_replica_context()
        # int64 throughout: from int32 seeds, fold_in keeps 32 bits and streams may collide.
        seed = tf.constant(row_seed(self.seed, stream, 0), tf.int64)
        for number in (step, context.replica_id_in_sync_group):
            number = tf.cast(number, tf.int64)
            seed = tf.random.experimental.stateless_fold_in(seed, number, alg="philox")
        noise_seed, objective_seed = tf.unstack(tf.random.split(seed, 2, alg="philox"))
        return tf.random.split(noise_seed, copies, alg="philox"), objective_seed

    def _copies(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Noise `[B, v, H, W, C]` of seeds `[v, 2]`, each copy from a seed of its own."""
        shape = tf.shape(images)
        drawn = [
            self._noise(shape, seed, self.sigma, self._noise_params) for seed in tf.unstack(seeds)
        ]
        return tf.stack(drawn, axis=1)

    def _slopes_at_once(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        weights: tf.Tensor,
        step: tf.Tensor,
        scale: tf.Tensor,
    ) -> Slopes:
        """Loss of a batch and `scale` times its gradient, with all views in memory."""
        batch = self.draw(images, labels, TRAIN, step)
        views = self.objective.views(self.call, batch)
        with tf.GradientTape() as tape:
            logits, penalties = zip(*map(self._pass, views), strict=True)
            losses = self.objective.losses(tf.concat(logits, axis=1), batch)
            loss = _mean(losses.classification + losses.robustness, weights)
            loss += tf.add_n(penalties) / len(views)
            scaled = scale * loss
        return Slopes(self._gradients(tape, scaled), loss, losses)

    def _slopes_by_chunks(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        weights: tf.Tensor,
        step: tf.Tensor,
        scale: tf.Tensor,
    ) -> Slopes:
        """The same in memory that does not grow with the number of copies, by two passes.

        The loss is no sum over copies, so that a part of them has no gradient of its own. The
        first pass computes all logits, and with them the loss and its slope with respect to each;
        the second carries those slopes back, chunk by chunk. Batch statistics are each chunk's.
        """
        seeds, objective_seed = self._seeds(TRAIN, step, self.num_noise)
        seeds = tf.reshape(seeds, [-1, self.noise_chunk, 2])
        batch = Batch(images, labels, None, tf.cast(step, tf.int64), objective_seed)
        logits = self._first_pass(batch, seeds)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            losses = self.objective.losses(logits, batch)
            loss = _mean(losses.classification + losses.robustness, weights)
            scaled = scale * loss
        gradients, penalty = self._second_pass(batch, seeds, tape.gradient(scaled, logits), scale)
        return Slopes(gradients, loss + penalty, losses)

    def _first_pass(self, batch: Batch, seeds: tf.Tensor) -> tf.Tensor:
        """Logits `[B, k, K]` of all copies, chunk by chunk."""
        # What a forward pass leaves behind (moving statistics, seeds of dropout) is put back, so
        # that the second pass is the first over again and the step counts once.
        state = self.network.non_trainable_variables
        before = [tf.identity(variable) for variable in state]
        parts = tf.map_fn(
            lambda chunk: self.logits(self._chunk(batch, chunk), training=True),
            seeds,
            parallel_iterations=1,
            fn_output_signature=tf.float32,
        )
        for variable, value in zip(state, before, strict=True):
            variable.assign(value)
        chunked = tf.transpose(parts, [1, 0, 2, 3])
        return tf.reshape(chunked, [tf.shape(batch.images)[0], self.num_noise, parts.shape[-1]])

    def _second_pass(
        self, batch: Batch, seeds: tf.Tensor, slopes: tf.Tensor, scale: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Gradients from the slopes `[B, k, K]` of the logits, and the mean of the penalties."""
        variables = self.network.trainable_variables
        chunks, size = seeds.shape[0], tf.shape(slopes)[0]
        # Row by row of chunks: XLA cannot take a range of copies that depends on i.
        slopes = tf.reshape(slopes, [size, chunks, self.noise_chunk, slopes.shape[-1]])
        slopes = tf.transpose(slopes, [1, 0, 2, 3])

        def body(i: tf.Tensor, penalties: tf.Tensor, *sums: tf.Tensor) -> tuple[tf.Tensor, ...]:
            with tf.GradientTape() as tape:
                logits, penalty = self._pass(self._chunk(batch, seeds[i]))
                penalty /= chunks
                carried = tf.reduce_sum(logits * slopes[i])
                carried += scale * penalty
            parts = self._gradients(tape, carried)
            added = [total + part for total, part in zip(sums, parts, strict=True)]
            return (i + 1, penalties + penalty, *added)

        start = (tf.constant(0), tf.zeros(()), *(tf.zeros(v.shape) for v in variables))
        _, penalty, *gradients = tf.while_loop(
            lambda i, *_: i < chunks, body, start, parallel_iterations=1
        )
        return gradients, penalty

    def _chunk(self, batch: Batch, seeds: tf.Tensor) -> tf.Tensor:
        """The views of the copies of these seeds."""
        drawn = batch._replace(noise=self._copies(batch.images, seeds))
        (views,) = self.objective.views(self.call, drawn)
        return views

    def _pass(self, views: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One forward pass in training: logits `[B, v, K]`, and the network's regularisation."""
        logits = self.logits(views, training=True)
        return logits, tf.add_n([*self.network.losses, tf.zeros(())])

    def _gradients(self, tape: tf.GradientTape, target: tf.Tensor) -> list[tf.Tensor]:
        if not self.network.trainable_variables:
            raise UserError(f"the network {self.network.name!r} has no trainable weights")
        return tape.gradient(
            target,
            self.network.trainable_variables,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )

    def _moving_statistics(self) -> list[keras.Variable]:
        """What every replica's forward pass changes by itself; none where there is one alone."""
        if self.distribute_strategy.num_replicas_in_sync == 1:
            return []
        weights = self.network.non_trainable_weights
        return [v for v in weights if tf.as_dtype(v.dtype).is_floating]

    def _over_replicas(
        self, parts: list[tf.Tensor], size: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Means over all replicas, each counting by the size of its share, and the sum of those."""
        if self.distribute_strategy.num_replicas_in_sync == 1:
            return parts, size
        weighed = [tf.cast(size, part.dtype) * part for part in parts]
        context = tf.distribute.get_replica_context()
        *sums, total = context.all_reduce(tf.distribute.ReduceOp.SUM, [*weighed, size])
        means = [tf.math.divide_no_nan(part, tf.cast(total, part.dtype)) for part in sums]
        return means, total

    def _apply(
        self, gradients: list[tf.Tensor], scale: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor | float]:
        """Clips and applies gradients that were multiplied by `scale`.

        Returns:
          Their global norm before clipping, and its weight in the epoch's mean.
        """
        weight: tf.Tensor | float = 1.0
        if self.loss_scale is not None:
            gradients, weight = self.loss_scale.unscale(gradients, scale)
        norm = tf.linalg.global_norm(gradients)
        if self.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, self.clip_norm, use_norm=norm)
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas > 1 and not isinstance(self.optimizer, SGD):
            # Summed over replicas already, for the norm of the whole; Keras' own sum once more.
            gradients = [gradient / replicas for gradient in gradients]
        self.optimizer.apply(gradients, self.network.trainable_variables)
        return norm, weight


def _check_chunk(noise_chunk: int | None, num_noise: int, objective: Objective) -> None:
    if noise_chunk is None:
        return
    if noise_chunk < 1 or num_noise % noise_chunk:
        raise UserError(f"noise_chunk must divide num_noise={num_noise}, got {noise_chunk}")
    if not objective.sees_copies_only:
        raise UserError(
            f"noise_chunk={noise_chunk}: {type(objective).__name__} needs all copies at once; "
            "only gaussian, macer and consistency can be computed a few copies at a time"
        )


def _check_sigma(objective: Objective, sigma: float) -> None:
    """Of the objective and those that it holds."""
    part: Any = objective
    while part is not None:
        found = getattr(part, "sigma", sigma)
        if found != sigma:
            raise UserError(f"{type(part).__name__} has sigma={found}, the trainer sigma={sigma}")
        part = getattr(part, "objective", None)


def _check_optimizer(optimizer: Any, replicas: int) -> None:
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


def _mean(losses: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """What a batch costs whose images cost `[B]` and have weights `[B]`."""
    return tf.reduce_mean(losses * weights)


def _accuracy(logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
    """Share of the copies `[B, k, K]` whose largest logit is the label's, by weights `[B]`."""
    hits = tf.argmax(logits, axis=-1) == tf.cast(labels, tf.int64)[:, tf.newaxis]
    if weights is None:
        return tf.reduce_mean(tf.cast(hits, tf.float32))
    shares = tf.reduce_mean(tf.cast(hits, tf.float32), axis=1)
    return tf.math.divide_no_nan(tf.reduce_sum(shares * weights), tf.reduce_sum(weights))
