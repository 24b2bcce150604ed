"""REST's JSON, both ways: values, formats, refusals."""

import json
import tracemalloc

import grpc
import numpy as np
import pytest
import tensorflow as tf

from serving.model_server.json_requests import MAX_VALUES, parse_request
from serving.model_server.json_responses import format_response
from serving.model_server.status import StatusError


def _infos(**dtypes: tf.DType):
    from tensorflow.core.protobuf import meta_graph_pb2

    infos = {
        name: meta_graph_pb2.TensorInfo(dtype=dtype.as_datatype_enum)
        for name, dtype in dtypes.items()
    }
    return lambda signature: infos


def _parse(document: object, **dtypes: tf.DType):
    _, inputs, rows = parse_request(json.dumps(document).encode(), _infos(**dtypes))
    return {name: tf.make_ndarray(proto) for name, proto in inputs.items()}, rows


def test_rows_are_stacked() -> None:
    inputs, rows = _parse({"instances": [[1, 2.5], [3, 4]]}, x=tf.float32)
    assert rows
    assert inputs["x"].dtype == np.float32
    np.testing.assert_array_equal(inputs["x"], [[1, 2.5], [3, 4]])


def test_rows_of_named_inputs() -> None:
    inputs, _ = _parse(
        {"instances": [{"a": 1, "b": [1.5]}, {"a": 2, "b": [2.5]}]}, a=tf.int64, b=tf.float64
    )
    np.testing.assert_array_equal(inputs["a"], [1, 2])
    np.testing.assert_array_equal(inputs["b"], [[1.5], [2.5]])


def test_columns() -> None:
    inputs, rows = _parse({"inputs": {"a": [1, 2], "b": 0.5}}, a=tf.int32, b=tf.float32)
    assert not rows
    assert inputs["b"].shape == ()
    np.testing.assert_array_equal(inputs["a"], [1, 2])
    inputs, _ = _parse({"inputs": [[True], [False]]}, a=tf.bool)
    np.testing.assert_array_equal(inputs["a"], [[True], [False]])


@pytest.mark.parametrize(
    "dtype", [tf.int8, tf.int16, tf.int32, tf.int64, tf.uint8, tf.uint32, tf.uint64]
)
def test_every_integer_of_its_dtype_is_taken(dtype: tf.DType) -> None:
    limits = np.iinfo(dtype.as_numpy_dtype)
    inputs, _ = _parse({"inputs": [limits.min, limits.max]}, x=dtype)
    assert inputs["x"].tolist() == [limits.min, limits.max]


@pytest.mark.parametrize(
    ("dtype", "value", "taken"),
    [
        (tf.float32, 2**24 + 1, 2.0**24),
        (tf.float32, 1e39, np.inf),
        (tf.float32, -(10**39), -np.inf),
        (tf.float64, 2**53 + 1, 2.0**53),
        (tf.float64, 1e39, 1e39),
    ],
)
def test_every_number_is_a_float(dtype: tf.DType, value: float, taken: float) -> None:
    for document in ({"inputs": [value]}, {"instances": [value]}):
        inputs, _ = _parse(document, x=dtype)
        assert inputs["x"].tolist() == [taken]


def test_bytes_come_in_base64() -> None:
    inputs, _ = _parse({"instances": [{"b64": "AP8="}, "text"]}, s=tf.string)
    assert list(inputs["s"]) == [b"\x00\xff", b"text"]


def test_not_a_number_is_a_number() -> None:
    body = b'{"instances": [NaN, -Infinity]}'
    _, inputs, _ = parse_request(body, _infos(x=tf.float32))
    np.testing.assert_array_equal(tf.make_ndarray(inputs["x"]), [np.nan, -np.inf])


