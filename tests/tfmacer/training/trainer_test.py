"""One step against the same written out, and the streams of noise."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmacer.common.errors import UserError
from tfmacer.training import objectives, schedules
from tfmacer.training.optimizer import SGD
from tfmacer.training.trainer import SmoothedTrainer

SHAPE, CLASSES = (4, 3, 2), 3


def _data(size=12):
    rng = np.random.default_rng(0)
    return rng.random((size, *SHAPE)).astype(np.float32), rng.integers(0, CLASSES, size)


def _trainer(objective=None, *, rate=0.1, **options):
    keras.utils.set_random_seed(1)
    network = keras.Sequential(
        [keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(CLASSES)]
    )
    options = {"sigma": 0.5, "num_noise": 4, "seed": 7} | options
    trainer = SmoothedTrainer(network, objective or objectives.Gaussian(), **options)
    trainer.compile(optimizer=SGD(rate, momentum=0.0))
    return trainer


def _step(trainer, *data):
    return trainer.train_step(tuple(tf.constant(part) for part in data))


@pytest.mark.parametrize(
    "objective",
    [
        objectives.Gaussian(),
        objectives.Macer(sigma=0.5, weight=0.3),
        objectives.Stability(),
        objectives.Consistency(),
        objectives.SmoothAdv(steps=3),
        objectives.SmoothAdv(objective=objectives.Consistency(), attack="ddn", steps=3),
        objectives.SmoothMix(steps=2),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_descends_the_objective_of_the_noisy_copies(objective, weighted):
    """The network is x W + b, so its logits and their gradient can be written in NumPy.

    The views are constants of it: what an attack found is not differentiated. What every image
    costs is weighed, and the sum divided by how many there are.
    """
    images, labels = _data()
    weights = np.linspace(0, 3, 12, dtype=np.float32) if weighted else np.ones(12, np.float32)
    trainer = _trainer(objective)
    kernel, bias = trainer.network.get_weights()
    batch = trainer.draw(tf.constant(images), tf.constant(labels), "train", 0)
    views = np.concatenate(objective.views(trainer.call, batch), axis=1)
    views = views.reshape(12, -1, np.prod(SHAPE))
    logits = tf.constant(views @ kernel + bias)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = objective.losses(logits, batch)
        costs = [tf.reduce_sum(weights * term) / 12 for term in losses[:2]]
        loss = costs[0] + costs[1]
    slopes = tape.gradient(loss, logits).numpy()
    gradients = [np.einsum("bvd,bvk->dk", views, slopes), slopes.sum(axis=(0, 1))]
    found = _step(trainer, images, labels, *([weights] if weighted else []))
    for weight, before, gradient in zip(
        trainer.network.get_weights(), (kernel, bias), gradients, strict=True
    ):
        np.testing.assert_allclose(weight, before - 0.1 * gradient, rtol=1e-4, atol=1e-5)
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
    accuracy = np.mean(losses.noisy_logits.numpy().argmax(axis=-1) == labels[:, np.newaxis])
    expected = {
        "loss": loss,
        "classification": costs[0],
        "robustness": costs[1],
        "noisy_accuracy": accuracy,
        "gradient_norm": norm,
        "learning_rate": 0.1,
        "lambda": objective.weight_at(0),
        "epsilon": objective.epsilon_at(0),
    }
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-4), name


def _normalised(objective):
    """A trainer of a network with all that a forward pass may leave behind."""
    keras.utils.set_random_seed(2)
    network = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Flatten(),
            keras.layers.Dense(6, activity_regularizer=keras.regularizers.L2(1e-3)),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dense(CLASSES),
        ]
    )
    trainer = SmoothedTrainer(network, objective, sigma=0.25, num_noise=2, seed=3)
    trainer.compile(optimizer=SGD(0.1, momentum=0.0))
    return trainer


ATTACKING = [
    objectives.SmoothAdv(steps=3, epsilon=schedules.linear(1.0, 4)),
    objectives.SmoothAdv(attack="ddn", steps=3, epsilon=0.5, objective=objectives.Consistency()),
    objectives.SmoothMix(steps=2, weight=schedules.linear(5.0, 4), epsilon=1.0),
]


@pytest.mark.parametrize("objective", ATTACKING)
def test_an_attack_leaves_the_network_as_it_was(objective):
    """The moving statistics after a step are those of its forward passes in training alone."""
    images, labels = _data()
    trainer = _normalised(objective)
    batch = trainer.draw(tf.constant(images), tf.constant(labels), "train", 0)
    before = trainer.network.get_weights()
    groups = objective.views(trainer.call, batch)
    for weight, same in zip(trainer.network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, same)
    mean, variance = 0.0, 1.0
    for views in groups:
        hidden = trainer.network.layers[1](tf.reshape(views, [-1, np.prod(SHAPE)])).numpy()
        mean = 0.99 * mean + 0.01 * hidden.mean(axis=0)
        variance = 0.99 * variance + 0.01 * hidden.var(axis=0)
    _step(trainer, images, labels)
    normalisation = trainer.network.layers[2]
    np.testing.assert_allclose(normalisation.moving_mean, mean, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(normalisation.moving_variance, variance, rtol=1e-4)


@pytest.mark.parametrize("objective", ATTACKING)
def test_an_attacked_step_is_a_function_of_weights_seed_and_iteration(objective):
    """What a resumed run has is enough: the third step after a restart equals the third in one."""
    images, labels = _data()
    whole = _normalised(objective)
    for _ in range(2):
        _step(whole, images, labels)
    resumed = _normalised(objective)
    resumed.network.set_weights(whole.network.get_weights())
    resumed.optimizer.iterations.assign(2)
    for trainer in (whole, resumed):
        trainer.reset_metrics()
    found, expected = (_step(trainer, images, labels) for trainer in (resumed, whole))
    assert {k: float(v) for k, v in found.items()} == {k: float(v) for k, v in expected.items()}
    pairs = zip(resumed.network.get_weights(), whole.network.get_weights(), strict=True)
    for weight, same in pairs:
        np.testing.assert_array_equal(weight, same)


@pytest.mark.parametrize("objective", ATTACKING[1:])
def test_fit_runs_attacks_in_its_graph(objective):
    """On batches of which the last is ragged, to the weights that steps one by one give."""
    images, labels = _data()
    trainer, eager = _normalised(objective), _normalised(objective)
    trainer.fit(images, labels, batch_size=8, shuffle=False, verbose=0)
    for start in (0, 8):
        _step(eager, images[start : start + 8], labels[start : start + 8])
    pairs = zip(trainer.network.get_weights(), eager.network.get_weights(), strict=True)
    for weight, same in pairs:
        np.testing.assert_allclose(weight, same, rtol=1e-3, atol=1e-4)


def test_clipping_bounds_the_step_and_not_the_norm_reported():
    images, labels = _data()
    free, clipped = _trainer(rate=1.0), _trainer(rate=1.0, clip_norm=0.01)
    before = free.network.get_weights()
    norm = float(_step(free, images, labels)["gradient_norm"])
    assert float(_step(clipped, images, labels)["gradient_norm"]) == pytest.approx(norm)
    steps = [
        [w - b for w, b in zip(t.network.get_weights(), before, strict=True)]
        for t in (free, clipped)
    ]
    assert norm > 0.1
    for whole, short in zip(*steps, strict=True):
        np.testing.assert_allclose(short, whole * 0.01 / norm, rtol=1e-3, atol=1e-7)


def test_the_networks_own_regularisation_counts():
    images, labels = _data()
    network = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Flatten(),
            keras.layers.Dense(CLASSES, kernel_regularizer=keras.regularizers.L2(0.1)),
        ]
    )
    trainer = SmoothedTrainer(network, objectives.Gaussian(), sigma=0.5)
    trainer.compile(optimizer=SGD(0.1))
    penalty = 0.1 * (network.get_weights()[0] ** 2).sum()
    found = _step(trainer, images, labels)
    assert float(found["loss"] - found["classification"]) == pytest.approx(penalty, rel=1e-4)


def test_fit_and_evaluate_work_on_any_classifier():
    """A problem that a linear network solves, on plain arrays, with a last batch that is ragged."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, 100)
    images = np.zeros((100, *SHAPE), np.float32)
    images[np.arange(100), labels] = 1.0
    trainer = _trainer(objectives.Macer(sigma=0.25, weight=0.1), sigma=0.25, rate=0.3)
    history = trainer.fit(
        images, labels, batch_size=32, epochs=5, verbose=0, validation_data=(images, labels)
    )
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert history.history["val_accuracy"][-1] == 1.0
    result = trainer.evaluate(images, labels, batch_size=32, verbose=0, return_dict=True)
    assert result["accuracy"] == 1.0
    assert 0.8 < result["noisy_accuracy"] <= 1.0
    np.testing.assert_array_equal(trainer(images), trainer.network(images))


