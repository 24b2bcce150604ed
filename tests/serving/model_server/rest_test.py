"""The REST paths over HTTP."""

import contextlib
import gzip
import http.client
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import portpicker
import pytest
import requests

from serving.common import http_guard
from serving.common.http_server import MAX_BODY_BYTES, HttpServer
from serving.model_server import rest
from serving.model_server.services import Calls
from tfmacer.common.errors import UserError
from tfmacer.common.text import LONGEST_VALUE

METRICS = "/monitoring/prometheus/metrics"


@pytest.fixture(scope="module")
def url(calls: Calls):
    port = portpicker.pick_unused_port()
    app = rest.make_app(calls, timeout_ms=500, metrics_path=METRICS)
    server = HttpServer(
        app, "127.0.0.1", port, "rest_api_port", names=["served.example"], refusal=rest.refusal
    )
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop(1)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/halves:predict",
        "/v1/models/halves/versions/7:predict",
        "/V1/Models/halves:PREDICT",
    ],
)
def test_predict_rows_and_columns(url: str, path: str) -> None:
    answer = requests.post(url + path, json={"instances": [2.0, 4.0]}, timeout=30)
    assert (answer.status_code, answer.json()) == (200, {"predictions": [3.0, 4.0]})
    assert answer.headers["content-type"] == "application/json"
    answer = requests.post(url + path, json={"inputs": [2.0, 4.0]}, timeout=30)
    assert (answer.status_code, answer.json()) == (200, {"outputs": [3.0, 4.0]})


def test_predict_by_signature(url: str) -> None:
    body = {"signature_name": "two", "instances": [{"x": 1.0, "m": [2, 3]}]}
    answer = requests.post(f"{url}/v1/models/halves:predict", json=body, timeout=30)
    assert answer.json() == {"predictions": [{"double_bytes": {"b64": "MS4wMDAwMDA="}, "sum": 6.0}]}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        (
            "POST",
            "/v1/models/no:predict",
            {"inputs": 1},
            404,
            "Servable not found for request: Latest(no)",
        ),
        (
            "POST",
            "/v1/models/halves/versions/8:predict",
            {"inputs": 1},
            404,
            "Servable not found for request: Specific(halves, 8)",
        ),
        (
            "POST",
            "/v1/models/halves/labels/new:predict",
            {"inputs": 1},
            400,
            "Unrecognized servable version label: new",
        ),
        (
            "POST",
            "/v1/models/halves:predict",
            {"signature_name": "s", "inputs": 1},
            400,
            'Serving signature name: "s" not found in signature def',
        ),
        (
            "POST",
            "/v1/models/halves:predict",
            {"signature_name": "scalar", "instances": [1.0]},
            400,
            "Tensor name: y has no shape information ",
        ),
        (
            "POST",
            "/v1/models/halves:predict",
            {"signature_name": "spin", "inputs": {"x": [1.0], "steps": [2**31 - 1]}},
            504,
            "Timed out waiting for notification",
        ),
        ("POST", "/v1/models/halves:classify", {}, 501, "classify is not supported, only predict"),
        ("POST", "/v1/models/halves", {}, 400, "Malformed request: POST /v1/models/halves"),
        (
            "GET",
            "/v1/models/halves:predict",
            None,
            400,
            "Malformed request: GET /v1/models/halves:predict",
        ),
        ("GET", "/v1/other", None, 400, "Malformed request: GET /v1/other"),
        ("GET", "/v1/models", None, 400, "Missing model name in request."),
        ("GET", "/v1/models/no", None, 404, "Could not find any versions of model no"),
        ("GET", "/v1/models/%6eo", None, 404, "Could not find any versions of model no"),
        (
            "GET",
            f"/v1/models/halves/versions/{2**63}",
            None,
            400,
            f"Failed to convert version: {2**63} to numeric.",
        ),
        (
            "GET",
            f"/v1/models/halves/versions/{'9' * 5000}",
            None,
            400,
            f"Failed to convert version: {'9' * (LONGEST_VALUE - 1)}… to numeric.",
        ),
        (
            "POST",
            "/v1/models/halves:predict",
            {"signature_name": "text", "inputs": ["\ud800"]},
            400,
            'JSON Value: "\\ud800" is no Unicode text',
        ),
    ],
)
def test_refusals(url: str, method, path, body, status, text) -> None:
    answer = requests.request(method, url + path, json=body, timeout=30)
    assert (answer.status_code, answer.json()) == (status, {"error": text})


def test_outside_v1_there_is_nothing(url: str) -> None:
    answer = requests.get(f"{url}/favicon.ico", timeout=30)
    assert (answer.status_code, answer.text) == (404, "")


def _chunks(size: int):
    """A body that does not announce its length."""
    for _ in range(size // 2**20):
        yield b" " * 2**20


@pytest.mark.parametrize("announced", [False, True])
def test_a_huge_body_is_refused(url: str, announced: bool) -> None:
    size = MAX_BODY_BYTES + 2**20
    body = b" " * size if announced else _chunks(size)
    address = urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(address.netloc, timeout=30)) as line:
        with contextlib.suppress(ConnectionError):  # refused before all of it is sent
            line.request("POST", "/v1/models/halves:predict", body, encode_chunked=not announced)
        answer = line.getresponse()
        assert answer.status == 413
        assert json.loads(answer.read()) == {"error": f"the body is larger than {2**26} bytes"}


