"""Training in less than float32: what is computed in which precision.

Noise is added to the pixels in float32 and the cast is the network's own first act; logits are
brought back to float32 before any loss; variables and their updates are float32 throughout.
"""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")

# Where float16's scale starts, how many good steps double it, and how far it may fall: at 1 the
# gradient itself overflows, and training has diverged.
FIRST_SCALE, PATIENCE, LEAST_SCALE = 2.0**15, 2000, 1.0


@contextlib.contextmanager
def policy(name: str) -> Iterator[None]:
    """Networks made within have the dtype policy of this name."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def at_least_float32(logits: tf.Tensor) -> tf.Tensor:
    """Logits as they are, or as float32 where they are shorter."""
    return logits if logits.dtype.size >= 4 else tf.cast(logits, tf.float32)


class LossScale:
    """The factor that keeps float16 gradients from underflowing.

    Micikevicius et al., "Mixed Precision Training" (ICLR 2018): halved when a gradient overflows,
    doubled after 2,000 steps without. The step whose gradient overflowed counts, as one of
    gradient 0: steps are what noise, data and schedules are functions of.
    """

    def __init__(self) -> None:
        """Makes the variables, in the scope of the strategy that is current."""
        options = {"trainable": False, "aggregation": "only_first_replica"}
        self._scale = keras.Variable(FIRST_SCALE, name="loss_scale", **options)
        self._good = keras.Variable(0, dtype="int32", name="good_steps", **options)

    @property
    def variables(self) -> list[keras.Variable]:
        """What a checkpoint must keep."""
        return [self._scale, self._good]

    def value(self) -> tf.Tensor:
        """The factor of this step."""
        return tf.convert_to_tensor(self._scale)

    def unscale(
        self, gradients: list[tf.Tensor], scale: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Gradients without the factor, all 0 where one of them overflowed; adapts the factor.

        An overflow at the least factor is let through, to be seen in the norm.

        Returns:
          The gradients, and 1.0, or 0.0 where they were dropped.
        """
        finite = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in gradients])
        kept = finite | (scale <= LEAST_SCALE)
        good = tf.where(finite, tf.convert_to_tensor(self._good) + 1, 0)
        grown = tf.where(good >= PATIENCE, 2 * scale, scale)
        self._scale.assign(tf.where(finite, grown, tf.maximum(scale / 2, LEAST_SCALE)))
        self._good.assign(tf.where(good >= PATIENCE, 0, good))
        unscaled = [tf.where(kept, g / scale, tf.zeros_like(g)) for g in gradients]
        return unscaled, tf.cast(kept, tf.float32)


def loss_scale(network: keras.Model) -> LossScale | None:
    """What a network that computes in float16 needs; None for others."""
    return LossScale() if _computes_in(network, "float16") else None


def _computes_in(layer: keras.Layer, dtype: str) -> bool:
    return layer.compute_dtype == dtype or any(
        _computes_in(inner, dtype) for inner in getattr(layer, "layers", ())
    )
