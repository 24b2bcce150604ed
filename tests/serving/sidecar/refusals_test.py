"""What is refused, with which status, and that the message names field, value and limit."""

import dataclasses
import logging
import threading

import grpc
import numpy as np
import pytest

from serving import certification_pb2 as pb
from serving.sidecar.limits import Limits

GOOD = np.full((4, 4, 1), 0.5, np.float32)


def _floats(**changes: float) -> pb.Pixels:
    values = GOOD.copy()
    for position, value in changes.items():
        values.flat[int(position[1:])] = value
    return pb.Pixels(shape=GOOD.shape, float32=values.tobytes())


def _refused(call, request, **kwargs) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as caught:
        list(call(request, **kwargs))  # a stream fails where it is read, the others at the call
    return caught.value.code().name, caught.value.details()


def test_what_was_sent_is_quoted_in_part(start, caplog) -> None:
    """Four kilobytes of gzip that are a shape of millions of numbers."""
    sidecar = start(max_message_bytes=2**23)
    pixels = pb.Pixels(shape=[1] * 4_000_000, uint8=b"x")
    with caplog.at_level(logging.INFO):
        code, text = _refused(
            sidecar.stub.CertifyStream,
            pb.CertifyRequest(pixels=pixels),
            compression=grpc.Compression.Gzip,
        )
        sidecar.server.stop(30).wait()
    assert (code, text[:27]) == ("INVALID_ARGUMENT", "pixels.shape is [1, 1, 1, 1")
    assert text.endswith("the model takes [4, 4, 1]")
    assert max(len(record.getMessage()) for record in caplog.records) < 300


@pytest.mark.parametrize(
    ("pixels", "text"),
    [
        (pb.Pixels(), "pixels.shape is [], the model takes [4, 4, 1]"),
        (
            pb.Pixels(shape=[4, 4], uint8=bytes(16)),
            "pixels.shape is [4, 4], the model takes [4, 4, 1]",
        ),
        (
            pb.Pixels(shape=[2**40, 2**40, 1], uint8=b"x"),
            f"pixels.shape is [{2**40}, {2**40}, 1], the model takes [4, 4, 1]",
        ),
        (pb.Pixels(shape=[4, 4, 1]), "pixels.values is missing: give uint8 or float32"),
        (
            pb.Pixels(shape=[4, 4, 1], uint8=bytes(15)),
            "pixels.uint8 has 15 bytes, shape [4, 4, 1] needs 16",
        ),
        (
            pb.Pixels(shape=[4, 4, 1], float32=bytes(16)),
            "pixels.float32 has 16 bytes, shape [4, 4, 1] needs 64",
        ),
        (_floats(_5=np.nan), "pixels.float32 has nan at [1, 1, 0], values must lie in [0, 1]"),
        (_floats(_0=1.5), "pixels.float32 has 1.5 at [0, 0, 0], values must lie in [0, 1]"),
        (_floats(_15=-0.25), "pixels.float32 has -0.25 at [3, 3, 0], values must lie in [0, 1]"),
        (_floats(_1=np.inf), "pixels.float32 has inf at [0, 1, 0], values must lie in [0, 1]"),
    ],
)
def test_pixels(sidecar, backend, pixels, text: str) -> None:
    for call, request in (
        (sidecar.stub.Certify, pb.CertifyRequest(pixels=pixels)),
        (sidecar.stub.CertifyStream, pb.CertifyRequest(pixels=pixels)),
        (sidecar.stub.Predict, pb.PredictRequest(pixels=pixels)),
    ):
        assert _refused(call, request) == ("INVALID_ARGUMENT", text)
    assert backend.requests == []


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"n": 0}, "n is 0, it must lie in [1, 5000]"),
        ({"n": 5001}, "n is 5001, it must lie in [1, 5000]"),
        ({"n": -1}, "n is -1, it must lie in [1, 5000]"),
        ({"n0": 0}, "n0 is 0, it must lie in [1, 400]"),
        ({"n0": 401}, "n0 is 401, it must lie in [1, 400]"),
        ({"alpha": 0.0}, "alpha is 0.0, it must lie in [0.0001, 0.5]"),
        ({"alpha": 1e-5}, "alpha is 1e-05, it must lie in [0.0001, 0.5]"),
        ({"alpha": 0.9}, "alpha is 0.9, it must lie in [0.0001, 0.5]"),
        ({"alpha": float("nan")}, "alpha is nan, it must lie in [0.0001, 0.5]"),
        ({"decide": -1.0}, "decide is -1.0, it must be positive and at most inf"),
        ({"decide": float("nan")}, "decide is nan, it must be positive and at most inf"),
        ({"precision": 2.0}, "precision is 2.0, it must be positive and at most 1.0"),
        ({"budget": 61.0}, "budget is 61.0, it must be positive and at most 60.0"),
        ({"n": 5}, "n = 5 is too small for alpha = 0.001"),
        ({"decide": 100.0, "n": 1000}, "stop=decide:100.0: n = 1000 draws at alpha = 0.001"),
    ],
)
def test_sampling_plans(start, backend, fields, text: str) -> None:
    limits = Limits(max_n0=400, max_n=5000, min_alpha=1e-4, max_seconds=60.0)
    sidecar = start(limits=limits)
    request = pb.CertifyRequest(pixels=_floats(), **fields)
    for call in (sidecar.stub.Certify, sidecar.stub.CertifyStream):
        code, details = _refused(call, request)
        assert code == "INVALID_ARGUMENT"
        assert details.startswith(text)
    assert backend.requests == []


