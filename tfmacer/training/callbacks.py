"""Keras callbacks that record a training run, for `tfmacer.train` and for any `fit`."""

import atexit
import csv
import math
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfmacer.certification.images import certify_images
from tfmacer.common import commandline, progress
from tfmacer.common.errors import UserError, naming
from tfmacer.records.cell_text import integer
from tfmacer.records.runs import Smoothing, write_atomically
from tfmacer.training.losses import soft_radius
from tfmacer.training.objective import noisy_views
from tfmacer.training.trainer import TEST_METRICS, TRAIN_METRICS, SmoothedTrainer
from tfmacer.votes.local import NetworkVotes

Logs = dict[str, Any] | None

# Name of the stream of noise that watched images are seen in, and how many are shown.
WATCH = "watch"
PICTURES = 8

# Seconds between the losses that the bar shows.
_NOTE_EVERY = 0.5

# Columns of metrics.csv after epoch and step, as the trainer names them in its logs.
CERTIFIED = ("certified_accuracy", "acr")
LOGGED = (
    *("learning_rate", "lambda", "epsilon"),
    *TRAIN_METRICS,
    *(f"val_{name}" for name in (*TEST_METRICS, *CERTIFIED)),
)


class MetricsFile(keras.callbacks.Callback):
    """One row per epoch into a CSV file.

    A resumed run first drops the rows of epochs that it is going to train again.

    Args:
      path: the file.

    Raises:
      UserError: the file exists and cannot be read, or is another kind of file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._header = ("epoch", "step", *LOGGED, "seconds")
        self._started = 0.0
        self._rows()

    def on_train_begin(self, logs: Logs = None) -> None:
        """Keeps the rows up to the step that training goes on from."""
        step = self.model.steps_taken
        kept = [row for row in self._rows() if integer("step", row["step"]) <= step] if step else []
        lines = [",".join(row.get(name) or "" for name in self._header) for row in kept]
        write_atomically(self._path, "\n".join([",".join(self._header), *lines]) + "\n")

    def _rows(self) -> list[dict[str, str]]:
        """The rows so far."""
        if not self._path.exists():
            return []
        try:
            with open(self._path, newline="", encoding="utf-8") as file:
                # A kill may have torn the last row; no checkpoint is as late as that.
                rows = [row for row in csv.DictReader(file) if None not in row.values()]
            for row in rows:
                integer("step", row["step"])
        except (OSError, UnicodeDecodeError, csv.Error, KeyError, ValueError) as error:
            raise UserError(
                f"{self._path}: cannot be read: {error!r}; move it away to go on without its rows"
            ) from error
        return rows

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Starts the clock."""
        self._started = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Appends the epoch's row."""
        values: dict[str, Any] = {"epoch": epoch + 1, "step": self.model.steps_taken}
        values |= {name: float(value) for name, value in (logs or {}).items()}
        values["seconds"] = round(time.monotonic() - self._started, 3)
        with naming(self._path), open(self._path, "a", newline="") as file:
            file.write(",".join(str(values.get(name, "")) for name in self._header) + "\n")


