"""The command, in process: its flags, its files, and taking up what was left."""

import csv
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from tfmacer import certify, train
from tfmacer.records.runs import RunDirectory
from tfmacer.votes import devices, digests, local

ROOT = pathlib.Path(__file__).parents[2]

MODULE = """
import keras
import numpy as np

def digits(split):
    rng = np.random.default_rng(split == "test")
    labels = rng.integers(0, 3, 40)
    images = rng.integers(0, 100, (40, 4, 4, 1)).astype(np.uint8)
    images[np.arange(40), labels, labels] = 255
    return images, labels, 3

def network(shape, num_classes):
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(),
                             keras.layers.Dense(num_classes)])
"""


def _tiny(folder):
    """Flags of a run of two epochs of four steps, a second or two long."""
    (folder / "my_parts.py").write_text(MODULE)
    return [
        f"--run_dir={folder / 'run'}",
        "--dataset=my_parts:digits",
        "--network=my_parts:network",
        "--sigma=0.25",
        "--lambda=1",
        "--num_noise=2",
        "--batch_size=10",
        "--epochs=2",
        "--checkpoint_every=3",
    ]


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    return _tiny(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        assert train.main(_tiny(folder)) == 0
    return folder / "run"


@pytest.fixture
def finished(tiny, trained, tmp_path):
    """Flags of a run that has ended already."""
    shutil.copytree(trained, tmp_path / "run")
    return tiny


def _error(capsys, arguments):
    status = train.main(arguments)
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    return status, captured.err


def test_a_run_writes_all_that_is_promised(tiny, tmp_path, capsys):
    assert train.main(tiny) == 0
    run = RunDirectory(tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[:2] for line in lines] == [["epoch", "1/2"], ["epoch", "2/2"]]
    smoothing = run.read_smoothing()
    assert (smoothing.sigma, smoothing.num_classes, smoothing.input_shape) == (0.25, 3, (4, 4, 1))
    assert (smoothing.dataset, smoothing.objective) == ("my_parts:digits", "macer")
    assert set(smoothing.versions) >= {"tensorflow", "keras", "tfmacer"}
    network = keras.models.load_model(run.model)
    assert digests.network_digest(run.model, network) == smoothing.model_digest
    with open(run.metrics, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["4", "8"]
    assert all(0 <= float(row["val_accuracy"]) <= 1 for row in rows)
    assert any(run.tensorboard.iterdir())
    assert any(run.checkpoints.iterdir())
    votes = local.from_run(run.root)
    assert votes.logits(np.zeros((2, 4, 4, 1), np.float32)).shape == (2, 3)


def test_flags_txt_says_everything_and_works_as_a_flagfile(tiny, tmp_path, capsys):
    assert train.main(tiny) == 0
    written = (tmp_path / "run" / "flags.txt").read_text()
    for line in ("--gamma=8.0", "--beta=16.0", "--lambda_schedule=constant", "--augmentation=none"):
        assert line in written.splitlines()
    again = [f"--flagfile={tmp_path / 'run' / 'flags.txt'}"]
    other = tmp_path / "other"
    assert train.main([*again, f"--run_dir={other}"]) == 0
    first, second = (RunDirectory(root) for root in (tmp_path / "run", other))
    assert first.read_smoothing() == second.read_smoothing()
    capsys.readouterr()
    assert train.main(again) == 0
    assert "finished already" in capsys.readouterr().out


OWN = """
import keras, numpy as np

class Centre(keras.layers.Layer):
    def call(self, x):
        return 2 * x - 1

@keras.saving.register_keras_serializable("own_parts")
class Registered(Centre):
    pass

def images(split):
    rng = np.random.default_rng(split == "train")
    return rng.integers(0, 256, (32, 4, 4, 5), np.uint8), rng.integers(0, 2, 32)

def _network(shape, k, *layers):
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(), *layers])

def unregistered(shape, k):
    return _network(shape, k, Centre(), keras.layers.Dense(k))

def a_lambda(shape, k):
    return _network(shape, k, keras.layers.Lambda(lambda x: 2 * x - 1), keras.layers.Dense(k))

def softmax(shape, k):
    return _network(shape, k, keras.layers.Dense(k), keras.layers.Softmax())

def registered(shape, k):
    return _network(shape, k, Registered(), keras.layers.Dense(k))

def subclassed(shape, k):
    class Mine(keras.Model):
        pass
    return Mine()
"""


@pytest.fixture
def own(tiny, tmp_path, monkeypatch):
    """Flags of a run on images of five channels, without a network; its classes are forgotten."""
    (tmp_path / "own_parts.py").write_text(OWN)
    yield [*tiny, "--dataset=own_parts:images"]
    _forget()


def _forget():
    """As in a process that has not imported the module."""
    sys.modules.pop("own_parts", None)
    keras.saving.get_custom_objects().pop("own_parts>Registered", None)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("unregistered", "'Centre' of the module 'own_parts' must be registered"),
        ("a_lambda", "could not be loaded once it was saved: .*`Lambda`"),
        ("softmax", "ends in a softmax; remove it, logits are expected"),
        ("subclassed", r"maps None to None, must map \(None, 4, 4, 5\) to \(None, 2\)"),
    ],
)
def test_a_network_that_is_no_good_is_found_before_the_first_step(
    own, tmp_path, capsys, network, message
):
    status, error = _error(capsys, [*own, f"--network=own_parts:{network}"])
    assert status == 1
    assert re.search(f"error: --network=own_parts:{network}: .*{message}", error)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock"}