def test_lists_of_results_are_in_the_order_of_their_names():
    """On a network that is right without noise and guesses under it."""
    labels = np.arange(90) % CLASSES
    images = np.full((90, *SHAPE), 0.5, np.float32)
    images[np.arange(90), labels] += 0.4
    trainer = _trainer(sigma=50.0, rate=0.0)
    kernel = np.zeros((np.prod(SHAPE), CLASSES), np.float32)
    kernel.reshape(SHAPE[0], -1, CLASSES)[range(CLASSES), :, range(CLASSES)] = 1.0
    trainer.network.set_weights([kernel, np.zeros(CLASSES, np.float32)])
    named = trainer.evaluate(images, labels, verbose=0, return_dict=True)
    assert named["accuracy"] == 1.0
    assert named["noisy_accuracy"] < 0.6
    assert trainer.metrics_names == ["accuracy", "noisy_accuracy"]
    found = trainer.evaluate(images, labels, verbose=0)
    assert dict(zip(trainer.metrics_names, found, strict=True)) == named


@pytest.mark.parametrize("objective", [
    objectives.Macer(sigma=0.25), objectives.SmoothAdv(objective=objectives.Macer(sigma=0.25))
])  # fmt: skip
def test_an_objective_of_another_sigma_is_refused(objective):
    with pytest.raises(UserError, match=r"Macer has sigma=0\.25, the trainer sigma=0\.5"):
        _trainer(objective)