def test_a_body_that_does_not_arrive(url: str, monkeypatch) -> None:
    monkeypatch.setattr(http_guard, "BODY_SECONDS", 0.3)
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as line:
        head = b"POST /v1/models/halves:predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9"
        line.sendall(head + b"\r\n\r\n{")
        assert line.recv(4096).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "served.example"}, 200),
        ({"host": "203.0.113.7:8501"}, 200),
        ({"host": "evil.example"}, 403),
        ({"origin": "http://evil.example"}, 403),
    ],
)
def test_pages_of_others_cannot_ask(url: str, headers: dict[str, str], status: int) -> None:
    for answer in (
        requests.get(url + METRICS, headers=headers, timeout=30),
        requests.get(f"{url}/v1/models/halves", headers=headers, timeout=30),
        requests.post(
            f"{url}/v1/models/halves:predict", json={"instances": [2]}, headers=headers, timeout=30
        ),
    ):
        assert answer.status_code == status
        assert status == 200 or list(answer.json()) == ["error"]
        assert "access-control-allow-origin" not in answer.headers


def test_status(url: str) -> None:
    for path in ("halves", "halves/versions/7", "halves/labels/any"):
        answer = requests.get(f"{url}/v1/models/{path}", timeout=30)
        assert answer.json() == {
            "model_version_status": [
                {
                    "version": "7",
                    "state": "AVAILABLE",
                    "status": {"error_code": "OK", "error_message": ""},
                }
            ]
        }


def test_metadata(url: str) -> None:
    answer = requests.get(f"{url}/v1/models/halves/metadata", timeout=30).json()
    assert answer["model_spec"] == {"name": "halves", "signature_name": "", "version": "7"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert signatures["serving_default"]["inputs"]["x"]["dtype"] == "DT_FLOAT"


def test_metrics_tell_rest_from_grpc(url: str) -> None:
    requests.post(f"{url}/v1/models/halves:predict", json={"instances": [2.0]}, timeout=30)
    text = requests.get(url + METRICS, timeout=30).text
    assert ':tensorflow:serving:request_latency_count{API="Predict",entrypoint="REST"' in text


def test_made_up_names_are_not_counted(url: str) -> None:
    assert requests.post(f"{url}/v1/models/invented:predict", b"{", timeout=30).status_code == 400
    assert "invented" not in requests.get(url + METRICS, timeout=30).text


def test_a_port_in_use_is_named(url: str, calls: Calls) -> None:
    app = rest.make_app(calls, timeout_ms=500, metrics_path=None)
    with pytest.raises(UserError, match=r"--rest_api_port=\d+: cannot listen"):
        HttpServer(app, "127.0.0.1", int(url.rpartition(":")[2]), "rest_api_port")


def _post(url: str, body: bytes, encoding: str) -> requests.Response:
    headers = {"content-encoding": encoding}
    return requests.post(f"{url}/v1/models/halves:predict", data=body, headers=headers, timeout=60)


def test_bodies_may_be_gzip(url: str) -> None:
    body = json.dumps({"instances": [2.0, 4.0]}).encode()
    answer = _post(url, gzip.compress(body, mtime=0), "gzip")
    assert (answer.status_code, answer.json()) == (200, {"predictions": [3.0, 4.0]})
    assert _post(url, body, "identity").status_code == 200


@pytest.mark.parametrize(
    ("body", "encoding", "status", "text"),
    [
        (b"{}", "gzip", 400, "the body is not gzip"),
        (gzip.compress(b"{}", mtime=0)[:-6], "gzip", 400, "it ends too early"),
        (gzip.compress(b"{}", mtime=0) * 2, "gzip", 400, "something follows its end"),
        (gzip.compress(b" " * (MAX_BODY_BYTES + 1)), "gzip", 413, "is larger than 67108864 bytes"),
        (b"{}", "br" * 500, 415, "is not supported, only gzip"),
    ],
)
def test_bodies_that_cannot_be_unpacked(url: str, body, encoding, status, text) -> None:
    answer = _post(url, body, encoding)
    assert answer.status_code == status
    assert text in answer.json()["error"]
    assert len(answer.text) < 400


def test_bodies_that_inflate_are_inflated_two_at_a_time(url: str, monkeypatch) -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def slow(body: bytes, encoding: str) -> bytes:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.1)
        with lock:
            inside -= 1
        return b"{}"

    monkeypatch.setattr(rest, "_inflated", slow)
    body = gzip.compress(b" " * (2 * rest.LARGE_BODY_BYTES))
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: _post(url, body, "gzip"), range(6)))
    assert {answer.status_code for answer in answers} == {400}
    assert most == rest.LARGE_BODIES


def test_errors_quote_a_part_of_the_body(url: str) -> None:
    body = {"inputs": "x" * 5_000_000}
    answer = requests.post(f"{url}/v1/models/halves:predict", json=body, timeout=60)
    assert answer.status_code == 400
    assert len(answer.text) < 600