def test_layers_of_ones_own_are_imported_where_that_is_asked_for(
    own, tmp_path, monkeypatch, capsys
):
    """Images of five channels, of which no picture can be drawn, end no training either."""
    from export import saved_model

    assert train.main([*own, "--network=own_parts:registered"]) == 0
    assert "TensorBoard: no pictures of 5 channels" in capsys.readouterr().err
    run = tmp_path / "run"
    _forget()
    arguments = [f"--run_dir={run}", f"--export_dir={tmp_path / 'out'}"]
    assert saved_model.main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "it has 'Registered' of the module 'own_parts', which nothing imported" in line
    assert "--import=MODULE" in line
    assert saved_model.main([*arguments, "--import=no_such_module"]) == 1
    assert "--import=no_such_module: cannot be imported: No module" in capsys.readouterr().err
    assert saved_model.main([*arguments, "--import=own_parts"]) == 0
    plan = [f"--run_dir={run}", "--dataset=own_parts:images", f"--out={tmp_path / 'log.tsv'}"]
    plan += ["--num_examples=2", "--n=300"]
    _forget()
    monkeypatch.setattr(devices, "use_threads", lambda *_: None)
    capsys.readouterr()
    assert certify.main(plan) == 1
    assert "--import=MODULE" in capsys.readouterr().err
    assert certify.main([*plan, "--import=own_parts"]) == 0


def test_what_a_run_imports_is_recorded(own, tmp_path):
    assert train.main([*own, "--network=own_parts:registered", "--import=own_parts"]) == 0
    assert "--import=own_parts" in (tmp_path / "run" / "flags.txt").read_text().splitlines()


def test_a_run_records_its_noise_family(tiny, tmp_path):
    assert train.main([*tiny, "--noise_family=rounded_gaussian"]) == 0
    source = local.from_run(tmp_path / "run")
    assert source.smoothing.noise_family == "rounded_gaussian"
    assert train.main(tiny) == 1


ATTACKED = [
    "--objective=smoothadv_consistency",
    "--attack_steps=2",
    "--epsilon=0.3",
    "--epsilon_warmup_epochs=1.5",
]


OPTIONS = [
    [],
    ATTACKED,
    ["--noise_chunk=1", "--precision=mixed_float16", "--clip_norm=1"],
    pytest.param(["--precision=mixed_bfloat16", "--jit"], marks=pytest.mark.slow),
]


@pytest.mark.parametrize("extra", OPTIONS)
def test_an_unfinished_run_is_taken_up_and_ends_the_same(
    tiny, tmp_path, capsys, monkeypatch, extra
):
    tiny = [*tiny, *extra]
    whole = tmp_path / "whole"
    assert train.main([*tiny, f"--run_dir={whole}"]) == 0
    from tfmacer.training import loop

    original = loop.step_function

    def killed(trainer):
        step = original(trainer)

        def at_the_sixth(iterator):
            if int(trainer.optimizer.iterations) == 5:
                raise KeyboardInterrupt
            return step(iterator)

        return at_the_sixth

    with monkeypatch.context() as patch:
        patch.setattr(loop, "step_function", killed)
        assert train.main(tiny) == 130
    assert not (tmp_path / "run" / "smoothing.json").exists()
    capsys.readouterr()
    assert train.main(tiny) == 0
    assert "going on after step 3" in capsys.readouterr().out
    found, expected = (RunDirectory(root) for root in (tmp_path / "run", whole))
    assert found.read_smoothing() == expected.read_smoothing()
    curves = []
    for run in (found, expected):
        with open(run.metrics, newline="") as file:
            curves.append([row[:-1] for row in csv.reader(file)])
    assert curves[0] == curves[1]


