"""One client's long certification does not starve another's short one."""

import contextlib
import threading

import grpc
import pytest
import trustme

from serving import certification_pb2 as pb
from serving.certification_pb2_grpc import CertifierStub


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def _server_credentials(authority: trustme.CA) -> grpc.ServerCredentials:
    certificate = authority.issue_cert("localhost")
    key = certificate.private_key_pem.bytes()
    chain = b"".join(part.bytes() for part in certificate.cert_chain_pems)
    root = authority.cert_pem.bytes()
    return grpc.ssl_server_credentials([(key, chain)], root, require_client_auth=True)


@contextlib.contextmanager
def _client(authority: trustme.CA, target: str, name: str):
    certificate = authority.issue_cert(f"{name}@example.org", common_name=name)
    chain = b"".join(part.bytes() for part in certificate.cert_chain_pems)
    credentials = grpc.ssl_channel_credentials(
        authority.cert_pem.bytes(), certificate.private_key_pem.bytes(), chain
    )
    port = target.rpartition(":")[2]
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        yield CertifierStub(channel)


def test_clients_are_told_apart_by_their_certificates(start, authority, pixels) -> None:
    sidecar = start(credentials=_server_credentials(authority))
    for name in ("alice", "bob"):
        with _client(authority, sidecar.target, name) as stub:
            stub.Certify(pb.CertifyRequest(pixels=pixels, n=200))
    clients = [record["client"] for record in sidecar.audit()]
    assert len(set(clients)) == 2
    assert "alice" in clients[0]
    assert "bob" in clients[1]


def test_a_short_call_gets_every_other_place(start, authority, backend, pixels) -> None:
    """Counted in the backend's calls, not in seconds."""
    sidecar = start(parallelism=1, credentials=_server_credentials(authority))
    backend.seconds = 0.02
    under_way = threading.Event()
    backend.on_sample = lambda: len(backend.requests) > 20 and under_way.set()
    with (
        _client(authority, sidecar.target, "greedy") as greedy,
        _client(authority, sidecar.target, "modest") as modest,
    ):
        long = [
            greedy.Certify.future(pb.CertifyRequest(pixels=pixels, n=1_000_000)) for _ in range(4)
        ]
        assert under_way.wait(60)
        before = len(backend.requests)
        answer = modest.Certify(pb.CertifyRequest(pixels=pixels, n=300), timeout=60)
        between = backend.requests[before:]
        for call in long:
            assert not call.done()
            call.cancel()
    assert answer.n == 300
    # n = 300 and n0 = 100 are 7 blocks of 64, so 7 calls at most. With its turn after each of the
    # greedy client's calls, whose four certifications count as one, they are over after about as
    # many of these; waiting behind all of them would take 4 calls for each.
    assert len(between) <= 3 * 7 + 2
