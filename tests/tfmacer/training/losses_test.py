"""Losses against an independent computation in float64, by hand, and where floats run out.

The reference works in probabilities with NumPy and SciPy and differentiates by central
differences in float64; the code under test works in log space and differentiates by tape.
"""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from scipy import special, stats

from tfmacer.attacks.soft_classifier import smoothed_log_odds
from tfmacer.training import losses as o

SIGMA, GAMMA, BETA = 0.5, 8.0, 16.0
SHAPES = [(1, 1, 2), (5, 1, 10), (6, 2, 10), (4, 16, 10), (3, 4, 1000)]


def _random(shape, *, scale, seed=0):
    """Logits with the true class ahead in most images, and their labels."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=shape)
    labels = rng.integers(0, shape[2], shape[0])
    logits[np.arange(shape[0]), :, labels] += 1.5 * scale
    return logits.astype(np.float32), labels


def _mean_softmax(logits, beta=1.0):
    return special.softmax(beta * logits.astype(np.float64), axis=2).mean(axis=1)


def _reference_classification(logits, labels):
    return -np.log(_mean_softmax(logits)[np.arange(len(labels)), labels]).mean()


def _reference_robustness(logits, labels, *, sigma=SIGMA, gamma=GAMMA, beta=BETA):
    """Algorithm 1, line 9, as the paper writes it."""
    total = 0.0
    for q, y in zip(_mean_softmax(logits, beta), labels, strict=True):
        if q.argmax() != y:
            continue
        others = np.delete(q, y)
        # 1 - q_y from the other classes: at q_y = 1 - 1e-17, float64 too would lose it.
        xi = -stats.norm.ppf(others.sum()) - stats.norm.ppf(others.max())
        total += max(gamma - xi, 0.0)
    return sigma / 2 * total / len(labels)


def _reference_gradient(function, logits, step=1e-5):
    logits = logits.astype(np.float64)
    gradient = np.empty_like(logits)
    for index in np.ndindex(*logits.shape):
        ends = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[index] += sign * step
            ends.append(function(moved))
        gradient[index] = (ends[0] - ends[1]) / (2 * step)
    return gradient


def _value_and_gradient(function, logits, dtype=tf.float32):
    """Of the mean over the images."""
    logits = tf.constant(logits, dtype)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = tf.reduce_mean(function(logits))
    return value.numpy(), tape.gradient(value, logits).numpy()


def _robustness(labels, **options):
    options = {"sigma": SIGMA, "gamma": GAMMA, "beta": BETA} | options
    return lambda logits: o.macer_robustness(logits, labels, **options)


def _agree(found, expected, tolerance):
    """Within a tolerance relative to the largest entry: small ones are differences of large."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [0.05, 0.3, 1.0])
def test_macer_values_agree_with_numpy(shape, scale):
    logits, labels = _random(shape, scale=scale)
    expected = _reference_robustness(logits, labels)
    assert expected > 0 or shape[0] < 4
    found = _robustness(labels)(tf.constant(logits)).numpy()
    assert found.shape == shape[:1]
    assert found.mean() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    found = o.smoothed_cross_entropy(tf.constant(logits), labels).numpy()
    assert found.shape == shape[:1]
    assert found.mean() == pytest.approx(_reference_classification(logits, labels), rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES[:4])