@pytest.mark.parametrize("lost", [(), ("step-3",), ("step-3", "step-6", "step-8")])
def test_a_damaged_checkpoint_is_said_and_the_one_before_taken(finished, tmp_path, capsys, lost):
    """The network is then the one of an undisturbed run; where none is whole, nothing starts."""
    checkpoints = tmp_path / "run" / "checkpoints"
    assert {path.stem for path in checkpoints.iterdir()} == {"step-6", "step-8"}
    newest = checkpoints / "step-8.data-00000-of-00001"
    newest.write_bytes(newest.read_bytes()[:50])
    for name in lost:
        for path in checkpoints.glob(f"{name}.*"):
            path.unlink()
    before = (tmp_path / "run" / "smoothing.json").read_bytes()
    capsys.readouterr()
    if "step-8" in lost:
        status, error = _error(capsys, [*finished, "--epochs=3"])
        assert status == 1
        assert "holds a finished run without checkpoints, which cannot go on" in error
        assert (tmp_path / "run" / "smoothing.json").read_bytes() == before
        return
    whole = tmp_path / "whole"
    assert train.main([*finished, f"--run_dir={whole}", "--epochs=3"]) == 0
    capsys.readouterr()
    assert train.main([*finished, "--epochs=3"]) == 0
    said = capsys.readouterr().out.splitlines()[0]
    assert "run: going on after step 6; step-8 is damaged: " in said
    found, expected = (RunDirectory(root) for root in (tmp_path / "run", whole))
    assert found.read_smoothing() == expected.read_smoothing()


def test_no_run_goes_on_from_anothers_checkpoint(finished, tmp_path, capsys):
    other = tmp_path / "other"
    assert train.main([*finished, f"--run_dir={other}", "--seed=5"]) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    shutil.copytree(other / "checkpoints", tmp_path / "run" / "checkpoints")
    capsys.readouterr()
    status, error = _error(capsys, [*finished, "--epochs=3"])
    assert status == 1
    assert re.search(
        r"run/checkpoints/step-8 is of a run of other flags: .*--seed was 5, is \d+; give", error
    )


DAMAGED_RUNS = {
    "checkpoints": (
        lambda run: [path.write_bytes(b"") for path in run.checkpoints.glob("*.index")],
        "none of the checkpoints is whole (step-8 is damaged: ",
    ),
    "flags lost": (lambda run: run.flags.unlink(), "holds a run without flags.txt"),
    "flags torn": (lambda run: run.flags.write_text("--sigma=0.25\n--netw"), "cannot be read"),
    "flags no text": (lambda run: run.flags.write_bytes(b"\xff\xfe"), "flags.txt: cannot be read"),
    "metrics no text": (lambda run: run.metrics.write_bytes(b"\xff\n"), "metrics.csv: cannot be"),
    "metrics of another kind": (lambda run: run.metrics.write_text("a,b\n1,2\n"), "'step'"),
    "a step that is none": (
        lambda run: run.metrics.write_text(run.metrics.read_text().replace(",4,", ",4x,", 1)),
        "step is '4x', not a whole number",
    ),
    "a step beyond all": (
        lambda run: run.metrics.write_text(run.metrics.read_text().replace(",8,", f",{8:09000},")),
        "metrics.csv: cannot be read: ValueError(\"step is '0000",
    ),
    "flags without a value": (
        lambda run: run.flags.write_text(run.flags.read_text() + "--nodeterministic=3\n"),
        "flags.txt: cannot be read: --nodeterministic=3",
    ),
    "flags beyond all": (
        lambda run: run.flags.write_text(run.flags.read_text() + f"--lr_decay_epochs={9:09000}\n"),
        "flags.txt: cannot be read: --lr_decay_epochs must be",
    ),
}


