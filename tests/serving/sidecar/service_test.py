"""The sidecar's answers are the library's, and only the library's."""

import base64
import dataclasses
import hashlib
import threading
import time

import grpc
import numpy as np
import pytest
from fake_backend import SMOOTHING, expected_votes
from google.protobuf import json_format

from serving import certification_pb2 as pb
from serving.sidecar.limits import Limits
from tfmacer.guarantee.certificate import certify, decided
from tfmacer.guarantee.counts import Counts
from tfmacer.guarantee.prediction import predict
from tfmacer.guarantee.rule import Rule
from tfmacer.noise.families import noise_distribution
from tfmacer.records.audit import read_audit_log, verify_entry
from tfmacer.votes.endpoint import BackendError
from tfmacer.votes.source import ESTIMATE, SELECT, row_seed

SEED = 7
DISTRIBUTION = noise_distribution("gaussian", sigma=SMOOTHING.sigma, params={}, dimension=16)


def _counts(probabilities, select_seed, estimate_seed, n0: int, n: int) -> Counts:
    """What a certificate rests on, drawn again without the sidecar."""
    select = expected_votes(probabilities, tuple(map(int, select_seed)), 0, n0)
    estimate = expected_votes(probabilities, tuple(map(int, estimate_seed)), 0, n)
    return Counts(
        select_counts=tuple(select.counts[0].tolist()),
        counts=tuple(estimate.counts[0].tolist()),
        n0=n0,
        n=n,
    )


def _seeded_counts(backend, n0: int, n: int) -> Counts:
    seeds = (row_seed(SEED, stage, 0) for stage in (SELECT, ESTIMATE))
    return _counts(backend.probabilities, *seeds, n0, n)


def _same(message: pb.Certificate, counts: Counts, rule: Rule) -> None:
    """Every number of the message is what the library says of these counts."""
    expected = certify(counts, rule, DISTRIBUTION)
    for field in ("predict", "radius", "norm", "p_lower"):
        assert getattr(message, field) == getattr(expected, field), field
    assert (message.alpha, message.bound) == (rule.alpha, rule.bound)
    assert (message.n0, message.n) == (counts.n0, counts.n)
    assert tuple(message.counts) == counts.counts
    assert tuple(message.select_counts) == counts.select_counts
    assert message.stopped_early == expected.stopped_early
    assert message.statement == expected.statement()


def test_certify_is_the_librarys_certificate(start, backend, pixels) -> None:
    sidecar = start(seed=SEED)
    message = sidecar.stub.Certify(pb.CertifyRequest(pixels=pixels, n=1000, n0=50, alpha=0.01))
    _same(
        message,
        _seeded_counts(backend, 50, 1000),
        Rule(alpha=0.01, bound="late_spending", n0=50, n=1000, block_size=64),
    )
    assert message.predict == 1
    assert message.radius > 0.3
    assert not message.HasField("p_upper_second")
    assert message.drawn == 1000


def test_defaults(start, backend, pixels) -> None:
    message = start(seed=SEED).stub.Certify(pb.CertifyRequest(pixels=pixels))
    _same(
        message,
        _seeded_counts(backend, 100, 10_000),
        Rule(n=10_000, bound="late_spending", block_size=64),
    )


def test_bilateral(start, backend, pixels) -> None:
    backend.probabilities = [0.3, 0.45, 0.25]
    request = pb.CertifyRequest(pixels=pixels, n=4000, bilateral=True)
    message = start(seed=SEED).stub.Certify(request)
    rule = Rule(n=4000, bound="late_spending", bilateral=True, block_size=64)
    _same(message, _seeded_counts(backend, 100, 4000), rule)
    assert message.radius > 0  # below one half, and certified all the same
    assert (
        message.p_upper_second
        == certify(_seeded_counts(backend, 100, 4000), rule, DISTRIBUTION).p_upper_second
    )


