"""TLS on the sidecar's port and towards its backend: who gets in, and what is refused."""

import base64
import datetime
import json
import ssl
from collections.abc import Iterator
from pathlib import Path

import authority
import grpc
import numpy as np
import portpicker
import pytest
import requests
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fake_backend import FakeBackend
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from PIL import Image
from processes import serving

from serving import client
from serving.common import grpc_server, tls
from serving.sidecar import __main__ as sidecar
from tfmacer.common.errors import UserError
from tfmacer.wire import channel

CA = trustme.CA()
OTHER_CA = trustme.CA()


@pytest.fixture
def server_files(tmp_path: Path) -> authority.Files:
    return authority.issue(tmp_path, CA, "localhost", "server")


@pytest.fixture
def client_files(tmp_path: Path) -> authority.Files:
    return authority.issue(tmp_path, CA, "alice@example.org", "client")


class Port:
    """A gRPC health service behind TLS."""

    def __init__(self, settings: tls.Tls) -> None:
        self.number = portpicker.pick_unused_port()
        self._server = grpc_server.make_server(
            threads=4, max_concurrent_rpcs=8, max_message_bytes=2**20
        )
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), self._server)
        credentials = settings.server_credentials()
        grpc_server.bind(self._server, f"127.0.0.1:{self.number}", "port", credentials)
        self._server.start()

    def code(self, ca: trustme.CA = CA, shown: authority.Files | None = None) -> grpc.StatusCode:
        """How a call over a fresh connection ends."""
        pair = (shown.key.read_bytes(), shown.cert.read_bytes()) if shown else (None, None)
        credentials = grpc.ssl_channel_credentials(ca.cert_pem.bytes(), *pair)
        # Channels to one target share connections otherwise.
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(f"localhost:{self.number}", credentials, options) as channel:
            call = health_pb2_grpc.HealthStub(channel).Check.future(
                health_pb2.HealthCheckRequest(), timeout=20
            )
            return call.code()

    def stop(self) -> None:
        self._server.stop(0).wait()


@pytest.fixture
def opened() -> Iterator[list[Port]]:
    ports: list[Port] = []
    yield ports
    for port in ports:
        port.stop()


def _open(opened: list[Port], settings: tls.Tls) -> Port:
    opened.append(Port(settings))
    return opened[-1]


OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE


def test_an_expired_certificate_is_refused_and_an_old_one_warned_of(tmp_path, caplog) -> None:
    for stem, days in (("old", -1), ("nearly", 6), ("fresh", 8)):
        ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        issued = CA.issue_cert("localhost", not_after=ends)
        cert, key = tmp_path / f"{stem}.cert", tmp_path / f"{stem}.key"
        cert.write_bytes(issued.cert_chain_pems[0].bytes())
        key.write_bytes(issued.private_key_pem.bytes())
        caplog.clear()
        if days < 0:
            with pytest.raises(UserError, match=f"--tls_cert={cert}: expired on "):
                tls.Tls(cert, key).check()
        else:
            tls.Tls(cert, key).check()
            assert (f"--tls_cert={cert} expires on" in caplog.text) == (days < 7)


def test_a_server_shows_its_certificate(opened, server_files) -> None:
    port = _open(opened, tls.Tls(server_files.cert, server_files.key))
    assert port.code() is OK
    assert port.code(OTHER_CA) is UNAVAILABLE
    with grpc.insecure_channel(f"localhost:{port.number}") as plain:
        stub = health_pb2_grpc.HealthStub(plain)
        call = stub.Check.future(health_pb2.HealthCheckRequest(), timeout=20)
        assert call.code() is UNAVAILABLE


def test_callers_must_show_theirs_where_asked_to(
    opened, server_files, client_files, tmp_path
) -> None:
    settings = tls.Tls(server_files.cert, server_files.key, client_files.ca)
    port = _open(opened, settings)
    assert port.code() is UNAVAILABLE
    stranger = authority.issue(tmp_path, OTHER_CA, "eve@example.org", "stranger")
    assert port.code(shown=stranger) is UNAVAILABLE
    assert port.code(shown=client_files) is OK


