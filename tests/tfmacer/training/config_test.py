"""A configuration from Python: its checks, its text, and that it trains what the flags train."""

import dataclasses
import re
from pathlib import Path

import pytest

import tfmacer
from tfmacer import TrainConfig
from tfmacer.common.errors import UserError
from tfmacer.training.flags import fields_of

GIVEN = {"run_dir": "runs/x", "dataset": "mnist5k", "sigma": 0.5}


def test_fields_are_brought_to_one_form(tmp_path):
    config = TrainConfig(
        run_dir=tmp_path,
        dataset="mnist5k",
        sigma=1,
        lr_decay_epochs=[30, 60],
        noise_params={"k": 3},
    )
    assert config.run_dir == str(tmp_path)
    assert (config.sigma, type(config.sigma)) == (1.0, float)
    assert config.lr_decay_epochs == (30, 60)
    assert config.noise_params == {"k": 3.0}
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.sigma = 2.0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sigma", "a", "flag --sigma=a: could not convert string to float: 'a'"),
        ("sigma", 0, "--sigma must be positive and finite, got 0.0"),
        ("sigma", float("inf"), "--sigma must be positive and finite, got inf"),
        ("eta", float("nan"), "--eta must be finite, got nan"),
        ("eta", -1, "flag --eta=-1: -1.0 is not a non-negative number"),
        ("epochs", 1.5, "flag --epochs=1.5: invalid literal for int.*"),
        ("epochs", 0, "flag --epochs=0: 0 is not a positive integer"),
        ("momentum", 1.5, r"flag --momentum=1.5: 1.5 is not a number in the range \[0.*, 1.*\]"),
        ("attack", "fgsm", "flag --attack=fgsm: value should be one of <pgd|ddn>"),
        ("jit", "perhaps", "flag --jit=perhaps: .*"),
        ("lr_decay_epochs", ["5", "x"], "--lr_decay_epochs must be positive integers, got '5,x'"),
        ("lr_decay_epochs", [0], "--lr_decay_epochs must be positive integers, got '0'"),
        ("noise_params", ["k"], r"--noise_params must be NAME=NUMBER,\.\.\., got 'k'"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_accepted(field, value, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        TrainConfig(**GIVEN | {field: value})


def test_what_excludes_each_other_is_refused():
    with pytest.raises(UserError, match="--jit goes without --deterministic"):
        TrainConfig(**GIVEN, jit=True, deterministic=True)


EVERYTHING = {
    "lambda_": 0.1, "lambda_schedule": "linear", "lambda_warmup_epochs": 2.5, "num_noise": 3,
    "noise_params": {"k": 3.0, "exponent": 0.25}, "lr_decay_epochs": (2, 1), "nesterov": True,
    "import_": ("a", "b.c"), "clip_norm": 1e-30, "data_dir": "/data", "attack": "ddn",
}  # fmt: skip


@pytest.mark.parametrize("options", [{}, EVERYTHING])
def test_its_text_is_read_as_it_was_written(options):
    config = TrainConfig(**GIVEN, **options)
    assert TrainConfig.from_text(config.as_flags().flags_into_string(), Path("flags.txt")) == config


def test_lines_are_as_they_always_were():
    lines = TrainConfig(**GIVEN, **EVERYTHING).as_flags().flags_into_string().splitlines()
    for line in (
        "--sigma=0.5", "--lambda=0.1", "--lr_decay_epochs=2,1", "--noise_params=k=3,exponent=0.25",
        "--nesterov", "--nojit", "--import=a", "--import=b.c", "--clip_norm=1e-30",
    ):  # fmt: skip
        assert line in lines
    # What is left open is not written.
    assert not any(re.match("--(eta|augmentation|init_from)=", line) for line in lines)


def test_every_field_is_a_flag_with_a_default_or_required():
    fields = fields_of(TrainConfig)
    assert all(field.known["help"] for field in fields)
    for name in ("run_dir", "dataset", "sigma"):
        with pytest.raises(UserError, match=f"^--{name} must be given$"):
            TrainConfig(**GIVEN | {name: None})


def test_run_directories_are_named_by_flags():
    config = TrainConfig(**GIVEN | {"run_dir": "runs/{dataset}_{objective}_{sigma}"})
    assert str(config.run_directory().root) == "runs/mnist5k_macer_0.5"
    with pytest.raises(UserError, match="'sigmas' is no flag"):
        dataclasses.replace(config, run_dir="{sigmas}").run_directory()
    for run_dir in ("{sigma.other}", "{sigma[0]}"):
        with pytest.raises(UserError, match="--run_dir=.* is no flag"):
            dataclasses.replace(config, run_dir=run_dir).run_directory()


def test_training_from_python_is_that_of_the_command(tmp_path, monkeypatch):
    from tfmacer import train

    (tmp_path / "some_images.py").write_text(
        "import numpy as np\n"
        "def images(split):\n"
        "    draws = np.random.default_rng(split == 'test')\n"
        "    return draws.random((8, 16, 16, 1), np.float32), draws.integers(0, 2, 8)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = TrainConfig(
        run_dir=f"{tmp_path}/python_{{sigma}}", dataset="some_images:images", sigma=0.5,
        objective="gaussian", epochs=1, batch_size=4, weight_decay=0,
    )  # fmt: skip
    run = tfmacer.train_run(config)
    assert run.root == tmp_path / "python_0.5"
    arguments = [
        f"--run_dir={tmp_path}/shell", "--dataset=some_images:images", "--sigma=0.5",
        "--objective=gaussian", "--epochs=1", "--batch_size=4", "--weight_decay=0",
    ]  # fmt: skip
    assert train.main(arguments) == 0
    other = type(run)(tmp_path / "shell")
    assert other.read_smoothing() == run.read_smoothing()
    assert other.flags.read_text() == run.flags.read_text().replace("python_0.5", "shell")
