"""Malformed requests, built field by field: each is answered or refused, none breaks a server."""

import contextlib
import http.client
import json
from collections import deque
from urllib.parse import quote

import grpc
import numpy as np
from fuzzing import fuzz, times
from hypothesis import strategies as st

from serving import certification_pb2 as pb
from serving.certification_pb2_grpc import CertifierStub
from tfmacer.wire import PREDICT

HEIGHT, WIDTH, CHANNELS = SHAPE = (28, 28, 1)
DEADLINE = 10.0
TRACES = ("Traceback", 'File "')
GRPC_REFUSALS = {"OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
SERVER_REFUSALS = {*GRPC_REFUSALS, "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED"}
HTTP_REFUSALS = {200, 400, 403, 404, 405, 413, 422, 429, 501, 503, 504}


def no_trace(text):
    assert not any(trace in text for trace in TRACES), text


INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.one_of(st.floats(), st.sampled_from([0.0, -1.0, 1e-300, 0.001, 0.5, 1.0, 1e300]))


@st.composite
def pixel_messages(draw):
    """Right pixels, or with something wrong."""
    wrong = draw(st.sampled_from(["", "", "", "shape", "kind", "value", "length"]))
    kind = draw(st.sampled_from(["uint8", "float32"]))
    rng = np.random.default_rng(draw(st.integers(0, 100)))
    values = rng.random(HEIGHT * WIDTH * CHANNELS).astype("<f4")
    if wrong == "value":
        values[draw(st.integers(0, len(values) - 1))] = draw(st.floats(width=32))
    data = values.tobytes() if kind == "float32" else values.tobytes()[: len(values)]
    if wrong == "length":
        data = data[: draw(st.integers(0, len(data)))]
    shape = draw(st.lists(INT64, max_size=5)) if wrong == "shape" else SHAPE
    return pb.Pixels(shape=shape, **({} if wrong == "kind" else {kind: data}))


@st.composite
def plans(draw, *names):
    """The fields of a plan, at most two of them wild."""
    tame = {"n0": st.integers(1, 100), "n": st.integers(1, 600), "alpha": st.just(0.01)}
    wild = draw(st.sets(st.sampled_from(names), max_size=2))
    values = {
        name: (FLOATS if name == "alpha" else INT32) if name in wild else tame[name]
        for name in names
    }
    return {name: draw(st.one_of(st.none(), values[name], values[name])) for name in names}


@st.composite
def certify_requests(draw):
    request = pb.CertifyRequest(bilateral=draw(st.booleans()), **draw(plans("n0", "n", "alpha")))
    if draw(st.integers(0, 19)):
        request.pixels.CopyFrom(draw(pixel_messages()))
    stop = draw(st.sampled_from([None, None, "fixed", "decide", "precision", "budget"]))
    if stop == "fixed":
        request.fixed.SetInParent()
    elif stop:
        setattr(request, stop, draw(st.one_of(st.just(0.5), FLOATS)))
    return request


@st.composite
def predict_requests(draw):
    return pb.PredictRequest(pixels=draw(pixel_messages()), **draw(plans("n", "alpha")))


@times(160)
def test_certifier(stack, count):
    asked = st.one_of(
        st.tuples(st.just("Predict"), predict_requests()),
        st.tuples(st.sampled_from(["Certify", "CertifyStream"]), certify_requests()),
    )
    outcomes = set()

    def check(example):
        method, request = example
        code, text = _ask(stub, method, request)
        outcomes.add(code)
        assert code in GRPC_REFUSALS, f"{method} {request}: {code} {text}"
        no_trace(text)

    with grpc.insecure_channel(stack.address("8600")) as channel:
        stub = CertifierStub(channel)
        fuzz(asked, count, check)
    assert {"OK", "INVALID_ARGUMENT"} <= outcomes
    stack.check_alive()


def _ask(stub, method, request):
    """Status and text of one call, read to its end."""
    if method == "CertifyStream":
        call = stub.CertifyStream(request, timeout=DEADLINE)
        with contextlib.suppress(grpc.RpcError):  # its status says the same
            deque(call, maxlen=0)
    else:
        call = getattr(stub, method).future(request, timeout=DEADLINE)
    return call.code().name, call.details()


SIGNATURES = ("serving_default", "sample_under_noise", "logits", "encoded", "tfmacer_info")
INPUTS = ("images", "seeds", "offsets", "num_samples", "beta", "encoded_images", "probe")
SIZES = st.one_of(st.sampled_from([0, 1, 2, *SHAPE]), st.integers(-2, 40), INT64)


@st.composite
def tensors(draw):
    """A TensorProto: any type, any shape, values in any field or as bytes."""
    from tensorflow.core.framework import tensor_pb2

    tensor = tensor_pb2.TensorProto(
        dtype=draw(st.one_of(st.sampled_from([1, 3, 7, 9]), st.integers(0, 130)))
    )
    for size in draw(st.lists(SIZES, max_size=5)):
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_content = draw(st.binary(max_size=64))
    tensor.float_val.extend(draw(st.lists(st.floats(width=32), max_size=4)))
    tensor.int_val.extend(draw(st.lists(INT32, max_size=4)))
    tensor.string_val.extend(draw(st.lists(st.binary(max_size=9), max_size=2)))
    return tensor


@st.composite
def server_requests(draw):
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    if draw(st.integers(0, 9)):
        request.model_spec.name = draw(st.one_of(st.just("digits"), st.text(max_size=9)))
    version = draw(st.one_of(st.none(), st.just(1), INT64))
    if version is not None:
        request.model_spec.version.value = version
    elif not draw(st.integers(0, 4)):
        request.model_spec.version_label = draw(st.text(max_size=9))
    signature = draw(st.one_of(st.sampled_from(SIGNATURES), st.text(max_size=9)))
    request.model_spec.signature_name = signature
    for name in draw(st.lists(st.one_of(st.sampled_from(INPUTS), st.text(max_size=5)), max_size=6)):
        request.inputs[name].CopyFrom(draw(tensors()))
    request.output_filter.extend(draw(st.lists(st.sampled_from(["counts", "x"]), max_size=2)))
    return request


@st.composite
def sampling_requests(draw):
    """The right inputs of `sample_under_noise` with wrong numbers, rows or shapes."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest()
    request.model_spec.name = "digits"
    request.model_spec.signature_name = "sample_under_noise"
    few = st.integers(0, 3)
    rows = draw(few)

    def of(*shape):
        return (draw(few) if draw(st.integers(0, 7)) == 0 else rows, *shape)

    shape = draw(st.sampled_from([SHAPE, (28, 28), (27, 28, 1), (0, 0, 0)]))
    values = {
        "images": np.full(of(*shape), draw(st.floats(width=32)), np.float32),
        "seeds": np.full(of(2), draw(INT32), np.int32),
        "offsets": np.full(of(), draw(st.one_of(st.integers(0, 999), INT32)), np.int32),
        "num_samples": np.full(of(), draw(st.one_of(st.integers(0, 600), INT32)), np.int32),
        "beta": np.full(of(), draw(st.floats(width=32)), np.float32),
    }
    for name, array in values.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    return request


@times(100)
def test_model_server(stack, count):
    outcomes = set()

    def check(request):
        call = predict.future(request.SerializeToString(), timeout=DEADLINE)
        code = call.code().name
        outcomes.add(code)
        assert code in SERVER_REFUSALS, f"{request}: {code} {call.details()}"
        no_trace(call.details())

    with grpc.insecure_channel(stack.address("8500")) as channel:
        predict = channel.unary_unary(PREDICT)
        fuzz(st.one_of(server_requests(), sampling_requests()), count, check)
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND"} <= outcomes
    stack.check_alive()


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9))
JSON = st.deferred(
    lambda: st.one_of(
        LEAVES,
        LEAVES,
        st.lists(JSON, max_size=3),
        st.dictionaries(st.text(max_size=5), JSON, max_size=3),
    )
)
REST_BODIES = st.dictionaries(
    st.sampled_from(["instances", "inputs", "signature_name", "x"]),
    st.one_of(JSON, st.sampled_from(SIGNATURES), st.dictionaries(st.sampled_from(INPUTS), JSON)),
    max_size=3,
)
DEEP = st.integers(1, 30_000).map(lambda depth: b"[" * depth)
DEEP_OBJECT = st.integers(1, 2_000).map(
    lambda depth: b'{"inputs":' + b"[" * depth + b"1" + b"]" * depth + b"}"
)


def _http(address, method, path, body, headers=None):
    """Status and text of one HTTP exchange."""
    connection = http.client.HTTPConnection(address, timeout=DEADLINE)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode(errors="replace")
    finally:
        connection.close()


def _bodies(documents):
    as_json = documents.map(lambda value: json.dumps(value).encode())
    return st.one_of(as_json, as_json, DEEP, DEEP_OBJECT, st.binary(max_size=200))


@times(100)
def test_rest(stack, count):
    paths = st.one_of(
        st.sampled_from(["digits:predict", "digits/versions/1:predict", "digits", "x:predict"]),
        st.integers(0, 10**40).map(lambda version: f"digits/versions/{version}:predict"),
        st.text(max_size=12).map(quote),
    )
    methods = st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "DELETE", "HEAD"])
    statuses = set()

    def check(example):
        method, path, body = example
        status, text = _http(stack.address("8501"), method, f"/v1/models/{path}", body)
        statuses.add(status)
        assert status in HTTP_REFUSALS, f"{method} {path} {body!r}: {status} {text}"
        no_trace(text)

    fuzz(st.tuples(methods, paths, _bodies(REST_BODIES)), count, check)
    assert {400, 404} <= statuses
    stack.check_alive()


PIXEL_JSON = st.fixed_dictionaries(
    {"shape": st.one_of(st.just(list(SHAPE)), JSON)},
    optional={"uint8": st.text(max_size=9), "float32": JSON},
)
CONSOLE_BODIES = st.fixed_dictionaries(
    {},
    optional={
        "pixels": st.one_of(PIXEL_JSON, JSON),
        "image": st.one_of(st.text(max_size=40), st.just("iVBORw0KGgo="), JSON),
        "resize": st.one_of(st.booleans(), JSON),
        "n": st.one_of(st.integers(), JSON),
        "n0": JSON,
        "alpha": st.one_of(st.floats(), JSON),
        "decide": JSON,
        "budget": JSON,
        "x": JSON,
    },
)


@times(60)
def test_console(stack, count):
    paths = st.sampled_from(["predict", "certify", "certify/stream", "model", "x"])
    statuses = set()

    def check(example):
        method, path, body = example
        status, text = _http(
            stack.address("8080"), method, f"/v1/{path}", body, {"content-type": "application/json"}
        )
        statuses.add(status)
        assert status in HTTP_REFUSALS, f"{method} {path} {body!r}: {status} {text}"
        no_trace(text)

    methods = st.sampled_from(["POST", "POST", "POST", "GET"])
    fuzz(st.tuples(methods, paths, _bodies(CONSOLE_BODIES)), count, check)
    assert 400 in statuses
    stack.check_alive()
