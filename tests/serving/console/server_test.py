"""The console as it listens: leaving, slow callers, TLS, and the sidecar's process."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import portpicker
import pytest
import requests
import trustme
from console_requests import BODY, events
from processes import ROOT, serving

from serving.common import http_guard
from serving.common.http_server import HttpServer
from serving.common.tls import Tls
from serving.console.bridge import client_of
from tfmacer.common.errors import UserError

PATIENCE = 60.0


def _wait(condition) -> None:
    limit = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_leaving_ends_the_draws(served, backend) -> None:
    backend.seconds = 0.01
    console = served()
    long = BODY | {"n": 1_000_000}
    with requests.post(f"{console.url}/v1/certify/stream", json=long, stream=True) as answer:
        lines = answer.iter_lines()
        assert next(lines) == b"event: certificate"
        assert console.sidecar.admission.inside() == 1
    _wait(lambda: console.sidecar.admission.inside() == 0)
    with pytest.raises(requests.Timeout):
        requests.post(f"{console.url}/v1/certify", json=long, timeout=0.5)
    _wait(lambda: console.sidecar.admission.inside() == 0)
    drawn = len(backend.requests)
    assert drawn < 2000


def test_leaving_while_nothing_has_come_ends_the_draws(served, backend) -> None:
    backend.seconds = 5.0
    console = served()
    with pytest.raises(requests.Timeout):
        requests.post(f"{console.url}/v1/certify/stream", json=BODY, timeout=0.5)
    _wait(lambda: console.sidecar.admission.inside() == 0)


def test_certificates_come_while_draws_are_made(served, backend) -> None:
    backend.seconds = 0.02
    console = served()
    with requests.post(
        f"{console.url}/v1/certify/stream", json=BODY | {"n": 2000}, stream=True
    ) as answer:
        chunks = answer.iter_content(None)
        (_, first), *_ = events(next(chunks).decode())
        assert first["drawn"] < 2000
        rest = b"".join(chunks).decode()
    assert events(rest)[-1][1]["drawn"] == 2000


def test_a_caller_behind_a_header_is_still_its_address(served) -> None:
    console = served()
    headers = {"x-forwarded-for": "203.0.113.9", "forwarded": "for=203.0.113.9"}
    requests.post(f"{console.url}/v1/certify", json=BODY | {"n": 200}, headers=headers, timeout=60)
    (record,) = console.sidecar.audit()
    assert record["client"] == "ipv4:127.0.0.1"


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("203.0.113.7", "ipv4:203.0.113.7"),
        ("::1", "ipv6:%5B::1%5D"),
        ("testclient\n", "http:testclient%0A"),
    ],
)
def test_clients_are_named_as_grpc_names_them(host, client) -> None:
    from starlette.requests import Request

    assert client_of(Request({"type": "http", "client": (host, 1)})) == client


def test_a_body_that_does_not_arrive(served, monkeypatch) -> None:
    monkeypatch.setattr(http_guard, "BODY_SECONDS", 0.3)
    address = urlsplit(served().url)
    with socket.create_connection((address.hostname, address.port), timeout=PATIENCE) as line:
        line.sendall(
            b"POST /v1/certify HTTP/1.1\r\nhost: localhost\r\ncontent-length: 900\r\n"
            b"content-type: application/json\r\n\r\n{"
        )
        answer = line.recv(4096)
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_the_socket_is_closed_to_other_users(served) -> None:
    folder = Path(served().console._folder.name)
    assert folder.stat().st_mode & 0o077 == 0
    assert [path.name for path in folder.iterdir()] == ["grpc"]


def test_https(served, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    issued.private_key_pem.write_to_path(tmp_path / "key")
    authority.cert_pem.write_to_path(tmp_path / "ca")
    console = served(tls=Tls(tmp_path / "cert", tmp_path / "key"))
    assert console.url.startswith("https://")
    origin = {"origin": console.url}
    answer = requests.post(
        f"{console.url}/v1/predict", json=BODY, verify=tmp_path / "ca", headers=origin, timeout=60
    )
    assert answer.status_code == 200
    plain = console.url.replace("https", "http")
    with pytest.raises(requests.ConnectionError):
        requests.get(plain, timeout=60)


def test_clients_must_show_a_certificate_where_grpc_clients_must(served, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    issued.private_key_pem.write_to_path(tmp_path / "key")
    authority.cert_pem.write_to_path(tmp_path / "ca")
    console = served(tls=Tls(tmp_path / "cert", tmp_path / "key", tmp_path / "ca"))
    url = f"{console.url}/v1/model"
    with pytest.raises(requests.ConnectionError):
        requests.get(url, verify=tmp_path / "ca", timeout=60)
    pair = (str(tmp_path / "cert"), str(tmp_path / "key"))
    assert requests.get(url, verify=tmp_path / "ca", cert=pair, timeout=60).status_code == 200


def test_bad_tls_files_and_taken_ports_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "no").write_text("no")
    port = portpicker.pick_unused_port()
    tls = Tls(tmp_path / "no", tmp_path / "no")
    with pytest.raises(UserError, match=f"--http_port={port}: the TLS files cannot be used"):
        HttpServer(lambda: None, "127.0.0.1", port, "http_port", tls=tls)
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(UserError, match=f"--http_port={port}: cannot listen"),
    ):
        HttpServer(lambda: None, "127.0.0.1", port, "http_port")


def test_the_framework_is_loaded_only_for_the_console() -> None:
    code = (
        "import sys, serving.sidecar.__main__; "
        "print({'fastapi', 'starlette', 'uvicorn', 'pydantic', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_a_life_in_full(backend, tmp_path: Path) -> None:
    port, http, log = portpicker.pick_unused_port(), portpicker.pick_unused_port(), tmp_path / "log"
    flags = [
        f"--backend=127.0.0.1:{backend.port}",
        "--model_name=m",
        f"--port={port}",
        "--metrics_port=0",
        f"--http_port={http}",
        "--http_hosts=certify.example",
        f"--audit_log={tmp_path / 'audit'}",
    ]
    url = f"http://127.0.0.1:{http}"
    with serving("serving.sidecar", *flags, stderr=log) as process:
        assert "<title>" in requests.get(url, timeout=60).text
        named = {"host": "certify.example"}
        assert requests.get(url, headers=named, timeout=60).status_code == 200
        backend.seconds = 0.1
        with requests.post(
            f"{url}/v1/certify/stream", json=BODY | {"n": 1000}, stream=True, timeout=60
        ) as answer:
            chunks = answer.iter_content(None)
            first = next(chunks)
            process.terminate()
            text = (first + b"".join(chunks)).decode()
        # What is under way finishes.
        assert events(text)[-1][1]["drawn"] == 1000
        assert process.wait(60) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    streams = [line for line in lines if line.get("method") == "CertifyStream"]
    assert [line["client"] for line in streams] == ["ipv4:127.0.0.1"]
    assert not any("traceback" in line for line in lines)
    (record,) = (tmp_path / "audit").read_text().splitlines()
    assert json.loads(record)["client"] == "ipv4:127.0.0.1"
