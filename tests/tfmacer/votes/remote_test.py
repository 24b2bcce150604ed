"""Votes over the wire: the right ones, and a clear refusal of every other answer."""

import dataclasses
import json
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import grpc
import numpy as np
import portpicker
import pytest
from fake_backend import BLOCK, SMOOTHING, FakeBackend, expected_votes

from tfmacer.common.errors import Notice
from tfmacer.votes.endpoint import BackendError, Endpoint, served_model
from tfmacer.votes.remote import RemoteVotes
from tfmacer.wire import tensors

IMAGES = np.random.default_rng(0).random((2, 4, 4, 1), dtype=np.float32)
SEEDS = np.array([[1, -2], [3, 4]], np.int32)


@pytest.fixture
def backend():
    fake = FakeBackend()
    port = portpicker.pick_unused_port()
    fake.start(port)
    fake.port = port
    yield fake
    fake.stop()


@pytest.fixture
def votes(backend):
    remote = RemoteVotes.connect(f"127.0.0.1:{backend.port}", "m", parallelism=2, timeout=20)
    yield remote
    remote.close()


def _sample(votes: RemoteVotes, *, offsets=(0, 0), n=(100, 100)):
    return votes.sample(IMAGES, SEEDS, np.array(offsets, np.int32), np.array(n, np.int32))


def test_the_server_describes_itself(votes: RemoteVotes) -> None:
    assert votes.smoothing == SMOOTHING
    assert (votes.model.name, votes.model.version) == ("m", 3)
    assert votes.parallelism == 2


def test_votes_are_the_servers(backend, votes: RemoteVotes) -> None:
    answer = _sample(votes, offsets=(0, 70), n=(100, 300))
    for row, (offset, n) in enumerate([(0, 100), (70, 300)]):
        expected = expected_votes(backend.probabilities, tuple(SEEDS[row].tolist()), offset, n)
        np.testing.assert_array_equal(answer.counts[row], expected.counts[0])
        np.testing.assert_allclose(answer.sums[row], expected.sums[0], rtol=1e-12)
        np.testing.assert_allclose(answer.square_sums[row], expected.square_sums[0], rtol=1e-12)
    assert answer.counts.dtype == np.int64


def test_one_request_a_row_with_the_version_pinned(backend, votes: RemoteVotes) -> None:
    _sample(votes)
    assert len(backend.requests) == 2
    for request in backend.requests:
        assert request.model_spec.version.value == 3
        assert request.model_spec.signature_name == "sample_under_noise"
        assert [dim.size for dim in request.inputs["images"].tensor_shape.dim] == [1, 4, 4, 1]


def test_no_draws_are_no_votes(votes: RemoteVotes) -> None:
    assert _sample(votes, n=(0, 5)).counts.sum(axis=1).tolist() == [0, 5]


def test_logits(backend, votes: RemoteVotes) -> None:
    np.testing.assert_allclose(votes.logits(IMAGES), np.log([backend.probabilities] * 2), rtol=1e-6)


def test_calls_in_flight_are_limited_by_the_parallelism(backend, votes: RemoteVotes) -> None:
    backend.seconds = 0.05
    rows = 8
    votes.sample(
        np.repeat(IMAGES[:1], rows, axis=0),
        np.repeat(SEEDS[:1], rows, axis=0),
        np.arange(rows, dtype=np.int32) * BLOCK,
        np.full(rows, BLOCK, np.int32),
    )
    assert backend.most_at_once == 2


def test_a_refused_call_is_repeated_with_the_same_seeds(backend, votes: RemoteVotes) -> None:
    undisturbed = _sample(votes)
    backend.requests.clear()
    backend.unavailable = 2
    disturbed = _sample(votes)
    np.testing.assert_array_equal(undisturbed.counts, disturbed.counts)
    assert len(backend.requests) == 4
    seeds = {request.inputs["seeds"].tensor_content for request in backend.requests}
    assert seeds == {SEEDS[0].tobytes(), SEEDS[1].tobytes()}


def test_a_restarted_server_is_waited_for(backend, votes: RemoteVotes) -> None:
    before = _sample(votes)
    backend.stop()
    restarted = threading.Timer(0.5, backend.start, [backend.port])
    restarted.start()
    after = _sample(votes)
    restarted.join()
    np.testing.assert_array_equal(before.counts, after.counts)