@pytest.mark.parametrize("scale", [0.05, 0.3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(tf.float32, 1e-6), (tf.float64, 2e-7)])
def test_macer_gradients_agree_with_finite_differences(shape, scale, dtype, tolerance):
    logits, labels = _random(shape, scale=scale, seed=1)
    _, found = _value_and_gradient(_robustness(labels), logits, dtype)
    expected = _reference_gradient(lambda x: _reference_robustness(x, labels), logits)
    assert np.abs(expected).max() > 1e-3
    _agree(found, expected, tolerance)
    _, found = _value_and_gradient(lambda x: o.smoothed_cross_entropy(x, labels), logits, dtype)
    expected = _reference_gradient(lambda x: _reference_classification(x, labels), logits)
    _agree(found, expected, tolerance)


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_even_the_smallest_derivatives_of_float32_logits_are_right(scale):
    """Each on its own, down to a millionth of the largest: in float32 they were off by a third."""
    logits, labels = _random((32, 16, 10), scale=scale)
    for function in (_robustness(labels), lambda x: o.smoothed_cross_entropy(x, labels)):
        value, found = _value_and_gradient(function, logits)
        exact, expected = _value_and_gradient(function, logits, tf.float64)
        assert value.dtype == found.dtype == np.float32
        assert value == pytest.approx(exact, rel=1e-6)
        large = np.abs(expected) > 1e-6 * np.abs(expected).max()
        np.testing.assert_allclose(found[large], expected[large], rtol=1e-6)


def test_two_classes_by_hand():
    """One copy, two classes, beta F = (a, 0): q = (s, 1 - s) with s = 1 / (1 + e^-a).

    At s = Phi(1) = 0.8413..., xi = 1 - (-1) = 2, and the loss is 0.5 / 2 x (8 - 2) = 1.5. Its slope
    in a is -sigma / 2 x 2 s (1 - s) / phi(1), since d Phi^-1(s) = ds / phi and ds/da = s (1 - s).
    """
    s = stats.norm.cdf(1.0)
    a = math.log(s / (1 - s))
    value, gradient = _value_and_gradient(_robustness([0]), [[[a / BETA, 0.0]]])
    assert value == pytest.approx(1.5, rel=1e-6)
    slope = -SIGMA / 2 * 2 * s * (1 - s) / stats.norm.pdf(1.0) * BETA
    np.testing.assert_allclose(gradient, [[[slope, -slope]]], rtol=1e-5)


def test_two_copies_that_disagree_by_hand():
    """Copies that vote (1, 0, 0) and (1/2, 1/2, 0) at beta 1: q = (3/4, 1/4, 0), y = 0.

    xi = 2 Phi^-1(3/4), classification -ln(3/4).
    """
    logits = tf.constant([[[200.0, 0.0, 0.0], [0.0, 0.0, -200.0]]])
    assert o.smoothed_cross_entropy(logits, [0]).numpy() == pytest.approx(-math.log(0.75), rel=1e-6)
    expected = SIGMA / 2 * (8 - 2 * stats.norm.ppf(0.75))
    assert _robustness([0], beta=1.0)(logits).numpy() == pytest.approx(expected, rel=1e-6)
    radius = o.soft_radius(logits, [0], sigma=SIGMA, beta=1.0).numpy()
    np.testing.assert_allclose(radius, [SIGMA * stats.norm.ppf(0.75)], rtol=1e-6)
    assert o.soft_radius(logits, [1], sigma=SIGMA, beta=1.0).numpy() == [0.0]


def test_wrong_images_and_images_beyond_the_hinge_cost_nothing():
    right = np.array([[[0.1, 0.0, 0.0]]], np.float32)
    wrong = np.array([[[0.0, 0.1, 0.0]]], np.float32)
    sure = np.array([[[9.0, 0.0, 0.0]]], np.float32)
    alone, gradient_alone = _value_and_gradient(_robustness([0]), right)
    batch = np.concatenate([right, wrong, sure, sure])
    value, gradient = _value_and_gradient(_robustness([0, 0, 0, 0]), batch)
    assert alone > 0
    assert value == pytest.approx(alone / 4, rel=1e-6)
    np.testing.assert_allclose(gradient[0], gradient_alone[0] / 4, rtol=1e-6)
    assert not gradient[1:].any()