def test_a_network_with_nothing_to_train_is_refused():
    trainer = _trainer()
    trainer.network.trainable = False
    trainer.compile(optimizer=SGD(0.1))
    with pytest.raises(UserError, match="has no trainable weights"):
        trainer.fit(*_data(), verbose=0)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda: keras.optimizers.LossScaleOptimizer(SGD(0.1)), "would scale losses twice"),
        (
            lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=4),
            "gradient_accumulation_steps=4 would draw the same noise 4 times",
        ),
    ],
)
def test_optimizers_that_would_train_something_else_are_refused(optimizer, message):
    with pytest.raises(UserError, match=message):
        _trainer().compile(optimizer=optimizer())


def test_metrics_are_means_over_the_epoch_weighted_by_batch():
    images, labels = _data(12)
    trainer = _trainer(rate=0.0)
    first = _step(trainer, images[:8], labels[:8])["loss"]
    both = _step(trainer, images[8:], labels[8:])["loss"]
    fresh = _trainer(rate=0.0)
    fresh.optimizer.iterations.assign(1)
    second = _step(fresh, images[8:], labels[8:])["loss"]
    assert float(both) == pytest.approx((8 * float(first) + 4 * float(second)) / 12, rel=1e-5)
    trainer.reset_metrics()
    assert float(trainer.metrics[0].result()) == 0.0


