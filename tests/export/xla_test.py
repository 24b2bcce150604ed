"""Exports under XLA: where a server switches it on, and compiled by the code around them."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import session_runs
import tensorflow as tf
from session_runs import Ran
from small_exports import (
    CLASSES,
    IMAGES,
    MANY,
    REQUESTS,
    ROWS,
    SHAPE,
    small_smoothing,
)

COUNTS = {"classes", "counts", "probabilities"}


@pytest.fixture(scope="module")
def plain(small_export) -> dict[str, Ran]:
    return session_runs.run(small_export, REQUESTS)


@pytest.fixture(scope="module")
def clustered(small_export, tmp_path_factory) -> list[dict[str, Ran]]:
    """Answers under auto-clustering: first as it comes, then with the network in the clusters."""
    folder = tmp_path_factory.mktemp("clustered")
    (folder / "requests").write_bytes(pickle.dumps(REQUESTS))
    dumps = folder / "dumps"
    flags = {
        "TF_XLA_FLAGS": "--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit",
        "XLA_FLAGS": f"--xla_dump_to={dumps}",
    }
    files = [str(small_export), str(folder / "requests"), str(folder / "answers"), str(dumps)]
    done = subprocess.run(
        [sys.executable, session_runs.__file__, *files],
        env=os.environ | flags,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    answers = pickle.loads((folder / "answers").read_bytes())
    return [{name: Ran(*fields) for name, fields in each.items()} for each in answers]


@pytest.fixture(scope="module")
def model(small_export):
    return tf.saved_model.load(str(small_export))


def test_the_clusters_are_compiled_and_the_networks_among_them(clustered, plain) -> None:
    """What the other tests here rest on: otherwise they would compare the same thing twice."""
    first, whole = clustered
    for name in REQUESTS.keys() - {"tfmacer_info"}:
        assert "_XlaRun" in first[name].ops(), name
        assert first[name].compiled, name
    for name in ("sample_under_noise", "logits"):
        assert any("convolution(" in text for text in whole[name].compiled), name
    assert not any("_XlaRun" in ran.ops() for ran in plain.values())


def test_clusters_leave_votes_and_logits_as_they_are(clustered, plain) -> None:
    """In every run, from the first one to those after all clusters have been compiled."""
    expected = plain["sample_under_noise"].answers[0]
    assert expected["counts"].sum(axis=1).tolist() == MANY["num_samples"].tolist()
    logits = plain["logits"].answers[0]["logits"]
    for each in clustered:
        for found in each["sample_under_noise"].answers:
            # One vote may be a tie within rounding; other noise moves dozens.
            assert np.abs(found["counts"] - expected["counts"]).max() <= 1
            for name in ("sums", "square_sums"):
                np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
        for found in each["logits"].answers:
            np.testing.assert_allclose(found["logits"], logits, rtol=1e-4, atol=1e-5)
    for found in clustered[0]["tfmacer_info"].answers:
        assert found["smoothing"].tolist() == 2 * [small_smoothing().to_json().encode()]


def test_predictions_in_clusters_take_fresh_noise(clustered, plain) -> None:
    """From the operating system's entropy, which XLA does not know and leaves alone."""
    votes = []
    for each in (plain, clustered[0]):
        for name in ("serving_default", "encoded"):
            assert {"NonDeterministicInts", "StatelessRandomUniformFullIntV2", "Cos"} <= each[
                name
            ].ops()
            for found in each[name].answers:
                assert found.keys() == COUNTS
                assert found["counts"].sum(axis=1).tolist() == [100, 100, 100]
                np.testing.assert_array_equal(found["classes"], found["counts"].argmax(axis=1))
                votes.extend(found["probabilities"])
    assert len(votes) == len(np.unique(votes, axis=0)) == 2 * 2 * 3 * 3


def test_logits_and_votes_compile_whole(model) -> None:
    """`logits` within rounding; votes under XLA's own noise, alike in distribution."""
    logits = model.signatures["logits"]
    compiled = tf.function(lambda images: logits(images=images)["logits"], jit_compile=True)
    plain = logits(images=tf.constant(IMAGES))["logits"]
    np.testing.assert_allclose(compiled(tf.constant(IMAGES)), plain, rtol=1e-4, atol=1e-5)
    sample = model.signatures["sample_under_noise"]
    drawn = tf.function(lambda **rows: sample(**rows), jit_compile=True)
    many = {name: tf.constant(values[:2]) for name, values in ROWS.items()}
    many["num_samples"] = tf.constant([4096, 4096])
    first, second = drawn(**many)["counts"].numpy(), drawn(**many)["counts"].numpy()
    np.testing.assert_array_equal(first, second)
    assert first.sum(axis=1).tolist() == [4096, 4096]
    # Two samples of 4096 draws: a share differs by more than 5 sqrt(2 / (4 x 4096)) in one of
    # millions.
    share = sample(**many)["counts"].numpy() / 4096
    assert np.abs(first / 4096 - share).max() < 5 * np.sqrt(2 / (4 * 4096))


@pytest.mark.parametrize(
    ("name", "inputs", "missing"),
    [
        ("serving_default", {"images": tf.zeros([2, *SHAPE])}, "NonDeterministicInts"),
        ("encoded", {"encoded_images": tf.constant(["not decoded"])}, "DT_STRING"),
        ("tfmacer_info", {"probe": tf.zeros([2], tf.int32)}, "DT_STRING"),
    ],
)
def test_what_does_not_compile_whole_is_refused_by_name(model, name, inputs, missing) -> None:
    """Randomness compiled by XLA would be the same in every process: no noise to serve."""
    signature = model.signatures[name]
    compiled = tf.function(lambda **given: signature(**given), jit_compile=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"(?s)XLA_CPU_JIT.*{missing}"):
        compiled(**inputs)


def test_a_compiled_prediction_takes_seeds_drawn_outside(model) -> None:
    """As the documentation says; what is inside is all of `serving_default` but its entropy."""
    sample = model.signatures["sample_under_noise"]
    votes = tf.function(lambda **rows: sample(**rows)["counts"], jit_compile=True)

    def predict() -> np.ndarray:
        rows = len(IMAGES)
        seeds = np.frombuffer(os.urandom(8 * rows), np.int32).reshape(rows, 2)
        return votes(
            images=tf.constant(IMAGES),
            seeds=tf.constant(seeds),
            offsets=tf.zeros([rows], tf.int32),
            num_samples=tf.fill([rows], 1000),
            beta=tf.ones([rows]),
        ).numpy()

    first, second = predict(), predict()
    assert first.shape == (3, CLASSES)
    assert first.sum(axis=1).tolist() == second.sum(axis=1).tolist() == [1000] * 3
    assert (first != second).any()
