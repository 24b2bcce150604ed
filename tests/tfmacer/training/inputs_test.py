"""What `fit` and its like take, as Keras users give it, and what they refuse in one sentence."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmacer.common.errors import UserError
from tfmacer.training import inputs, objectives
from tfmacer.training.optimizer import SGD
from tfmacer.training.trainer import SmoothedTrainer

SHAPE, CLASSES, SIZE = (4, 4, 1), 3, 20
FIT = {"batch_size": 8, "verbose": 0}


def _data():
    """Pixels that are whole levels, and labels."""
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (SIZE, *SHAPE)).astype(np.uint8)
    return (levels / np.float32(255)).astype(np.float32), rng.integers(0, CLASSES, SIZE)


def _network():
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(CLASSES)]
    )


def _trainer(network=None, rate=0.1, **options):
    trainer = SmoothedTrainer(
        network or _network(), objectives.Gaussian(), sigma=0.5, num_noise=2, seed=7
    )
    trainer.compile(optimizer=SGD(rate), **options)
    return trainer


def _trained(images, labels, **options):
    trainer = _trainer()
    trainer.fit(images, labels, shuffle=False, **FIT, **options)
    return trainer.network.get_weights()


@functools.cache
def _plainly_trained():
    """The weights after training on `_data` as it is."""
    return _trained(*_data())


FORMS = {
    "column": lambda x, y: (x, y[:, np.newaxis]),
    "one-hot": lambda x, y: (x, np.eye(CLASSES)[y]),
    "one-hot of bytes": lambda x, y: (x, np.eye(CLASSES, dtype=np.uint8)[y]),
    "floats": lambda x, y: (x, y.astype(np.float32)),
    "column of bytes": lambda x, y: (x, y[:, np.newaxis].astype(np.uint8)),
    "double pixels": lambda x, y: (x.astype(np.float64), y),
    "pixels of 8 bits": lambda x, y: ((x * 255).round().astype(np.uint8), y),
}


@pytest.mark.parametrize("name", FORMS)
def test_what_is_meant_trains_the_same_network(name):
    """But for rounding: a graph divides by 255 as it sees fit."""
    found = _trained(*FORMS[name](*_data()))
    for weight, same in zip(found, _plainly_trained(), strict=True):
        np.testing.assert_allclose(weight, same, atol=1e-6)


def test_forms_may_follow_one_another():
    """Keras then makes one step of them all, whose labels and weights have any rank."""
    images, labels = _data()
    forms = [labels, np.eye(CLASSES)[labels], labels[:, np.newaxis]]
    weights = np.linspace(0.5, 1.5, SIZE)
    losses = set()
    trainer = _trainer(rate=1e-30)
    for form in (*forms, *reversed(forms)):
        for weight in (weights, weights[:, np.newaxis]):
            trainer.optimizer.iterations.assign(0)
            history = trainer.fit(images, form, sample_weight=weight, shuffle=False, **FIT)
            losses.add(round(history.history["loss"][0], 5))
    assert len(losses) == 1
    found = {
        trainer.evaluate(images, form, return_dict=True, **FIT)["accuracy"] for form in 2 * forms
    }
    assert len(found) == 1
    with pytest.raises(UserError, match="must be whole numbers from 0 to 2, found 3"):
        trainer.evaluate(images, labels + 1, **FIT)
    with pytest.raises(UserError, match=r"one-hot \[B, 3\], got \[8 2\]"):
        trainer.evaluate(images, np.eye(2)[labels % 2], **FIT)
    with pytest.raises(UserError, match=r"sample weights must be \[B\] or \[B, 1\], got \[8 3\]"):
        trainer.fit(images, labels, sample_weight=np.ones((SIZE, 3)), **FIT)


REFUSED = {
    "0 to 255": (
        lambda x, y: (x * 255, y),
        r"floating-point pixels must be in \[0, 1\], found values from .* to 2",
    ),
    "-1 to 1": (lambda x, y: (x * 2 - 1, y), r"must be in \[0, 1\], found values from -1 to 1"),
    "NaN": (lambda x, y: (np.where(x == x[0, 0, 0, 0], np.nan, x), y), "pixels must be in"),
    "infinite": (lambda x, y: (x + np.inf, y), "found values from inf to inf"),
    "whole numbers": (
        lambda x, y: ((x * 255).astype(int), y),
        "images must be uint8 or floating-point, got int64",
    ),
    "flat": (lambda x, y: (x.reshape(8, -1), y), r"images must be \[B, H, W, C\], got \(8, 16"),
    "several inputs": (lambda x, y: ({"a": x}, y), "images must be one array .*, got dict"),
    "no labels": (lambda x, _: (x, None), "labels must be given"),
    "K": (lambda x, y: (x, y + 1), "labels must be whole numbers from 0 to 2, found 3"),
    "unlabelled": (lambda x, y: (x, y - 1), "labels must be .*, found -1"),
    "halves": (lambda x, y: (x, y + 0.5), "labels must be .*, found [0-2].5"),
    "not a number": (lambda x, y: (x, y * np.nan), "labels must be .*, found nan"),
    "names": (lambda x, y: (x, y.astype(str)), "labels must be numbers, got string"),
    "soft labels": (
        lambda x, y: (x, np.full((8, 3), 0.25)),
        r"labels \[B, 3\] must be one-hot, found values from 0.25 to 0.25",
    ),
    "two of three": (lambda x, y: (x, np.ones((8, 3))), "must be one-hot, found values from 1"),
    "one-hot of another K": (
        lambda x, y: (x, np.eye(4)[y]),
        r"labels must be \[B\], a column \[B, 1\] or one-hot \[B, 3\], got \(8, 4\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_meant_is_refused(name):
    """Before any weight moves."""
    change, message = REFUSED[name]
    trainer = _trainer()
    before = trainer.network.get_weights()
    images, labels = change(*(part[:8] for part in _data()))
    with pytest.raises(UserError, match=message) as caught:
        trainer.train_on_batch(images, labels)
    assert "\n" not in str(caught.value)
    for weight, same in zip(trainer.network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, same)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (-np.ones(8), "sample weights must be finite and 0 or more, found -1"),
        (np.full(8, np.nan), "sample weights must be .*, found nan"),
        (np.ones((8, 3)), r"sample weights must be \[B\] or \[B, 1\], got \(8, 3\)"),
        (np.ones(1), r"must be equally many, found \[8, 8, 1\]"),
    ],
)
def test_weights_that_cannot_be(weights, message):
    images, labels = (part[:8] for part in _data())
    with pytest.raises(UserError, match=message):
        _trainer().train_on_batch(images, labels, sample_weight=weights)


def test_every_way_in_refuses():
    """Whatever Keras wraps around a step, and in batches that are not the first."""
    images, labels = _data()
    bad = images.copy()
    bad[-1] += 1
    trainer = _trainer()
    pairs = tf.data.Dataset.from_tensor_slices((bad, labels)).batch(8)
    for call in (
        lambda: trainer.fit(bad, labels, **FIT),
        lambda: trainer.fit(pairs, verbose=0),
        lambda: trainer.fit(images, labels, validation_data=(images, labels + 1), **FIT),
        lambda: trainer.evaluate(images, labels + 1, **FIT),
        lambda: trainer.test_on_batch(bad, labels),
        lambda: trainer.predict(bad, **FIT),
        lambda: trainer.predict_on_batch(bad),
    ):
        with pytest.raises(UserError, match="must be") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_xla_drops_no_check():
    images, labels = _data()
    trainer = _trainer(jit_compile=True)
    with pytest.raises(UserError, match="pixels must be in"):
        trainer.fit(images * 255, labels, **FIT)
    trainer.fit(images, labels, **FIT)


def test_other_failures_stay_what_they_are():
    with pytest.raises(tf.errors.InvalidArgumentError, match="mine"), inputs.in_one_line():
        tf.debugging.Assert(False, ["mine"])


def test_class_weights_are_the_sample_weights_of_the_classes():
    images, labels = _data()
    of_class = {0: 1.0, 1: 0.25, 2: 3.0}
    weights = np.array([of_class[label] for label in labels])
    expected = _trained(images, labels, sample_weight=weights)
    pairs = tf.data.Dataset.from_tensor_slices((images, labels)).batch(8)
    from_dataset = _trainer()
    from_dataset.fit(pairs, class_weight=of_class, verbose=0)
    for found in (
        _trained(images, labels, class_weight=of_class),
        _trained(images, np.eye(CLASSES)[labels], class_weight=of_class),
        _trained(images, labels, sample_weight=weights[:, np.newaxis]),
        from_dataset.network.get_weights(),
    ):
        for weight, same in zip(found, expected, strict=True):
            np.testing.assert_allclose(weight, same, atol=1e-6)
    assert np.abs(expected[0] - _plainly_trained()[0]).max() > 1e-3


def test_evaluation_weighs_as_weighted_metrics_do():
    """Of Keras: accuracies are means by weight, whichever way the weights come in."""
    images, labels = _data()
    weights = np.linspace(0.0, 2.7, SIZE, dtype=np.float32)
    trainer = _trainer()
    network = trainer.network
    hits = np.argmax(network(images), axis=1) == labels
    reference = keras.Sequential(network.layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    reference.compile(loss=loss, weighted_metrics=["sparse_categorical_accuracy"])
    expected = reference.evaluate(images, labels, sample_weight=weights, verbose=0)[1]
    assert expected == pytest.approx(np.average(hits, weights=weights))
    assert abs(expected - hits.mean()) > 0.01
    parts = tf.data.Dataset.from_tensor_slices((images, labels, weights)).batch(8)
    found = [
        trainer.evaluate(images, labels, sample_weight=weights, return_dict=True, **FIT),
        trainer.evaluate(images, labels, sample_weight=weights[:, np.newaxis], **FIT),
        trainer.evaluate(parts, verbose=0),
        trainer.fit(images, labels, validation_data=(images, labels, weights), **FIT).history,
    ]
    assert found[0]["accuracy"] == found[1][0] == found[2][0] == pytest.approx(expected)
    assert found[0]["noisy_accuracy"] == found[1][1] == found[2][1]
    after = np.argmax(network(images), axis=1) == labels
    assert found[3]["val_accuracy"] == [pytest.approx(np.average(after, weights=weights))]
    same = {"return_dict": True, **FIT}
    plain = trainer.evaluate(images, labels, **same)
    assert trainer.evaluate(images, labels, sample_weight=np.ones(SIZE), **same) == plain
    nothing = trainer.evaluate(images, labels, sample_weight=np.zeros(SIZE), **same)
    assert nothing == {"accuracy": 0.0, "noisy_accuracy": 0.0}


def test_batches_of_small_weights_have_noise_of_their_own():
    image = np.full((64, *SHAPE), 0.5, np.float32)
    trainer = SmoothedTrainer(_network(), objectives.Gaussian(), sigma=5.0)
    trainer.compile()
    weights = np.full(64, 1e-3)
    found = trainer.evaluate(image, np.zeros(64), 1, sample_weight=weights, verbose=0)
    assert 0.05 < found[1] < 0.95


def test_an_empty_batch_has_one_black_image_that_counts_nothing():
    images, labels = _data()
    found = inputs.examples((tf.constant(images[:0]), tf.constant(labels[:0])), _network())
    assert [part.numpy().tolist() for part in found[1:]] == [[0], [0.0], 0.0]
    np.testing.assert_array_equal(found.images, np.zeros((1, *SHAPE)))
    trainer = _trainer()
    logs = trainer.train_step((tf.constant(images[:0]), tf.constant(labels[:0])))
    assert all(np.isfinite(value) for value in logs.values())


@pytest.mark.parametrize("name", ["subclass", "sequence without an input"])
def test_a_network_that_is_not_built_yet(name):
    class Mine(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = _layers()

        def call(self, images):
            for part in self.parts:
                images = part(images)
            return images

    def _layers():
        return [keras.layers.Flatten(), keras.layers.Dense(CLASSES)]

    trainer = _trainer(Mine() if name == "subclass" else keras.Sequential(_layers()))
    images, labels = _data()
    trainer.fit(images, labels, **FIT)
    assert trainer.predict(images, verbose=0).shape == (SIZE, CLASSES)


def test_a_network_of_two_outputs_is_refused():
    images = keras.Input(SHAPE)
    flat = keras.layers.Flatten()(images)
    network = keras.Model(images, [keras.layers.Dense(3)(flat), keras.layers.Dense(2)(flat)])
    with pytest.raises(UserError, match=r"must return logits \[B, K\] alone, returns \[\(None, 3"):
        _trainer(network).fit(*_data(), **FIT)


def test_a_loss_beside_the_objective_is_refused():
    with pytest.raises(UserError, match="compile: metrics has no meaning here"):
        _trainer(metrics=["accuracy"])
    with pytest.raises(UserError, match="compile: loss has no meaning here"):
        _trainer().compile("adam", "sparse_categorical_crossentropy")


def test_a_call_takes_pixels_of_8_bits_for_what_predict_does():
    images, _ = _data()
    levels = (images * 255).round().astype(np.uint8)
    trainer = _trainer()
    expected = trainer.predict(levels, **FIT)
    for given in (images, levels):
        np.testing.assert_allclose(trainer(given), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match="images must be uint8 or floating-point, got int32"):
        trainer(levels.astype(np.int32))


def test_batches_by_hand():
    """As in Keras: the numbers of this batch alone."""
    images, labels = _data()
    trainer = _trainer(rate=1e-30)
    found = [trainer.train_on_batch(images, labels, return_dict=True)["loss"] for _ in range(2)]
    logits = trainer.predict_on_batch(images)
    np.testing.assert_allclose(logits, trainer.network(images), rtol=1e-5)
    # The second step's noise is another.
    assert found[0] != found[1]
    accuracy = np.mean(logits.argmax(axis=1) == labels)
    tested = trainer.test_on_batch(images, labels, return_dict=True)
    assert tested["accuracy"] == pytest.approx(accuracy)
    uint8 = (images * 255).round().astype(np.uint8)
    np.testing.assert_allclose(trainer.predict_on_batch(uint8), logits, atol=1e-5)


def test_a_trainer_is_not_saved_but_its_weights_are(tmp_path):
    images, labels = _data()
    trainer = _trainer()
    with pytest.raises(UserError, match=r"trainer\.network\.save\(PATH\) saves the network"):
        trainer.save(tmp_path / "a.keras")
    whole = keras.callbacks.ModelCheckpoint(tmp_path / "a.keras")
    with pytest.raises(UserError, match="ModelCheckpoint must have save_weights_only=True"):
        trainer.fit(images, labels, callbacks=[whole], **FIT)
    path = tmp_path / "best.weights.h5"
    best = keras.callbacks.ModelCheckpoint(
        path, save_weights_only=True, save_best_only=True, monitor="val_accuracy", mode="max"
    )
    history = trainer.fit(
        images, labels, epochs=4, validation_data=(images, labels), callbacks=best, **FIT
    )
    again = _trainer()
    again.load_weights(path)
    found = again.evaluate(images, labels, return_dict=True, verbose=0)["accuracy"]
    assert found == pytest.approx(max(history.history["val_accuracy"]))


def test_stopping_early_restores_the_best_weights():
    """At an absurd rate accuracy falls at once."""
    images, labels = _data()
    trainer = _trainer(rate=1e3)
    stop = keras.callbacks.EarlyStopping(
        monitor="val_accuracy", mode="max", patience=2, restore_best_weights=True
    )
    history = trainer.fit(
        images, labels, epochs=9, validation_split=0.5, callbacks=[stop], **FIT
    ).history["val_accuracy"]
    assert len(history) < 9
    found = trainer.evaluate(images[10:], labels[10:], return_dict=True, verbose=0)["accuracy"]
    assert found == pytest.approx(max(history))
