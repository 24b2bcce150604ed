"""`--ssl_config_file`, a message that tensorflow-serving-api does not ship."""

from pathlib import Path

import authority
import grpc
import portpicker
import pytest
import trustme
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from serving.common import grpc_server
from serving.model_server.ssl_config import read_credentials
from tfmacer.common.errors import UserError

CA = trustme.CA()


@pytest.fixture
def files(tmp_path: Path) -> authority.Files:
    return authority.issue(tmp_path, CA, "localhost")


def _config(tmp_path: Path, **fields: str) -> Path:
    """As an operator writes it: PEM texts quoted, line ends escaped."""
    path = tmp_path / "ssl.config"
    lines = [
        f"{name}: {value}" if value == "true" else f'{name}: "{value}"'
        for name, value in fields.items()
    ]
    path.write_text("\n".join(lines))
    return path


def _quoted(path: Path) -> str:
    return path.read_text().replace("\n", "\\n")


@pytest.mark.parametrize("verify", [False, True])
def test_a_server_with_it(tmp_path, files, verify: bool) -> None:
    fields = {"server_key": _quoted(files.key), "server_cert": _quoted(files.cert)}
    if verify:
        fields |= {"custom_ca": _quoted(files.ca), "client_verify": "true"}
    server = grpc_server.make_server(threads=2, max_concurrent_rpcs=4, max_message_bytes=1000)
    health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
    port = portpicker.pick_unused_port()
    credentials = read_credentials(_config(tmp_path, **fields))
    grpc_server.bind(server, f"127.0.0.1:{port}", "port", credentials)
    server.start()

    def code(*pair: bytes) -> grpc.StatusCode:
        trusting = grpc.ssl_channel_credentials(files.ca.read_bytes(), *pair)
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(f"localhost:{port}", trusting, options) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return stub.Check.future(health_pb2.HealthCheckRequest(), timeout=20).code()

    anonymous = grpc.StatusCode.UNAVAILABLE if verify else grpc.StatusCode.OK
    assert code() is anonymous
    assert code(files.key.read_bytes(), files.cert.read_bytes()) is grpc.StatusCode.OK
    server.stop(0).wait()


def test_what_is_no_such_config(tmp_path, files) -> None:
    other = authority.issue(tmp_path, CA, "localhost", "other")
    for fields, text in (
        ({"key": "x"}, "no text-format SSLConfig"),
        ({"client_verify": "true"}, "client_verify needs custom_ca"),
        ({"server_key": "x", "server_cert": "y"}, "must be a certificate, its key"),
        (
            {"server_key": _quoted(other.key), "server_cert": _quoted(files.cert)},
            "KEY_VALUES_MISMATCH",
        ),
    ):
        path = _config(tmp_path, **fields)
        with pytest.raises(UserError, match=text) as caught:
            read_credentials(path)
        assert str(caught.value).startswith(f"--ssl_config_file={path}: ")