@pytest.mark.parametrize(
    ("document", "dtypes", "text"),
    [
        ([], {"x": tf.float32}, r"Is not object"),
        ({}, {"x": tf.float32}, r"^Missing 'inputs' or 'instances' key$"),
        ({"inputs": 1, "instances": [1]}, {"x": tf.float32}, "only one of 'inputs' or 'instances'"),
        ({"instances": 1}, {"x": tf.float32}, "Excepting 'instances' to be an list/array"),
        ({"instances": []}, {"x": tf.float32}, "No values in 'instances' array"),
        (
            {"instances": [1]},
            {"x": tf.float32, "y": tf.float32},
            "^instances is a plain list, but expecting list of objects",
        ),
        (
            {"instances": [{"x": 1}, 2]},
            {"x": tf.float32},
            "Expecting object but got list at item 1",
        ),
        (
            {"instances": [{"x": 1}]},
            {"x": tf.float32, "y": tf.float32},
            r"^Failed to process element: 0 of 'instances' list. JSON object: \{\"x\": 1\} "
            "keys must be equal to: x,y$",
        ),
        (
            {"instances": [{"z": 1}]},
            {"x": tf.float32},
            "key: z of 'instances' list. Error: INVALID_ARGUMENT: JSON object: does not have named",
        ),
        ({"instances": [[1], [1, 2]]}, {"x": tf.float32}, "^Expecting tensor size: 1 but got: 2$"),
        (
            {"instances": [[[1, 2]], [1, 2]]},
            {"x": tf.float32},
            r"^Expecting shape \[1,2\] but got: \[2\]$",
        ),
        (
            {"inputs": 1},
            {"x": tf.float32, "y": tf.float32},
            "^inputs is a plain value/list, but expecting an object",
        ),
        (
            {"inputs": {"x": 1}},
            {"x": tf.float32, "y": tf.float32},
            "^Missing named input: y in 'inputs' object.$",
        ),
        (
            {"inputs": 1.5},
            {"x": tf.int32},
            "^JSON Value: 1.5 Type: Number is not of expected type: int32$",
        ),
        ({"inputs": 2**31}, {"x": tf.int32}, "is not of expected type: int32"),
        ({"inputs": 300}, {"x": tf.uint8}, "is not of expected type: uint8"),
        ({"inputs": -1}, {"x": tf.uint8}, "is not of expected type: uint8"),
        ({"inputs": -129}, {"x": tf.int8}, "is not of expected type: int8"),
        ({"inputs": True}, {"x": tf.float32}, "Type: True is not of expected type: float"),
        ({"inputs": "1"}, {"x": tf.float32}, "Type: String is not of expected type: float"),
        ({"inputs": None}, {"x": tf.string}, "Type: Null is not of expected type: string"),
        ({"inputs": 10**400}, {"x": tf.float32}, "1000.*… is too large a number"),
        ({"inputs": 1.5}, {"x": tf.half}, "^Conversion of JSON Value: 1.5 to type"),
        ({"inputs": {"b64": "%%"}}, {"x": tf.string}, "^Unable to base64 decode$"),
        ({"inputs": [[1], 2]}, {"x": tf.int32}, "found at incorrect level: 2 .* at level: 2"),
        ({"inputs": [[1], [1, 2]]}, {"x": tf.int32}, "list at unexpected size: 2 at level: 1"),
        ({"inputs": [1, [2]]}, {"x": tf.int32}, "^Encountered list at unexpected level: 1"),
        ({"signature_name": 3, "inputs": 1}, {"x": tf.int32}, "'signature_name' key must be"),
    ],
)
def test_refusals(document, dtypes, text: str) -> None:
    with pytest.raises(StatusError, match=text):
        _parse(document, **dtypes)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"inputs": ' + b"9" * 5000 + b"}",
        b'{"inputs": [0.0], "inputs": [1.0]}',
    ],
    ids=["empty", "cut", "binary", "deep", "digits", "a key given twice"],
)
def test_bodies_that_are_no_json(body: bytes) -> None:
    with pytest.raises(StatusError, match="^JSON Parse error: "):
        parse_request(body, _infos(x=tf.float32))