@pytest.mark.parametrize("name", DAMAGED_RUNS)
def test_a_damaged_run_is_refused_in_one_line_and_left_as_it_is(finished, tmp_path, capsys, name):
    damage, message = DAMAGED_RUNS[name]
    run = RunDirectory(tmp_path / "run")
    damage(run)
    capsys.readouterr()
    status, error = _error(capsys, [*finished, "--epochs=3"])
    assert status == 1
    assert message in error
    assert run.smoothing.is_file()


def test_starting_again_is_said(finished, tmp_path, capsys):
    """A run that was killed before its first checkpoint."""
    run = RunDirectory(tmp_path / "run")
    run.smoothing.unlink()
    for path in run.checkpoints.iterdir():
        path.unlink()
    capsys.readouterr()
    assert train.main(finished) == 0
    assert "run: starting again, there is no checkpoint yet" in capsys.readouterr().out


def test_precision_is_part_of_what_is_certified_and_exported(tiny, tmp_path):
    """The votes of the run and of its export are those of the network in bfloat16."""
    from export import saved_model
    from tfmacer.votes.source import row_seed

    assert train.main([*tiny, "--precision=mixed_bfloat16"]) == 0
    run = RunDirectory(tmp_path / "run")
    assert run.read_smoothing().precision == "mixed_bfloat16"
    network = keras.models.load_model(run.model)
    assert network.layers[-1].compute_dtype == "bfloat16"
    assert keras.config.dtype_policy().name == "float32"
    assert saved_model.main([f"--run_dir={run.root}", f"--export_dir={tmp_path / 'out'}"]) == 0
    images = np.random.default_rng(0).random((2, 4, 4, 1)).astype(np.float32)
    seeds = np.array([np.int64(row_seed(0, "estimate", i)) for i in range(2)]).astype(np.int32)
    rows = (images, seeds, np.zeros(2, np.int32), np.full(2, 600, np.int32))
    found = [source.sample(*rows) for source in (
        local.from_run(run.root), local.SavedModelVotes(tmp_path / "out"))]  # fmt: skip
    np.testing.assert_array_equal(found[0].counts, found[1].counts)
    np.testing.assert_allclose(found[0].sums, found[1].sums, rtol=1e-9)
    assert found[0].counts.sum(axis=1).tolist() == [600, 600]


def test_a_few_test_images_are_certified_on_the_way(tiny, tmp_path, capsys):
    arguments = [*tiny, "--sigma=0.1", "--epochs=4", "--learning_rate=0.3", "--certify_every=2"]
    assert train.main([*arguments, "--certify_examples=12", "--eval_examples=0"]) == 0
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["val_acr"]) for row in rows] == [False, True, False, True]
    assert [row["val_accuracy"] for row in rows] == [""] * 4
    # The network learns its three classes, whose images differ in one pixel.
    assert float(rows[3]["val_certified_accuracy"]) > 0.5
    assert 0 < float(rows[3]["val_acr"]) < 0.31
    lines = capsys.readouterr().err.splitlines()
    assert ["ACR" in line for line in lines] == [False, True, False, True]
    assert "--certify_every=2" in (tmp_path / "run" / "flags.txt").read_text()


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ("{", "is no description of a cluster"),
        ('{"cluster": {"worker": ["a:1", "b:1"]}}', "is no description of a cluster"),
        (
            '{"cluster": {"worker": ["a:1"], "ps": ["b:1"]}, "task": {"type": "ps", "index": 0}}',
            "TF_CONFIG must name chief and worker tasks only, got ['ps']",
        ),
        ("", "--distribution=multi_worker needs TF_CONFIG"),
    ],
)
def test_clusters_that_cannot_be(tiny, capsys, monkeypatch, cluster, message):
    monkeypatch.setenv("TF_CONFIG", cluster)
    status, error = _error(capsys, [*tiny, "--distribution=multi_worker"])
    assert status == 1
    assert message in error


def test_more_epochs_go_on_and_fewer_are_refused(finished, tmp_path, capsys):
    capsys.readouterr()
    assert train.main([*finished, "--epochs=3", "--checkpoint_every=2"]) == 0
    assert "going on after step 8" in capsys.readouterr().out
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["4", "8", "12"]
    status, error = _error(capsys, finished)
    assert status == 1
    assert "--epochs was 3, is 2" in error


