"""Trains a network whose smoothed version can be certified, into a run directory.

    python -m tfmacer.train --flagfile=mnist.flags

The same command again takes up an unfinished run where it was left; of a finished run it says so.
A flag without a value takes the one that was published for the dataset, objective and sigma, or
the objective's own default; flags.txt in the run directory records what was taken.
"""

import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from tfmacer import train_flags
from tfmacer.common import commandline
from tfmacer.common.errors import UserError
from tfmacer.noise.families import noise_distribution
from tfmacer.records.runs import RunDirectory, Smoothing, write_atomically
from tfmacer.train_flags import get

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from tfmacer.data.splits import Split
    from tfmacer.training.objectives import Objective
    from tfmacer.training.trainer import SmoothedTrainer

FLAGS = train_flags.FLAGS


def _main() -> None:
    train_flags.check()
    run = RunDirectory(train_flags.run_root())
    cluster = train_flags.cluster()
    # Only one machine writes, and only it can be in another's way.
    with _locked(run) if cluster.chief else contextlib.nullcontext():
        commandline.load_tensorflow(get("import"))
        from tfmacer.training import distribution

        strategy = distribution.strategy(get("distribution"), workers=cluster.workers)
        _train(run, strategy, chief=cluster.chief)
        distribution.wait(strategy)


@contextlib.contextmanager
def _locked(run: RunDirectory) -> Iterator[None]:
    """Makes the run directory and keeps other processes from training in it."""
    lock = filelock.FileLock(run.root / ".lock", timeout=0)
    try:
        run.root.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(f"--run_dir={run.root}: another process is training there") from error
    except OSError as error:
        raise UserError(f"--run_dir={run.root} cannot be written: {error}") from error
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        yield


def _train(run: RunDirectory, strategy: "tf.distribute.Strategy", *, chief: bool) -> None:
    from tfmacer.data import datasets
    from tfmacer.training import batches, distribution, loop
    from tfmacer.training.checkpoints import Checkpoints

    distribution.check_divides(strategy, get("batch_size"))
    split = datasets.load_split(get("dataset"), get("train_split"), get("data_dir"))
    steps = split.total // get("batch_size")
    if not steps:
        raise UserError(f"--batch_size={get('batch_size')} exceeds the {split.total} images")
    objective = train_flags.objective(steps)
    # Refuses a family or parameter that no certificate could be given for.
    noise_distribution(
        get("noise_family"),
        sigma=get("sigma"),
        params=train_flags.noise_params(),
        dimension=math.prod(split.shape),
    )
    batches.check_trainable(split, train_flags.augmentation())
    if train_flags.is_finished(run):
        _say(f"{run.root}: finished already, with {get('epochs')} epochs", chief)
        return
    held_out = _held_out()
    trainer = _trainer(split, objective, steps, strategy)
    kept = Checkpoints(trainer, run.checkpoints, flags=FLAGS.flags_into_string())
    restored = kept.restore(train_flags.is_same)
    if run.smoothing.is_file() and not restored:
        raise UserError(
            f"--run_dir={run.root} holds a finished run without checkpoints, which cannot go on; "
            f"give another --run_dir, and --init_from={run.root} to start from its weights"
        )
    if restored:
        where = f"going on after step {trainer.steps_taken}"
        _say("; ".join([f"{run.root}: {where}", *kept.damaged]), chief)
    elif run.flags.is_file():
        _say(f"{run.root}: starting again, there is no checkpoint yet", chief)
    listeners = _callbacks(run, split, held_out, steps)
    if chief:
        # Only now: until here, what was there is as it was.
        run.smoothing.unlink(missing_ok=True)
        write_atomically(run.flags, FLAGS.flags_into_string())
    with loop.termination() as stop:
        complete = loop.run(
            trainer,
            lambda step, share: batches.epoch_batches(
                split,
                batch_size=get("batch_size"),
                seed=get("seed"),
                start=step,
                augmentation=train_flags.augmentation(),
                share=share,
            ),
            epochs=get("epochs"),
            steps=steps,
            kept=kept,
            checkpoint_every=get("checkpoint_every"),
            held_out=_evaluated(held_out),
            callbacks=listeners,
            stop=stop,
        )
    if complete and chief:
        _finish(run, trainer.single().network, split)
    step = trainer.steps_taken
    how = "done" if complete else f"stopped after step {step}, and saved"
    _say(f"{run.root}: {how}", chief)


def _say(line: str, chief: bool) -> None:
    if chief:
        commandline.say(line)