class TensorBoard(keras.callbacks.Callback):
    """Event files: losses and rates as training goes, radii and noisy images after each epoch.

    Args:
      directory: where they go.
      images: float32 `[N, H, W, C]` in [0, 1], watched after each epoch: the soft certified radii
        of all of them under the run's own number of copies, and how the first few look in noise,
        where they have no more channels than a picture.
      labels: int `[N]`.
      batch_size: images in a step.
      every: steps between scalars.
    """

    def __init__(
        self,
        directory: Path,
        images: npt.NDArray[np.float32],
        labels: npt.NDArray[np.int64],
        *,
        batch_size: int,
        every: int = 50,
    ) -> None:
        super().__init__()
        self._directory, self._batch_size, self._every = directory, batch_size, every
        self._images, self._labels = tf.constant(images), tf.constant(labels)

    def on_train_begin(self, logs: Logs = None) -> None:
        """Opens the file, starts the clock, and says what will not be shown."""
        if not self._drawable():
            channels = self._images.shape[-1]
            commandline.note(f"TensorBoard: no pictures of {channels} channels")
        self._writer = tf.summary.create_file_writer(str(self._directory))
        self._seen, self._clock = self.model.steps_taken, time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        """Reads how many steps were taken, for which it waits for the device."""
        self._step = self.model.steps_taken

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Writes the epoch's running means, the rates and the speed."""
        self._step += self.model.steps_per_execution
        step = self._step
        if step % self._every:
            return
        now = time.monotonic()
        images = (step - self._seen) * self._batch_size
        speed = {"images_per_second": images / (now - self._clock)}
        self._seen, self._clock = step, now
        self._scalars(step, (logs or {}) | speed)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Writes what was measured after the epoch, and looks at the watched images."""
        step = self.model.steps_taken
        self._scalars(step, {k: v for k, v in (logs or {}).items() if k.startswith("val_")})
        trainer = self.model.single()
        few = trainer.draw(self._images[:PICTURES], self._labels[:PICTURES], WATCH, 0, copies=1)
        with self._writer.as_default():
            tf.summary.histogram("soft_certified_radius", self._radii(trainer), step)
            if self._drawable():
                pictures = tf.clip_by_value(noisy_views(few)[:, 0], 0.0, 1.0)
                tf.summary.image("noisy_images", pictures, step, max_outputs=PICTURES)
        self._writer.flush()

    def on_train_end(self, logs: Logs = None) -> None:
        """Closes the file."""
        self._writer.close()

    def _drawable(self) -> bool:
        """Whether PNG has a form for as many channels."""
        return self._images.shape[-1] <= 4

    def _radii(self, trainer: SmoothedTrainer) -> tf.Tensor:
        """Soft certified radii `[N]`, of a few images at a time."""
        # No more at once than a step has on a device; one at a time where not all copies fit.
        replicas = self.model.distribute_strategy.num_replicas_in_sync
        size = self._batch_size // replicas if self.model.noise_chunk is None else 1
        radii = []
        for start in range(0, len(self._images), size):
            images, labels = (part[start : start + size] for part in (self._images, self._labels))
            views = noisy_views(trainer.draw(images, labels, WATCH, start))
            beta = getattr(trainer.objective, "beta", 1.0)
            radii.append(soft_radius(trainer.logits(views), labels, sigma=trainer.sigma, beta=beta))
        # Infinite where every copy is saturated in float32, and so beyond about 13 sigma.
        return tf.minimum(tf.concat(radii, axis=0), 13 * trainer.sigma)

    def _scalars(self, step: int, values: dict[str, Any]) -> None:
        with self._writer.as_default():
            for name, value in values.items():
                tf.summary.scalar(name, value, step)


class Certify(keras.callbacks.Callback):
    """Certified accuracy and average certified radius (ACR) of a few images, into the logs.

    To be listed before the callbacks that write them down. Draws are far fewer than a result
    needs, so radii end early: curves to compare, not figures to report.

    Args:
      images: float32 `[N, H, W, C]` in [0, 1].
      labels: int `[N]`.
      smoothing: what is to be certified; its digest is not looked at.
      every: epochs between certifications.
      n: draws of each image.
    """

    def __init__(
        self,
        images: npt.NDArray[np.float32],
        labels: npt.NDArray[np.int64],
        smoothing: Smoothing,
        *,
        every: int = 1,
        n: int = 1000,
    ) -> None:
        super().__init__()
        self._images, self._labels = images, labels
        self._smoothing, self._every, self._n = smoothing, every, n
        self._votes: NetworkVotes | None = None

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Adds `val_certified_accuracy` (at radius 0) and `val_acr` to the logs."""
        if logs is None or (epoch + 1) % self._every:
            return
        network = self.model.single().network
        if self._votes is None:
            self._votes = NetworkVotes(network, self._smoothing)
        certificates = certify_images(self._votes, self._images, n=self._n, seed=0)
        predicted = np.array([c.predict for c in certificates])
        # Abstain is no class, and neither is the label of an image without one.
        right = (predicted == self._labels) & (predicted >= 0)
        logs["val_certified_accuracy"] = float(np.mean(right))
        logs["val_acr"] = float(np.mean(right * [c.radius for c in certificates]))


class Progress(keras.callbacks.Callback):
    """A bar on a terminal, and one line per epoch everywhere.

    Args:
      epochs: how many there are in all.
      steps: per epoch.
      file: where to write; standard error for None.
    """

    def __init__(self, epochs: int, steps: int, file: TextIO | None = None) -> None:
        super().__init__()
        self._epochs, self._steps = epochs, steps
        self._file = sys.stderr if file is None else file
        self._note, self._noted = "", -math.inf

    def on_train_begin(self, logs: Logs = None) -> None:
        """Starts the bar where training starts."""
        self._shown = progress.Progress(
            self._epochs * self._steps,
            "steps",
            done=self.model.steps_taken,
            lines=False,
            file=self._file,
        )
        self._shown.__enter__()
        # Keras does not call `on_train_end` when training fails, and the cursor must come back.
        atexit.register(self._shown.__exit__)

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        """Moves the bar."""
        now = time.monotonic()
        # To show the losses is to wait for the device.
        if logs and self._file.isatty() and now - self._noted >= _NOTE_EVERY:
            self._note, self._noted = _losses(logs), now
        self._shown.advance(self._note)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        """Writes the epoch's line."""
        logs = logs or {}
        line = f"epoch {epoch + 1}/{self._epochs}  {_losses(logs)}"
        if "val_accuracy" in logs:
            line += (
                f"  held out: clean {float(logs['val_accuracy']):.3f}"
                f" noisy {float(logs['val_noisy_accuracy']):.3f}"
            )
        if "val_acr" in logs:
            line += f" ACR {logs['val_acr']:.3f}"
        self._shown.print(f"{line}  left {self._shown.left()}")

    def on_train_end(self, logs: Logs = None) -> None:
        """Closes the bar."""
        self._shown.__exit__()


def _losses(logs: dict[str, Any]) -> str:
    return (
        f"classification {float(logs['classification']):.4f}"
        f" robustness {float(logs['robustness']):.4f}"
        f" noisy accuracy {float(logs['noisy_accuracy']):.3f}"
    )
