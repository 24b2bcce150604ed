"""How much memory a training step takes, with and without `--noise_chunk`.

  python -m benchmarks.training_memory --network=resnet20 --batch_size=16 --noise_chunk=4

Each number of copies runs in a process of its own, whose memory in use at most (resident set) is
read after a few steps, less what it had before the first one.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

from absl import flags

from tfmacer.common import commandline

FLAGS = flags.FlagValues()
_NETWORK = flags.DEFINE_enum(
    "network", "resnet20", ["lenet", "resnet20"], "What is trained.", flag_values=FLAGS
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Images in a step.", 1, flag_values=FLAGS)
_CHUNK = flags.DEFINE_integer("noise_chunk", 4, "Copies at once.", 1, flag_values=FLAGS)
_COPIES = flags.DEFINE_list("copies", ["4", "16", "64"], "Numbers of copies.", flag_values=FLAGS)
_TURN = flags.DEFINE_bool("turn", False, "Measure here: one number of copies.", flag_values=FLAGS)

SHAPES = {"lenet": ("mnist", (28, 28, 1)), "resnet20": ("cifar10", (32, 32, 3))}


def _peak() -> float:
    """Most memory that this process has had so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _measure(copies: int) -> float:
    """MiB that steps of so many copies add to what was there before them."""
    commandline.load_tensorflow()
    import tensorflow as tf

    from tfmacer.training import networks, objectives
    from tfmacer.training.optimizer import SGD
    from tfmacer.training.trainer import SmoothedTrainer

    dataset, shape = SHAPES[_NETWORK.value]
    trainer = SmoothedTrainer(
        networks.build(_NETWORK.value, dataset, shape, 10),
        objectives.Macer(sigma=0.5, weight=4.0),
        sigma=0.5,
        num_noise=copies,
        noise_chunk=_CHUNK.value if FLAGS["noise_chunk"].present else None,
    )
    trainer.compile(optimizer=SGD(1e-4))
    trainer.optimizer.build(trainer.network.trainable_variables)
    size = _BATCH_SIZE.value
    data = (tf.random.uniform([size, *shape]), tf.zeros([size], tf.int64))
    step = tf.function(trainer.train_step).get_concrete_function(data)
    before = _peak()
    for _ in range(3):
        step(data)
    return _peak() - before


def _main() -> None:
    if _TURN.value:
        print(_measure(int(_COPIES.value[0])))
        return
    shared = ["--turn", f"--network={_NETWORK.value}", f"--batch_size={_BATCH_SIZE.value}"]
    chunked = {"all at once": [], f"{_CHUNK.value} at once": [f"--noise_chunk={_CHUNK.value}"]}
    found: dict[str, dict[str, int]] = {name: {} for name in chunked}
    for copies in _COPIES.value:
        for name, extra in chunked.items():
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "benchmarks.training_memory",
                    *shared,
                    *extra,
                    f"--copies={copies}",
                ],
                cwd=Path(__file__).parents[1],
                check=True,
                capture_output=True,
                text=True,
            )
            found[name][copies] = round(float(done.stdout.splitlines()[-1]))
            print(f"{copies} copies, {name}: {found[name][copies]} MiB", file=sys.stderr)
    print(
        json.dumps({"network": _NETWORK.value, "batch_size": _BATCH_SIZE.value} | found, indent=2)
    )


main = commandline.command(_main, FLAGS, "python -m benchmarks.training_memory", __doc__)

if __name__ == "__main__":
    sys.exit(main())