def test_evaluation_has_noise_that_repeats_and_differs_between_batches():
    """Of equal images, in batches of one: equal noise would give equal answers."""
    image = np.full((1, *SHAPE), 0.5, np.float32)
    images, labels = np.repeat(image, 64, axis=0), np.zeros(64, int)
    trainer = _trainer(sigma=5.0)
    results = [
        trainer.evaluate(images, labels, batch_size=1, verbose=0, return_dict=True)
        for _ in range(2)
    ]
    assert results[0] == results[1]
    assert results[0]["accuracy"] in (0.0, 1.0)
    assert 0.05 < results[0]["noisy_accuracy"] < 0.95


def _noise(trainer, step=0, stream="train", size=64):
    images = tf.zeros([size, *SHAPE])
    return trainer.draw(images, tf.zeros([size], tf.int64), stream, step).noise.numpy()


def test_noise_is_gaussian_of_scale_sigma():
    noise = _noise(_trainer(num_noise=16))
    assert noise.shape == (64, 16, *SHAPE)
    count = noise.size
    assert abs(noise.mean()) < 4 * 0.5 / np.sqrt(count)
    assert noise.std() == pytest.approx(0.5, rel=4 / np.sqrt(2 * count))


def test_noise_is_a_function_of_seed_stream_and_step():
    trainer = _trainer()
    np.testing.assert_array_equal(_noise(trainer, 3), _noise(_trainer(), 3))
    draws = [
        _noise(trainer, 3),
        _noise(trainer, 4),
        _noise(_trainer(seed=8), 3),
        _noise(trainer, 3, "test"),
        _noise(trainer, 2**40 + 3),
    ]
    rows = np.stack([draw.reshape(64 * 4, -1) for draw in draws]).reshape(-1, np.prod(SHAPE))
    assert len(np.unique(rows, axis=0)) == len(rows)


def _deep(objective, **options):
    """A trainer of a network with hidden units, a penalty on them and randomness of its own."""
    keras.utils.set_random_seed(4)
    network = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Flatten(),
            keras.layers.Dense(
                6, activation="tanh", activity_regularizer=keras.regularizers.L2(0.01)
            ),
            keras.layers.Dense(CLASSES, kernel_regularizer=keras.regularizers.L2(0.01)),
        ]
    )
    options = {"sigma": 0.5, "num_noise": 6, "seed": 7} | options
    trainer = SmoothedTrainer(network, objective, **options)
    trainer.compile(optimizer=SGD(0.1, momentum=0.9))
    return trainer


COPYING = [
    objectives.Gaussian(),
    objectives.Macer(sigma=0.5, weight=0.5, beta=2.0),
    objectives.Consistency(),
]


@functools.cache
def _three_steps(objective, chunk):
    """Logs and weights after three steps with noise copies in chunks."""
    trainer = _deep(objective, noise_chunk=chunk, clip_norm=1.0)
    step = tf.function(trainer.train_step)
    for _ in range(3):
        logs = step(tuple(map(tf.constant, _data())))
    return {name: float(value) for name, value in logs.items()}, trainer.network.get_weights()


@pytest.mark.parametrize(
    ("objective", "chunk"), [*((each, 2) for each in COPYING), (COPYING[1], 1), (COPYING[2], 6)]
)
def test_chunks_of_copies_have_the_gradient_of_all(objective, chunk):
    """To float32 round-off, through three steps: the losses are no sums over copies."""
    logs, weights = _three_steps(objective, chunk)
    expected_logs, expected_weights = _three_steps(objective, None)
    assert logs == pytest.approx(expected_logs, rel=2e-5)
    for found, expected in zip(weights, expected_weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


def test_the_first_pass_over_chunks_leaves_no_trace():
    """Moving statistics see each chunk once; a second look at one has the same dropout."""
    images, labels = _data()
    trainer = _normalised(objectives.Macer(sigma=0.25, weight=0.3))
    chunked = SmoothedTrainer(
        trainer.network, trainer.objective, sigma=0.25, num_noise=2, seed=3, noise_chunk=1
    )
    chunked.compile(optimizer=SGD(0.1, momentum=0.0))
    batch = chunked.draw(tf.constant(images), tf.constant(labels), "train", 0)
    (views,) = chunked.objective.views(chunked.call, batch)
    hidden = [chunked.network.layers[1](tf.reshape(views[:, j], [12, -1])) for j in range(2)]
    expected = 0.0
    for part in hidden:
        expected = 0.99 * expected + 0.01 * part.numpy().mean(axis=0)
    _step(chunked, images, labels)
    found = chunked.network.layers[2].moving_mean
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)


