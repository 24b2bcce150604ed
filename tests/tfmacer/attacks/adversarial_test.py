"""Attacks where the best one is known: linear networks; and what holds on any network."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy import special

from tfmacer.attacks import adversarial

SHAPE = (3, 4, 2)
PIXELS = 24
SEED = tf.constant([5, 6], tf.int64)
PGD = {"steps": 4, "epsilon": 0.5}
ALL = {
    "pgd": lambda *a, **k: adversarial.pgd(*a, **(PGD | {"seed": SEED} | k)),
    "ddn": lambda *a, **k: adversarial.ddn(*a, **(PGD | {"seed": SEED} | k)),
    "pgd_linf": lambda *a, **k: ALL["pgd"](*a, norm="linf", **k),
    "ascend": lambda *a, **k: adversarial.ascend(*a, step_size=0.2, steps=4),
    "clip_first": lambda *a, **k: ALL["pgd"](*a, **k, clip_first=True),
    "damped": lambda *a, **k: ALL["pgd"](*a, damped=True, **k),
}


def _linear(weights, bias=None):
    """Logits x W + b of flattened images."""
    bias = np.zeros(weights.shape[1]) if bias is None else bias
    weights, bias = tf.constant(weights, tf.float32), tf.constant(bias, tf.float32)
    return lambda x: tf.reshape(x, [-1, PIXELS]) @ weights + bias


def _two_classes(seed=0, scale=1.0):
    """A linear network of two classes, and the direction from the first to the second."""
    weights = scale * np.random.default_rng(seed).normal(size=(PIXELS, 2))
    direction = weights[:, 1] - weights[:, 0]
    return weights, direction / np.linalg.norm(direction)


def _data(size=6, copies=3, low=0.4, high=0.6, sigma=0.1, classes=2):
    rng = np.random.default_rng(1)
    images = rng.uniform(low, high, (size, *SHAPE)).astype(np.float32)
    noise = rng.normal(0, sigma, (size, copies, *SHAPE)).astype(np.float32)
    return images, np.arange(size) % classes, noise


def _flat(images):
    return np.asarray(images, np.float64).reshape(len(images), -1)


def _soft_loss(network, images, labels, noise):
    """-log of the mean softmax at the true class, of each image, in float64."""
    views = (images[:, np.newaxis] + noise).reshape(-1, *SHAPE)
    logits = network(views).numpy().reshape(*noise.shape[:2], -1)
    mean = special.softmax(logits.astype(np.float64), axis=2).mean(axis=1)
    return -np.log(mean[np.arange(len(labels)), labels])


@pytest.mark.parametrize(("steps", "copies"), [(1, 1), (2, 4), (10, 4)])
def test_pgd_finds_the_optimum_of_a_linear_network(steps, copies):
    """X + epsilon w / |w|, away from the label: no other point of the ball is worse."""
    weights, direction = _two_classes()
    images, labels, noise = _data(copies=copies)
    found = adversarial.pgd(
        _linear(weights), images, labels, noise, epsilon=0.3, steps=steps, seed=SEED
    )
    sign = np.where(labels == 0, 1, -1)[:, np.newaxis]
    np.testing.assert_allclose(_flat(found), _flat(images) + 0.3 * sign * direction, atol=1e-6)


@pytest.mark.parametrize(("steps", "copies"), [(1, 1), (2, 4), (10, 4)])
def test_pgd_linf_finds_the_corner_of_a_linear_network(steps, copies):
    """X + epsilon sign(w), away from the label."""
    weights, direction = _two_classes()
    images, labels, noise = _data(copies=copies)
    found = ALL["pgd_linf"](_linear(weights), images, labels, noise, epsilon=0.3, steps=steps)
    sign = np.where(labels == 0, 1, -1)[:, np.newaxis]
    np.testing.assert_allclose(
        _flat(found), _flat(images) + 0.3 * sign * np.sign(direction), atol=1e-6
    )


@pytest.mark.parametrize("name", ["pgd", "pgd_linf", "ddn"])
def test_unclipped_attacks_leave_the_range_of_pixels(name):
    """And reach what a linear network allows, as if there were no ends."""
    weights, direction = _two_classes()
    images, _, noise = _data(low=0.0, high=1.0)
    middle = np.full(PIXELS, 0.5)
    gap = weights[:, 1] - weights[:, 0]
    network = _linear(weights, [gap @ middle + np.linalg.norm(gap), 0.0])
    norm = np.inf if name == "pgd_linf" else 2
    options = {"steps": 40, "epsilon": 3.0, "clip": False}
    options |= {"levels": None} if name == "ddn" else {}
    found = ALL[name](network, images, np.zeros(6, int), noise, **options)
    change = _flat(found) - _flat(images)
    assert _flat(found).min() < 0
    assert np.linalg.norm(change, axis=1, ord=norm).max() <= 3.0 * (1 + 1e-6)
    if name == "ddn":
        sought = 1.0 - (_flat(images) - middle) @ direction
        reached = change @ direction
        moved = sought > 0.1
        assert moved.sum() >= 5
        # Beyond the plane, where the majority of three noisy copies is wrong, by little.
        assert np.abs(reached - sought)[moved].max() < 0.4
        np.testing.assert_allclose(
            change[moved], reached[moved][:, np.newaxis] * direction, atol=1e-5
        )
    else:
        best = direction if name == "pgd" else np.sign(direction)
        np.testing.assert_allclose(change, np.tile(3.0 * best, (6, 1)), atol=1e-5)


def _best_in_box(x, direction, epsilon):
    """The most that direction . change can be within the ball and [0, 1], by Lagrange.

    The optimum is t x direction, each pixel cut off at 0 and 1, with t so large that its norm is
    epsilon.
    """
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        change = np.clip(middle * direction, -x, 1 - x)
        low, high = (low, middle) if np.linalg.norm(change) > epsilon else (middle, high)
    return direction @ change


def test_pgd_at_the_ends_of_the_pixels():
    """One step is x + epsilon w / |w| cut off at 0 and 1; more win back what the cut lost."""
    weights, direction = _two_classes()
    images, _, noise = _data(low=0.0, high=1.0)
    labels = np.zeros(6, int)
    best = [_best_in_box(x, direction, 1.5) for x in _flat(images)]
    reached = {}
    for steps in (1, 10, 40):
        found = adversarial.pgd(
            _linear(weights), images, labels, noise, epsilon=1.5, steps=steps, seed=SEED
        )
        change = _flat(found) - _flat(images)
        assert (np.linalg.norm(change, axis=1) <= 1.5 * (1 + 1e-6)).all()
        reached[steps] = change @ direction / best
        if steps == 1:
            expected = np.clip(_flat(images) + 1.5 * direction, 0, 1)
            np.testing.assert_allclose(_flat(found), expected, atol=1e-6)
            assert np.mean((expected == 0) | (expected == 1)) > 0.1
    assert reached[1].mean() < 0.9
    assert reached[10].min() > 0.95
    assert reached[40].min() > 0.98
    assert max(values.max() for values in reached.values()) <= 1 + 1e-6


def test_a_step_follows_the_slope_of_the_soft_smoothed_classifier():
    """Of the mean of the copies' probabilities, under the very noise that was given."""
    rng = np.random.default_rng(3)
    weights, bias = rng.normal(size=(PIXELS, 4)), rng.normal(size=4)
    images, labels, noise = _data(classes=4, sigma=1.0)

    def loss(x, b):
        logits = (x + _flat(noise[b])) @ weights + bias
        return -np.log(special.softmax(logits, axis=1).mean(axis=0)[labels[b]])

    steps = 1e-5 * np.eye(PIXELS)
    slopes = np.array([
        [(loss(x + e, b) - loss(x - e, b)) / 2e-5 for e in steps]
        for b, x in enumerate(_flat(images))
    ])  # fmt: skip
    expected = slopes / np.linalg.norm(slopes, axis=1, keepdims=True)
    network = _linear(weights, bias)
    found = adversarial.ascend(network, images, labels, noise, step_size=0.1, steps=1)
    np.testing.assert_allclose(_flat(found) - _flat(images), 0.1 * expected, atol=1e-6)


