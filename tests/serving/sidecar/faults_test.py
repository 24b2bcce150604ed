"""A misbehaving backend never gets into a certificate."""

import dataclasses
import threading
import time

import grpc
import numpy as np
import pytest

from serving import certification_pb2 as pb
from serving.sidecar import models
from tfmacer.votes.endpoint import BackendError, Endpoint

SEED = 5


def _certify(sidecar, pixels, **fields) -> pb.Certificate:
    return sidecar.stub.Certify(pb.CertifyRequest(pixels=pixels, **fields), timeout=60)


def _failure(sidecar, pixels, **fields) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        _certify(sidecar, pixels, **fields)
    return caught.value.code(), caught.value.details()


def test_refused_calls_are_repeated_with_the_same_seeds(start, backend, pixels) -> None:
    sidecar = start(seed=SEED)
    undisturbed = _certify(sidecar, pixels, n=2000)
    backend.requests.clear()
    backend.unavailable = 3
    disturbed = _certify(sidecar, pixels, n=2000)
    assert (disturbed.counts, disturbed.radius) == (undisturbed.counts, undisturbed.radius)
    seeds = {request.inputs["seeds"].tensor_content for request in backend.requests}
    assert len(seeds) == 2


def test_a_restart_midway_is_bridged_with_the_same_seeds(start, backend, pixels) -> None:
    sidecar = start(seed=SEED)
    undisturbed = _certify(sidecar, pixels, n=3000)
    backend.requests.clear()
    killed = threading.Event()

    def kill() -> None:
        if len(backend.requests) >= 5 and not killed.is_set():
            killed.set()
            threading.Thread(target=restart).start()

    def restart() -> None:
        backend.stop()
        backend.start(backend.port)

    backend.on_sample = kill
    disturbed = _certify(sidecar, pixels, n=3000)
    assert killed.is_set()
    assert (disturbed.counts, disturbed.radius) == (undisturbed.counts, undisturbed.radius)


def test_a_backend_that_stays_down_is_unavailable(sidecar, backend, pixels) -> None:
    backend.stop()
    code, details = _failure(sidecar, pixels, n=500)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert f"127.0.0.1:{backend.port}" in details
    backend.start(backend.port)
    assert _certify(sidecar, pixels, n=500).n == 500


def test_a_backend_that_was_never_there(start, backend, pixels) -> None:
    backend.stop()
    sidecar = start()
    code, details = _failure(sidecar, pixels, n=500)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "deadline" not in details.lower()  # what is wrong, not that time is up
    backend.start(backend.port)
    sidecar.models.refresh()
    assert _certify(sidecar, pixels, n=500).n == 500


def test_a_slow_backend_meets_the_sidecars_patience(start, backend, pixels) -> None:
    backend.seconds = 3.0
    code, details = _failure(start(timeout=0.2), pixels, n=500)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "model m version 3" in details


@pytest.mark.parametrize(
    "spoil",
    [
        lambda outputs: {},
        lambda outputs: outputs | {"counts": outputs["counts"][:, :2]},
        lambda outputs: outputs | {"counts": outputs["counts"] + 1},
        lambda outputs: outputs | {"counts": outputs["counts"] * 0},
        lambda outputs: outputs | {"sums": outputs["sums"] * np.nan},
    ],
    ids=["nothing", "shape", "too many", "none", "nan"],
)
def test_answers_that_make_no_sense(sidecar, backend, pixels, spoil) -> None:
    backend.spoil = spoil
    code, details = _failure(sidecar, pixels, n=500)
    assert code is grpc.StatusCode.INTERNAL
    assert "backend" in details
    with pytest.raises(grpc.RpcError):
        sidecar.stub.Predict(pb.PredictRequest(pixels=pixels))


def _midway(backend, action) -> None:
    """Does something once, when some draws have been answered."""
    done = threading.Event()

    def look() -> None:
        if len(backend.requests) >= 5 and not done.is_set():
            done.set()
            action()

    backend.on_sample = look


def test_a_version_swapped_midway_voids_the_certificate(sidecar, backend, pixels) -> None:
    def swap() -> None:
        backend.versions = {3: 50, 4: 30}

    _midway(backend, swap)
    code, details = _failure(sidecar, pixels, n=5000)
    assert code is grpc.StatusCode.ABORTED
    assert "model m version 3" in details
    sidecar.models.refresh()
    again = _certify(sidecar, pixels, n=500)
    assert (again.n, again.model.version) == (500, 4)


def test_a_version_that_answers_for_another_voids_it_too(sidecar, backend, pixels) -> None:
    def swap() -> None:
        backend.answering = 4

    _midway(backend, swap)
    code, _ = _failure(sidecar, pixels, n=5000)
    assert code is grpc.StatusCode.ABORTED


