"""Whether the input pipeline keeps ahead of the training step: images per second of each.

  python -m benchmarks.input_pipeline --dataset=mnist5k --network=lenet
  python -m benchmarks.input_pipeline --dataset=cifar10 --network=resnet20

The pipeline alone (order, reading, augmentation as published) and the step alone (noise, MACER
forward and backward, update) take turns in one process; what counts is the ratio of their medians.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable

from absl import flags

from tfmacer.common import commandline

FLAGS = flags.FlagValues()
_DATASET = flags.DEFINE_string("dataset", "mnist5k", "Training images.", flag_values=FLAGS)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS keeps its data.", flag_values=FLAGS)
_AUGMENTATION = flags.DEFINE_string(
    "augmentation", None, "none, crop, crop_flip; as published if not given.", flag_values=FLAGS
)
_NETWORK = flags.DEFINE_string("network", "lenet", "The network trained.", flag_values=FLAGS)
_NUM_NOISE = flags.DEFINE_integer("num_noise", 16, "Noisy copies.", 1, flag_values=FLAGS)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images in a step.", 1, flag_values=FLAGS)
_TURNS = flags.DEFINE_integer("turns", 5, "Turns of each of the two.", 1, flag_values=FLAGS)
_SECONDS = flags.DEFINE_float("seconds", 5.0, "Of one turn.", 0.0, flag_values=FLAGS)


def _per_second(action: Callable[[], object]) -> float:
    """How often a second `action` can be done."""
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < _SECONDS.value:
        action()
        count += 1
    return count / (time.perf_counter() - started)


def _main() -> None:
    commandline.load_tensorflow()
    from tfmacer.data import datasets
    from tfmacer.training import batches, loop, networks, objectives, published
    from tfmacer.training.optimizer import SGD
    from tfmacer.training.trainer import SmoothedTrainer

    size = _BATCH_SIZE.value
    split = datasets.load_split(_DATASET.value, "train", _DATA_DIR.value)
    augmentation = _AUGMENTATION.value or published.published_augmentation(split.dataset)

    def epochs(number: int) -> object:
        return batches.epoch_batches(
            split,
            batch_size=size,
            seed=0,
            start=number * (split.total // size),
            augmentation=augmentation,
        )

    # As in training, epoch after epoch, each with an order of its own.
    every = itertools.chain.from_iterable(map(epochs, itertools.count()))
    trainer = SmoothedTrainer(
        networks.build(_NETWORK.value, split.dataset, split.shape, split.num_classes),
        objectives.Macer(sigma=0.5),
        sigma=0.5,
        num_noise=_NUM_NOISE.value,
    )
    trainer.compile(optimizer=SGD(1e-4))
    step = loop.step_function(trainer)
    # One batch over and over: no pipeline beside the step.
    same = iter(epochs(0).take(1).cache().repeat())
    variants = {"pipeline": lambda: next(every), "step": lambda: float(step(same)["loss"])}
    for action in variants.values():
        action()
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(_TURNS.value):
        for name, action in variants.items():
            rates[name].append(size * _per_second(action))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(
        f"{split.dataset}, {augmentation}, {_NETWORK.value}, {_NUM_NOISE.value} copies: "
        f"pipeline {medians['pipeline']:,.0f} images/s, step {medians['step']:,.0f} images/s, "
        f"{medians['pipeline'] / medians['step']:.0f} times"
    )


main = commandline.command(_main, FLAGS, "python -m benchmarks.input_pipeline", __doc__)

if __name__ == "__main__":
    sys.exit(main())