def test_ascent_goes_as_far_as_its_steps_lead_and_ends_at_the_pixels():
    weights, direction = _two_classes()
    images, _, noise = _data()
    labels = np.zeros(6, int)
    for size, steps in ((0.05, 4), (0.5, 8)):
        found = adversarial.ascend(
            _linear(weights), images, labels, noise, step_size=size, steps=steps
        )
        expected = np.clip(_flat(images) + size * steps * direction, 0, 1)
        np.testing.assert_allclose(_flat(found), expected, atol=1e-6)
    assert {0.0, 1.0} <= set(np.unique(found))


@pytest.mark.parametrize("margin", [0.0, 30.0, 300.0, -300.0])
def test_images_however_sure_keep_their_direction(margin):
    """1 - p is 1e-130 at 300, and the slope of the cross-entropy 0 in floats of any size."""
    weights, direction = _two_classes()
    network = _linear(weights, [margin, 0.0])
    images, _, noise = _data()
    found = adversarial.pgd(
        network, images, np.zeros(6, int), noise, epsilon=0.3, steps=2, seed=SEED
    )
    np.testing.assert_allclose(_flat(found), _flat(images) + 0.3 * direction, atol=1e-6)


def test_damped_steps_are_short_where_the_classifier_is_sure():
    """Of norm 2 epsilon n / (n + 1e-8), n = (1 - p) |w| / 6 the norm of the mean loss's slope."""
    weights, direction = _two_classes()
    gap = weights[:, 1] - weights[:, 0]
    images, _, noise = _data(sigma=0.0)
    shares = {}
    for margin in (-15.0, 15.0, 22.0, 23.0, 24.0, 40.0):
        found = adversarial.pgd(
            _linear(weights, [margin, 0.0]), images, np.zeros(6, int), noise,
            epsilon=0.3, steps=1, seed=SEED, damped=True,
        )  # fmt: skip
        norm = special.expit(_flat(images) @ gap - margin) * np.linalg.norm(gap) / 6
        shares[margin] = norm / (norm + 1e-8)
        expected = np.minimum(0.6 * shares[margin], 0.3)
        np.testing.assert_allclose((_flat(found) - _flat(images)) @ direction, expected, atol=1e-5)
    assert shares[15.0].min() > 0.95
    assert shares[40.0].max() < 1e-3
    assert any(((share > 0.05) & (share < 0.45)).any() for share in shares.values())