def test_a_server_that_is_gone_is_unavailable(backend, votes: RemoteVotes) -> None:
    backend.stop()
    with pytest.raises(BackendError, match="UNAVAILABLE") as caught:
        _sample(votes)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    backend.start(backend.port)


def _without(name: str):
    return lambda outputs: {key: value for key, value in outputs.items() if key != name}


def _replace(name: str, change):
    return lambda outputs: outputs | {name: change(outputs[name])}


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (_without("sums"), "the answer has no output sums"),
        (_replace("counts", lambda c: c[0]), r"output counts: expected DT_INT64 \[1, 3\], got"),
        (_replace("counts", lambda c: c[:, :2]), r"output counts: expected DT_INT64 \[1, 3\]"),
        (_replace("counts", lambda c: c.astype(np.int32)), "output counts: expected DT_INT64"),
        (_replace("counts", lambda c: c + np.array([1, 0, 0])), "counts 101 votes in 100 draws"),
        (_replace("counts", lambda c: c - np.array([0, 1, 0])), "counts 99 votes in 100 draws"),
        (
            _replace("counts", lambda c: c + np.array([200, -200, 0])),
            "counts 100 votes in 100 draws",
        ),
        (  # they add up, in 64 bits
            _replace("counts", lambda c: np.array([[2**63 - 1, 2**63 - 1, 102]])),
            "counts 18446744073709551716 votes in 100 draws",
        ),
        (_replace("sums", lambda s: s * np.nan), "no moments of probabilities"),
        (_replace("sums", lambda s: s * 2), "no moments of probabilities"),
        (_replace("square_sums", lambda s: s * 3), "no moments of probabilities"),
        (_replace("square_sums", lambda s: s * np.inf), "no moments of probabilities"),
        (_replace("square_sums", lambda s: -s), "no moments of probabilities"),
    ],
)
def test_answers_that_make_no_sense_are_refused(backend, votes, spoil, text: str) -> None:
    backend.spoil = spoil
    with pytest.raises(BackendError, match=text) as caught:
        _sample(votes)
    assert caught.value.code is grpc.StatusCode.INTERNAL
    assert "model m version 3" in str(caught.value)


def test_votes_of_another_version_are_never_taken(backend, votes: RemoteVotes) -> None:
    backend.answering = 4
    with pytest.raises(BackendError, match="version 4 answered: votes are never mixed") as caught:
        _sample(votes)
    assert caught.value.code is grpc.StatusCode.ABORTED


def test_a_version_that_was_retired_aborts(backend, votes: RemoteVotes) -> None:
    backend.versions = {3: 50, 4: 30}
    with pytest.raises(BackendError, match="no longer served") as caught:
        _sample(votes)
    assert caught.value.code is grpc.StatusCode.ABORTED


def test_votes_of_another_model_under_the_same_version_are_never_taken(backend, votes) -> None:
    """As after a restart with another export at the old one's place."""
    _sample(votes)
    backend.smoothing = dataclasses.replace(SMOOTHING, model_digest="cd" * 32)
    with pytest.raises(BackendError, match="version 3 was taken away or exchanged") as caught:
        _sample(votes)
    assert caught.value.code is grpc.StatusCode.ABORTED


def test_a_slow_server_meets_the_timeout(backend, votes: RemoteVotes) -> None:
    backend.seconds = 5.0
    remote = RemoteVotes(votes._endpoint, votes.model, parallelism=2, timeout=0.2)
    with pytest.raises(BackendError) as caught:
        _sample(remote)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_nothing_outlives_the_deadline(backend, votes: RemoteVotes) -> None:
    backend.seconds = 0.3
    remote = RemoteVotes(
        votes._endpoint, votes.model, parallelism=1, deadline=time.monotonic() + 0.4
    )
    with pytest.raises(BackendError) as caught:  # two rows, one after the other: 0.6 s
        _sample(remote)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_cancelling_ends_the_calls_in_flight(backend, votes: RemoteVotes) -> None:
    backend.seconds = 10.0
    threading.Timer(0.3, votes.cancel).start()
    started = time.monotonic()
    with pytest.raises(BackendError, match="cancelled") as caught:
        _sample(votes)
    assert caught.value.code is grpc.StatusCode.CANCELLED
    assert time.monotonic() - started < 9  # the calls alone would take 10 s
    backend.seconds = 0.0
    with pytest.raises(BackendError, match="cancelled"):
        _sample(votes)


