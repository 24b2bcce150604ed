"""The stack of compose.yaml on this machine, with an untrained LeNet: started once, then abused.

The embedded server stands in for TensorFlow Serving. Addresses, folders and ports are changed to
free ones of the loopback, and limits are lowered so that a valid request is soon done; every other
flag is as it stands there.
"""

import dataclasses
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import portpicker
import pytest
import requests
from deployment import DEPLOY, ONLY_TENSORFLOW_SERVING, commands
from processes import serving

from benchmarks.load import PLACES
from benchmarks.serving_overhead import SHAPE, export
from serving import certification_pb2 as pb
from serving.certification_pb2_grpc import CertifierStub

MODEL = "digits"
# gRPC and REST of the model server; gRPC, console and metrics of the sidecar.
PORTS = ("8500", "8501", "8600", "8080", "9464")
HOSTS = ("model_server", "sidecar", "0.0.0.0")
# Batching is TensorFlow Serving's own: the embedded server refuses it.
LEFT_OUT = ONLY_TENSORFLOW_SERVING | {"enable_batching"}
LIMITS = (
    "--max_n=2000",
    "--max_n0=2000",
    "--max_seconds=5",
    f"--max_certifications={PLACES}",
    f"--max_certifications_per_client={PLACES}",
)
PATIENCE = 60.0
PIXELS = pb.Pixels(shape=SHAPE, uint8=bytes(28 * 28))


@dataclasses.dataclass
class Stack:
    """Two servers under way.

    Attributes:
      ports: of this machine, by the container's.
      processes: by name.
    """

    ports: dict[str, int]
    processes: dict[str, subprocess.Popen[str]]

    def address(self, port: str) -> str:
        """Where what listens on a port of a container listens here."""
        return f"127.0.0.1:{self.ports[port]}"

    def check_alive(self) -> None:
        """Both still run and answer, on every port."""
        for name, process in self.processes.items():
            assert process.poll() is None, f"{name} has ended"
        with grpc.insecure_channel(self.address("8600")) as channel:
            request = pb.CertifyRequest(pixels=PIXELS, n=300)
            assert CertifierStub(channel).Certify(request, timeout=PATIENCE).n == 300
        status = requests.get(
            f"http://{self.address('8501')}/v1/models/{MODEL}", timeout=PATIENCE
        ).json()
        assert status["model_version_status"][0]["state"] == "AVAILABLE"
        body = {"inputs": np.zeros((1, *SHAPE)).tolist(), "signature_name": "logits"}
        answer = requests.post(
            f"http://{self.address('8501')}/v1/models/{MODEL}:predict", json=body, timeout=PATIENCE
        )
        assert len(answer.json()["outputs"][0]) == 10
        page = requests.get(f"http://{self.address('8080')}/", timeout=PATIENCE)
        assert page.status_code == 200

    def metrics(self) -> dict[str, float]:
        """The sidecar's samples without labels."""
        text = requests.get(f"http://{self.address('9464')}/metrics", timeout=PATIENCE).text
        return {
            name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE)
        }


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    ports = {
        port: portpicker.pick_unused_port() for port in ("8500", "8501", "8600", "8080", "9464")
    }
    for name in ("models.config", "monitoring.config"):
        text = (DEPLOY / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace("/models/", f"{folder}/"))
    export(folder / MODEL)

    def here(flag: str) -> str:
        for host in HOSTS:
            flag = flag.replace(f"={host}", "=127.0.0.1")
        for port, free in ports.items():
            flag = re.sub(rf"(=|:){port}$", rf"\g<1>{free}", flag)
        for path in ("/etc/tfserving", "/var/lib/tfmacer"):
            flag = flag.replace(path, str(folder))
        return flag

    server, sidecar = ([here(flag) for flag in flags] for flags in commands()["compose.yaml"])
    server = [flag for flag in server if flag.split("=")[0].removeprefix("--") not in LEFT_OUT]
    logs: dict[str, Path] = {name: folder / f"{name}.log" for name in ("server", "sidecar")}
    with (
        serving("serving.model_server", *server, stderr=logs["server"]) as first,
        serving("serving.sidecar", *sidecar, *LIMITS, stderr=logs["sidecar"]) as second,
    ):
        yield Stack(ports, {"model server": first, "sidecar": second})
