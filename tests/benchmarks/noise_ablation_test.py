import dataclasses
import math
from pathlib import Path

import made_logs
import pytest

from benchmarks import noise_ablation
from tfmacer.common.errors import UserError
from tfmacer.records.runs import RunDirectory, Smoothing


@pytest.fixture
def run(tmp_path):
    made = RunDirectory(tmp_path / "run")
    made.root.mkdir()
    made.model.write_bytes(b"network")
    smoothing = Smoothing(
        sigma=0.5, num_classes=10, input_shape=(28, 28, 1), dataset="mnist", model_digest="a" * 64
    )
    made.smoothing.write_text(smoothing.to_json())
    return made


def test_only_the_noise_of_the_copy_is_another(run, tmp_path):
    """Densities |z|^-k exp(-|z|^2 / 2 sigma^2) in d = 784: both lengths are likeliest alike."""
    before = run.read_smoothing()
    made = noise_ablation.with_noise(run, "mixed_norm", 300.0, tmp_path / "k300")
    after = made.read_smoothing()
    assert made.model.read_bytes() == b"network"
    assert (after.noise_family, after.noise_params) == ("mixed_norm", {"k": 300.0})
    # Of length r: (d - 1 - k) ln r - r^2 / (2 sigma^2) is greatest at sigma sqrt(d - 1 - k).
    assert after.sigma * math.sqrt(483) == pytest.approx(0.5 * math.sqrt(783), rel=1e-12)
    kept = {"sigma": 0.5, "noise_family": "gaussian", "noise_params": {}}
    assert dataclasses.replace(after, **kept) == before


def test_k_0_is_the_run_itself(run, tmp_path):
    made = noise_ablation.with_noise(run, "mixed_norm", 0.0, tmp_path / "k0")
    assert made.read_smoothing() == run.read_smoothing()


def test_mistakes(run, tmp_path):
    with pytest.raises(UserError, match="--k=783: must lie between 0 and 783"):
        noise_ablation.with_noise(run, "mixed_norm", 783.0, tmp_path / "k783")
    other = noise_ablation.with_noise(run, "mixed_norm", 10.0, tmp_path / "k10")
    with pytest.raises(UserError, match="its noise is mixed_norm, no Gaussian"):
        noise_ablation.with_noise(other, "mixed_norm", 10.0, tmp_path / "again")


def test_accuracy_counts_right_images_alone(tmp_path):
    log = made_logs.write(Path(tmp_path / "log.tsv"), made_logs.settings())
    right = [record.radius for record in log.records if record.correct]
    assert 0 < len(right) < 40
    found = noise_ablation.accuracies(log, "l2", [0.0, 0.4, 9.0])
    assert found == [2.5 * len(right), 2.5 * sum(r >= 0.4 for r in right), 0]
    # Four numbers an image: the cube inside a ball of radius 0.4 reaches 0.2.
    (cube,) = noise_ablation.accuracies(log, "linf", [0.2])
    assert cube == pytest.approx(found[1], abs=0.01)