def test_a_part_of_the_data_is_trained_on(tiny, tmp_path):
    (tmp_path / "parts.py").write_text(
        """
from my_parts import digits

def halves(split):
    images, labels, classes = digits(split)
    half = {"train[:50%]": slice(20), "test": slice(40)}[split]
    return images[half], labels[half], classes
"""
    )
    assert train.main([*tiny, "--dataset=parts:halves", "--train_split=train[:50%]"]) == 0
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2", "4"]


def test_flags_of_a_run_lead_to_no_other_file(tiny, tmp_path, capsys):
    (tmp_path / "secret").write_text("--sigma=9\n")
    run = RunDirectory(tmp_path / "run")
    run.root.mkdir()
    run.flags.write_text(f"--sigma=0.25\n--flagfile={tmp_path / 'secret'}\n")
    status, line = _error(capsys, tiny)
    assert status == 1
    assert "flags.txt: cannot be read: '--flagfile=" in line
    assert line.endswith("leads to another file\n")


def test_other_flags_are_refused_with_the_difference(finished, tmp_path, capsys):
    capsys.readouterr()
    before = (tmp_path / "run" / "model.keras").read_bytes()
    status, error = _error(capsys, [*finished, "--sigma=0.5", "--seed=3"])
    assert status == 1
    assert "--seed was 0, is 3; --sigma was 0.25, is 0.5" in error
    assert (tmp_path / "run" / "model.keras").read_bytes() == before


def test_the_seed_decides_everything(tiny, trained, tmp_path):
    digests = [RunDirectory(trained).read_smoothing().model_digest]
    for name, seed in (("same", 0), ("other", 2)):
        assert train.main([*tiny, f"--run_dir={tmp_path / name}", f"--seed={seed}"]) == 0
        digests.append(RunDirectory(tmp_path / name).read_smoothing().model_digest)
    assert digests[0] == digests[1] != digests[2]


def test_a_warm_start_begins_with_the_weights_of_another_run(finished, tmp_path):
    rest = ["--learning_rate=1e-30", "--momentum=0", "--weight_decay=0", "--seed=5"]
    for source in (tmp_path / "run", tmp_path / "run" / "model.keras"):
        warm = tmp_path / f"warm_{source.name}"
        assert train.main([*finished, *rest, f"--run_dir={warm}", f"--init_from={source}"]) == 0
        weights = [keras.models.load_model(r / "model.keras").get_weights() for r in (
            tmp_path / "run", warm)]  # fmt: skip
        for found, expected in zip(*weights, strict=True):
            np.testing.assert_array_equal(found, expected)