def test_abstaining(start, backend, pixels) -> None:
    backend.probabilities = [0.4, 0.35, 0.25]
    message = start(seed=SEED).stub.Certify(pb.CertifyRequest(pixels=pixels, n=1000))
    assert (message.predict, message.radius) == (-1, 0.0)
    assert message.statement.startswith("Abstained")


def test_the_certificate_names_model_and_pixels(sidecar, pixels) -> None:
    message = sidecar.stub.Certify(pb.CertifyRequest(pixels=pixels, n=500))
    assert message.pixels_sha256 == hashlib.sha256(pixels.float32).hexdigest()
    model = message.model
    assert (model.name, model.version, model.digest) == ("m", 3, SMOOTHING.model_digest)
    assert (model.sigma, model.block_size, list(model.input_shape)) == (0.5, 64, [4, 4, 1])
    assert sidecar.stub.GetModel(pb.GetModelRequest()) == model
    as_json = json_format.MessageToDict(message, preserving_proto_field_name=True)
    assert {"predict", "radius", "select_counts", "counts", "p_lower", "bound"} <= set(as_json)


def test_bytes_are_the_image_divided_by_255(start, backend) -> None:
    levels = np.random.default_rng(2).integers(0, 256, (4, 4, 1), dtype=np.uint8)
    pixels = pb.Pixels(shape=levels.shape, uint8=levels.tobytes())
    message = start().stub.Certify(pb.CertifyRequest(pixels=pixels, n=500))
    floats = (levels.astype(np.float32) / np.float32(255)).astype("<f4")
    assert message.pixels_sha256 == hashlib.sha256(floats.tobytes()).hexdigest()
    assert backend.requests[0].inputs["images"].tensor_content == floats.tobytes()


def test_every_request_has_noise_of_its_own(sidecar, backend, pixels) -> None:
    for _ in range(2):
        sidecar.stub.Certify(pb.CertifyRequest(pixels=pixels, n=200, n0=64))
    seeds = {request.inputs["seeds"].tensor_content for request in backend.requests}
    assert len(seeds) == 4  # two stages of two requests


def test_predict(start, backend, pixels) -> None:
    prediction = start(seed=SEED).stub.Predict(pb.PredictRequest(pixels=pixels, n=200))
    counts = expected_votes(
        backend.probabilities, tuple(map(int, row_seed(SEED, SELECT, 0))), 0, 200
    ).counts[0]
    expected = predict(counts.tolist(), 0.001)
    assert prediction.predict == expected.predict == 1
    assert prediction.p_value == expected.p_value
    assert list(prediction.counts) == counts.tolist()


def test_predict_abstains_where_it_is_close(start, backend, pixels) -> None:
    backend.probabilities = [0.5, 0.5, 0.0]
    assert start(seed=SEED).stub.Predict(pb.PredictRequest(pixels=pixels)).predict == -1


def test_the_stream_is_certificates_whose_radius_never_falls(start, backend, pixels) -> None:
    messages = list(start(seed=SEED).stub.CertifyStream(pb.CertifyRequest(pixels=pixels, n=5000)))
    rule = Rule(n=5000, bound="beta_binomial", block_size=64)
    radii = [message.radius for message in messages]
    assert radii == sorted(radii)
    assert [message.drawn for message in messages] == list(rule.looks)
    assert len({message.certificate_id for message in messages}) == 1
    for message in messages:
        _same(message, _seeded_counts(backend, 100, message.n), rule)
    # Each is the best of all looks up to then.
    best = 0.0
    for message, look in zip(messages, rule.looks, strict=True):
        best = max(best, certify(_seeded_counts(backend, 100, look), rule, DISTRIBUTION).radius)
        assert message.radius == best


def test_deciding_a_radius_stops_as_soon_as_it_is_certified(start, backend, pixels) -> None:
    backend.probabilities = [0.0, 1.0, 0.0]
    message = start(seed=SEED).stub.Certify(pb.CertifyRequest(pixels=pixels, n=100_000, decide=0.4))
    assert message.radius >= 0.4
    assert message.n < 1000
    assert message.stopped_early
    assert message.bound == "beta_binomial"