def test_clipped_first_a_change_may_end_off_the_ends_of_the_pixels_but_in_the_ball():
    """Clipped last it may end short of the ball: the two orders differ where pixels are cut."""
    weights, direction = _two_classes()
    images, _, noise = _data(low=0.0, high=1.0)
    found = {}
    for name in ("pgd", "clip_first"):
        found[name] = _flat(ALL[name](_linear(weights), images, np.zeros(6, int), noise, steps=1,
                                      epsilon=1.5))  # fmt: skip
    stepped = np.clip(_flat(images) + 3.0 * direction, 0, 1) - _flat(images)
    norms = np.linalg.norm(stepped, axis=1, keepdims=True)
    expected = _flat(images) + stepped * np.minimum(1, 1.5 / norms)
    np.testing.assert_allclose(found["clip_first"], expected, atol=1e-6)
    assert np.abs(found["clip_first"] - found["pgd"]).max() > 0.05


def test_where_there_is_no_slope_a_random_direction_is_taken():
    """Of the whole length, another for each image, step and seed, with no preference."""
    images, labels, noise = _data(size=200, copies=1)
    changes = []
    for seed in ([5, 6], [5, 7], [5, 6]):
        found = adversarial.pgd(
            _linear(np.zeros((PIXELS, 2))), images, labels, noise,
            epsilon=0.1, steps=1, seed=tf.constant(seed, tf.int64),
        )  # fmt: skip
        changes.append(_flat(found) - _flat(images))
    np.testing.assert_allclose(np.linalg.norm(changes[0], axis=1), 0.1, rtol=1e-5)
    np.testing.assert_array_equal(changes[0], changes[2])
    cosines = np.concatenate([changes[0], changes[1]]) / 0.1
    cosines = (cosines @ cosines.T)[np.triu_indices(400, 1)]
    assert np.abs(cosines).max() < 0.95
    # 79,800 pairs of variance 1 / 24 whose mean has variance 1 / (24 x 79,800).
    assert abs(cosines.mean()) < 5 / np.sqrt(PIXELS * len(cosines))


