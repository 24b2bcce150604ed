"""Several devices train as one does, and stop, write and go on together.

Each test is a process of its own: logical devices must be made before TensorFlow starts, and
machines are processes.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
from small_training import MODULE

ROOT = pathlib.Path(__file__).parents[3]

SETUP = """
import sys, pathlib
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from tfmacer.common.errors import UserError
from tfmacer.data.splits import ArraySplit
from tfmacer.training import (batches, callbacks, checkpoints, distribution, loop, objectives,
                              precision)
from tfmacer.training.optimizer import SGD
from tfmacer.training.trainer import SmoothedTrainer

SHAPE, STEPS, BATCH = (4, 4, 1), 5, 8
rng = np.random.default_rng(0)
split = ArraySplit("name", "train", rng.integers(0, 256, (42, *SHAPE)).astype(np.uint8),
                   rng.integers(0, 3, 42), 3)
one = tf.distribute.get_strategy()
two = distribution.strategy("mirrored", workers=1)
assert (two.num_replicas_in_sync, one.num_replicas_in_sync) == (2, 1)

def run(trainer, root, epochs=2, **options):
    kept = checkpoints.Checkpoints(trainer, pathlib.Path(root))
    resumed = kept.restore()
    loop.run(trainer, lambda step, share: batches.epoch_batches(
        split, batch_size=BATCH, seed=2, start=step, augmentation="crop", share=share),
        epochs=epochs, steps=STEPS, kept=kept, checkpoint_every=3, **options)
    return resumed

def values(trainer):
    state = checkpoints.state(trainer)
    return [checkpoints.of_replica(trainer.distribute_strategy, v).numpy()
            for vs in state.values() for v in vs]
"""

AS_ONE = """
class Fixed(SmoothedTrainer):
    '''Noise that is a function of the image alone.'''
    def draw(self, images, labels, stream, step, copies=None):
        batch = super().draw(images, labels, stream, step, copies)
        grown = tf.range(1.0, self.num_noise + 1)[:, tf.newaxis, tf.newaxis, tf.newaxis]
        return batch._replace(noise=tf.sin(50 * grown * images[:, tf.newaxis]))

def trained(strategy, root, optimizer=lambda: SGD(0.3, momentum=0.9, weight_decay=0.01)):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        network = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(),
                                    keras.layers.Dense(5, "tanh"), keras.layers.Dense(3)])
        trainer = Fixed(network, objectives.Macer(sigma=0.5, weight=0.5, beta=2.0), sigma=0.5,
                        num_noise=3, clip_norm=0.5)
        trainer.compile(optimizer=optimizer())
    logs = {}
    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, seen=None):
            logs.update(seen)
    run(trainer, f"{sys.argv[1]}/{root}", callbacks=[Keep()])
    return trainer, logs

reduced = []
def counting(context, op, value, *args, plain=tf.distribute.ReplicaContext.all_reduce, **kwargs):
    reduced.extend(int(np.prod(part.shape)) for part in tf.nest.flatten(value))
    return plain(context, op, value, *args, **kwargs)
tf.distribute.ReplicaContext.all_reduce = counting

(alone, expected), (shared, found) = trained(one, "one"), trained(two, "two")
# Every gradient once, in each of the two traces of the step, one for each replica.
weights = [int(np.prod(v.shape)) for v in alone.network.trainable_variables]
assert reduced.count(max(weights)) == 2, (reduced, weights)
try:
    with two.scope():
        shared.compile(optimizer=keras.optimizers.SGD(0.1, clipnorm=1.0))
    raise AssertionError
except UserError as error:
    assert "clip_norm is for 2" in str(error), error
for a, b in zip(alone.network.variables, shared.network.variables):
    np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-5)
    first, second = two.experimental_local_results(b.value)
    np.testing.assert_array_equal(first.numpy(), second.numpy())
assert found.keys() == expected.keys()
for name in expected:
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, err_msg=name)
copy = shared.single()
assert copy is not shared and alone.single() is alone
np.testing.assert_array_equal(copy.network.get_weights()[0], shared.network.get_weights()[0])
# Keras' own optimizers sum gradients a second time, of which they are given their share.
keras_own = lambda: keras.optimizers.SGD(0.3, momentum=0.9)
for a, b in zip(*(trained(strategy, root, keras_own)[0].network.get_weights()
                  for strategy, root in ((one, "one_keras"), (two, "two_keras")))):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