def test_other_contents_under_the_same_number_void_it_too(sidecar, backend, pixels) -> None:
    """As after a restart with another model in the same directory."""

    def swap() -> None:
        backend.smoothing = dataclasses.replace(backend.smoothing, model_digest="ef" * 32)

    _midway(backend, swap)
    code, details = _failure(sidecar, pixels, n=5000)
    assert code is grpc.StatusCode.ABORTED
    assert "taken away or exchanged for another one midway" in details


def test_the_old_version_is_finished_where_it_is_still_served(sidecar, backend, pixels) -> None:
    def publish() -> None:
        backend.versions = {3: 30, 4: 30}
        sidecar.models.refresh()

    _midway(backend, publish)
    assert _certify(sidecar, pixels, n=3000).model.version == 3
    versions = {request.model_spec.version.value for request in backend.requests}
    assert versions == {3}
    assert _certify(sidecar, pixels, n=500).model.version == 4


def test_messages_sent_before_a_fault_stay_true(start, backend, pixels) -> None:
    sidecar = start(seed=SEED)
    undisturbed = list(
        sidecar.stub.CertifyStream(pb.CertifyRequest(pixels=pixels, n=3000), timeout=60)
    )
    backend.requests.clear()

    def break_down() -> None:
        backend.spoil = lambda outputs: {}

    _midway(backend, break_down)
    stream = sidecar.stub.CertifyStream(pb.CertifyRequest(pixels=pixels, n=3000), timeout=60)
    received = []
    with pytest.raises(grpc.RpcError) as caught:
        received.extend(stream)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    for got, expected in zip(received, undisturbed, strict=False):
        assert (got.counts, got.radius) == (expected.counts, expected.radius)


def test_health_follows_the_backend(start, backend) -> None:
    sidecar = start()
    seen: list[bool] = []
    sidecar.models._on_health = seen.append
    sidecar.models.refresh()
    backend.versions = {3: 20}
    with pytest.raises(BackendError, match="no version of model m is available"):
        sidecar.models.refresh()
    backend.versions = {3: 50, 4: 30}
    sidecar.models.refresh()
    backend.signatures = ()
    with pytest.raises(BackendError, match="tfmacer_info"):
        sidecar.models.refresh()
    assert seen == [True, False, True, False]
    # What is served now cannot be certified, so nothing older is either.
    with pytest.raises(BackendError, match="tfmacer_info"):
        sidecar.models.current()


def test_an_unexpected_error_says_nothing_of_its_inside(start, pixels, monkeypatch) -> None:
    sidecar = start()

    def explode(*args: object) -> None:
        raise RuntimeError("secret seed 12345")

    monkeypatch.setattr("serving.sidecar.service.read_rule", explode)
    code, details = _failure(sidecar, pixels, n=500)
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in details
    assert details.startswith("internal error; request id ")


def test_a_version_that_goes_midway_is_aborted_and_none_is_unavailable(
    sidecar, backend, pixels
) -> None:
    def go() -> None:
        backend.versions = {3: 50}

    _midway(backend, go)
    code, _ = _failure(sidecar, pixels, n=5000)
    assert code is grpc.StatusCode.ABORTED
    with pytest.raises(BackendError, match="no version of model m is available"):
        sidecar.models.refresh()
    before = len(backend.requests)
    for _ in range(2):
        code, details = _failure(sidecar, pixels, n=500)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "no version of model m is available" in details
    assert len(backend.requests) == before
    backend.versions = {4: 30}
    sidecar.models.refresh()
    assert _certify(sidecar, pixels, n=500).model.version == 4


def test_a_version_that_goes_before_the_last_look_is_aborted(sidecar, backend) -> None:
    """Never NOT_FOUND: the model is there, in another version."""
    used = sidecar.models.current()
    backend.versions = {3: 50, 4: 30}
    with pytest.raises(BackendError, match="taken away or exchanged") as caught:
        sidecar.models.check_unchanged(used, timeout=10)
    assert caught.value.code is grpc.StatusCode.ABORTED


def test_the_look_at_the_model_has_the_time_of_the_call(
    sidecar, backend, pixels, monkeypatch
) -> None:
    monkeypatch.setattr(models, "POLL_TIMEOUT", 0.01)
    backend.info_seconds = 0.3
    assert _certify(sidecar, pixels, n=500).n == 500


def test_a_dead_backend_is_known_before_the_questions_to_it_have_been_repeated(backend) -> None:
    heard: list[tuple[bool, bool]] = []
    endpoint = Endpoint(f"127.0.0.1:{backend.port}")
    followed = models.Models(
        endpoint, "m", on_health=lambda healthy: heard.append((healthy, followed._error is None))
    )
    followed.refresh()
    followed.start(0.1)
    limit = time.monotonic() + 60
    backend.stop()
    while heard[-1][0]:
        assert time.monotonic() < limit
        time.sleep(0.01)
    # The look that fails in the end has not failed yet.
    assert next(known for healthy, known in heard if not healthy)
    backend.start(backend.port)
    while not heard[-1][0]:
        assert time.monotonic() < limit
        time.sleep(0.01)
    followed.stop()
    endpoint.close()