@pytest.mark.parametrize("gamma", [1.0, 4.0, 8.0, 12.0])
def test_the_tail_keeps_its_precision(gamma):
    """Near the hinge 1 - q_y is down to Phi(-gamma / 2), which 1 - q_y in float32 would lose.

    Two classes make xi = 2 Phi^-1(q_y): margins are chosen for xi just below gamma.
    """
    xi = gamma * np.array([0.5, 0.9, 0.99, 0.999])
    margins = special.logit(stats.norm.cdf(-xi / 2))
    logits = np.stack([np.zeros(4), margins], axis=-1)[:, np.newaxis]
    labels = np.zeros(4, int)
    options = {"gamma": gamma, "beta": 1.0}
    for i in range(4):
        found = _robustness(labels[:1], **options)(tf.constant(logits[i : i + 1], tf.float32))
        # The hinge subtracts: what is left of gamma - xi carries the margins' rounding to float32.
        expected = SIGMA / 2 * (gamma - xi[i])
        assert found.numpy() == pytest.approx(expected, abs=1e-7 * gamma)


def test_proposition_1_the_gradient_is_bounded():
    """Wherever xi < gamma, |d xi / d q| <= K sqrt(2 pi) exp(t^2 / 2) with Phi(-t) its least tail.

    1 - q_y <= (K - 1) x runner-up, so xi < gamma keeps the runner-up above some r with
    -Phi^-1(r) - Phi^-1((K - 1) r) = gamma: both slopes of Phi^-1 are at most sqrt(2 pi)
    exp(Phi^-1(r)^2 / 2). Through a softmax, |dq / d logit| <= beta / 4 for each class.
    """
    classes = 10
    low, high = 1e-30, 0.1
    for _ in range(200):
        middle = math.sqrt(low * high)
        gap = -stats.norm.ppf(middle) - stats.norm.ppf(min((classes - 1) * middle, 0.9))
        low, high = (middle, high) if gap > GAMMA else (low, middle)
    slope = math.sqrt(2 * math.pi) * math.exp(stats.norm.ppf(low) ** 2 / 2)
    bound = SIGMA / 2 * slope * classes * BETA / 4
    largest = 0.0
    for seed, scale in itertools.product(range(10), (0.01, 0.1, 0.3, 1.0, 10.0)):
        logits, labels = _random((32, 2, classes), scale=scale, seed=seed)
        _, gradient = _value_and_gradient(_robustness(labels), logits)
        largest = max(largest, np.abs(32 * gradient).max())
    assert 1e-2 < largest <= bound


@pytest.mark.parametrize("shape", SHAPES[1:4])
def test_log_odds_agree_with_numpy_and_point_where_the_cross_entropy_does(shape):
    logits, labels = _random(shape, scale=1.0)
    p = _mean_softmax(logits)[np.arange(len(labels)), labels]
    found, gradient = _value_and_gradient(
        lambda x: tf.reduce_sum(smoothed_log_odds(x, labels)), logits
    )
    assert found == pytest.approx(special.logit(1 - p).sum(), rel=1e-6)
    _, other = _value_and_gradient(lambda x: o.smoothed_cross_entropy(x, labels), logits)
    # -log p has slope -dp / p, log (1 - p) / p has -dp / (p (1 - p)).
    scale = len(labels) / (1 - p)[:, np.newaxis, np.newaxis]
    np.testing.assert_allclose(gradient, scale * other, rtol=1e-4, atol=1e-6)


def test_one_copy_makes_the_classification_term_plain_cross_entropy():
    logits, labels = _random((8, 1, 10), scale=1.0)
    plain = tf.keras.losses.sparse_categorical_crossentropy(labels, logits[:, 0], from_logits=True)
    found, gradient = _value_and_gradient(lambda x: o.smoothed_cross_entropy(x, labels), logits)
    assert found == pytest.approx(plain.numpy().mean(), rel=1e-6)
    other, other_gradient = _value_and_gradient(lambda x: o.cross_entropy(x, labels), logits)
    assert found == pytest.approx(other, rel=1e-6)
    np.testing.assert_allclose(gradient, other_gradient, atol=1e-7)


