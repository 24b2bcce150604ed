"""What is taken for a flag that is left open, in the flag files and by itself."""

import pathlib

import pytest

from tfmacer import train
from tfmacer.training import build, defaults
from tfmacer.training.config import TrainConfig

ROOT = pathlib.Path(__file__).parents[3]
FLAG_FILES = sorted(path.name for path in ROOT.glob("*.flags"))


def _resolved(arguments, steps=10):
    train.FLAGS.unparse_flags()
    train.FLAGS(["", *arguments])
    config = defaults.resolve(TrainConfig.from_flags(train.FLAGS))
    return (
        pathlib.Path(config.run_dir),
        build.objective(config, steps),
        config.as_flags().flag_values_dict(),
    )


@pytest.mark.parametrize("file", FLAG_FILES)
@pytest.mark.parametrize("objective", ["gaussian", "macer"])
def test_flag_files_work_alone_and_for_the_baseline(file, objective, monkeypatch):
    monkeypatch.chdir(ROOT)
    root, _, values = _resolved([f"--flagfile={file}", f"--objective={objective}"])
    assert root.parts[0] == "runs"
    assert root.name.endswith(f"_{objective}_{values['sigma']}")
    text = (ROOT / file).read_text()
    assert text.startswith("# ")
    assert f"python -m tfmacer.train --flagfile={file}" in text


@pytest.mark.parametrize(
    ("file", "sigma", "expected"),
    [
        ("mnist.flags", 0.5, [0.0, 16.0]),
        ("mnist.flags", 1.0, [0.0, 6.0]),
        ("cifar.flags", 0.25, [12.0, 12.0]),
        ("cifar.flags", 0.5, [4.0, 4.0]),
        ("cifar.flags", 1.0, [0.0, 12.0]),
        ("svhn.flags", 0.5, [12.0, 12.0]),
        ("imagenet.flags", 1.0, [3.0, 3.0]),
    ],
)
def test_one_flag_chooses_sigma_and_lambda_follows(file, sigma, expected, monkeypatch):
    """At the first step, and once the learning rate has fallen."""
    monkeypatch.chdir(ROOT)
    root, objective, values = _resolved([f"--flagfile={file}", f"--sigma={sigma}"])
    fallen = 10 * int(values["lr_decay_epochs"][0])
    found = [float(objective.weight_at(step)) for step in (0, fallen)]
    assert found == expected
    assert objective.sigma == sigma
    assert root.name.endswith(f"_macer_{sigma}")


@pytest.mark.parametrize(
    ("file", "sigma", "epsilon", "steps", "copies", "weight"),
    [
        ("mnist.flags", 0.5, 1.0, 10, 4, 1.0),
        ("cifar.flags", 0.25, 255 / 256, 10, 4, 2.0),
        ("cifar.flags", 1.0, 2.0, 10, 2, 1.0),
        ("imagenet.flags", 0.5, 255 / 256, 1, 1, None),
    ],
)
def test_smoothadv_as_published(file, sigma, epsilon, steps, copies, weight, monkeypatch):
    """Alone and under consistency; its epsilon grows over the first ten epochs, here of ten steps.

    The table of the best models in Jeong and Shin's supplementary material, and their MNIST ones.
    """
    monkeypatch.chdir(ROOT)
    for name in ("smoothadv", "smoothadv_consistency"):
        if weight is None and name == "smoothadv_consistency":
            continue
        _, found, values = _resolved(
            [f"--flagfile={file}", f"--objective={name}", f"--sigma={sigma}"]
        )
        assert [float(found.epsilon(i)) for i in (0, 9, 50, 100, 999)] == pytest.approx(
            [0.1 * epsilon, 0.1 * epsilon, 0.6 * epsilon, epsilon, epsilon]
        )
        assert found.code == ("salman" if name == "smoothadv" else "jeong")
        assert (found.attack, found.steps, values["num_noise"]) == ("pgd", steps, copies)
        expected = 0.0 if name == "smoothadv" else weight
        assert float(found.weight_at(0)) == expected


@pytest.mark.parametrize(
    ("file", "sigma", "steps", "size", "copies"),
    [("mnist.flags", 0.25, 2, 1.0, 4), ("mnist.flags", 1.0, 8, 1.0, 4),
     ("cifar.flags", 0.25, 4, 0.5, 2), ("cifar.flags", 1.0, 4, 2.0, 2)],
)  # fmt: skip
def test_smoothmix_as_published(file, sigma, steps, size, copies, monkeypatch):
    monkeypatch.chdir(ROOT)
    arguments = [f"--flagfile={file}", "--objective=smoothmix", f"--sigma={sigma}"]
    _, found, values = _resolved(arguments)
    assert (found.steps, found.step_size, values["num_noise"]) == (steps, size, copies)
    assert [float(found.weight_at(i)) for i in (0, 50, 100, 999)] == [0.5, 3.0, 5.0, 5.0]
    assert float(found.epsilon(999)) == 0.0
    _, found, _ = _resolved([*arguments, "--lambda_schedule=constant"])
    assert float(found.weight_at(0)) == 5.0


def test_what_is_given_goes_before_what_is_published(monkeypatch):
    monkeypatch.chdir(ROOT)
    _, found, values = _resolved(
        ["--flagfile=cifar.flags", "--objective=smoothadv", "--epsilon=0.3", "--num_noise=7",
         "--attack=ddn", "--attack_steps=3", "--epsilon_warmup_epochs=0"]
    )  # fmt: skip
    assert float(found.epsilon(0)) == pytest.approx(0.3)
    assert (found.attack, found.steps, values["num_noise"]) == ("ddn", 3, 7)


def test_the_readmes_cifar_run_directory(monkeypatch):
    monkeypatch.chdir(ROOT)
    root, objective, values = _resolved(["--flagfile=cifar.flags"])
    assert root.as_posix() == "runs/cifar10_macer_0.25"
    assert (objective.gamma, objective.beta, values["num_noise"]) == (8.0, 16.0, 16)