def _trainer(
    split: "Split", objective: "Objective", steps: int, strategy: "tf.distribute.Strategy"
) -> "SmoothedTrainer":
    """The network, its optimizer and its trainer."""
    import keras
    import tensorflow as tf

    from tfmacer.training import networks, precision, schedules
    from tfmacer.training.optimizer import SGD
    from tfmacer.training.trainer import SmoothedTrainer

    if get("deterministic"):
        tf.config.experimental.enable_op_determinism()
    # Layers without a name are numbered from 1, whatever this process has built before: names are
    # part of the network's digest.
    keras.utils.clear_session()
    keras.utils.set_random_seed(get("seed"))
    names = ("sigma", "noise_family", "num_noise", "noise_chunk", "seed", "clip_norm")
    options = {name: get(name) for name in names} | {"noise_params": train_flags.noise_params()}
    boundaries = [epoch * steps for epoch in train_flags.decay_epochs()]
    rate = schedules.piecewise(get("learning_rate"), boundaries)
    descent = {name: get(name) for name in ("momentum", "nesterov", "weight_decay")}
    with strategy.scope():
        with precision.policy(get("precision")):
            network = networks.build(get("network"), split.dataset, split.shape, split.num_classes)
        if get("init_from"):
            networks.copy_weights(Path(get("init_from")), network)
        trainer = SmoothedTrainer(network, objective, **options)
        trainer.compile(optimizer=SGD(rate, **descent), jit_compile=get("jit"))
    return trainer


def _held_out() -> "Split | None":
    """The test images; None where there are none, or none are asked for.

    Raises:
      UserError: images are to be certified and there are none.
    """
    from tfmacer.data import datasets

    name = datasets.held_out_split(get("dataset"))
    if name is None and get("certify_every"):
        raise UserError(f"--certify_every: --dataset={get('dataset')} has no test images")
    if name is None or not (get("eval_examples") or get("certify_every")):
        return None
    return datasets.load_split(get("dataset"), name, get("data_dir"))


def _spread(split: "Split", count: int) -> tuple[Any, Any]:
    """Images and labels of a split, evenly spaced."""
    every = max(split.total // count, 1)
    return split.take(range(0, split.total, every)[:count])


def _evaluated(held_out: "Split | None") -> "tf.data.Dataset | None":
    """Batches of test images; None for none."""
    import tensorflow as tf

    if held_out is None or not get("eval_examples"):
        return None
    return tf.data.Dataset.from_tensor_slices(_spread(held_out, get("eval_examples"))).batch(256)


def _callbacks(
    run: RunDirectory, split: "Split", held_out: "Split | None", steps: int
) -> "list[keras.callbacks.Callback]":
    """What watches the run; those that measure go before those that write."""
    from tfmacer.training import callbacks

    listeners: list[keras.callbacks.Callback] = []
    if held_out is not None and get("certify_every"):
        images, labels = _spread(held_out, get("certify_examples"))
        smoothing = _smoothing(split, "in training")
        listeners.append(callbacks.Certify(images, labels, smoothing, every=get("certify_every")))
    size = get("batch_size")
    watched = split.take(range(min(size, split.total)))
    return [
        *listeners,
        callbacks.MetricsFile(run.metrics),
        callbacks.TensorBoard(run.tensorboard, *watched, batch_size=size),
        callbacks.Progress(get("epochs"), steps),
    ]


def _smoothing(split: "Split", digest: str) -> Smoothing:
    """What a certificate must know of the network."""
    from tfmacer.votes.devices import library_versions

    return Smoothing(
        sigma=get("sigma"),
        noise_family=get("noise_family"),
        noise_params=train_flags.noise_params(),
        num_classes=split.num_classes,
        input_shape=split.shape,
        dataset=get("dataset"),
        objective=get("objective"),
        precision=get("precision"),
        model_digest=digest,
        versions=library_versions(),
    )


def _finish(run: RunDirectory, network: "keras.Model", split: "Split") -> None:
    """Writes the network and, last, the description that makes the run a finished one."""
    import keras

    from tfmacer.votes.digests import network_digest

    temporary = run.root / ".model.keras"
    network.save(temporary)
    digest = network_digest(temporary, keras.models.load_model(temporary, compile=False))
    temporary.replace(run.model)
    write_atomically(run.smoothing, _smoothing(split, digest).to_json())


main = commandline.command(_main, FLAGS, "python -m tfmacer.train", __doc__)


if __name__ == "__main__":
    sys.exit(main())