def test_a_deeply_nested_body_is_refused_not_fatal() -> None:
    body = b'{"inputs": ' + b"[" * 900 + b"1" + b"]" * 900 + b"}"
    with pytest.raises(StatusError):
        parse_request(body, _infos(x=tf.float32))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(0.1), "0.1"),
        (np.float32(1), "1.0"),
        (np.float32(1 / 3), "0.333333343"),
        (np.float32(9e6), "9e+06"),
        (np.float64(0.1), "0.1"),
        (np.float64(1 / 3), "0.33333333333333331"),
        (np.float64(123456789), "123456789.0"),
        (np.float32(np.nan), "NaN"),
        (np.float32(-np.inf), "-Infinity"),
        (np.int64(2**62), str(2**62)),
        (np.bool_(True), "true"),
    ],
)
def test_numbers_round_trip_in_few_digits(value, text: str) -> None:
    answer = format_response({"y": np.array([value])}, rows=True)
    assert json.loads(answer)["predictions"] or text == "NaN"
    assert f"[{text}" in answer
    if value.dtype.kind == "f":
        np.testing.assert_array_equal(value.dtype.type(float(text)), value)


def test_one_output_drops_its_name_and_several_keep_theirs() -> None:
    one = {"y": np.array([[1, 2], [3, 4]])}
    assert json.loads(format_response(one, rows=True)) == {"predictions": [[1, 2], [3, 4]]}
    assert json.loads(format_response(one, rows=False)) == {"outputs": [[1, 2], [3, 4]]}
    two = one | {"z": np.array([0.5, 1.5])}
    assert json.loads(format_response(two, rows=True)) == {
        "predictions": [{"y": [1, 2], "z": 0.5}, {"y": [3, 4], "z": 1.5}]
    }
    assert json.loads(format_response(two, rows=False)) == {
        "outputs": {"y": [[1, 2], [3, 4]], "z": [0.5, 1.5]}
    }


def test_bytes_go_out_in_base64_by_the_outputs_name() -> None:
    data = np.array([b"\x00\xff"], object)
    assert json.loads(format_response({"a_bytes": data}, rows=True)) == {
        "predictions": [{"b64": "AP8="}]
    }
    text = np.array(["é".encode()], object)
    assert json.loads(format_response({"a": text}, rows=True)) == {"predictions": ["é"]}


def test_rows_need_one_batch_size() -> None:
    with pytest.raises(StatusError, match=r"^Tensor name: y has no shape information $"):
        format_response({"y": np.array(1.0)}, rows=True)
    with pytest.raises(
        StatusError, match=r"^Tensor name: z has inconsistent batch size: 1 expecting: 2$"
    ):
        format_response({"y": np.zeros(2), "z": np.zeros(1)}, rows=True)


@pytest.mark.parametrize(
    "document",
    [
        ["x" * 10**6],
        {"inputs": "x" * 10**6},
        {"inputs": [[1], "y" * 10**6]},
        {"instances": "z" * 10**6},
        {"instances": [{"a" * 10**6: 1}]},
        {"signature_name": [1] * 10**6, "inputs": 1},
        {"inputs": {"b64": 1, "c": [0] * 10**6}},
    ],
)
def test_what_was_sent_is_quoted_in_part(document) -> None:
    with pytest.raises(StatusError) as caught:
        _parse(document, x=tf.float32)
    assert len(caught.value.message) < 600


def test_the_number_of_values_is_bounded_before_they_are_read() -> None:
    body = b'{"instances": [' + b"0," * MAX_VALUES + b"0]}"
    with pytest.raises(StatusError, match="at most 4194304 are read") as caught:
        parse_request(body, _infos(x=tf.float32))
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("item", [b"0", b"[0]", b'{"x": 0}'])
def test_reading_takes_no_more_memory_than_the_values_need(item: bytes) -> None:
    rows = 50_000
    body = b'{"instances": [' + b",".join([item] * rows) + b"]}"
    tracemalloc.start()
    _, inputs, _ = parse_request(body, _infos(x=tf.float32))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert tf.make_ndarray(inputs["x"]).size == rows
    assert peak < rows * 350
