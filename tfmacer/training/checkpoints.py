"""The state of a run on disk, from which it resumes bit for bit."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf

from tfmacer.common.errors import UserError, refusal
from tfmacer.training.networks import difference
from tfmacer.training.trainer import SmoothedTrainer

KEPT = 2

# What TensorFlow calls the variable of a number in one of the lists that are kept.
_NAME = "{}/{}/.ATTRIBUTES/VARIABLE_VALUE"

# TensorFlow writes a checkpoint as a table of contents and the tensors, each with a checksum.
_FILE = re.compile(r"step-(\d+)\.(index|data-\d+-of-\d+)")

# Where one is written, before its files are moved into the directory above.
_UNFINISHED = ".unfinished"


class Checkpoints:
    """The newest states of a run.

    A state is the network, the optimizer (its iteration count included, from which noise, data
    order and schedules follow), float16's scale and the running means of the current epoch. All
    replicas hold the same values; those of the first are kept. With them are the flags of the run,
    so that no other run resumes from it.

    Which checkpoints there are is read from the names of the files, not from a list that could be
    lost.

    Attributes:
      damaged: the checkpoints that `restore` has passed over, and why; the newest first.
    """

    def __init__(self, trainer: SmoothedTrainer, directory: Path, *, flags: str = "") -> None:
        """Builds the optimizer's variables; reads no file.

        Args:
          trainer: compiled; its state is saved and restored.
          directory: of the files; made by the first `save`.
          flags: of the run.
        """
        self.damaged: list[str] = []
        self._trainer, self._directory = trainer, directory
        strategy = trainer.distribute_strategy
        with strategy.scope():
            trainer.optimizer.build(trainer.network.trainable_variables)
        kept = {
            name: [of_replica(strategy, variable) for variable in variables]
            for name, variables in state(trainer).items()
        }
        if strategy.num_replicas_in_sync > 1:
            # Their noise is that of as many replicas.
            kept["replicas"] = [tf.Variable(strategy.num_replicas_in_sync)]
        self._checkpoint = tf.train.Checkpoint(**kept, flags=[tf.Variable(flags)])
        # Makes the variable, which restoring looks for.
        assert self._checkpoint.save_counter is not None
        # Before flags were kept.
        self._without_flags = tf.train.Checkpoint(**kept)
        assert self._without_flags.save_counter is not None

    @property
    def steps(self) -> list[int]:
        """The steps after which there is a checkpoint, whole or damaged, ascending.

        One that a kill interrupted while it was written is none.
        """
        return sorted(_steps(self._directory) - _steps(self._directory / _UNFINISHED))

    def path(self, step: int) -> Path:
        """What the names of the files of a checkpoint begin with."""
        return self._directory / f"step-{step}"

    def save(self, step: int) -> None:
        """Writes the state after `step` steps and deletes all but the newest ones.

        TensorFlow writes the tensors under their own name before the table of contents. So a kill
        would leave half of a checkpoint, which looks as if the other half had been lost.

        Raises:
          UserError: it cannot be written.
        """
        unfinished = self._directory / _UNFINISHED
        try:
            for left in _steps(unfinished):
                self._delete(left)
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            self._checkpoint.write(str(unfinished / self.path(step).name))
            for file in unfinished.iterdir():
                file.replace(self._directory / file.name)
            unfinished.rmdir()
        except (OSError, tf.errors.OpError) as error:
            reason = refusal(error) or _line(error)
            raise UserError(f"{self.path(step)}: cannot be written: {reason}") from error
        # Those of later steps were damaged, or training would not be here.
        for other in set(self.steps) - set([s for s in self.steps if s <= step][-KEPT:]):
            self._delete(other)

    def _delete(self, step: int) -> None:
        for file in self._directory.glob(f"{self.path(step).name}.*"):
            file.unlink()

    def restore(self, check_flags: Callable[[str, Path], object] = lambda *_: None) -> bool:
        """Restores the newest one that is whole; False where there is none at all.

        Args:
          check_flags: is told the flags that it was made with, and its path, before anything is
            restored; raises UserError where they are another run's.

        Raises:
          UserError: none is whole, or the newest whole one is not of this network, optimizer and
            number of devices.
        """
        for step in reversed(self.steps):
            damage = _damage(self.path(step))
            if damage is None:
                self._restore(str(self.path(step)), check_flags)
                return True
            self.damaged.append(f"{self.path(step).name} is damaged: {damage}")
        if self.damaged:
            raise UserError(
                f"{self._directory}: none of the checkpoints is whole ({'; '.join(self.damaged)}); "
                "delete the directory to start from the beginning"
            )
        return False

    def _restore(self, path: str, check_flags: Callable[[str, Path], object]) -> None:
        strategy = self._trainer.distribute_strategy
        replicas = strategy.num_replicas_in_sync
        found = dict(tf.train.list_variables(path))
        checkpoint = self._without_flags
        if (name := _NAME.format("flags", 0)) in found:
            checkpoint = self._checkpoint
            check_flags(tf.train.load_variable(path, name).decode(), Path(path))
        saved = _NAME.format("replicas", 0)
        recorded = int(tf.train.load_variable(path, saved)) if saved in found else 1
        if recorded != replicas:
            raise UserError(
                f"{path} was trained on {recorded} devices, here are {replicas}: their noise would "
                "be another; give as many (--distribution, TF_CONFIG) or another --run_dir"
            )
        wanted = [tuple(variable.shape) for variable in self._trainer.network.variables]
        numbers = range(sum(name.startswith("network/") for name in found))
        shapes = [found.get(_NAME.format("network", number), ()) for number in numbers]
        if unlike := difference(shapes, wanted):
            raise UserError(
                f"{path} is of another network: {unlike}; give the same one or another --run_dir"
            )
        try:
            checkpoint.restore(path).assert_consumed()
        except (AssertionError, ValueError, tf.errors.OpError) as error:
            raise UserError(f"{path}: cannot be restored: {_line(error)}") from error
        for variables in state(self._trainer).values():
            for variable in variables:
                first, *others = strategy.experimental_local_results(variable.value)
                for other in others:
                    other.assign(first)


def _steps(directory: Path) -> set[int]:
    """Of the checkpoints that have a file in a directory."""
    files = directory.iterdir() if directory.is_dir() else ()
    found = (_FILE.fullmatch(path.name) for path in files)
    return {int(match[1]) for match in found if match}


def state(trainer: SmoothedTrainer) -> dict[str, list[keras.Variable]]:
    """The variables from which a run resumes."""
    found = {
        "network": trainer.network.variables,
        "optimizer": trainer.optimizer.variables,
        "means": [variable for metric in trainer.metrics for variable in metric.variables],
    }
    if trainer.loss_scale is not None:
        found["loss_scale"] = trainer.loss_scale.variables
    return found


def of_replica(strategy: tf.distribute.Strategy, variable: keras.Variable) -> tf.Variable:
    """The first local replica's part of a variable."""
    return strategy.experimental_local_results(variable.value)[0]


def _damage(path: Path) -> str | None:
    """What is wrong with the files of a checkpoint; None where all of it can be read."""
    try:
        reader = tf.train.load_checkpoint(str(path))
        for name in reader.get_variable_to_shape_map():
            # Compares the checksum.
            reader.get_tensor(name)
    # TensorFlow's own errors, and those that its reader gives to Python in place of some.
    except (tf.errors.OpError, ValueError, IndexError, RuntimeError, MemoryError) as error:
        return _line(error)
    return None


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