def test_files_are_read_again_when_they_change(opened, server_files, tmp_path, caplog) -> None:
    port = _open(opened, tls.Tls(server_files.cert, server_files.key))
    assert port.code() is OK
    authority.issue(tmp_path, OTHER_CA, "localhost", "server")
    assert port.code(OTHER_CA) is OK
    assert port.code(CA) is UNAVAILABLE
    # Half of a change: the pair in use is kept, and said so once.
    server_files.key.write_text("no key")
    assert port.code(OTHER_CA) is OK
    assert port.code(OTHER_CA) is OK
    assert caplog.text.count("the TLS files in use are kept: ") == 1
    authority.issue(tmp_path, CA, "localhost", "server")
    assert port.code(CA) is OK


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("localhost:8500", True),
        ("127.0.0.1:8500", True),
        ("[::1]:8500", True),
        ("unix:/run/server.sock", True),
        ("dns:///localhost:8500", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("", False),
        ("192.168.1.2:8500", False),
        ("localhost.example.org:8500", False),
        ("model-server:8500", False),
        ("dns://8.8.8.8/localhost.example.org", False),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("[2001:db8::1]:8500", False),
    ],
)
def test_what_is_loopback(address: str, loopback: bool) -> None:
    if loopback:
        channel.check_loopback("host", address, instead="--tls")
    else:
        with pytest.raises(UserError, match="not a loopback address"):
            channel.check_loopback("host", address, instead="--tls")


SIDECAR = ["--backend=127.0.0.1:1", "--model_name=m"]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--host=0.0.0.0"], "--host=0.0.0.0: not a loopback address"),
        (["--host=0.0.0.0"], "give --tls_cert and --tls_key, or --allow_plaintext"),
        (["--tls_cert=CERT"], "--tls_cert needs --tls_key"),
        (["--tls_key=KEY"], "--tls_key needs --tls_cert"),
        (["--tls_client_ca=CA"], "--tls_client_ca needs --tls_cert"),
        (["--tls_cert=none.pem", "--tls_key=KEY"], "--tls_cert=none.pem: cannot be read: No such"),
        (["--tls_cert=CERT", "--tls_key=OTHER"], "KEY_VALUES_MISMATCH"),
        (["--tls_cert=KEY", "--tls_key=KEY"], "not a certificate in PEM and its key"),
        (["--tls_cert=CERT", "--tls_key=LOCKED"], "its key without a password"),
        (["--tls_cert=CERT", "--tls_key=KEY", "--tls_client_ca=KEY"], "no certificates in PEM"),
        (["--backend=tf:8500"], "--backend=tf:8500: not a loopback address"),
        (["--backend=tf:8500"], "give --backend_tls, or --backend_allow_plaintext"),
        (["--backend_tls_ca=CA"], "--backend_tls_ca needs --backend_tls"),
        (["--backend_tls_cert=CERT"], "--backend_tls_cert needs --backend_tls_key"),
        (
            ["--backend_tls_cert=CERT", "--backend_tls_key=KEY"],
            "--backend_tls_cert needs --backend_tls",
        ),
        (["--backend_tls", "--backend_tls_ca=KEY"], "--backend_tls_ca=KEY: no certificates"),
        (
            ["--backend_tls", "--backend_tls_cert=CERT", "--backend_tls_key=OTHER"],
            "KEY_VALUES_MISMATCH",
        ),
    ],
)
def test_what_cannot_be_used_ends_the_start_with_one_line(
    capsys, monkeypatch, tmp_path, server_files, client_files, flags, text
) -> None:
    monkeypatch.chdir(tmp_path)
    key = trustme.CA().issue_cert("x").private_key_pem.bytes()
    Path("OTHER").write_bytes(key)
    Path("CERT").write_bytes(server_files.cert.read_bytes())
    Path("KEY").write_bytes(server_files.key.read_bytes())
    Path("CA").write_bytes(server_files.ca.read_bytes())
    Path("LOCKED").write_bytes(_locked(server_files.key.read_bytes()))
    assert sidecar.main([*SIDECAR, *flags]) == 1
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def _locked(key: bytes) -> bytes:
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


def test_a_client_does_not_send_an_image_over_the_network_in_clear(capsys, tmp_path) -> None:
    assert client.main(["--target=example.org:8600", __file__]) == 1
    assert "--target=example.org:8600: not a loopback address" in capsys.readouterr().err