def _simulated_ddn(boundary, epsilon, steps, gamma=0.05):
    """How far DDN takes an image whose class changes at `boundary`, along the one direction."""
    norm, position, best = epsilon, 0.0, None
    for _ in range(steps):
        fooled = position > boundary
        if fooled and (best is None or position < best):
            best = position
        norm *= 1 - gamma if fooled else 1 + gamma
        position = norm
    return 0.0 if best is None else min(best, epsilon)


@pytest.mark.parametrize("steps", [2, 5, 30])
def test_ddn_adapts_the_norm_to_the_boundary(steps):
    """Images at several distances of it: found just beyond it, within epsilon, or left alone.

    From 0.05, 30 steps of 5 % reach 0.02 and 0.06; 0.051 is found beyond epsilon, and brought
    back; 0.3 is out of reach; -0.01 is wrong already.
    """
    distances = np.array([0.02, 0.045, 0.051, 0.06, 0.3, -0.01])
    weights, direction = _two_classes()
    middle = np.full(PIXELS, 0.5)
    images = (middle - distances[:, np.newaxis] * direction).reshape(-1, *SHAPE)
    images = images.astype(np.float32)
    gap = weights[:, 1] - weights[:, 0]
    found = adversarial.ddn(
        _linear(weights, [gap @ middle, 0.0]), images, np.zeros(6, int),
        np.zeros((6, 3, *SHAPE), np.float32), epsilon=0.05, steps=steps, seed=SEED, levels=2**20,
    )  # fmt: skip
    expected = np.array([_simulated_ddn(d, 0.05, steps) for d in distances])
    change = _flat(found) - _flat(images)
    np.testing.assert_allclose(change, expected[:, np.newaxis] * direction, atol=2e-6)
    np.testing.assert_array_equal(found[4:], images[4:])
    assert expected[2] == 0.05
    if steps == 30:
        assert (distances < expected)[:2].all()
        assert (expected < distances * 1.05 / 0.95)[:2].all()
        assert expected[3] == 0.05


def test_ddn_stays_on_the_levels_of_8_bit_images():
    weights, direction = _two_classes()
    images, _, noise = _data(size=8, sigma=0.0)
    centre = direction @ np.full(PIXELS, 0.5)
    length = np.linalg.norm(weights[:, 1] - weights[:, 0])
    network = _linear(weights, [(0.1 + centre) * length, 0.0])
    labels = np.zeros(8, int)
    found = adversarial.ddn(network, images, labels, noise, epsilon=1.0, steps=40, seed=SEED)
    levels = 255 * _flat(found)
    moved = (_flat(found) != _flat(images)).any(axis=1)
    assert moved.sum() >= 6
    np.testing.assert_allclose(levels[moved], np.round(levels[moved]), atol=1e-4)
    assert np.abs(255 * _flat(images) - np.round(255 * _flat(images))).max() > 0.4


def test_ddn_asks_the_majority():
    """Two copies of three are just wrong, and the third so right that the mean is: left alone."""
    votes = tf.constant([[0.0, 0.1], [0.0, 0.1], [9.0, 0.0]] * 2)
    weights, _ = _two_classes()
    network = lambda x: votes + 1e-3 * _linear(weights)(x)  # noqa: E731
    images, _, noise = _data(size=2)
    labels = np.zeros(2, int)
    assert (_soft_loss(network, images, labels, noise) < np.log(2)).all()
    found = adversarial.ddn(network, images, labels, noise, epsilon=0.5, steps=9, seed=SEED)
    np.testing.assert_array_equal(found, images)


def _network(seed=0, classes=5):
    """With batch normalisation whose statistics are not those of any batch, and dropout."""
    keras.utils.set_random_seed(seed)
    network = keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Conv2D(8, 3, padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.5),
            keras.layers.Flatten(),
            keras.layers.Dense(classes, kernel_initializer=keras.initializers.RandomNormal()),
        ]
    )
    statistics = network.layers[1]
    statistics.moving_mean.assign(np.linspace(-0.3, 0.3, 8))
    statistics.moving_variance.assign(np.linspace(0.1, 0.5, 8))
    return network


