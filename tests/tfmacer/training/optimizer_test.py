"""The update rule against the same written out in NumPy."""

import keras
import numpy as np
import pytest

from tfmacer.training import schedules
from tfmacer.training.optimizer import SGD

BOUNDARY = 3


def _reference(weights, gradients, *, momentum, nesterov, decay):
    """torch.optim.SGD as its documentation states it (dampening 0)."""
    buffer = np.zeros_like(weights)
    for step, gradient in enumerate(gradients):
        rate = 0.1 if step < BOUNDARY else 0.01
        gradient = gradient + decay * weights
        buffer = momentum * buffer + gradient
        weights = weights - rate * (gradient + momentum * buffer if nesterov else buffer)
    return weights


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_update_rule(momentum, nesterov, decay):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=5), rng.normal(size=(7, 5))
    variable = keras.Variable(start.astype(np.float32))
    optimizer = SGD(
        schedules.piecewise(0.1, [BOUNDARY]),
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=decay,
    )
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient, "float32")], [variable])
    options = {"momentum": momentum, "nesterov": nesterov, "decay": decay}
    expected = _reference(start, gradients, **options)
    np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_decay_is_on_biases_and_batch_normalisation_too():
    network = keras.Sequential([keras.layers.Dense(3), keras.layers.BatchNormalization()])
    network.build((None, 2))
    variables = network.trainable_variables
    for variable in variables:
        variable.assign(np.ones(variable.shape))
    zeros = [np.zeros(variable.shape, np.float32) for variable in variables]
    SGD(0.1, momentum=0.0, weight_decay=0.5).apply(
        [keras.ops.convert_to_tensor(zero) for zero in zeros], variables
    )
    assert len(variables) == 4
    for variable in variables:
        np.testing.assert_allclose(variable.numpy(), np.full(variable.shape, 0.95), rtol=1e-6)


def test_it_survives_its_own_configuration():
    optimizer = SGD(0.1, momentum=0.8, nesterov=True, weight_decay=5e-4)
    config = keras.saving.serialize_keras_object(optimizer)
    again = keras.saving.deserialize_keras_object(config)
    assert isinstance(again, SGD)
    assert (again.momentum, again.nesterov, again.l2) == (0.8, True, 5e-4)