def test_two_processes_never_train_in_one_directory(tiny, tmp_path, capsys):
    import filelock

    (tmp_path / "run").mkdir()
    with filelock.FileLock(tmp_path / "run" / ".lock"):
        status, error = _error(capsys, tiny)
    assert status == 1
    assert "another process is training there" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sigma=-1"], "--sigma must be positive and finite, got -1.0"),
        (["--sigma=0"], "--sigma must be positive"),
        (["--sigma=nan"], "--sigma must be positive"),
        (["--sigma=a"], "sigma"),
        (["--gamma=0"], "--gamma must be positive"),
        (["--gamma=-8"], "--gamma must be positive"),
        (["--lambda=-1"], "lambda"),
        (["--epochs=0"], "epochs"),
        (["--batch_size=0"], "batch_size"),
        (["--batch_size=41"], "--batch_size=41 exceeds the 40 images"),
        (["--num_noise=0"], "num_noise"),
        (["--learning_rate=0"], "--learning_rate must be positive"),
        (["--clip_norm=0"], "--clip_norm must be positive"),
        (["--noise_chunk=0"], "noise_chunk"),
        (["--num_noise=4", "--noise_chunk=3"], "noise_chunk must divide num_noise=4, got 3"),
        (["--precision=float16"], "precision"),
        (["--distribution=tpu"], "distribution"),
        (["--jit", "--deterministic"], "--jit goes without --deterministic"),
        (["--certify_every=-1"], "certify_every"),
        (["--noise_family=cauchy"], "noise_family must be one of gaussian.*got 'cauchy'"),
        (["--noise_params=k"], "--noise_params must be NAME=NUMBER,..., got 'k'"),
        (["--noise_params=k=3"], "noise_params of gaussian must be empty, got {'k': 3.0}"),
        (["--lr_decay_epochs=5,x"], "--lr_decay_epochs must be positive integers, got '5,x'"),
        (["--lambda_schedule=deferred"], "needs --lr_decay_epochs"),
        (["--lambda_schedule=linear"], "--lambda_warmup_epochs goes with"),
        (["--lambda_warmup_epochs=2"], "--lambda_warmup_epochs goes with"),
        (["--objective=mace"], "--objective must be one of gaussian, macer.*got 'mace'"),
        (["--objective=gaussian"], "--lambda has no meaning for --objective=gaussian"),
        (["--eta=0.1"], "--eta has no meaning for --objective=macer"),
        (["--consistency_loss=l2"], "consistency_loss"),
        (["--objective=smoothadv"], "--lambda has no meaning for --objective=smoothadv"),
        (["--objective=smoothmix", "--attack=pgd"], "--attack has no meaning for"),
        (["--epsilon=1"], "--epsilon has no meaning for --objective=macer"),
        (["--epsilon=-1"], "--epsilon=-1: -1.0 is not a non-negative"),
        (["--epsilon_warmup_epochs=nan"], "--epsilon_warmup_epochs must be finite"),
        (["--attack=fgsm"], "attack"),
        (["--attack_code=jeong"], "--attack_code has no meaning for --objective=macer"),
        (["--attack_steps=0"], "attack_steps"),
        (["--attack_step_size=0"], "--attack_step_size must be positive"),
        (["--dataset=mnist5k", "--train_split=tain"], "must be train or test for mnist5k.*'tain'"),
        (["--network=lennet"], "--network must be one of"),
        (["--network=lenet"], "lenet cannot take images of"),
        (["--dataset=no_such_dataset"], "'no_such_dataset' cannot be loaded"),
        (["--dataset=folder:/nonexistent"], "is not a directory"),
        (["--augmentation=flip"], "--augmentation must be one of"),
        (["--init_from=nowhere"], "--init_from=nowhere: cannot be used"),
        (["--run_dir=/dev/null/run"], "--run_dir=/dev/null/run cannot be written"),
        (["--run_dir=runs/{sigmas}"], "'sigmas' is no flag"),
        (["--no_such_flag=1"], "no_such_flag"),
        (["stray"], "stray"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tiny, tmp_path, capsys, arguments, message):
    status, error = _error(capsys, [*tiny, *arguments])
    assert status in (1, 2)
    assert error.startswith("error: ")
    assert re.search(message, error)
    assert not (tmp_path / "run" / "flags.txt").exists()


@pytest.mark.parametrize("name", ["run_dir", "dataset", "sigma"])
def test_what_must_be_given(tiny, capsys, name):
    status, error = _error(capsys, [a for a in tiny if not a.startswith(f"--{name}=")])
    assert status == 1
    assert f"--{name} must be given" in error


@pytest.mark.slow
def test_a_run_that_is_killed_ends_as_one_that_is_not(tiny, tmp_path):
    """SIGKILL in earnest, at moments that nothing chose, on an operating system's process."""
    command = [sys.executable, "-m", "tfmacer.train", *tiny, "--deterministic", "--epochs=60"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}

    def start(root):
        return subprocess.Popen([*command, f"--run_dir={root}"], env=environment, cwd=tmp_path)

    assert start(tmp_path / "whole").wait() == 0
    for _ in range(4):
        process = start(tmp_path / "run")
        # Kill once it has got a few epochs further than it was.
        seen = _rows(tmp_path / "run")
        while process.poll() is None and _rows(tmp_path / "run") < seen + 8:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(tmp_path / "run").wait() == 0
    found, expected = (RunDirectory(tmp_path / name) for name in ("run", "whole"))
    assert found.read_smoothing() == expected.read_smoothing()
    curves = []
    for run in (found, expected):
        with open(run.metrics, newline="") as file:
            curves.append([row[:-1] for row in csv.reader(file)])
    assert len(curves[0]) == 61
    assert curves[0] == curves[1]
    assert json.loads(found.smoothing.read_text())["dataset"] == "my_parts:digits"


def _rows(root):
    path = root / "metrics.csv"
    return path.read_text().count("\n") if path.is_file() else 0
