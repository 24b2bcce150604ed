"""`train_run`: one training run in its directory, begun, resumed or found finished.

Without TensorFlow until the directory is locked.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from tfmacer.common import commandline
from tfmacer.common.errors import UserError, naming
from tfmacer.noise.families import noise_distribution
from tfmacer.records.runs import RunDirectory, Smoothing, read_text, write_atomically
from tfmacer.training.cluster import find_cluster
from tfmacer.training.config import TrainConfig
from tfmacer.training.flags import fields_of

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


def train_run(config: TrainConfig) -> RunDirectory:
    """Trains a network into a run directory; resumes an unfinished run from its last checkpoint.

    What `python -m tfmacer.train` does. Prints how it starts and ends on standard output, and
    progress on standard error. SIGTERM saves and ends it; the same call resumes.

    Args:
      config: what to train. `epochs`, and what does not change the training, may differ from
        those of the unfinished run.

    Returns:
      The run directory; `smoothing.json` is there where all epochs are done.

    Raises:
      UserError: the configuration cannot be trained, or the directory holds another run.
    """
    run = config.run_directory()
    cluster = find_cluster(config.distribution)
    # Only one machine writes, and only it can be in another's way.
    with _locked(run) if cluster.chief else contextlib.nullcontext():
        commandline.load_tensorflow(config.import_)
        from tfmacer.training import distribution

        strategy = distribution.strategy(config.distribution, workers=cluster.workers)
        _train(config, run, strategy, chief=cluster.chief)
        distribution.wait(strategy)
    return run


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
    try:
        yield
    finally:
        lock.release()


def _train(
    config: TrainConfig, run: RunDirectory, strategy: "tf.distribute.Strategy", *, chief: bool
) -> None:
    from tfmacer.data import datasets
    from tfmacer.training import batches, build, defaults, distribution, loop
    from tfmacer.training.checkpoints import Checkpoints

    def say(line: str) -> None:
        if chief:
            commandline.say(f"{run.root}: {line}")

    config = defaults.resolve(config)
    distribution.check_divides(strategy, config.batch_size)
    split = datasets.load_split(config.dataset, config.train_split, config.data_dir)
    steps = split.total // config.batch_size
    if not steps:
        raise UserError(f"--batch_size={config.batch_size} exceeds the {split.total} images")
    # Refuses a family or parameter that no certificate could be given for.
    noise_distribution(
        config.noise_family,
        sigma=config.sigma,
        params=config.noise_params,
        dimension=math.prod(split.shape),
    )
    assert config.augmentation is not None
    batches.check_trainable(split, config.augmentation)
    if _is_finished(config, run):
        say(f"finished already, with {config.epochs} epochs")
        return
    test = build.held_out(config)
    trainer = build.trainer(config, split, steps, strategy)
    kept = Checkpoints(trainer, run.checkpoints, flags=config.as_flags().flags_into_string())
    restored = kept.restore(functools.partial(_is_same, config))
    if run.smoothing.is_file() and not restored:
        raise UserError(
            f"--run_dir={run.root} holds a finished run without checkpoints, which cannot go on; "
            f"give another --run_dir, and --init_from={run.root} to start from its weights"
        )
    if restored:
        say("; ".join([f"going on after step {trainer.steps_taken}", *kept.damaged]))
    elif run.flags.is_file():
        say("starting again, there is no checkpoint yet")
    listeners = build.listeners(config, run, split, test, steps)
    if chief:
        # Only now: until here, what was there is as it was.
        run.smoothing.unlink(missing_ok=True)
        write_atomically(run.flags, config.as_flags().flags_into_string())
    with loop.termination() as stop:
        complete = loop.run(
            trainer,
            build.epochs(config, split),
            epochs=config.epochs,
            steps=steps,
            kept=kept,
            checkpoint_every=config.checkpoint_every,
            held_out=build.evaluated(config, test),
            callbacks=listeners,
            stop=stop,
        )
    if complete and chief:
        _finish(run, trainer.single().network, build.smoothing(config, split, "in training"))
    say("done" if complete else f"stopped after step {trainer.steps_taken}, and saved")


def _is_finished(config: TrainConfig, run: RunDirectory) -> bool:
    """Whether the directory holds this run, finished.

    Raises:
      UserError: it holds another run, or one whose configuration cannot be read.
    """
    if not run.flags.is_file():
        if run.smoothing.exists() or run.checkpoints.exists():
            raise UserError(
                f"--run_dir={run.root} holds a run without {run.flags.name}, which says of what "
                "flags; give another --run_dir"
            )
        return False
    return _is_same(config, read_text(run.flags), run.flags) and run.smoothing.is_file()


def _is_same(config: TrainConfig, text: str, origin: Path) -> bool:
    """Whether a run was started with this configuration, and not with fewer epochs.

    Args:
      config: resolved.
      text: the flags that the run was started with.
      origin: where they stand.

    Raises:
      UserError: the flags are others, or cannot be read.
    """
    previous = TrainConfig.from_text(text, origin)
    before, now = previous.as_flags(), config.as_flags()
    names = {field.flag_name for field in fields_of(TrainConfig) if not field.known.get("free")}
    changed = sorted(name for name in names if before[name].value != now[name].value)
    longer = changed == ["epochs"] and config.epochs > previous.epochs
    if changed and not longer:
        raise UserError(
            f"{origin} is of a run of other flags: "
            + "; ".join(f"--{n} was {before[n].value}, is {now[n].value}" for n in changed)
            + "; give the same ones (--epochs may grow) or another --run_dir"
        )
    return not changed


def _finish(run: RunDirectory, network: "keras.Model", smoothing: Smoothing) -> None:
    """Writes the network and, last, the description that makes the run a finished one."""
    import keras

    from tfmacer.votes.digests import network_digest

    temporary = run.root / ".model.keras"
    with naming(run.model):
        network.save(temporary)
    digest = network_digest(temporary, keras.models.load_model(temporary, compile=False))
    temporary.replace(run.model)
    described = dataclasses.replace(smoothing, model_digest=digest)
    write_atomically(run.smoothing, described.to_json())