def test_places_are_given_back_after_failures(backend, votes: RemoteVotes) -> None:
    backend.spoil = _without("counts")
    for _ in range(5):  # more than there are places
        with pytest.raises(BackendError):
            _sample(votes)
    backend.spoil = lambda outputs: outputs
    assert _sample(votes).counts.sum() == 200


def test_a_failure_cancels_the_calls_beside_it(backend, votes: RemoteVotes) -> None:
    """Or they would hold their places for as long as they take."""
    slow, gone = threading.Event(), threading.Event()
    answer = backend._votes

    def first_row_fails(request):
        if request.inputs["seeds"].tensor_content == SEEDS[0].tobytes():
            assert slow.wait(30)
            return {}
        slow.set()
        gone.wait(30)
        return answer(request)

    backend._votes = first_row_fails
    with pytest.raises(BackendError, match="no output counts"):
        _sample(votes)
    assert [votes._slots.acquire(timeout=10) for _ in range(2)] == [True, True]
    gone.set()
    for _ in range(2):
        votes._slots.release()


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        (
            {"signatures": ("serving_default",)},
            grpc.StatusCode.FAILED_PRECONDITION,
            "has no signature tfmacer_info: only models exported by",
        ),
        ({"versions": {}}, grpc.StatusCode.NOT_FOUND, "Servable not found"),
        (
            {"smoothing": dataclasses.replace(SMOOTHING, format_version=99)},
            grpc.StatusCode.FAILED_PRECONDITION,
            "format_version is 99",
        ),
    ],
)
def test_models_that_cannot_be_certified(backend, change, code, text: str) -> None:
    for name, value in change.items():
        setattr(backend, name, value)
    with pytest.raises(BackendError, match=text) as caught:
        RemoteVotes.connect(f"127.0.0.1:{backend.port}", "m")
    assert caught.value.code is code


def test_an_edited_description_is_refused_and_an_old_one_taken_with_a_notice(backend) -> None:
    text = SMOOTHING.to_json()
    target = f"127.0.0.1:{backend.port}"
    backend.smoothing = SimpleNamespace(to_json=lambda: text.replace('"sigma": 0.', '"sigma": 1.'))
    with pytest.raises(BackendError, match="tfmacer_info: .* altered after it was") as caught:
        RemoteVotes.connect(target, "m")
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    first = json.loads(text) | {"format_version": 1}
    del first["digest"]
    backend.smoothing = SimpleNamespace(to_json=lambda: json.dumps(first))
    with pytest.warns(Notice, match="model m version 3: written by an earlier version"):
        remote = RemoteVotes.connect(target, "m")
    assert remote.smoothing == SMOOTHING
    remote.close()


def test_available_versions(backend) -> None:
    backend.versions = {1: 50, 5: 20, 4: 30, 3: 30}
    endpoint = Endpoint(f"127.0.0.1:{backend.port}")
    assert endpoint.available_versions("m") == [3, 4]
    assert served_model(endpoint, "m", version=3).version == 3
    with pytest.raises(BackendError) as caught:
        endpoint.available_versions("other")
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    endpoint.close()


def test_typed_fields_are_read_as_well_as_content(backend, votes, monkeypatch) -> None:
    """TensorFlow Serving answers in typed fields."""
    expected = _sample(votes)
    request = backend.requests[0]

    def typed(array):
        proto = content(array)
        field = {"f": "double_val", "i": "int64_val"}[array.dtype.kind]
        proto.ClearField("tensor_content")
        getattr(proto, field).extend(array.ravel().tolist())
        return proto

    content = tensors.from_numpy
    monkeypatch.setattr("fake_backend.tensors.from_numpy", typed)
    answer = votes._endpoint.predict(request)
    assert len(answer.outputs["counts"].int64_val) == 3
    read = votes._votes(answer, 100)
    row = 0 if request.inputs["seeds"].tensor_content == SEEDS[0].tobytes() else 1
    np.testing.assert_array_equal(read.counts[0], expected.counts[row])


def test_no_tensorflow_is_imported() -> None:
    code = (
        "import sys, tfmacer.votes.remote; "
        "print([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'keras')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
