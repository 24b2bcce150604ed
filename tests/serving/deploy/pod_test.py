"""The pod's sidecar, started with the flags of the manifest, before a stand-in model server."""

import re
import subprocess
import sys

import authority
import grpc
import portpicker
import pytest
import requests
import trustme
from deployment import containers, named
from fake_backend import FakeBackend
from processes import serving

from serving import certification_pb2 as pb
from serving.certification_pb2_grpc import CertifierStub

NAME = "tfmacer.example.com"
SIDECAR = containers()["sidecar"]


@pytest.fixture
def pod(tmp_path):
    """Ports of the running sidecar by name, and the PEM files of one who may call."""
    folder = tmp_path / "tls"
    folder.mkdir()
    ca = trustme.CA()
    server = authority.issue(tmp_path, ca, NAME, "server")
    # The names that the manifest's secret has.
    for file, name in ((server.cert, "tls.crt"), (server.key, "tls.key"), (server.ca, "ca.crt")):
        (folder / name).write_bytes(file.read_bytes())
    backend = FakeBackend()
    backend.port = portpicker.pick_unused_port()
    backend.start(backend.port)
    ports = {port["name"]: portpicker.pick_unused_port() for port in SIDECAR["ports"]}
    there = {port["name"]: port["containerPort"] for port in SIDECAR["ports"]}
    renamed = {
        "backend": f"127.0.0.1:{backend.port}",
        "model_name": "m",
        "host": "127.0.0.1",
        "metrics_host": "127.0.0.1",
    }

    def here(name: str, value: str) -> str:
        for port, number in there.items():
            value = re.sub(rf"^{number}$", str(ports[port]), value)
        value = value.replace("/etc/tfmacer/tls", str(folder))
        value = value.replace("/var/lib/tfmacer", str(tmp_path)).replace("$(POD_NAME)", "pod-1")
        return f"--{name}={renamed.get(name, value)}"

    flags = [here(name, value) for name, value in named(SIDECAR["args"]).items()]
    try:
        with serving("serving.sidecar", *flags, stderr=tmp_path / "log"):
            yield ports, authority.issue(tmp_path, ca, "caller@example.com", "caller")
    finally:
        backend.stop()
    assert (tmp_path / "pod-1.jsonl").is_file()


def _certify(port, credentials):
    options = [("grpc.ssl_target_name_override", NAME)]
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        pixels = pb.Pixels(shape=[4, 4, 1], uint8=bytes(16))
        call = CertifierStub(channel).Certify.future(
            pb.CertifyRequest(pixels=pixels, n=300), timeout=60
        )
        return call.code()


def test_it_serves_those_with_a_certificate_and_is_found_ready(pod):
    ports, caller = pod
    ca = caller.ca.read_bytes()
    known = grpc.ssl_channel_credentials(ca, caller.key.read_bytes(), caller.cert.read_bytes())
    assert _certify(ports["grpc"], known) is grpc.StatusCode.OK
    assert _certify(ports["grpc"], grpc.ssl_channel_credentials(ca)) is grpc.StatusCode.UNAVAILABLE

    alive = SIDECAR["livenessProbe"]["httpGet"]
    url = f"http://127.0.0.1:{ports[alive['port']]}{alive['path']}"
    assert requests.get(url, timeout=20).status_code == 200
    code = SIDECAR["readinessProbe"]["exec"]["command"][2].replace("9464", str(ports["metrics"]))
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