def test_precision_stops_early(start, backend, pixels) -> None:
    message = start(seed=SEED).stub.Certify(
        pb.CertifyRequest(pixels=pixels, n=100_000, precision=0.3)
    )
    assert 0 < message.n < 100_000


def test_a_budget_ends_the_drawing(start, backend, pixels) -> None:
    backend.per_draw = 1e-4
    message = start(seed=SEED).stub.Certify(
        pb.CertifyRequest(pixels=pixels, n=1_000_000, budget=0.5)
    )
    assert 0 < message.n < 1_000_000
    assert message.stopped_early


def test_at_the_deadline_the_best_certificate_so_far_is_the_answer(start, backend, pixels) -> None:
    backend.per_draw = 1e-4
    close = DISTRIBUTION.radius(backend.probabilities[1])  # not to be decided in a million draws
    rule = Rule(n=1_000_000, bound="beta_binomial", stop=f"decide:{close!r}", block_size=64)
    request = pb.CertifyRequest(pixels=pixels, n=rule.n, decide=close)
    message = start(seed=SEED).stub.Certify(request, timeout=1.5)
    counts = _seeded_counts(backend, 100, message.n)
    assert not decided(counts, rule, DISTRIBUTION)
    _same(message, counts, rule)
    messages = list(start(seed=SEED).stub.CertifyStream(request, timeout=1.5))
    assert messages[-1].drawn < rule.n
    assert messages[-1].radius == max(message.radius for message in messages) > 0


def test_a_fixed_plan_is_cut_short_by_the_deadline(start, backend, pixels) -> None:
    """What is answered then is a certificate at a look of the schedule that was fixed before."""
    backend.per_draw = 1e-4
    sidecar = start(seed=SEED)
    rule = Rule(n=1_000_000, bound="late_spending", block_size=64)
    message = sidecar.stub.Certify(pb.CertifyRequest(pixels=pixels, n=rule.n), timeout=1.5)
    assert message.n in rule.looks[1:-1]
    assert message.stopped_early
    assert message.radius > 0
    _same(message, _seeded_counts(backend, 100, message.n), rule)
    assert message.drawn >= message.n
    assert len(sidecar.audit()) == 1
    assert [verify_entry(entry) for entry in read_audit_log(sidecar.audit_path)] == [None]


def test_a_deadline_before_the_first_look_is_said_so(sidecar, backend, pixels) -> None:
    backend.per_draw = 1e-3
    for call in (sidecar.stub.Certify, lambda *a, **k: list(sidecar.stub.CertifyStream(*a, **k))):
        with pytest.raises(grpc.RpcError) as caught:
            call(pb.CertifyRequest(pixels=pixels, n=100_000, n0=100_000), timeout=0.5)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_why_there_is_no_certificate_is_told(start, backend, pixels) -> None:
    """By a server that reaches its own limit; a caller's own deadline speaks for itself."""
    backend.per_draw = 1e-3
    sidecar = start(limits=Limits(max_seconds=0.5))
    with pytest.raises(grpc.RpcError) as caught:
        sidecar.stub.Certify(pb.CertifyRequest(pixels=pixels, n=1000, n0=100_000))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "0 of the 64 draws of the first certificate were answered" in caught.value.details()


def _stops_drawing(sidecar, backend) -> None:
    """Waits for the call's end, and checks that nothing is asked of the backend any more."""
    limit = time.monotonic() + 20  # undisturbed, the million draws below take 50 s and more
    while sidecar.admission.inside():
        assert time.monotonic() < limit, "still drawing"
        time.sleep(0.01)
    seen = len(backend.requests)
    time.sleep(1.0)  # several rounds of requests
    assert len(backend.requests) == seen


