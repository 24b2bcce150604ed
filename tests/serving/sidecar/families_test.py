"""The sidecar certifies under whatever noise the served model says it has."""

import dataclasses

import grpc
import numpy as np
import pytest
from fake_backend import SMOOTHING

from serving import certification_pb2 as pb
from tfmacer.noise.families import noise_distribution
from tfmacer.noise.generators import GENERATORS
from tfmacer.records import chain
from tfmacer.records.audit import read_audit_log, verify_entry
from tfmacer.records.audit_entries import AuditEntry
from tfmacer.records.sealing import pixels_digest, seal

LEVELS = np.arange(16, dtype=np.uint8).reshape(4, 4, 1) * 17
PIXELS = pb.Pixels(shape=LEVELS.shape, uint8=LEVELS.tobytes())
FAMILIES = {
    "rounded_gaussian": {},
    "generalized_gaussian": {"k": 4.0},
    "mixed_norm": {"k": 2.0},
}


@pytest.fixture(params=FAMILIES)
def family(request, backend):
    params = FAMILIES[request.param]
    backend.smoothing = dataclasses.replace(
        SMOOTHING, noise_family=request.param, noise_params=params
    )
    return noise_distribution(request.param, sigma=SMOOTHING.sigma, params=params, dimension=16)


def test_the_radius_is_that_of_the_models_noise(family, start):
    sidecar = start()
    message = sidecar.stub.Certify(pb.CertifyRequest(pixels=PIXELS, n=1000, fixed={}))
    assert message.model.noise_family == family.family
    assert dict(message.model.noise_params) == FAMILIES[family.family]
    assert message.norm == family.norm
    # Written down rounded toward zero at nine decimals.
    assert 0 <= family.radius(message.p_lower) - message.radius < 1e-9
    assert message.radius > 0.03
    (entry,) = sidecar.audit()
    assert entry["model"]["smoothing"]["noise_family"] == family.family
    (read,) = read_audit_log(sidecar.audit_path)
    assert verify_entry(read) is None


def test_whole_steps_alone_are_certified_where_the_theorem_asks_for_them(backend, start):
    backend.smoothing = dataclasses.replace(SMOOTHING, noise_family="rounded_gaussian")
    between = np.full((4, 4, 1), 0.3, "<f4")
    pixels = pb.Pixels(shape=between.shape, float32=between.tobytes())
    stub = start().stub
    for ask in (
        lambda: stub.Certify(pb.CertifyRequest(pixels=pixels, n=1000)),
        lambda: stub.Predict(pb.PredictRequest(pixels=pixels)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            ask()
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "certifies 8-bit images: pixel (0, 0, 0)" in caught.value.details()
    assert backend.requests == []


def test_pixels_beside_whole_steps_are_answered_as_those_on_them(backend, start):
    """The answer and the audit log name the pixels that were certified, not the ones sent."""
    backend.smoothing = dataclasses.replace(SMOOTHING, noise_family="rounded_gaussian")
    exact = LEVELS.astype("<f4") / np.float32(255)
    beside = np.nextafter(exact, np.float32(0.5))
    sidecar = start()
    pixels = pb.Pixels(shape=beside.shape, float32=beside.tobytes())
    answer = sidecar.stub.Certify(pb.CertifyRequest(pixels=pixels, n=1000))
    assert answer.pixels_sha256 == pixels_digest(exact)
    sidecar.audit()
    (entry,) = read_audit_log(sidecar.audit_path)
    np.testing.assert_array_equal(entry.pixels, exact)
    assert verify_entry(entry) is None
    forged = dataclasses.replace(entry, pixels=beside, pixels_sha256=pixels_digest(beside))
    assert verify_entry(forged) == "the pixels are not the multiples of 1/255 that were certified"


@pytest.mark.parametrize("generator", GENERATORS)
def test_the_generator_is_told_recorded_and_stated(generator, backend, start):
    backend.smoothing = dataclasses.replace(SMOOTHING, generator=generator)
    sidecar = start()
    answer = sidecar.stub.Certify(pb.CertifyRequest(pixels=PIXELS, n=1000))
    assert answer.model.generator == generator
    # 16 numbers: (8 + 2) 2^-23, and 16 x 2^-63.
    part = {"philox": "1.2e-6", "philox-boxmuller": "1.8e-18"}[generator]
    assert f"the generator {generator} never draws, at most {part} of" in answer.statement
    sidecar.audit()
    (entry,) = read_audit_log(sidecar.audit_path)
    assert entry.smoothing.generator == entry.certificate.distribution.generator == generator
    assert verify_entry(entry) is None
    fields = entry.fields()
    fields["model"]["smoothing"]["generator"] = "philox-boxmuller"
    line, _ = chain.to_line(fields, chain.BEGINNING)
    if generator == "philox-boxmuller":
        assert verify_entry(AuditEntry.from_line(line)) is None
    else:
        with pytest.raises(ValueError, match="generator is 'philox', it should be"):
            AuditEntry.from_line(line)


def test_a_generator_of_a_later_version_is_refused_in_one_line(backend, start):
    later = dataclasses.asdict(SMOOTHING) | {"generator": "philox-3"}

    class Later:
        input_shape = SMOOTHING.input_shape

        def to_json(self) -> str:
            return seal(later)

    backend.smoothing = Later()
    with pytest.raises(grpc.RpcError) as caught:
        start().stub.Certify(pb.CertifyRequest(pixels=PIXELS, n=1000))
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "generator must be one of philox, philox-boxmuller, got" in caught.value.details()
    assert "\n" not in caught.value.details()