def test_averaging_before_the_logarithm_costs_no_more_than_after():
    logits, labels = _random((8, 4, 10), scale=1.0)
    before = o.smoothed_cross_entropy(tf.constant(logits), labels).numpy()
    assert (before < o.cross_entropy(tf.constant(logits), labels).numpy()).all()


EXTREMES = {
    "right by 1e4": ([[1e4, -1e4, 0.0]], 0),
    "wrong by 1e4": ([[1e4, -1e4, 0.0]], 1),
    "copies that contradict each other by 1e4": ([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], 0),
    "one-hot": ([[1.0, 0.0, 0.0]], 0),
    "all equal": ([[0.0, 0.0, 0.0]], 0),
    "all equal, the label not the first": ([[0.0, 0.0, 0.0]], 2),
    "a tie of the first two": ([[3.0, 3.0, 0.0]], 0),
    "a tie won by the other": ([[3.0, 3.0, 0.0]], 1),
    "all equal and huge": ([[1e4, 1e4, 1e4]], 0),
    "saturated in one copy of two": ([[1e4, 0.0, 0.0], [0.1, 0.0, 0.0]], 0),
}


@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("repeats", [1, 3])
def test_nothing_is_ever_nan(name, repeats):
    rows, label = EXTREMES[name]
    logits = np.repeat(np.array([rows], np.float32), repeats, axis=0)
    labels = np.full(repeats, label)
    for function in (
        lambda x: o.cross_entropy(x, labels),
        lambda x: o.smoothed_cross_entropy(x, labels),
        _robustness(labels),
        lambda x: tf.reduce_sum(smoothed_log_odds(x, labels)),
        o.consistency_divergence,
        o.consistency_distance,
        o.prediction_entropy,
        lambda x: o.stability(x[:, :1], x),
        lambda x: o.mixed_divergence(x, -x, labels, tf.zeros([repeats])),
        lambda x: o.mixed_divergence(x, -x, labels, tf.fill([repeats], 0.3)),
    ):
        value, gradient = _value_and_gradient(function, logits)
        assert np.isfinite(value)
        assert np.isfinite(gradient).all()


def test_where_no_image_is_right_only_classification_remains():
    logits = tf.constant([[[0.0, 2.0, 1.0]], [[3.0, 0.0, 1.0]]])
    value, gradient = _value_and_gradient(_robustness([0, 1]), logits)
    assert value == 0.0
    assert not gradient.any()


def test_ties_go_to_the_lowest_class_as_in_argmax():
    tie = tf.constant([[[0.2, 0.2, 0.0]]])
    counted = SIGMA / 2 * _reference_gap(tie.numpy())
    assert _robustness([0])(tie).numpy() == pytest.approx(counted, rel=1e-5)
    assert _robustness([1])(tie).numpy() == 0.0


def _reference_gap(logits):
    q = np.sort(_mean_softmax(logits, BETA)[0])
    return GAMMA - (-stats.norm.ppf(1 - q[-1]) - stats.norm.ppf(q[-2]))


@pytest.mark.parametrize("copies", [1, 2, 5])
def test_stability_agrees_with_numpy(copies):
    logits, _ = _random((4, copies, 10), scale=1.0)
    clean, _ = _random((4, 1, 10), scale=1.0, seed=2)

    def reference(pair):
        target = special.softmax(pair[:, :1], axis=2)
        return -(target * special.log_softmax(pair[:, 1:], axis=2)).sum(axis=2).mean()

    pair = np.concatenate([clean, logits], axis=1)
    found, gradient = _value_and_gradient(lambda x: o.stability(x[:, :1], x[:, 1:]), pair)
    assert found == pytest.approx(reference(pair.astype(np.float64)), rel=1e-5)
    _agree(gradient, _reference_gradient(reference, pair), 1e-5)


