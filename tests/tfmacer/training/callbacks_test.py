"""What the callbacks leave behind, under `fit` as anyone may call it."""

import csv
import io
import re
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from tensorflow.core.util import event_pb2

from tfmacer.records.runs import Smoothing
from tfmacer.training import callbacks, objectives, schedules
from tfmacer.training.optimizer import SGD
from tfmacer.training.trainer import SmoothedTrainer

STEPS, EPOCHS = 4, 3


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def _fit(*listeners, objective=None, validate=True):
    rng = np.random.default_rng(0)
    images = rng.random((32, 3, 3, 1)).astype(np.float32)
    labels = rng.integers(0, 2, 32)
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [keras.Input((3, 3, 1)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    objective = objective or objectives.Macer(
        sigma=0.5, weight=schedules.deferred(3.0, STEPS), beta=1.0
    )
    trainer = SmoothedTrainer(network, objective, sigma=0.5, num_noise=2)
    trainer.compile(optimizer=SGD(schedules.piecewise(0.1, [STEPS])))
    return trainer.fit(
        images,
        labels,
        batch_size=8,
        epochs=EPOCHS,
        verbose=0,
        callbacks=list(listeners),
        validation_data=(images, labels) if validate else None,
    )


def test_metrics_file_has_a_row_per_epoch_as_fit_reports_it(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("left from another run\n")
    history = _fit(callbacks.MetricsFile(path)).history
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"]) for row in rows] == [("1", "4"), ("2", "8"), ("3", "12")]
    assert [float(row["lambda"]) for row in rows] == [0.0, 3.0, 3.0]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([0.1, 0.01, 0.01])
    for name in ("loss", "classification", "robustness", "val_accuracy", "val_noisy_accuracy"):
        assert [float(row[name]) for row in rows] == pytest.approx(history[name]), name
    assert all(float(row["seconds"]) > 0 for row in rows)


def test_an_attacks_bound_is_among_the_metrics(tmp_path):
    growing = objectives.SmoothAdv(steps=1, epsilon=schedules.linear(0.6, 3 * STEPS))
    watched = callbacks.TensorBoard(
        tmp_path / "events", np.zeros((2, 3, 3, 1), np.float32), np.zeros(2, int), batch_size=8,
        every=STEPS,
    )  # fmt: skip
    _fit(callbacks.MetricsFile(tmp_path / "m.csv"), watched, objective=growing)
    expected = [0.6 * (STEPS * epoch - 1) / (3 * STEPS) for epoch in (1, 2, 3)]
    with open(tmp_path / "m.csv", newline="") as file:
        assert [float(row["epsilon"]) for row in csv.DictReader(file)] == pytest.approx(expected)
    curve = _events(tmp_path / "events")["scalars", "epsilon"]
    assert [float(value) for _, value in sorted(curve.items())] == pytest.approx(expected)


def test_rows_kept_from_before_a_column_was_added_stay_in_theirs(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("epoch,step,loss,seconds\n1,4,0.5,2.0\n2,8,0.25,2.0\n")

    class Resumed(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.model.optimizer.iterations.assign(4)

    _fit(Resumed(), callbacks.MetricsFile(path))
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["loss"], row["epsilon"]) for row in rows[:1]] == [("4", "0.5", "")]
    assert rows[1]["step"] == "8"
    assert rows[1]["epsilon"] == "0.0"


def test_certified_images_are_those_that_the_logs_count(tmp_path):
    """The network answers 1 whatever it sees: half of the images are right, at the largest radius.

    All 1,000 votes agree, so the probability is at least alpha^(1/1000).
    """
    images = np.random.default_rng(1).random((4, 3, 3, 1)).astype(np.float32)
    smoothing = Smoothing(sigma=0.5, num_classes=2, input_shape=(3, 3, 1), model_digest="-")
    certify = callbacks.Certify(images, np.array([0, 1, 1, 0]), smoothing, every=3)

    class Fix(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.network.set_weights([np.zeros((9, 2)), np.array([0.0, 1.0])])

    history = _fit(Fix(), certify, callbacks.MetricsFile(tmp_path / "m.csv"))
    assert len(history.history["val_acr"]) == 1
    with open(tmp_path / "m.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["val_acr"] for row in rows[:2]] == ["", ""]
    assert float(rows[2]["val_certified_accuracy"]) == 0.5
    radius = 0.5 * scipy.stats.norm.ppf(0.001**0.001)
    assert float(rows[2]["val_acr"]) == pytest.approx(radius / 2, rel=1e-6)


def test_abstaining_is_not_right_about_an_image_without_a_label(monkeypatch):
    found = [SimpleNamespace(predict=predict, radius=1.0 + predict) for predict in (-1, -1, 0, 1)]
    monkeypatch.setattr(callbacks, "certify_images", lambda *_, **__: found)
    smoothing = Smoothing(sigma=0.5, num_classes=2, input_shape=(3, 3, 1), model_digest="-")
    images = np.zeros((4, 3, 3, 1), np.float32)
    certify = callbacks.Certify(images, np.array([-1, 0, 0, 0]), smoothing)
    certify.set_model(SimpleNamespace(single=lambda: SimpleNamespace(network=lambda x: x)))
    logs = {}
    certify.on_epoch_end(0, logs)
    assert logs == {"val_certified_accuracy": 0.25, "val_acr": 0.25}


def test_metrics_file_leaves_open_what_was_not_measured(tmp_path):
    _fit(callbacks.MetricsFile(tmp_path / "m.csv"), validate=False)
    with open(tmp_path / "m.csv", newline="") as file:
        assert [row["val_accuracy"] for row in csv.DictReader(file)] == [""] * EPOCHS


def test_progress_writes_a_line_per_epoch_into_a_plain_log():
    log = io.StringIO()
    history = _fit(callbacks.Progress(EPOCHS, STEPS, file=log)).history
    lines = log.getvalue().splitlines()
    assert len(lines) == EPOCHS
    for epoch, line in enumerate(lines):
        assert line.startswith(f"epoch {epoch + 1}/{EPOCHS} ")
        assert f"classification {history['classification'][epoch]:.4f}" in line
        assert f"robustness {history['robustness'][epoch]:.4f}" in line
        assert f"noisy accuracy {history['noisy_accuracy'][epoch]:.3f}" in line
        clean, noisy = (history[f"val_{n}"][epoch] for n in ("accuracy", "noisy_accuracy"))
        assert f"held out: clean {clean:.3f} noisy {noisy:.3f}" in line
        assert re.search(r"left \d+:\d\d:\d\d$", line)
    assert lines[-1].endswith("left 0:00:00")


def test_progress_draws_a_bar_on_a_terminal():
    screen = _Terminal()
    _fit(callbacks.Progress(EPOCHS, STEPS, file=screen))
    shown = screen.getvalue()
    assert "12/12" in shown
    assert "classification" in shown
    assert "epoch 3/3" in shown


def _events(directory):
    events = {}
    for path in directory.iterdir():
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = event_pb2.Event.FromString(record)
            for value in event.summary.value:
                key = (value.metadata.plugin_data.plugin_name, value.tag)
                events.setdefault(key, {})[event.step] = tf.make_ndarray(value.tensor)
    return events


def test_tensorboard_gets_curves_radii_and_pictures(tmp_path):
    images = np.random.default_rng(1).random((20, 3, 3, 1)).astype(np.float32)
    watched = callbacks.TensorBoard(tmp_path, images, np.zeros(20, int), batch_size=8, every=2)
    history = _fit(watched).history
    events = _events(tmp_path)
    for name in ("loss", "classification", "robustness", "noisy_accuracy", "gradient_norm"):
        curve = events["scalars", name]
        assert sorted(curve) == [2, 4, 6, 8, 10, 12]
        found = [float(curve[STEPS * (epoch + 1)]) for epoch in range(EPOCHS)]
        assert found == pytest.approx(history[name], rel=1e-5)
    assert [float(v) for _, v in sorted(events["scalars", "lambda"].items())] == [0, 0, 3, 3, 3, 3]
    assert set(events["scalars", "val_accuracy"]) == {4, 8, 12}
    assert min(events["scalars", "images_per_second"].values()) > 0
    radii = events["histograms", "soft_certified_radius"][12]
    # Rows are left edge, right edge, count.
    assert radii[:, 2].sum() == 20
    assert radii[:, 1].max() <= 13 * 0.5
    width, height, *pictures = events["images", "noisy_images"][12]
    assert (int(width), int(height)) == (3, 3)
    assert len(pictures) == callbacks.PICTURES
    shown = tf.io.decode_png(pictures[0]).numpy()
    assert np.abs(shown / 255 - images[0]).max() > 0.05


def test_tensorboard_can_draw_saturated_radii(tmp_path):
    """float32 logits apart by thousands have an infinite soft radius."""
    images = np.full((4, 3, 3, 1), 0.5, np.float32)
    watched = callbacks.TensorBoard(tmp_path, images, np.ones(4, int), batch_size=8)

    class Saturate(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.network.set_weights([np.zeros((9, 2)), np.array([0.0, 1e5])])

    _fit(Saturate(), watched, objective=objectives.Gaussian())
    radii = _events(tmp_path)["histograms", "soft_certified_radius"][4]
    assert radii[:, 2].sum() == 4
    assert radii[:, 1].max() == pytest.approx(6.5)
