"""How rates and weights change with the number of steps taken.

Each is a stock Keras schedule, a function of the optimizer's iteration count alone, so that a
resumed run is where an uninterrupted one would be.
"""

import math
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

Schedule = Callable[[tf.Tensor], tf.Tensor]


def constant(value: float) -> Schedule:
    """The same value at every step."""
    return keras.optimizers.schedules.PolynomialDecay(value, 1, end_learning_rate=value)


def deferred(value: float, start: int) -> Schedule:
    """0 for the first `start` steps, then `value`."""
    if start <= 0:
        return constant(value)
    return keras.optimizers.schedules.PiecewiseConstantDecay([start - 1], [0.0, value])


def linear(value: float, length: int) -> Schedule:
    """From 0 in proportion to the steps taken up to `value` after `length` steps, then constant."""
    if length <= 0:
        return constant(value)
    return keras.optimizers.schedules.PolynomialDecay(0.0, length, end_learning_rate=value)


def by_epoch(value: float, epochs: float, steps: int) -> Schedule:
    """In epoch e = 0, 1, ... of `steps` steps the share (e + 1) / `epochs` of `value`, at most it.

    How the code of Salman et al., Jeong and Shin and SmoothMix warms up.
    """
    ends = range(1, math.ceil(epochs))
    if not ends:
        return constant(value)
    return keras.optimizers.schedules.PiecewiseConstantDecay(
        [end * steps - 1 for end in ends], [*(value * end / epochs for end in ends), value]
    )


def piecewise(value: float, boundaries: Sequence[int], factor: float = 0.1) -> Schedule:
    """`value`, multiplied by `factor` once each of the `boundaries` (steps taken) is reached.

    Keras keeps the earlier value up to and including a boundary; the papers' code changes it for
    the first step of an epoch, hence the 1 subtracted here.
    """
    if not boundaries:
        return constant(value)
    values = [value * factor**i for i in range(len(boundaries) + 1)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(
        [boundary - 1 for boundary in sorted(boundaries)], values
    )