print("equal")
"""

NOISE = """
for options in CASES:
    seen = []
    class Watching(SmoothedTrainer):
        '''Its views come out beside the logs.'''
        def train_step(self, data):
            step = tf.convert_to_tensor(self.optimizer.iterations)
            noise = self._jitted(data[0], data[1], step) if options.get("jit") else (
                self._noise_of(data[0], data[1], step))
            return super().train_step(data) | {"noise": noise}
        def _noise_of(self, images, labels, step):
            return self.draw(images, labels, "train", step).noise
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self._jitted = tf.function(self._noise_of, jit_compile=True)
    with two.scope():
        network = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(),
                                    keras.layers.Dense(3)])
        chunk = options.get("noise_chunk")
        trainer = Watching(network, objectives.Gaussian(), sigma=1.0, num_noise=4,
                           noise_chunk=chunk)
        trainer.compile(optimizer=SGD(0.1), jit_compile="jit" in options)
    checkpoints.Checkpoints(trainer, pathlib.Path(sys.argv[1]))
    data = iter(distribution.share_batches(two, lambda step, share: batches.epoch_batches(
        split, batch_size=BATCH, seed=2, share=share), 0))
    step = tf.function(lambda: two.run(trainer.train_step, args=(next(data),))["noise"])
    drawn = [noise.numpy() for _ in range(2) for noise in two.experimental_local_results(step())]
    assert [noise.shape for noise in drawn] == [(4, 4, *SHAPE)] * 4
    flat = np.concatenate(drawn).ravel()
    assert len(np.unique(flat)) > 0.99 * len(flat), options
print("equal")
"""

UNEQUAL = """
# 9 images in batches of 4: of the last one, the second replica gets none.
images, labels = split.take(range(9))
pairs = tf.data.Dataset.from_tensor_slices((images, labels, np.linspace(0, 2, 9))).batch(4)

class Fixed(SmoothedTrainer):
    def draw(self, images, labels, stream, step, copies=None):
        batch = super().draw(images, labels, stream, step, copies)
        return batch._replace(noise=tf.sin(50 * images[:, tf.newaxis]) + 0 * batch.noise)

def made(strategy, objective, extra=()):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        network = keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), *extra,
                                    keras.layers.Dense(3)])
        trainer = Fixed(network, objective, sigma=0.5, num_noise=2)
        trainer.compile(optimizer=SGD(0.3, momentum=0.9))
    return trainer

results = []
for strategy in (one, two):
    trainer = made(strategy, objectives.Macer(sigma=0.5, weight=0.5, beta=2.0))
    logs = trainer.fit(pairs, epochs=2, verbose=0).history
    logs |= trainer.evaluate(pairs, verbose=0, return_dict=True)
    results.append((logs, [v.numpy() for v in trainer.network.variables]))
(expected, weights), (found, others) = results
for a, b in zip(weights, others, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
assert found.keys() == expected.keys()
for name in expected:
    np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, err_msg=name)
print("equal")
"""

FINITE = """
for name in NAMES:
    few = {"steps": 1} if "steps" in objectives.options(name) else {}
    few |= {"sigma": 0.5} if name == "macer" else {}
    trainer = made(two, objectives.compose(name, **few), [keras.layers.BatchNormalization()])
    logs = trainer.fit(pairs, verbose=0).history | trainer.evaluate(
        pairs, verbose=0, return_dict=True)
    assert all(np.isfinite(value).all() for value in logs.values()), (name, logs)
    for variable in trainer.network.variables:
        first, second = (v.numpy() for v in two.experimental_local_results(variable.value))
        assert np.isfinite(first).all(), (name, variable.path)
        np.testing.assert_array_equal(first, second)