def test_mutual_tls_on_both_sides(tmp_path: Path, server_files, client_files, capsys) -> None:
    """Client, sidecar and backend as they run, each showing a certificate to the next."""
    backend_files = authority.issue(tmp_path, OTHER_CA, "localhost", "backend")
    own_files = authority.issue(tmp_path, OTHER_CA, "sidecar@example.org", "own")
    backend, port = FakeBackend(), portpicker.pick_unused_port()
    backend_port, http_port = portpicker.pick_unused_port(), portpicker.pick_unused_port()
    backend.start(
        backend_port,
        tls.Tls(backend_files.cert, backend_files.key, own_files.ca).server_credentials(),
    )
    audit = tmp_path / "audit"
    digit = tmp_path / "digit.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(digit)
    flags = [
        f"--backend=localhost:{backend_port}",
        "--backend_tls",
        f"--backend_tls_ca={backend_files.ca}",
        f"--backend_tls_cert={own_files.cert}",
        f"--backend_tls_key={own_files.key}",
        "--model_name=m",
        f"--port={port}",
        # Reachable from elsewhere, as TLS is on.
        "--host=0.0.0.0",
        f"--tls_cert={server_files.cert}",
        f"--tls_key={server_files.key}",
        f"--tls_client_ca={client_files.ca}",
        "--metrics_port=0",
        f"--http_port={http_port}",
        f"--audit_log={audit}",
    ]
    target = [f"--target=localhost:{port}", str(digit), "--n=300", "--json"]
    trusting = ["--tls", f"--tls_ca={server_files.ca}"]
    showing = [f"--tls_cert={client_files.cert}", f"--tls_key={client_files.key}"]
    with serving("serving.sidecar", *flags, stderr=tmp_path / "log") as process:
        assert client.main([*target, *trusting, *showing]) == 0
        certificate = json.loads(capsys.readouterr().out)
        for refused in (target, [*target, *trusting], [*target, "--tls", *showing]):
            assert client.main(refused) == 1
            assert "UNAVAILABLE" in capsys.readouterr().err
        of_a_browser = requests.post(
            f"https://localhost:{http_port}/v1/certify",
            json={"image": base64.b64encode(digit.read_bytes()).decode(), "n": 300},
            verify=server_files.ca,
            cert=(client_files.cert, client_files.key),
            timeout=60,
        ).json()
        process.terminate()
        assert process.wait(60) == 0
    backend.stop()
    entries = list(map(json.loads, audit.read_text().splitlines()))
    given = [certificate["certificate_id"], of_a_browser["certificate_id"]]
    assert [entry["certificate_id"] for entry in entries] == given
    subject = x509.load_pem_x509_certificate(client_files.cert.read_bytes()).subject
    # One client, whichever way it comes.
    clients = [entry["client"] for entry in entries]
    assert clients == [f"x509_subject:{subject.rfc4514_string()}"] * 2


def test_a_subject_is_written_as_openssl_writes_it(tmp_path: Path) -> None:
    name = x509.Name(
        [
            x509.NameAttribute(x509.NameOID.COUNTRY_NAME, "DE"),
            x509.NameAttribute(x509.NameOID.STREET_ADDRESS, "Weg 1"),
            x509.NameAttribute(x509.NameOID.DOMAIN_COMPONENT, "example"),
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, ' "A" <B>, C+D; \\'),
            x509.NameAttribute(x509.NameOID.COMMON_NAME, "#Zo\u00eb "),
            x509.NameAttribute(x509.NameOID.EMAIL_ADDRESS, "zoe@example.org"),
        ]
    )
    key = ec.generate_private_key(ec.SECP256R1())
    then = datetime.datetime(2020, 1, 1)
    pem = tmp_path / "ca.pem"
    pem.write_bytes(
        x509.CertificateBuilder(name, name, key.public_key(), 1, then, then)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(pem)
    (decoded,) = context.get_ca_certs()
    # From `openssl x509 -noout -subject -nameopt RFC2253 -in ca.pem`.
    written = (
        r"emailAddress=zoe@example.org,CN=\#Zo\C3\AB\ ,O=\ \"A\" \<B\>\, C\+D\; \\,"
        "DC=example,street=Weg 1,C=DE"
    )
    assert tls.subject(decoded) == written
    assert tls.subject({}) == tls.subject(None) == ""
