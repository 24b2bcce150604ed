"""One turn of `benchmarks.training`: VARIANT NETWORK BATCH COPIES STEPS; prints seconds a step."""

import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

sys.path.insert(0, str(Path(__file__).parents[1]))

from tfmacer.data.splits import ArraySplit
from tfmacer.training import batches, callbacks, loop, networks, objectives, precision
from tfmacer.training.checkpoints import Checkpoints
from tfmacer.training.optimizer import SGD
from tfmacer.training.trainer import SmoothedTrainer

DATA = {"lenet": ("mnist", (28, 28, 1), "none"), "resnet20": ("cifar10", (32, 32, 3), "crop_flip")}
WARM = 3


class Clock(keras.callbacks.Callback):
    """When the first steps, which compile, and the last one were done."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self._steps, self.times = steps, {}

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.times[batch] = time.perf_counter()

    def seconds(self) -> float:
        return (self.times[WARM + self._steps] - self.times[WARM]) / self._steps


def whole(variant: str, network: str, size: int, copies: int, steps: int, folder: Path) -> float:
    """The step as the command takes it."""
    dataset, shape, augmentation = DATA[network]
    rng = np.random.default_rng(0)
    total = size * (WARM + steps)
    images = rng.integers(0, 256, (total, *shape), np.uint8)
    split = ArraySplit(dataset, "train", images, rng.integers(0, 10, total), 10)
    with precision.policy("mixed_bfloat16" if variant == "bfloat16" else "float32"):
        model = networks.build(network, dataset, shape, 10)
    trainer = SmoothedTrainer(
        model,
        objectives.Macer(sigma=0.5, weight=4.0),
        sigma=0.5,
        num_noise=copies,
        noise_chunk=max(copies // 4, 1) if variant == "chunk" else None,
    )
    trainer.compile(optimizer=SGD(1e-4, weight_decay=5e-4), jit_compile=variant == "jit")
    clock = Clock(steps)
    with open(folder / "log", "w") as log:
        loop.run(
            trainer,
            lambda step, share: batches.epoch_batches(
                split, batch_size=size, seed=0, start=step, augmentation=augmentation, share=share
            ),
            epochs=1,
            steps=WARM + steps,
            kept=Checkpoints(trainer, folder / "checkpoints"),
            checkpoint_every=1000,
            callbacks=[
                callbacks.MetricsFile(folder / "metrics.csv"),
                callbacks.TensorBoard(folder, *split.take(range(size)), batch_size=size),
                callbacks.Progress(1, WARM + steps, file=log),
                clock,
            ],
        )
    return clock.seconds()


def bare(network: str, size: int, copies: int, steps: int) -> float:
    """Forward and backward alone, on the same noisy images again and again."""
    dataset, shape, _ = DATA[network]
    model = networks.build(network, dataset, shape, 10)
    rng = np.random.default_rng(0)
    noisy = tf.constant(rng.random((size * copies, *shape)) + rng.normal(0, 0.5, shape), tf.float32)
    slopes = tf.constant(rng.normal(size=(size * copies, 10)), tf.float32)

    @tf.function
    def step() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            target = tf.reduce_sum(model(noisy, training=True) * slopes)
        return tape.gradient(target, model.trainable_variables)

    for _ in range(WARM):
        step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - started) / steps


def main(variant: str, network: str, size: int, copies: int, steps: int) -> None:
    keras.utils.set_random_seed(0)
    if variant == "bare":
        print(bare(network, size, copies, steps))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(whole(variant, network, size, copies, steps, Path(folder)))


if __name__ == "__main__":
    main(*sys.argv[1:3], *(int(number) for number in sys.argv[3:]))
