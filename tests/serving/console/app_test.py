"""The JSON endpoint says what the gRPC service says, and refuses as it does."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import grpc
import numpy as np
import pytest
from console_requests import BODY, PIXELS, events, png
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate

from serving import certification_pb2 as pb
from serving.console import images
from serving.console.app import PAGE
from serving.sidecar.limits import Limits

SHA256 = hashlib.sha256((PIXELS / np.float32(255)).astype("<f4").tobytes()).hexdigest()
REQUEST = pb.CertifyRequest(pixels=pb.Pixels(shape=[4, 4, 1], uint8=PIXELS.tobytes()), n=1000)


def _same(answer, message) -> None:
    """The JSON is the message, but for what names this one call."""
    expected = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    found = json_format.MessageToDict(
        json_format.ParseDict(
            {name: value for name, value in answer.items() if name != "pixels"}, type(message)()
        ),
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    for one in (expected, found):
        one.pop("certificate_id", None)
    assert found == expected


def test_certify_is_the_services_certificate(client) -> None:
    asked = client(seed=3)
    answer = asked.post("/v1/certify", json=BODY | {"n": 1000})
    assert answer.status_code == 200
    _same(answer.json(), asked.sidecar.stub.Certify(REQUEST))
    assert answer.json()["predict"] == 1
    assert answer.json()["pixels_sha256"] == SHA256
    assert answer.json()["pixels"] is None


@pytest.mark.parametrize(
    "plan",
    [
        {"alpha": 0.01, "n0": 64, "bilateral": True},
        {"decide": 0.25},
        {"precision": 0.2},
        {"budget": 30.0},
    ],
)
def test_every_field_reaches_the_service(client, plan) -> None:
    asked = client(seed=3)
    answer = asked.post("/v1/certify", json=BODY | {"n": 2000} | plan).json()
    request = json_format.ParseDict(plan, pb.CertifyRequest())
    request.pixels.CopyFrom(REQUEST.pixels)
    request.n = 2000
    _same(answer, asked.sidecar.stub.Certify(request))


def test_predict_and_model_are_the_services(client) -> None:
    asked = client(seed=3, limits=Limits(max_n=5000))
    _same(
        asked.post("/v1/predict", json=BODY | {"n": 50, "alpha": 0.1}).json(),
        asked.sidecar.stub.Predict(pb.PredictRequest(pixels=REQUEST.pixels, n=50, alpha=0.1)),
    )
    model = asked.get("/v1/model").json()
    limits = model.pop("limits")
    _same(model, asked.sidecar.stub.GetModel(pb.GetModelRequest()))
    assert limits["max_n"] == 5000
    assert limits["max_image_pixels"] == images.MAX_PIXELS


def test_float32_pixels(client) -> None:
    values = (PIXELS / np.float32(255)).astype("<f4")
    pixels = {"shape": [4, 4, 1], "float32": base64.b64encode(values.tobytes()).decode()}
    answer = client().post("/v1/predict", json={"pixels": pixels})
    assert answer.json()["pixels_sha256"] == SHA256


def test_the_stream_is_the_services_stream(client) -> None:
    asked = client(seed=3)
    answer = asked.post("/v1/certify/stream", json=BODY | {"n": 1000})
    assert answer.headers["content-type"].startswith("text/event-stream")
    kinds, certificates = zip(*events(answer.text), strict=True)
    assert set(kinds) == {"certificate"}
    messages = list(asked.sidecar.stub.CertifyStream(REQUEST))
    assert len(certificates) == len(messages) > 3
    for certificate, message in zip(certificates, messages, strict=True):
        _same(certificate, message)


def test_a_failure_midway_is_an_event(client, backend) -> None:
    asked = client()
    calls = []

    def exchange() -> None:
        calls.append(1)
        if len(calls) == 12:
            backend.answering = 9

    backend.on_sample = exchange
    answer = asked.post("/v1/certify/stream", json=BODY | {"n": 5000})
    assert answer.status_code == 200
    *certificates, (kind, refusal) = events(answer.text)
    assert {kind for kind, _ in certificates} == {"certificate"}
    assert kind == "refusal"
    assert refusal["request_id"] == answer.headers["x-request-id"]
    assert refusal["code"] in ("ABORTED", "INTERNAL")


def test_a_file_is_decoded_and_shown(client) -> None:
    asked = client()
    for path in ("/v1/certify", "/v1/predict"):
        answer = asked.post(path, json={"image": png(PIXELS), "n": 200}).json()
        assert answer["pixels_sha256"] == SHA256
        assert answer["pixels"]["shape"] == [4, 4, 1]
        assert base64.b64decode(answer["pixels"]["uint8"]) == PIXELS.tobytes()
    stream = asked.post("/v1/certify/stream", json={"image": png(PIXELS), "n": 200})
    (kind, pixels), *_ = events(stream.text)
    assert (kind, base64.b64decode(pixels["uint8"])) == ("pixels", PIXELS.tobytes())


def test_a_file_of_another_size_is_resized_only_where_asked(client) -> None:
    asked = client()
    large = {"image": png(np.full((9, 6, 1), 200, np.uint8)), "n": 200}
    answer = asked.post("/v1/certify", json=large)
    assert answer.status_code == 400
    assert "is 6x9 pixels, the model takes 4x4" in answer.json()["message"]
    answer = asked.post("/v1/certify", json=large | {"resize": True}).json()
    became = np.frombuffer(base64.b64decode(answer["pixels"]["uint8"]), np.uint8)
    digest = hashlib.sha256((became / np.float32(255)).astype("<f4").tobytes()).hexdigest()
    assert answer["pixels_sha256"] == digest
    assert became.max() == 200


WRONG = [
    ("{", "not JSON"),
    ("[]", "must be a JSON object"),
    ('{"n": 1}', "exactly one of pixels and image"),
    ('{"image": "AA", "pixels": {"shape": [1], "uint8": ""}}', "exactly one of pixels and image"),
    ('{"image": "?"}', "image is not base64"),
    ('{"image": "AAAA"}', "image: not a readable"),
    ('{"pixels": {"shape": [4, 4, 1]}}', "exactly one of uint8 and float32"),
    ('{"pixels": {"shape": [4, 4, 1], "uint8": "?"}}', "pixels.uint8 is not base64"),
    ('{"pixels": {"shape": [4, 4, 1], "uint8": "AAAA"}}', "pixels.uint8 has 3 bytes"),
    ('{"pixels": {"shape": [4, 4], "uint8": "AAAA"}}', "pixels.shape is [4, 4]"),
    ('{"pixels": {"shape": [4, -4, 1], "uint8": "AAAA"}}', "pixels.shape.1"),
    ('{"pixels": {"shape": [1, 1, 1, 1, 1], "uint8": "AAAA"}}', "pixels.shape"),
    ('{BODY, "n": NaN}', "n: "),
    ('{BODY, "n": 1e99}', "n: "),
    ('{BODY, "n": 0}', "n: "),
    ('{BODY, "n": "100"}', "n: "),
    ('{BODY, "n": 100.5}', "n: "),
    ('{BODY, "n": 1000001}', "n is 1000001"),
    ('{BODY, "alpha": NaN}', "alpha: "),
    ('{BODY, "alpha": Infinity}', "alpha: "),
    ('{BODY, "alpha": 1e-12}', "alpha is 1e-12"),
    ('{BODY, "decide": NaN}', "decide: "),
    ('{BODY, "decide": 1e400}', "decide: "),
    ('{BODY, "budget": -1}', "budget: "),
    ('{BODY, "budget": 1, "decide": 1}', "at most one of decide, precision and budget"),
    ('{BODY, "budget": 1e9}', "budget is 1000000000.0"),
    ('{BODY, "resize": true}', "resize is about a file"),
    ('{BODY, "seed": 4}', "seed: "),
    ('{BODY, "bilateral": 1}', "bilateral: "),
]


@pytest.fixture(scope="module")
def nan_pixels() -> str:
    values = np.full((4, 4, 1), 0.5, "<f4")
    values[2, 1] = np.nan
    return base64.b64encode(values.tobytes()).decode()


def test_wrong_requests_are_refused_by_field(client, nan_pixels) -> None:
    asked = client()
    body = json.dumps(BODY)[1:-1]
    cases = [*WRONG, ('{"pixels": {"shape": [4, 4, 1], "float32": "NAN"}}', "has nan at [2, 1, 0]")]
    for text, expected in cases:
        sent = text.replace("BODY", body).replace("NAN", nan_pixels)
        for path in ("/v1/certify", "/v1/certify/stream"):
            answer = asked.post(path, content=sent, headers={"content-type": "application/json"})
            refusal = answer.json()
            assert (answer.status_code, refusal["code"]) == (400, "INVALID_ARGUMENT"), text
            assert expected in refusal["message"], text
            assert refusal["request_id"] == answer.headers["x-request-id"]
            assert len(answer.text) < 1000


def _json_values():
    numbers = st.none() | st.booleans() | st.integers() | st.floats()
    small = st.integers(-1, 5) | st.sampled_from(["", "AA==", "A" * 24])
    leaves = numbers | st.text(max_size=8) | small
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(st.sampled_from(["shape", "uint8", "float32"]), inner)
        ),
        max_leaves=6,
    )


FIELDS = ("pixels", "image", "resize", "n", "n0", "alpha", "bilateral", "decide", "x" * 999)


def test_no_body_is_a_defect(client) -> None:
    """Broken in every way, a request is refused, shortly; what is whole is answered."""
    asked = client(limits=Limits(max_n=300, max_n0=300))
    body = st.dictionaries(st.sampled_from(FIELDS), _json_values())

    @settings(max_examples=150)
    @given(body | body.map(lambda fields: BODY | fields) | _json_values())
    def ask(value) -> None:
        answer = asked.post(
            "/v1/certify", content=json.dumps(value), headers={"content-type": "application/json"}
        )
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 400:
            assert answer.json()["code"] == "INVALID_ARGUMENT"
            assert len(answer.text) < 1000

    ask()


def test_a_body_without_its_type_is_refused(client) -> None:
    """A form on another site can send text, but not this type without asking first."""
    text, asked = json.dumps(BODY), client()
    for headers in ({}, {"content-type": "text/plain"}):
        answer = asked.post("/v1/predict", content=text, headers=headers)
        assert answer.status_code == 400
        assert "application/json" in answer.json()["message"]


def test_a_large_body_is_refused_unread(client, monkeypatch) -> None:
    asked = client(max_body_bytes=1000)
    monkeypatch.setattr(json, "loads", lambda text: pytest.fail("it was parsed"))
    text = b'{"image": "' + b"A" * 2000 + b'"}'
    headers = {"content-type": "application/json"}
    announced = asked.post("/v1/certify", content=text, headers=headers)
    chunked = asked.post("/v1/certify", content=iter([text[:900], text[900:]]), headers=headers)
    assert "content-length" not in chunked.request.headers
    monkeypatch.undo()
    for answer in (announced, chunked):
        assert answer.status_code == 413
        assert answer.json()["code"] == "RESOURCE_EXHAUSTED"
        assert "larger than 1000 bytes" in answer.json()["message"]


def test_statuses_are_mapped(client, backend) -> None:
    asked = client(per_client=1, total=1)
    with asked.sidecar.admission.enter("someone else"):
        answer = asked.post("/v1/certify", json=BODY)
        assert (answer.status_code, answer.json()["code"]) == (429, "RESOURCE_EXHAUSTED")
        assert asked.post("/v1/certify/stream", json=BODY).status_code == 429
    backend.versions = {9: 30}
    answer = asked.post("/v1/predict", json=BODY)
    assert (answer.status_code, answer.json()["code"]) == (409, "ABORTED")


def test_without_a_model_it_is_unavailable(client, backend) -> None:
    backend.versions = {}
    asked = client()
    for answer in (
        asked.get("/v1/model"),
        asked.post("/v1/certify", json=BODY),
        asked.post("/v1/predict", json={"image": png(PIXELS)}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (503, "UNAVAILABLE")
    assert asked.get("/").status_code == 200


def test_a_defect_is_no_stack_trace(client, monkeypatch) -> None:
    def fail(*args, **kwargs):
        raise RuntimeError("secret")

    monkeypatch.setattr(images, "decode", fail)
    answer = client().post("/v1/predict", json={"image": png(PIXELS)})
    assert answer.status_code == 500
    assert answer.json() == {
        "code": "INTERNAL",
        "message": "internal error",
        "request_id": answer.headers["x-request-id"],
    }


def test_unknown_paths_and_methods(client) -> None:
    asked = client()
    assert asked.get("/v1/nothing").json()["code"] == "NOT_FOUND"
    answer = asked.get("/v1/certify")
    assert (answer.status_code, answer.json()["code"]) == (405, "UNIMPLEMENTED")
    assert asked.get("/docs").status_code == 404


def test_every_answer_carries_the_headers(client, monkeypatch) -> None:
    asked = client(max_body_bytes=1000)
    monkeypatch.setattr(images, "decode", lambda *args, **kwargs: 1 / 0)
    answers = [
        *(asked.get(f"/{path}") for path in PAGE),
        asked.get("/v1/model"),
        asked.get("/openapi.json"),
        asked.get("/nothing"),
        asked.get("/", headers={"host": "evil.example"}),
        asked.post("/v1/certify/stream", json=BODY | {"n": 100}),
        asked.post("/v1/certify", json={"image": "A" * 2000}),
        asked.post("/v1/certify", json={"image": png(PIXELS)}),
    ]
    assert [answer.status_code for answer in answers[-6:]] == [200, 404, 403, 200, 413, 500]
    for answer in answers:
        policy = answer.headers["content-security-policy"].split("; ")
        assert {"default-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"} <= set(policy)
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-request-id"]
        assert "server" not in answer.headers


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:8080"}, 200),
        ({"host": "LOCALHOST"}, 200),
        ({"host": "[::1]:8080"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "localhost@evil.example"}, 403),
        ({"host": "localhost:80:80"}, 403),
        ({"host": "203.0.113.7:8080"}, 200),
        ({"host": "[2001:db8::7]"}, 200),
        ({"host": "203.0.113.7.evil.example"}, 403),
        ({"host": "203.0.113"}, 403),
        ({"host": "203.0.113.7", "origin": "http://203.0.113.7"}, 200),
        ({"host": "203.0.113.7", "origin": "http://evil.example"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://localhost"}, 200),
        ({"host": "localhost:8080", "origin": "http://localhost:8080"}, 200),
        ({"host": "localhost:8080", "origin": "http://localhost:9090"}, 403),
        ({"origin": "https://localhost"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ([("origin", "http://localhost"), ("origin", "http://evil.example")], 403),
    ],
)
def test_only_this_servers_own_page_may_ask(client, headers, status) -> None:
    asked = client()
    for answer in (
        asked.get("/", headers=headers),
        asked.post("/v1/predict", json=BODY, headers=headers),
    ):
        assert answer.status_code == status
        assert status == 200 or answer.json()["code"] == "PERMISSION_DENIED"
        assert "access-control-allow-origin" not in answer.headers


def test_the_caller_is_the_browser(client) -> None:
    asked = client()
    headers = {"x-request-id": "mine-1", "x-forwarded-for": "8.8.8.8", "x-tfmacer-client": "me"}
    answer = asked.post("/v1/certify", json=BODY | {"n": 200}, headers=headers)
    assert answer.headers["x-request-id"] == "mine-1"
    assert asked.post("/v1/certify", json=BODY | {"n": 200}, headers={"x-request-id": "a b"})
    records = asked.sidecar.audit()
    assert [record["client"] for record in records] == ["ipv4:203.0.113.7"] * 2
    assert records[0]["request_id"] == "mine-1"
    assert re.fullmatch("[0-9a-f]{32}", records[1]["request_id"])


def test_a_direct_caller_cannot_name_itself(sidecar, pixels) -> None:
    metadata = (("x-tfmacer-client", "ipv4:203.0.113.9"),)
    sidecar.stub.Certify(pb.CertifyRequest(pixels=pixels, n=200), metadata=metadata)
    (record,) = sidecar.audit()
    assert record["client"] == "ipv4:127.0.0.1"


def test_the_openapi_document_is_valid_and_whole(client) -> None:
    document = client().get("/openapi.json").json()
    validate(document)
    assert set(document["paths"]) == {
        "/v1/model",
        "/v1/predict",
        "/v1/certify",
        "/v1/certify/stream",
    }
    stream = document["paths"]["/v1/certify/stream"]["post"]["responses"]["200"]
    assert list(stream["content"]) == ["text/event-stream"]
    for path in document["paths"].values():
        for operation in path.values():
            assert set(operation["responses"]) == {"200", "default"}
    codes = document["components"]["schemas"]["Refusal"]["properties"]["code"]["enum"]
    assert set(codes) == {code.name for code in grpc.StatusCode} - {"OK"}


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_page_has_nothing_inline_and_nothing_from_elsewhere(client) -> None:
    asked = client()
    page = asked.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    for tag, attributes in Elements(page.text).found:
        assert "style" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        assert tag != "style"
        assert tag != "script" or "src" in attributes
        for name in ("src", "href"):
            if name in attributes:
                assert asked.get(attributes[name]).status_code == 200, attributes
    for path in PAGE:
        text = asked.get(f"/{path}").text
        links = set(re.findall(r"https?://[^\s\"'`]+", text)) - {"http://www.w3.org/2000/svg"}
        assert links == set(), path