def test_a_cancelled_stream_stops_drawing(sidecar, backend, pixels) -> None:
    backend.per_draw = 1e-4
    stream = sidecar.stub.CertifyStream(pb.CertifyRequest(pixels=pixels, n=1_000_000))
    next(stream)
    stream.cancel()
    _stops_drawing(sidecar, backend)
    # Places were given back.
    assert sidecar.stub.Certify(pb.CertifyRequest(pixels=pixels, n=200)).n == 200


def test_a_cancelled_call_stops_drawing(sidecar, backend, pixels) -> None:
    backend.per_draw = 1e-4
    seen = threading.Event()
    backend.on_sample = seen.set
    call = sidecar.stub.Certify.future(pb.CertifyRequest(pixels=pixels, n=1_000_000))
    assert seen.wait(30)
    call.cancel()
    _stops_drawing(sidecar, backend)


def test_chunks_of_one_certification_fill_the_places(start, backend, pixels) -> None:
    backend.seconds = 0.02
    start(parallelism=3).stub.Certify(pb.CertifyRequest(pixels=pixels, n=5000))
    assert backend.most_at_once == 3


def test_the_wire_carries_a_hundredth_of_the_noisy_images(start, backend) -> None:
    """Measured on the requests as the backend received them, whatever their number."""
    shape, n = (28, 28, 1), 100_000
    backend.smoothing = dataclasses.replace(SMOOTHING, input_shape=shape)
    pixels = pb.Pixels(shape=shape, uint8=bytes(28 * 28))
    assert start().stub.Certify(pb.CertifyRequest(pixels=pixels, n=n)).n == n
    noisy_images = n * 28 * 28 * 4
    assert backend.bytes_received * 100 <= noisy_images
    assert backend.bytes_received >= len(backend.requests) * 28 * 28 * 4  # or nothing was measured


def test_request_ids_are_the_callers_or_fresh(sidecar, pixels) -> None:
    def ids(*sent: str) -> str:
        call = sidecar.stub.Predict.with_call(
            pb.PredictRequest(pixels=pixels), metadata=[("x-request-id", s) for s in sent]
        )[1]
        return dict(call.initial_metadata())["x-request-id"]

    assert ids("abc-1") == "abc-1"
    assert len(ids()) == 32
    assert ids("bad id; rm -rf") != "bad id; rm -rf"
    assert ids() != ids()


class TestAuditLog:
    def test_it_maps_a_certificate_to_its_noise(self, sidecar, backend, pixels) -> None:
        message = sidecar.stub.Certify(pb.CertifyRequest(pixels=pixels, n=500))
        (record,) = sidecar.audit()
        assert record["certificate_id"] == message.certificate_id
        again = _counts(
            backend.probabilities, record["select_seed"], record["estimate_seed"], 100, 500
        )
        assert again.counts == tuple(message.counts)
        assert again.select_counts == tuple(message.select_counts)
        assert record["select_seed"] != record["estimate_seed"]
        assert base64.b64decode(record["pixels_float32"]) == pixels.float32
        assert record["pixels_sha256"] == message.pixels_sha256
        assert record["model"]["smoothing"]["model_digest"] == SMOOTHING.model_digest
        assert record["rule"]["stop"] == "fixed"
        assert record["certificate"]["radius"] == message.radius
        assert record["client"] == "ipv4:127.0.0.1"

    def test_the_newest_digest_is_among_the_metrics(self, sidecar, pixels) -> None:
        assert _value(sidecar, "tfmacer_audit_entries") == 0
        for _ in range(3):
            sidecar.stub.Certify(pb.CertifyRequest(pixels=pixels, n=500))
        records = sidecar.audit()
        assert [record["entry"] for record in records] == [1, 2, 3]
        assert _value(sidecar, "tfmacer_audit_entries") == 3
        assert _value(sidecar, "tfmacer_audit_head_info", digest=records[-1]["digest"]) == 1
        assert [verify_entry(entry) for entry in read_audit_log(sidecar.audit_path)] == [None] * 3

    def test_it_is_private_to_the_operator(self, sidecar) -> None:
        assert sidecar.audit_path.stat().st_mode & 0o077 == 0

    def test_pixels_may_be_left_out(self, start, pixels) -> None:
        sidecar = start(audit_pixels=False)
        sidecar.stub.Certify(pb.CertifyRequest(pixels=pixels, n=500))
        (record,) = sidecar.audit()
        assert "pixels_float32" not in record
        assert len(record["pixels_sha256"]) == 64

    def test_it_is_written_after_the_answer(self, sidecar, pixels) -> None:
        stream = sidecar.stub.CertifyStream(pb.CertifyRequest(pixels=pixels, n=2000))
        first = next(stream)
        assert sidecar.audit_path.read_text() == ""
        last = [first, *stream][-1]
        (record,) = sidecar.audit()
        assert record["certificate_id"] == first.certificate_id
        assert record["certificate"]["n"] == last.n

    def test_what_was_never_handed_out_is_not_in_it(self, sidecar, backend, pixels) -> None:
        backend.spoil = lambda outputs: {}
        with pytest.raises(grpc.RpcError):
            sidecar.stub.Certify(pb.CertifyRequest(pixels=pixels, n=500))
        assert sidecar.audit() == []


