"""The sidecar certifies under whatever noise the served model says it has."""

import dataclasses

import grpc
import numpy as np
import pytest
from fake_backend import SMOOTHING

from serving import certification_pb2 as pb
from tfmacer.guarantee.smoothing import law
from tfmacer.records.audit import read_audit_log, verify_entry

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
    return law(request.param, sigma=SMOOTHING.sigma, params=params, dimension=16)


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
    with pytest.raises(grpc.RpcError) as caught:
        start().stub.Certify(pb.CertifyRequest(pixels=pixels, n=1000))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "certifies 8-bit images: pixel (0, 0, 0)" in caught.value.details()
    assert backend.requests == []
