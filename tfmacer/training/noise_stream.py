"""The noise of training: a function of the seed, the step, the replica and the number of the copy.

So a run restored from a checkpoint continues as if it had never stopped.
"""

from collections.abc import Mapping

import tensorflow as tf

from tfmacer.noise.samplers import training_noise
from tfmacer.votes.source import row_seed


class NoiseStream:
    """Noise in streams, which are independent of each other and have names.

    Attributes:
      sigma: scale of the noise, in units of pixels in [0, 1]; > 0.
      family: key of `tfmacer.noise.families.DISTRIBUTIONS`.
      params: the family's further parameters.
      seed: of all streams.
    """

    def __init__(
        self, *, sigma: float, family: str, params: Mapping[str, float], seed: int
    ) -> None:
        self.sigma, self.family, self.params, self.seed = sigma, family, dict(params), seed
        self._draw = training_noise(family)

    def seeds(self, stream: str, step: tf.Tensor | int, copies: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Seeds int64 `[copies, 2]` of each copy's noise, and `[2]` of the objective's choices."""
        context = tf.distribute.get_replica_context()
        # int64 throughout: from int32 seeds, fold_in keeps 32 bits and streams may collide.
        seed = tf.constant(row_seed(self.seed, stream, 0), tf.int64)
        for number in (step, context.replica_id_in_sync_group):
            number = tf.cast(number, tf.int64)
            seed = tf.random.experimental.stateless_fold_in(seed, number, alg="philox")
        noise_seed, objective_seed = tf.unstack(tf.random.split(seed, 2, alg="philox"))
        return tf.random.split(noise_seed, copies, alg="philox"), objective_seed

    def copies(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """Noise `[B, v, H, W, C]` of seeds `[v, 2]`, each copy from a seed of its own."""
        shape = tf.shape(images)
        drawn = [self._draw(shape, seed, self.sigma, self.params) for seed in tf.unstack(seeds)]
        return tf.stack(drawn, axis=1)