def test_both_passes_over_a_chunk_drop_the_same_units():
    """One chunk of all copies is then the plain step, dropout included."""
    images, labels = _data()
    weights = []
    for chunk in (None, 2):
        keras.utils.set_random_seed(0)
        network = keras.Sequential(
            [
                keras.Input(SHAPE),
                keras.layers.Flatten(),
                keras.layers.Dropout(0.5, seed=1),
                keras.layers.Dense(CLASSES),
            ]
        )
        trainer = SmoothedTrainer(
            network, objectives.Gaussian(), sigma=0.5, num_noise=2, noise_chunk=chunk
        )
        trainer.compile(optimizer=SGD(0.5, momentum=0.0))
        for _ in range(2):
            _step(trainer, images, labels)
        weights.append(network.get_weights())
    for found, expected in zip(*weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        (objectives.Gaussian(), {"noise_chunk": 3}, "noise_chunk must divide num_noise=4, got 3"),
        (objectives.Gaussian(), {"noise_chunk": 0}, "noise_chunk must divide num_noise=4, got 0"),
        (objectives.Stability(), {"noise_chunk": 2}, "Stability needs all copies at once"),
        (objectives.SmoothAdv(), {"noise_chunk": 2}, "SmoothAdv needs all copies at once"),
        (objectives.SmoothMix(), {"noise_chunk": 2}, "SmoothMix needs all copies at once"),
    ],
)
def test_chunks_that_cannot_be(objective, options, message):
    with pytest.raises(UserError, match=message):
        _trainer(objective, **options)


# COPYING's MACER at the sigma of the next test, its term as heavy.
_SMALL_MACER = objectives.Macer(sigma=1e-7, weight=0.5 * 0.5 / 1e-7, beta=2.0)


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        (_SMALL_MACER, {"noise_chunk": 3}),
        pytest.param(_SMALL_MACER, {}, marks=pytest.mark.slow),
        pytest.param(objectives.SmoothAdv(steps=2, epsilon=0.5), {}, marks=pytest.mark.slow),
    ],
)
def test_xla_takes_the_same_steps(objective, options):
    """Under noise too small to matter: from equal seeds XLA draws other normal numbers."""
    images, labels = _data()
    weights = []
    for jit in (False, True):
        trainer = _deep(objective, sigma=1e-7, **options)
        trainer.compile(optimizer=SGD(0.1, momentum=0.9), jit_compile=jit)
        step = tf.function(trainer.train_step)
        for _ in range(2):
            step((tf.constant(images), tf.constant(labels)))
        graph = step.get_concrete_function((tf.constant(images), tf.constant(labels))).graph
        assert ("_XlaMustCompile" in str(graph.as_graph_def())) is jit
        weights.append(trainer.network.get_weights())
    for found, expected in zip(*weights, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_copy_has_the_same_noise_however_many_there_are():
    few, many = (_noise(_trainer(num_noise=k)) for k in (2, 5))
    np.testing.assert_array_equal(many[:, :2], few)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"sigma": float("nan")}, "sigma must be positive"),
        ({"num_noise": 0}, "num_noise must be 1 or more"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
    ],
)
def test_numbers_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        _trainer(**options)
