"""Checkpoints that were cut, changed or lost, and what is restored then."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmacer.common.errors import UserError
from tfmacer.training import objectives
from tfmacer.training.checkpoints import Checkpoints
from tfmacer.training.optimizer import SGD
from tfmacer.training.trainer import SmoothedTrainer


def _trainer(classes=3, value=0.0):
    """All of its variables have this value."""
    network = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(classes)]
    )
    trainer = SmoothedTrainer(network, objectives.Gaussian(), sigma=0.5)
    trainer.compile(optimizer=SGD(0.1, momentum=0.9))
    trainer.optimizer.build(network.trainable_variables)
    for variable in (*network.variables, *trainer.optimizer.variables):
        variable.assign(np.full(variable.shape, value, variable.dtype))
    return trainer


@pytest.fixture
def folder(tmp_path):
    """Checkpoints after steps 7 and 12, in which all variables are 7 and 12."""
    for step in (7, 12):
        Checkpoints(_trainer(value=step), tmp_path).save(step)
    return tmp_path


def _restored(folder):
    """The value of all variables; None where nothing was restored."""
    trainer = _trainer(value=99)
    kept = Checkpoints(trainer, folder)
    if not kept.restore():
        return None, kept.damaged
    values = {float(v) for variable in trainer.network.variables for v in np.ravel(variable)}
    assert len(values) == 1
    assert trainer.steps_taken == values.copy().pop()
    return values.pop(), kept.damaged


def test_the_newest_is_restored(folder, tmp_path_factory):
    assert _restored(folder) == (12.0, [])
    assert _restored(tmp_path_factory.mktemp("empty")) == (None, [])
    assert _restored(folder / "absent") == (None, [])


def test_only_the_newest_are_kept(folder):
    kept = Checkpoints(_trainer(), folder)
    kept.save(20)
    assert kept.steps == [12, 20]
    assert {path.suffix for path in folder.iterdir()} == {".index", ".data-00000-of-00001"}
    # Gone on from step 12 because the one after 20 was damaged.
    kept.save(13)
    assert kept.steps == [12, 13]


def _index(folder, step=12):
    return folder / f"step-{step}.index"


def _data(folder, step=12):
    return folder / f"step-{step}.data-00000-of-00001"


def _cut(path):
    path.write_bytes(path.read_bytes()[:-40])


DAMAGES = {
    "no table": lambda folder: _index(folder).unlink(),
    "no tensors": lambda folder: _data(folder).unlink(),
    "table cut": lambda folder: _cut(_index(folder)),
    "tensors cut": lambda folder: _cut(_data(folder)),
    "empty table": lambda folder: _index(folder).write_bytes(b""),
    "empty tensors": lambda folder: _data(folder).write_bytes(b""),
    "another's tensors": lambda folder: _data(folder).write_bytes(_data(folder, 7).read_bytes()),
    "no file": lambda folder: (_data(folder).unlink(), _data(folder).mkdir()),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_one_is_passed_over(folder, name):
    DAMAGES[name](folder)
    value, damaged = _restored(folder)
    assert value == 7.0
    assert len(damaged) == 1
    assert damaged[0].startswith("step-12 is damaged: ")
    assert "\n" not in damaged[0]


@pytest.mark.parametrize("path", [_index, _data])
def test_a_changed_byte_is_found(folder, path):
    """Wherever it is; or else it means nothing."""
    whole = path(folder).read_bytes()
    found = 0
    for position in range(0, len(whole), max(len(whole) // 40, 1)):
        changed = bytearray(whole)
        changed[position] ^= 0x10
        path(folder).write_bytes(changed)
        value, damaged = _restored(folder)
        assert (value, len(damaged)) in ((7.0, 1), (12.0, 0))
        found += len(damaged)
    assert found > 30


@pytest.mark.parametrize("text", [None, "", 'model_checkpoint_path: "ste'])
def test_the_list_that_tensorflow_keeps_is_not_needed(folder, text):
    """Runs of earlier versions have one."""
    if text is not None:
        (folder / "checkpoint").write_text(text)
    assert _restored(folder) == (12.0, [])


def test_where_none_is_whole_nothing_starts_again(folder):
    _cut(_data(folder))
    _index(folder, 7).unlink()
    message = r"none of the checkpoints is whole \(step-12 is damaged: .*; step-7 is damaged: "
    with pytest.raises(UserError, match=message) as caught:
        _restored(folder)
    assert "\n" not in str(caught.value)


def test_one_of_another_network_is_refused(folder):
    """It is whole, and not this run's: an older one would not be either.

    By the first difference; one that is in the optimizer alone is TensorFlow's to tell.
    """
    message = (
        r"step-12 is of another network: its weight 1 is of \(16, 3\), of \(16, 7\) in this one;"
    )
    with pytest.raises(UserError, match=message) as caught:
        Checkpoints(_trainer(classes=7), folder).restore()
    assert "\n" not in str(caught.value)
    deeper = _trainer()
    deeper.network.add(keras.layers.Dense(3))
    with pytest.raises(UserError, match="it has 2 weights, this one 4"):
        Checkpoints(deeper, folder).restore()
    plain = _trainer()
    plain.compile(optimizer=SGD(0.1, momentum=0.0))
    with pytest.raises(UserError, match="step-12: cannot be restored") as caught:
        Checkpoints(plain, folder).restore()
    assert "\n" not in str(caught.value)


def test_it_tells_the_flags_that_it_was_made_with(tmp_path, monkeypatch):
    """But for one of an earlier version, which has none."""
    told = []
    for step, flags in ((3, "--seed=1"), (4, "--seed=2")):
        Checkpoints(_trainer(value=step), tmp_path, flags=flags).save(step)
    kept = Checkpoints(_trainer(), tmp_path, flags="--seed=9")
    assert kept.restore(lambda *found: told.append(found))
    assert told == [("--seed=2", tmp_path / "step-4")]

    def refuse(flags, path):
        raise UserError(f"{path}: {flags}")

    trainer = _trainer(value=0)
    with pytest.raises(UserError, match="step-4: --seed=2"):
        Checkpoints(trainer, tmp_path).restore(refuse)
    assert trainer.steps_taken == 0
    earlier = Checkpoints(_trainer(value=8), tmp_path)
    monkeypatch.setattr(earlier, "_checkpoint", earlier._without_flags)
    earlier.save(8)
    assert Checkpoints(trainer, tmp_path, flags="--seed=9").restore(refuse)
    assert trainer.steps_taken == 8


def test_what_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/step-3: cannot be written"):
        Checkpoints(_trainer(), tmp_path / "file").save(3)


def _killed_after_the_tensors(monkeypatch):
    """As TensorFlow leaves it: the table of contents comes last."""
    write = tf.train.Checkpoint.write

    def killed(checkpoint, prefix):
        write(checkpoint, prefix)
        Path(f"{prefix}.index").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(tf.train.Checkpoint, "write", killed)


def _killed_while_moving(monkeypatch, moves):
    """After so many files were moved."""
    left = [moves]
    replace = Path.replace

    def killed(path, target):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", killed)


KILLS = {
    "writing": _killed_after_the_tensors,
    "moving": lambda monkeypatch: _killed_while_moving(monkeypatch, 0),
    "half moved": lambda monkeypatch: _killed_while_moving(monkeypatch, 1),
}


@pytest.mark.parametrize("name", KILLS)
def test_one_that_a_kill_cut_short_is_none(folder, tmp_path_factory, name):
    """Neither a damaged one, nor in the way of what comes after."""
    first = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as monkeypatch:
        for each in (first, folder):
            KILLS[name](monkeypatch)
            with pytest.raises(KeyboardInterrupt):
                Checkpoints(_trainer(value=20), each).save(20)
            monkeypatch.undo()
    assert _restored(first) == (None, [])
    assert _restored(folder) == (12.0, [])
    Checkpoints(_trainer(value=15), folder).save(15)
    assert _restored(folder) == (15.0, [])
    assert {path.name.partition(".")[0] for path in folder.iterdir()} == {"step-12", "step-15"}
