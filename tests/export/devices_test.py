"""Exports where there is a GPU; what can be seen without one is in the lint's tests."""

import numpy as np
import pytest
import session_runs
import tensorflow as tf
from session_runs import Ran
from small_exports import REQUESTS


@pytest.fixture(scope="module")
def on_cpu(small_export) -> dict[str, Ran]:
    return session_runs.run(
        small_export, REQUESTS, tf.compat.v1.ConfigProto(device_count={"GPU": 0})
    )


@pytest.fixture(scope="module")
def on_gpu(small_export) -> dict[str, Ran]:
    if not tf.config.list_physical_devices("GPU"):
        pytest.skip("needs a GPU, and TensorFlow sees none")
    return session_runs.run(small_export, REQUESTS)


def test_without_a_gpu_everything_runs_on_the_cpu(on_cpu) -> None:
    """Holds the reading of devices, on which the other tests rest, wherever they run."""
    for ran in on_cpu.values():
        assert {device.rsplit(":", 2)[1] for _, device in ran.placed} == {"CPU"}
    assert on_cpu["sample_under_noise"].devices("Cos") == {"CPU"}


def test_noise_is_drawn_and_the_network_runs_on_the_gpu(on_gpu) -> None:
    """Normal numbers are made of cosines."""
    for name in ("sample_under_noise", "serving_default", "encoded"):
        assert on_gpu[name].devices("Cos") == {"GPU"}, name
    for name in REQUESTS.keys() - {"tfmacer_info"}:
        convolutions = {op for op in on_gpu[name].ops() if "Conv2D" in op}
        assert convolutions, name
        assert {kind for op in convolutions for kind in on_gpu[name].devices(op)} == {"GPU"}, name


def test_a_gpu_gives_the_same_logits_within_its_rounding(on_cpu, on_gpu) -> None:
    """Convolutions in TensorFloat-32 keep eleven bits."""
    expected = on_cpu["logits"].answers[0]["logits"]
    for found in on_gpu["logits"].answers:
        np.testing.assert_allclose(
            found["logits"], expected, atol=0.005 * max(1, np.abs(expected).max())
        )


def test_a_gpu_draws_the_same_noise(on_cpu, on_gpu) -> None:
    """Votes move where two logits tie within rounding: one in a hundred is far beyond that."""
    expected, found = (ran["sample_under_noise"].answers for ran in (on_cpu, on_gpu))
    draws = REQUESTS["sample_under_noise"]["num_samples"]
    for answer in found:
        assert answer["counts"].sum(axis=1).tolist() == draws.tolist()
        moved = np.abs(answer["counts"] - expected[0]["counts"]).max(axis=1)
        assert (moved <= np.maximum(2, draws // 100)).all()


def test_predictions_on_a_gpu_take_fresh_noise(on_gpu) -> None:
    votes = []
    for name in ("serving_default", "encoded"):
        for found in on_gpu[name].answers:
            assert found["counts"].sum(axis=1).tolist() == [100, 100, 100]
            votes.extend(found["probabilities"])
    assert len(votes) == len(np.unique(votes, axis=0)) == 18


def test_the_smoothing_is_told_on_a_gpu(on_cpu, on_gpu) -> None:
    texts = [ran["tfmacer_info"].answers[0]["smoothing"].tolist() for ran in (on_cpu, on_gpu)]
    assert texts[0] == texts[1]