def _value(sidecar, name: str, **labels: str) -> float | None:
    return sidecar.metrics.registry.get_sample_value(name, labels)


def test_metrics_count_what_happened(sidecar, backend, pixels) -> None:
    sidecar.stub.Certify(pb.CertifyRequest(pixels=pixels, n=500))
    backend.probabilities = [0.5, 0.5, 0.0]
    sidecar.stub.Certify(pb.CertifyRequest(pixels=pixels, n=500))
    sidecar.stub.Predict(pb.PredictRequest(pixels=pixels, n=70))
    with pytest.raises(grpc.RpcError):
        sidecar.stub.Certify(pb.CertifyRequest(pixels=pixels, n=-1))
    sidecar.server.stop(30).wait()
    for outcome in ("certified", "abstain", "INVALID_ARGUMENT"):
        count = _value(sidecar, "tfmacer_requests_total", method="Certify", outcome=outcome)
        assert count == 1, outcome
    assert _value(sidecar, "tfmacer_request_duration_seconds_count", method="Certify") == 3
    assert _value(sidecar, "tfmacer_noise_samples_total") == 2 * (500 + 100) + 70
    assert _value(sidecar, "tfmacer_certified_radius_count") == 2
    assert _value(sidecar, "tfmacer_certified_radius_bucket", le="0.0") == 1  # who abstained
    assert _value(sidecar, "tfmacer_certify_inflight") == 0
    assert _value(sidecar, "tfmacer_backend_queue") == 0
    assert _value(sidecar, "tfmacer_audit_failures_total") == 0
    assert _value(sidecar, "process_resident_memory_bytes") > 0


def test_metrics_move_while_a_call_is_under_way(start, backend, pixels) -> None:
    backend.per_draw = 1e-4
    sidecar = start(parallelism=1)
    stream = sidecar.stub.CertifyStream(pb.CertifyRequest(pixels=pixels, n=1_000_000))
    first = next(stream)
    assert _value(sidecar, "tfmacer_noise_samples_total") >= first.drawn
    assert _value(sidecar, "tfmacer_certify_inflight") == 1
    limit = time.monotonic() + 60  # of some 100 seconds that the plan takes
    while _value(sidecar, "tfmacer_backend_queue") != 1:  # one place, and more pieces than that
        assert time.monotonic() < limit
        time.sleep(0.001)
    stream.cancel()


def test_metrics_name_the_model(sidecar, backend) -> None:
    labels = {"model": "m", "version": "3", "digest": SMOOTHING.model_digest}
    assert _value(sidecar, "tfmacer_model_info", **labels) == 1
    assert _value(sidecar, "tfmacer_model_available") == 1
    backend.versions = {}
    with pytest.raises(BackendError):
        sidecar.models.refresh()
    assert _value(sidecar, "tfmacer_model_info", **labels) is None
    assert _value(sidecar, "tfmacer_model_available") == 0