def _reference_consistency(logits, form):
    p = special.softmax(logits, axis=2)
    mean = p.mean(axis=1, keepdims=True)
    if form == "kl":
        return stats.entropy(np.broadcast_to(mean, p.shape), p, axis=2).mean()
    if form == "entropy":
        return stats.entropy(mean, axis=2).mean()
    pairs = itertools.combinations(range(p.shape[1]), 2)
    return np.mean([((p[:, i] - p[:, j]) ** 2).sum(axis=1).mean() for i, j in pairs])


@pytest.mark.parametrize("copies", [2, 3])
@pytest.mark.parametrize(
    ("form", "function"),
    [
        ("kl", o.consistency_divergence),
        ("entropy", o.prediction_entropy),
        ("mse", o.consistency_distance),
    ],
)
def test_consistency_agrees_with_numpy(copies, form, function):
    logits, _ = _random((4, copies, 10), scale=1.0)
    found, gradient = _value_and_gradient(function, logits)
    expected = _reference_consistency(logits.astype(np.float64), form)
    assert found == pytest.approx(expected, rel=1e-5)
    reference = _reference_gradient(lambda x: _reference_consistency(x, form), logits)
    _agree(gradient, reference, 1e-5)


def test_consistency_asks_nothing_of_one_copy_but_certainty():
    logits = tf.constant([[[1.0, 0.0]]])
    assert o.consistency_divergence(logits).numpy() == pytest.approx(0.0, abs=1e-7)
    assert o.consistency_distance(logits).numpy() == 0.0
    entropy = stats.entropy(special.softmax([1.0, 0.0]))
    assert o.prediction_entropy(logits).numpy() == pytest.approx(entropy, rel=1e-6)


def _reference_mixed(both, labels, share):
    copies = both.shape[1] // 2
    mean = special.softmax(both[:, :copies], axis=2).mean(axis=1)
    total = 0.0
    for p, q, y, u in zip(
        mean, special.softmax(both[:, copies:], axis=2), labels, share, strict=True
    ):
        if p.argmax() != y:
            continue
        target = (1 - u) * p + u / len(p)
        total += np.mean([stats.entropy(target, one) for one in q])
    return total / len(labels)


@pytest.mark.parametrize("copies", [1, 3])
def test_mixed_divergence_agrees_with_numpy(copies):
    """Values and gradients in both logits: the mean prediction is the target and not detached."""
    both, labels = _random((5, 2 * copies, 4), scale=1.0)
    labels[0] = (labels[0] + 1) % 4
    share = np.array([0.3, 0.0, 0.1, 0.49, 0.2])

    def found(x):
        return o.mixed_divergence(x[:, :copies], x[:, copies:], labels, tf.constant(share))

    value, gradient = _value_and_gradient(found, both)
    assert value == pytest.approx(_reference_mixed(both.astype(float), labels, share), rel=1e-5)
    expected = _reference_gradient(lambda x: _reference_mixed(x, labels, share), both)
    _agree(gradient, expected, 1e-5)
    assert not gradient[0].any()
    assert np.abs(gradient[1:, :copies]).max() > 1e-3


def test_mixed_divergence_by_hand():
    """Two classes, p = (3/4, 1/4), u = 1/2: t = (5/8, 3/8); q = (1/2, 1/2).

    KL = 5/8 ln(5/4) + 3/8 ln(3/4).
    """
    logits = tf.constant([[[math.log(3.0), 0.0]]])
    found = o.mixed_divergence(logits, tf.zeros([1, 1, 2]), [0], tf.constant([0.5])).numpy()
    assert found == pytest.approx(5 / 8 * math.log(5 / 4) + 3 / 8 * math.log(3 / 4), rel=1e-6)
    wrong = o.mixed_divergence(logits, tf.zeros([1, 1, 2]), [1], tf.constant([0.5]))
    assert wrong.numpy() == 0.0
