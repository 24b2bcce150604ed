"""Trains a network whose smoothed version can be certified, into a run directory.

    python -m tfmacer.train --flagfile=mnist.flags

The same command again takes up an unfinished run where it was left; of a finished run it says so.
A flag without a value takes the one that was published for the dataset, objective and sigma, or
the objective's own default; flags.txt in the run directory records what was taken.
"""

import contextlib
import copy
import dataclasses
import functools
import importlib.metadata
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
from absl import flags

from tfmacer import commandline
from tfmacer.errors import UserError
from tfmacer.records.runs import RunDirectory, Smoothing, write_atomically
from tfmacer.training.published import published_weight
from tfmacer.version import __version__

if TYPE_CHECKING:
    from tfmacer.datasets import Split
    from tfmacer.training.objectives import Objective
    from tfmacer.training.trainer import SmoothedTrainer

FLAGS = flags.FlagValues()
_string = functools.partial(flags.DEFINE_string, flag_values=FLAGS)
_integer = functools.partial(flags.DEFINE_integer, flag_values=FLAGS)
_float = functools.partial(flags.DEFINE_float, flag_values=FLAGS)
_bool = functools.partial(flags.DEFINE_bool, flag_values=FLAGS)
_enum = functools.partial(flags.DEFINE_enum, flag_values=FLAGS)
_list = functools.partial(flags.DEFINE_list, flag_values=FLAGS)

_string("run_dir", None, "Where everything is written. Required.")
_string("dataset", None, "mnist5k, a TFDS name, folder:DIR or package.module:function. Required.")
_string("data_dir", None, "Where TensorFlow Datasets keeps its data; its own default otherwise.")
_string("network", "lenet", "A network's name, or package.module:function.")
_string("init_from", None, "Run directory or .keras file whose weights to start from.")
_string("objective", "macer", "What is minimised: gaussian or macer.")
_float("sigma", None, "Scale of the Gaussian noise on pixels in [0, 1]. Required.")
_integer("num_noise", None, "Noisy copies of each image in a step.", 1)
_float("lambda", None, "Weight of the robustness term.", 0.0)
_enum(
    "lambda_schedule",
    None,
    ["constant", "deferred", "linear"],
    "deferred: 0 until the first rate decay; linear: grows over --lambda_warmup_epochs.",
)
_float("lambda_warmup_epochs", None, "Length of --lambda_schedule=linear.")
_float("gamma", None, "macer: hinge on the difference of the two quantiles.")
_float("beta", None, "macer: inverse temperature of the robustness term.")
_integer("epochs", 90, "Epochs in all.", 1)
_integer("batch_size", 64, "Images in a step.", 1)
_float("learning_rate", 0.01, "Initial learning rate.")
_list("lr_decay_epochs", [], "Epochs after which the learning rate falls to a tenth.")
_float("momentum", 0.9, "Of SGD.", 0.0, 1.0)
_bool("nesterov", False, "Nesterov's form of momentum.")
_float("weight_decay", 1e-4, "L2, on every trainable variable.", 0.0)
_float("clip_norm", None, "Bound on the gradient's global norm; none where not given.")
_integer("seed", 0, "Of weights, data order and noise.", 0)
_bool("deterministic", False, "Use only kernels that repeat bit for bit.")
_integer("checkpoint_every", 1000, "Steps between checkpoints.", 1)
_integer("eval_examples", 1000, "Test images measured after each epoch; 0 for none.", 0)

# What may change when a run is taken up again: nothing here changes what is trained.
FREE = frozenset({"run_dir", "data_dir", "checkpoint_every", "eval_examples"})

# Flags that only some objectives have, and the field of the objective that each sets.
OBJECTIVE_FLAGS = {
    "lambda": "weight",
    "lambda_schedule": "weight",
    "lambda_warmup_epochs": "weight",
    "gamma": "gamma",
    "beta": "beta",
}


def _main() -> None:
    _check_flags()
    run = RunDirectory(Path(FLAGS["run_dir"].value))
    with _locked(run):
        _train(run)


def _check_flags() -> None:
    """Refuses what can be seen to be wrong before anything starts."""
    for name in ("run_dir", "dataset", "sigma"):
        if FLAGS[name].value is None:
            raise UserError(f"--{name} must be given")
    positive = ("sigma", "learning_rate", "clip_norm", "gamma", "beta", "lambda_warmup_epochs")
    for name in positive:
        value = FLAGS[name].value
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"--{name} must be positive and finite, got {value}")
    _decay_epochs()