def _inference(network):
    return lambda x: network(x, training=False)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("epsilon", [0.05, 0.5, 5.0])
def test_attacks_raise_the_loss_and_stay_where_they_may(name, epsilon):
    network = _inference(_network())
    images, labels, noise = _data(size=64, low=-0.3, high=1.3, sigma=0.25, classes=5)
    images = np.clip(images, 0.0, 1.0)
    found = ALL[name](network, images, labels, noise, epsilon=epsilon).numpy()
    assert found.min() >= 0.0
    assert found.max() <= 1.0
    norm = np.inf if name == "pgd_linf" else 2
    norms = np.linalg.norm(_flat(found) - _flat(images), axis=1, ord=norm)
    if name in ("pgd", "pgd_linf", "clip_first", "damped"):
        assert norms.min() > 0.5 * min(epsilon, 1.0)
    if name != "ascend":
        assert norms.max() <= epsilon * (1 + 1e-5)
    before, after = (_soft_loss(network, x, labels, noise) for x in (images, found))
    assert (after >= before - 1e-4).all()
    if name != "ddn" or epsilon > 0.1:  # Within 0.05 of these images there are none to be found.
        assert after.mean() > before.mean() + 1e-3


@pytest.mark.parametrize("name", sorted(set(ALL) - {"ascend"}))
def test_epsilon_0_changes_nothing(name):
    network = _inference(_network())
    images, labels, noise = _data(classes=5)
    found = ALL[name](network, images, labels, noise, epsilon=0.0)
    np.testing.assert_array_equal(found, images)


@pytest.mark.parametrize("name", sorted(set(ALL) - {"damped"}))
def test_each_image_is_attacked_as_if_it_were_alone(name):
    network = _inference(_network())
    images, labels, noise = _data(sigma=0.25, classes=5)
    together = ALL[name](network, images, labels, noise).numpy()
    for b in (0, 3):
        row = slice(b, b + 1)
        alone = ALL[name](network, images[row], labels[row], noise[row]).numpy()
        np.testing.assert_allclose(together[row], alone, atol=2e-5)


@pytest.mark.parametrize("name", ALL)
def test_attacks_touch_no_variable_and_let_no_gradient_through(name):
    network = _network()
    before = network.get_weights()
    images, labels, noise = _data(classes=5)
    with tf.GradientTape() as tape:
        start = tf.constant(images)
        tape.watch(start)
        found = ALL[name](_inference(network), start, labels, noise)
        total = tf.reduce_sum(found)
    assert np.abs(found - images).max() > 1e-3
    assert tape.gradient(total, [start, *network.trainable_variables]) == [None] * 7
    for weight, same in zip(network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, same)


@pytest.mark.parametrize(
    ("name", "compiled"),
    [
        ("pgd", False),
        ("ddn", False),
        ("ascend", False),
        ("pgd_linf", False),
        ("damped", True),
        ("ddn", True),
    ],
)
def test_in_a_graph_attacks_find_the_same(name, compiled):
    """Of a batch whose size is not known beforehand, and compiled."""
    network = _inference(_network())
    images, labels, noise = _data(sigma=0.25, classes=5)
    size = len(images) if compiled else None

    @tf.function(
        jit_compile=compiled,
        input_signature=[
            tf.TensorSpec([size, *SHAPE]),
            tf.TensorSpec([size], tf.int64),
            tf.TensorSpec([size, noise.shape[1] if compiled else None, *SHAPE]),
            tf.TensorSpec([]),
        ],
    )
    def attack(images, labels, noise, epsilon):
        return ALL[name](network, images, labels, noise, epsilon=epsilon)

    found = attack(images, labels, noise, tf.constant(0.5))
    expected = ALL[name](network, images, labels, noise)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # One loop, not its steps written out.
    kinds = [node.op for node in attack.get_concrete_function().graph.as_graph_def().node]
    assert sum(kind in ("While", "StatelessWhile") for kind in kinds) == 1