print("equal")
"""

RESUMED = """
class Killed(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 5:
            raise KeyboardInterrupt

def made(policy, objective, seed=0, strategy=two, **options):
    keras.utils.set_random_seed(seed)
    with strategy.scope():
        with precision.policy(policy):
            network = keras.Sequential([
                keras.Input(SHAPE), keras.layers.Flatten(), keras.layers.Dense(4),
                keras.layers.BatchNormalization(momentum=0.5), keras.layers.Dense(3)])
        trainer = SmoothedTrainer(network, objective, sigma=0.5, num_noise=2, **options)
        trainer.compile(optimizer=SGD(0.1, momentum=0.9))
    return trainer

cases = {
    "attack": ("float32", objectives.SmoothAdv(steps=2, epsilon=0.5), {}),
    "chunks": ("mixed_float16", objectives.Macer(sigma=0.5, weight=1.0), {"noise_chunk": 1}),
}
for name, (policy, objective, options) in cases.items():
    whole = made(policy, objective, **options)
    assert not run(whole, f"{sys.argv[1]}/{name}_whole")
    root = f"{sys.argv[1]}/{name}"
    try:
        run(made(policy, objective, **options), root, callbacks=[Killed()])
    except KeyboardInterrupt:
        pass
    resumed = made(policy, objective, seed=9, **options)
    assert run(resumed, root)
    for a, b in zip(values(whole), values(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
try:
    run(made("float32", cases["attack"][1], strategy=one), f"{sys.argv[1]}/attack")
except UserError as error:
    assert "was trained on 2 devices, here are 1" in str(error), error
    print("equal")
"""

COMMAND = """
from tfmacer import train
flags = ["--dataset=my_parts:digits", "--network=my_parts:network", "--sigma=0.25", "--lambda=1",
         "--num_noise=2", "--batch_size=10", "--epochs=2", "--distribution=mirrored",
         "--certify_every=2", "--certify_examples=6", f"--run_dir={sys.argv[1]}/run"]
assert train.main([*flags, "--batch_size=5"]) == 1
assert train.main(flags) == 0
from tfmacer.votes import local
assert local.from_run(f"{sys.argv[1]}/run").logits(np.zeros((2, 4, 4, 1), "f")).shape == (2, 3)
print("equal")
"""


def _environment(folder, **extra):
    (folder / "my_parts.py").write_text(MODULE)
    return os.environ | {"PYTHONPATH": f"{ROOT}:{folder}"} | extra


def test_two_devices_train_as_one_with_noise_of_their_own(tmp_path):
    """And a device that gets no image of a batch counts nothing."""
    _run(AS_ONE + "CASES = [{}]\n" + NOISE + UNEQUAL + "NAMES = ['macer']\n" + FINITE, tmp_path)


@pytest.mark.slow
def test_no_objective_breaks_on_a_device_without_images(tmp_path):
    _run(UNEQUAL + "NAMES = objectives.OBJECTIVES\n" + FINITE, tmp_path)


@pytest.mark.slow
def test_their_noise_differs_in_chunks_and_under_xla(tmp_path):
    _run('CASES = [{"noise_chunk": 2}, {"jit": True}]\n' + NOISE, tmp_path)


@pytest.mark.slow
def test_two_devices_that_were_killed_go_on_bit_for_bit(tmp_path):
    """Attacks, which see the moving statistics; chunks, and the scale of float16."""
    _run(RESUMED, tmp_path)


@pytest.mark.slow
def test_the_command_on_two_devices(tmp_path):
    error = _run(COMMAND, tmp_path)
    assert "--batch_size=5 must be divisible by the 2 devices" in error
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert rows[0].split(",")[-3:] == ["val_certified_accuracy", "val_acr", "seconds"]
    assert rows[1].split(",")[-3:-1] == ["", ""]
    assert 0 <= float(rows[2].split(",")[-3]) <= 1


def _run(script, tmp_path):
    answer = subprocess.run(
        [sys.executable, "-c", SETUP + script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(tmp_path),
    )
    assert answer.stdout.endswith("equal\n"), answer.stderr[-3000:]
    return answer.stderr


def _ports(count):
    """Free ones; another process may take one before it is used, which would be seen."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class _Machines:
    """Two processes that train together, each started in a folder of its own."""

    def __init__(self, folder, *flags):
        addresses = [f"127.0.0.1:{port}" for port in _ports(2)]
        self.processes = []
        for index in range(2):
            home = folder / f"machine{index}"
            home.mkdir(exist_ok=True)
            config = {
                "cluster": {"worker": addresses},
                "task": {"type": "worker", "index": index},
            }
            self.processes.append(
                subprocess.Popen(
                    [
                        *(sys.executable, "-m", "tfmacer.train", "--dataset=my_parts:digits"),
                        *("--network=my_parts:network", "--sigma=0.25", "--lambda=1"),
                        *("--num_noise=2", "--batch_size=10", "--checkpoint_every=3", *flags),
                    ],
                    env=_environment(folder, TF_CONFIG=json.dumps(config)),
                    cwd=home,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def results(self):
        answers = [process.communicate(timeout=500) for process in self.processes]
        for process, (_, error) in zip(self.processes, answers, strict=True):
            assert process.returncode == 0, error[-3000:]
        return [output for output, _ in answers]


def _curve(root):
    return [row.rpartition(",")[0] for row in (root / "metrics.csv").read_text().splitlines()]


@pytest.mark.slow
def test_two_machines_stop_together_go_on_and_write_once(tmp_path):
    """SIGTERM comes to the second alone; both stop after the same step, and go on to the end."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert _Machines(tmp_path, f"--run_dir={whole}", "--epochs=12").results() == [
        f"{whole}: done\n",
        "",
    ]
    machines = _Machines(tmp_path, f"--run_dir={run}", "--epochs=12")
    deadline = time.monotonic() + 120
    while not (run / "metrics.csv").is_file() or len(_curve(run)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    machines.processes[1].send_signal(signal.SIGTERM)
    said = machines.results()
    assert "stopped after step" in said[0]
    assert said[1] == ""
    assert not (run / "smoothing.json").exists()
    said = _Machines(tmp_path, f"--run_dir={run}", "--epochs=12").results()
    assert "going on after step" in said[0]
    assert (run / "smoothing.json").read_text() == (whole / "smoothing.json").read_text()
    assert _curve(run) == _curve(whole)
    # The second machine has left nothing behind, neither where it ran nor beside the first one's.
    assert list((tmp_path / "machine1").iterdir()) == []
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {
        *(f"step-{step}.{end}" for step in (45, 48) for end in ("index", "data-00000-of-00001")),
    }
