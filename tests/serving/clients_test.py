"""Other people's clients of TensorFlow Serving's API, against the embedded server."""

import json
import subprocess
from pathlib import Path

import portpicker
import pytest
from processes import ROOT, serving

pytestmark = pytest.mark.clients

OVMS = """
import json, sys
import numpy as np
from ovmsclient import make_grpc_client, make_http_client
grpc_port, rest_port = sys.argv[1:]
x = np.array([2.0, 4.0], np.float32)
found = {}
for kind, client in (("grpc", make_grpc_client(f"localhost:{grpc_port}")),
                     ("http", make_http_client(f"localhost:{rest_port}"))):
    found[kind] = {
        "status": {k: v["state"] for k, v in client.get_model_status("halves", 7).items()},
        "predict": client.predict({"x": x}, "halves", model_version=7).tolist(),
    }
    try:  # it asks for version 0 when it is told none
        client.get_model_status("halves")
    except Exception as error:
        found[kind]["zero"] = f"{type(error).__name__}: {error}"
client = make_grpc_client(f"localhost:{grpc_port}")
metadata = client.get_model_metadata("halves", model_version=7)
found["metadata"] = {"version": metadata["model_version"], "inputs": sorted(metadata["inputs"])}
print(json.dumps(found))
"""

MIN_TFS = """
import json, sys
import numpy as np
from min_tfs_client.requests import TensorServingClient
from min_tfs_client.tensors import tensor_proto_to_ndarray
client = TensorServingClient(host="127.0.0.1", port=int(sys.argv[1]))
x = np.array([2.0, 4.0], np.float32)
answer = client.predict_request(model_name="halves", input_dict={"x": x}, model_version=7)
print(json.dumps({
    "predict": tensor_proto_to_ndarray(answer.outputs["y"]).tolist(),
    "version": answer.model_spec.version.value,
}))
"""


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory):
    """Ports of gRPC and REST of a server with model `halves`, version 7."""
    import tensorflow as tf

    root = tmp_path_factory.mktemp("halves")
    module = tf.Module()
    module.two = tf.Variable(2.0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def halve(x):
        return {"y": x / 2 + module.two}

    tf.saved_model.save(module, str(root / "7"), signatures={"serving_default": halve})
    chosen = portpicker.pick_unused_port(), portpicker.pick_unused_port()
    flags = [
        "--model_name=halves",
        f"--model_base_path={root}",
        f"--port={chosen[0]}",
        f"--rest_api_port={chosen[1]}",
    ]
    log = tmp_path_factory.mktemp("logs") / "server"
    with serving("serving.model_server", *flags, stderr=log):
        yield chosen


def _run(environment: str, code: str, *arguments: int) -> dict:
    python = ROOT / environment / "bin" / "python"
    assert python.exists(), f"{python} is missing: make test-clients"
    done = subprocess.run(
        [python, "-c", code, *map(str, arguments)],
        cwd=Path("/"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_ovmsclient(ports) -> None:
    found = _run(".venv-clients", OVMS, *ports)
    for kind in ("grpc", "http"):
        assert found[kind]["status"] == {"7": "AVAILABLE"}
        assert found[kind]["predict"] == [3.0, 4.0]
        assert "Could not find version 0 of model halves" in found[kind]["zero"]
    assert found["metadata"] == {"version": 7, "inputs": ["x"]}


def test_min_tfs_client(ports) -> None:
    """Reads answers from the dtype's own field only."""
    found = _run(".venv-clients-min", MIN_TFS, ports[0])
    assert found == {"predict": [3.0, 4.0], "version": 7}
