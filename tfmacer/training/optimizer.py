"""Stochastic gradient descent as the papers' code runs it."""

from typing import Any

import keras


@keras.saving.register_keras_serializable(package="tfmacer")
class SGD(keras.optimizers.SGD):
    """SGD with (Nesterov) momentum and L2 weight decay, the update rule of the papers' code.

    For a parameter w with gradient g, learning rate r, momentum m and weight decay d:

        g <- g + d w;   v <- m v + g;   w <- w - r (g + m v)  (Nesterov)  or  w - r v

    Three things differ from `keras.optimizers.SGD`. The decay is part of the gradient, and so
    passes through the momentum and shrinks with the rate (Keras' is decoupled). It is applied to
    every trainable variable, biases and batch-normalisation scales and offsets included. And the
    momentum accumulates gradients rather than steps, so that a drop of the rate takes effect at
    once rather than after the momentum has forgotten the old rate.

    With several replicas it sums gradients as Keras' optimizers do, unless it is told that those it
    is given are sums over all of them already (`given_sums`).

    Args:
      learning_rate: a number or a schedule.
      momentum: m, in [0, 1).
      nesterov: which of the two updates.
      weight_decay: d; 0 or more.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, momentum=momentum, nesterov=nesterov, **kwargs)
        self.l2 = weight_decay
        self.given_sums = False

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """See the class."""
        rate = keras.ops.cast(learning_rate, variable.dtype)
        step = keras.ops.cast(gradient, variable.dtype) + self.l2 * variable
        if self.momentum:
            buffer = self.momentums[self._get_variable_index(variable)]
            velocity = self.momentum * buffer + step
            self.assign(buffer, velocity)
            step = step + self.momentum * velocity if self.nesterov else velocity
        self.assign_sub(variable, rate * step)

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        if self.given_sums:
            return grads_and_vars
        return super()._all_reduce_sum_gradients(grads_and_vars)

    def get_config(self) -> dict[str, Any]:
        """Configuration for saving."""
        return {**super().get_config(), "weight_decay": self.l2}