def _decay_epochs() -> list[int]:
    texts = FLAGS["lr_decay_epochs"].value
    if not all(text.isdecimal() and int(text) for text in texts):
        raise UserError(f"--lr_decay_epochs must be positive integers, got {','.join(texts)!r}")
    return sorted(int(text) for text in texts)


@contextlib.contextmanager
def _locked(run: RunDirectory) -> Iterator[None]:
    """Makes the run directory and keeps other processes out of it."""
    try:
        run.root.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(run.root / ".lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise UserError(f"--run_dir={run.root}: another process is training there") from error
    except OSError as error:
        raise UserError(f"--run_dir={run.root} cannot be written: {error}") from error


def _train(run: RunDirectory) -> None:
    import keras
    import tensorflow as tf

    from tfmacer import datasets
    from tfmacer.training import batches, callbacks, loop

    epochs, batch_size, seed = (FLAGS[n].value for n in ("epochs", "batch_size", "seed"))
    split = datasets.load_split(FLAGS["dataset"].value, "train", FLAGS["data_dir"].value)
    steps = split.total // batch_size
    if steps == 0:
        raise UserError(
            f"--batch_size={batch_size} is more than the {split.total} images there are"
        )
    objective = _objective(steps)
    if _is_finished(run):
        print(f"{run.root}: finished already, after {epochs} epochs")
        return
    if FLAGS["deterministic"].value:
        tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(seed)
    trainer = _trainer(split, objective, steps)
    run.smoothing.unlink(missing_ok=True)
    write_atomically(run.flags, FLAGS.flags_into_string())
    manager = loop.checkpoints(trainer, str(run.checkpoints))
    if loop.restore(manager):
        print(f"{run.root}: going on after step {int(trainer.optimizer.iterations)}")
    with _termination() as stop:
        complete = loop.run(
            trainer,
            lambda step: iter(
                batches.training_batches(split, batch_size=batch_size, seed=seed, start=step)
            ),
            epochs=epochs,
            steps=steps,
            manager=manager,
            checkpoint_every=FLAGS["checkpoint_every"].value,
            held_out=_held_out(),
            callbacks=[callbacks.MetricsFile(run.metrics), callbacks.Progress(epochs, steps)],
            stop=stop,
        )
    if complete:
        _finish(run, trainer, split)
        print(f"{run.root}: done")
    else:
        print(f"{run.root}: stopped after step {int(trainer.optimizer.iterations)}, saved")


def _objective(steps: int) -> "Objective":
    """The objective that the flags describe; fills in the flags that were left open."""
    from tfmacer.training.objectives import OBJECTIVES

    name = FLAGS["objective"].value
    if name not in OBJECTIVES:
        raise UserError(f"--objective must be one of {', '.join(OBJECTIVES)}, got {name!r}")
    fields = {field.name: field for field in dataclasses.fields(OBJECTIVES[name])}
    for flag, field in OBJECTIVE_FLAGS.items():
        if field not in fields and FLAGS[flag].value is not None:
            raise UserError(f"--{flag} has no meaning for --objective={name}")
        if field in fields and field != "weight" and FLAGS[flag].value is None:
            FLAGS[flag].value = fields[field].default
    if FLAGS["num_noise"].value is None:
        FLAGS["num_noise"].value = OBJECTIVES[name].num_noise
    values: dict[str, Any] = {f: FLAGS[f].value for f in fields if f != "weight"}
    if "weight" in fields:
        values["weight"] = _weight(name, steps)
    return OBJECTIVES[name](**values)


def _weight(objective: str, steps: int) -> Any:
    """lambda as a schedule of the step."""
    from tfmacer.training import schedules

    if FLAGS["lambda"].value is None:
        published = published_weight(FLAGS["dataset"].value, objective, FLAGS["sigma"].value)
        FLAGS["lambda"].value = published.value
        if FLAGS["lambda_schedule"].value is None:
            FLAGS["lambda_schedule"].value = published.schedule
    kind = FLAGS["lambda_schedule"].value = FLAGS["lambda_schedule"].value or "constant"
    warmup = FLAGS["lambda_warmup_epochs"].value
    if (kind == "linear") != (warmup is not None):
        raise UserError("--lambda_warmup_epochs goes with --lambda_schedule=linear, and only there")
    if kind == "deferred" and not _decay_epochs():
        raise UserError("--lambda_schedule=deferred needs --lr_decay_epochs")
    value = FLAGS["lambda"].value
    if kind == "linear":
        return schedules.linear(value, round(warmup * steps))
    return schedules.deferred(value, _decay_epochs()[0] * steps if kind == "deferred" else 0)


def _trainer(split: "Split", objective: "Objective", steps: int) -> "SmoothedTrainer":
    """The network, its trainer and its optimizer, as the flags describe them."""
    from tfmacer.training import networks, schedules
    from tfmacer.training.optimizer import SGD
    from tfmacer.training.trainer import SmoothedTrainer

    network = networks.build(FLAGS["network"].value, split.dataset, split.shape, split.num_classes)
    if FLAGS["init_from"].value:
        networks.copy_weights(Path(FLAGS["init_from"].value), network)
    trainer = SmoothedTrainer(
        network,
        objective,
        **{n: FLAGS[n].value for n in ("sigma", "num_noise", "seed", "clip_norm")},
    )
    rate = schedules.piecewise(
        FLAGS["learning_rate"].value, [epoch * steps for epoch in _decay_epochs()]
    )
    options = {name: FLAGS[name].value for name in ("momentum", "nesterov", "weight_decay")}
    trainer.compile(optimizer=SGD(rate, **options))
    return trainer


def _is_finished(run: RunDirectory) -> bool:
    """Whether the directory holds this run, finished.

    Raises:
      UserError: it holds another.
    """
    if not run.flags.is_file():
        return False
    previous = copy.deepcopy(FLAGS)
    previous.unparse_flags()
    try:
        previous(["", f"--flagfile={run.flags}"])
    except flags.Error as error:
        raise UserError(f"{run.flags} cannot be read: {error}") from error
    old, new = ({name: values[name].value for name in values} for values in (previous, FLAGS))
    changed = {name for name in new if new[name] != old[name]} - FREE
    if changed - {"epochs"} or new["epochs"] < old["epochs"]:
        raise UserError(
            f"--run_dir={run.root} holds a run of other flags: "
            + "; ".join(f"--{name} was {old[name]}, is {new[name]}" for name in sorted(changed))
            + "; give the same ones (--epochs may grow) or another --run_dir"
        )
    return not changed and run.smoothing.is_file()


def _held_out() -> Any:
    """Batches of evenly spaced test images; None where there are none."""
    import tensorflow as tf

    from tfmacer import datasets

    count = FLAGS["eval_examples"].value
    name = datasets.test_split(FLAGS["dataset"].value)
    if count == 0 or name is None:
        return None
    split = datasets.load_split(FLAGS["dataset"].value, name, FLAGS["data_dir"].value)
    positions = range(0, split.total, max(split.total // count, 1))[:count]
    return tf.data.Dataset.from_tensor_slices(split.take(positions)).batch(256).cache()


@contextlib.contextmanager
def _termination() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come, which until then would have killed the process."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event.is_set
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event.is_set
    finally:
        signal.signal(signal.SIGTERM, previous)


def _finish(run: RunDirectory, trainer: "SmoothedTrainer", split: "Split") -> None:
    """Writes the network and, last, the description that makes the run a finished one."""
    import keras

    from tfmacer.votes.local import network_digest

    temporary = run.root / ".model.keras"
    trainer.network.save(temporary)
    digest = network_digest(temporary, keras.models.load_model(temporary, compile=False))
    temporary.rename(run.model)
    packages = ("tensorflow", "keras", "tensorflow-probability", "numpy")
    smoothing = Smoothing(
        sigma=FLAGS["sigma"].value,
        num_classes=split.num_classes,
        input_shape=split.shape,
        dataset=FLAGS["dataset"].value,
        objective=FLAGS["objective"].value,
        model_digest=digest,
        versions={"tfmacer": __version__, **{p: importlib.metadata.version(p) for p in packages}},
    )
    write_atomically(run.smoothing, smoothing.to_json())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return commandline.run(_main, FLAGS, argv, name="python -m tfmacer.train", doc=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
