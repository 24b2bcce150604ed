"""Whether the input pipeline keeps ahead of the training step: images per second of each.

  python -m benchmarks.input_pipeline --dataset=cifar10 --network=resnet20 --num_noise=16

Both are timed in this process, one after the other, on the same machine; what counts is their
ratio. The step draws its noise, runs MACER forward and backward and updates the weights.
"""

import sys
import time
from collections.abc import Callable

from absl import flags

from tfmacer import commandline

FLAGS = flags.FlagValues()
_DATASET = flags.DEFINE_string("dataset", "mnist5k", "Training images.", flag_values=FLAGS)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.", flag_values=FLAGS)
_NETWORK = flags.DEFINE_string("network", "lenet", "The network trained.", flag_values=FLAGS)
_NUM_NOISE = flags.DEFINE_integer("num_noise", 16, "Noisy copies.", 1, flag_values=FLAGS)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images in a step.", 1, flag_values=FLAGS)
_SECONDS = flags.DEFINE_float("seconds", 10.0, "For each of the two.", 0.0, flag_values=FLAGS)


def _per_second(action: Callable[[], object]) -> float:
    """How often a second `action` can be done; the first, which compiles, does not count."""
    action()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < _SECONDS.value:
        action()
        count += 1
    return count / (time.perf_counter() - started)


def _main() -> None:
    commandline.load_tensorflow()
    from tfmacer import datasets
    from tfmacer.training import batches, networks, objectives, published
    from tfmacer.training.optimizer import SGD
    from tfmacer.training.trainer import SmoothedTrainer

    split = datasets.load_split(_DATASET.value or "", "train", _DATA_DIR.value)
    data = batches.epoch_batches(
        split,
        batch_size=_BATCH_SIZE.value or 1,
        seed=0,
        augmentation=published.published_augmentation(split.dataset),
    ).repeat()
    iterator = iter(data)
    pipeline = _per_second(lambda: next(iterator)) * (_BATCH_SIZE.value or 1)
    network = networks.build(_NETWORK.value or "", split.dataset, split.shape, split.num_classes)
    trainer = SmoothedTrainer(
        network, objectives.Macer(sigma=0.5), sigma=0.5, num_noise=_NUM_NOISE.value or 1
    )
    trainer.compile(optimizer=SGD(0.01))
    trainer.make_train_function()
    # One batch over and over: the step alone, with no pipeline beside it.
    same = iter(data.take(1).cache().repeat())
    step = _per_second(lambda: float(trainer.train_function(same)["loss"]))
    step *= _BATCH_SIZE.value or 1
    print(
        f"pipeline {pipeline:,.0f} images/s, step {step:,.0f} images/s: {pipeline / step:.0f} times"
    )


if __name__ == "__main__":
    sys.exit(
        commandline.run(
            _main, FLAGS, None, name="python -m benchmarks.input_pipeline", doc=__doc__ or ""
        )
    )