def test_predictions_are_limited_too(start) -> None:
    sidecar = start(limits=Limits(max_n=5000))
    request = pb.PredictRequest(pixels=_floats(), n=5001)
    assert _refused(sidecar.stub.Predict, request) == (
        "INVALID_ARGUMENT",
        "n is 5001, it must lie in [1, 5000]",
    )


def test_messages_are_limited(start) -> None:
    sidecar = start(max_message_bytes=2000)
    request = pb.CertifyRequest(pixels=pb.Pixels(shape=[4, 4, 1], uint8=bytes(5000)))
    code, details = _refused(sidecar.stub.Certify, request)
    assert code == "RESOURCE_EXHAUSTED"
    assert "2000" in details


@pytest.mark.parametrize(
    ("total", "per_client", "text"),
    [
        (2, 2, "certifications under way in all: 2, the limit is 2; try again later"),
        (3, 2, "certifications under way of this client: 2, the limit is 2; try again later"),
    ],
)
def test_certifications_at_once_are_limited(start, backend, total, per_client, text) -> None:
    sidecar = start(total=total, per_client=per_client)
    held, seen = threading.Event(), threading.Semaphore(0)

    def hold() -> None:
        seen.release()
        held.wait(30)

    backend.on_sample = hold
    request = pb.CertifyRequest(pixels=_floats(), n=200)
    running = [sidecar.stub.Certify.future(request) for _ in range(2)]
    for _ in range(2):
        assert seen.acquire(timeout=30)
    while sidecar.admission.inside() < 2:
        pass
    code, details = _refused(sidecar.stub.Certify, request)
    assert code == "RESOURCE_EXHAUSTED"
    if total != per_client:
        assert details == text
    held.set()
    assert all(call.result().n == 200 for call in running)
    assert sidecar.stub.Certify(request).n == 200


def test_models_that_cannot_be_certified_are_refused_with_the_reason(start, backend) -> None:
    backend.signatures = ("serving_default",)
    code, details = _refused(start().stub.Certify, pb.CertifyRequest(pixels=_floats()))
    assert code == "FAILED_PRECONDITION"
    assert "has no signature tfmacer_info" in details


def test_an_unknown_noise_is_refused_with_the_reason(start, backend) -> None:
    backend.smoothing = dataclasses.replace(backend.smoothing, noise_family="salt")
    code, details = _refused(start().stub.GetModel, pb.GetModelRequest())
    assert code == "FAILED_PRECONDITION"
    assert "salt" in details


def test_another_digest_than_the_operators_is_refused(start, backend) -> None:
    code, details = _refused(start(digest="cd" * 32).stub.GetModel, pb.GetModelRequest())
    assert code == "FAILED_PRECONDITION"
    assert details.endswith(f"has digest {'ab' * 32}, --model_digest is {'cd' * 32}")
    assert start(digest="ab" * 32).stub.GetModel(pb.GetModelRequest()).version == 3


def test_no_field_names_a_seed() -> None:
    """What a caller could choose, or see, of the noise."""
    fields = {
        field.name
        for message in pb.DESCRIPTOR.message_types_by_name.values()
        for field in message.fields
    }
    assert not [name for name in fields if "seed" in name or "noise" in name.split("_")[1:]]
