"""Predict's refusals carry TensorFlow Serving's codes and texts."""

import shutil
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

from serving.model_server.servable import WARMUP_FILE, Servable, Threads
from serving.model_server.status import StatusError

X = tf.make_tensor_proto(np.array([2.0, 4.0], np.float32))
M = tf.make_tensor_proto(np.ones((2, 2), np.float32))


def test_answers_what_the_graph_computes(servable: Servable) -> None:
    np.testing.assert_array_equal(servable.predict("", {"x": X})["y"], [3.0, 4.0])
    both = servable.predict("two", {"x": X, "m": M})
    assert sorted(both) == ["double_bytes", "sum"]
    np.testing.assert_array_equal(both["sum"], [4.0, 6.0])


def test_output_filter_limits_the_outputs(servable: Servable) -> None:
    assert list(servable.predict("two", {"x": X, "m": M}, ["sum"])) == ["sum"]


def test_defaults_stand_in_for_missing_inputs(servable: Servable) -> None:
    np.testing.assert_array_equal(servable.predict("with_default", {"x": X})["y"], [6.0, 12.0])


@pytest.mark.parametrize(
    ("signature", "inputs", "output_filter", "code", "text"),
    [
        ("nope", {}, [], "FAILED_PRECONDITION", 'Serving signature key "nope" not found.'),
        (
            "two",
            {"x": X},
            [],
            "INVALID_ARGUMENT",
            "input size does not match signature: 1!=2 len({x}) != len({m,x}). "
            "Sent extra: {}. Missing but required: {m}.",
        ),
        (
            "",
            {"x": X, "z": X},
            [],
            "INVALID_ARGUMENT",
            "input size does not match signature: 2!=1 len({x,z}) != len({x}). "
            "Sent extra: {z}. Missing but required: {}.",
        ),
        (
            "two",
            {"x": X, "z": X},
            [],
            "INVALID_ARGUMENT",
            "Signature input alias: m(feed name: two_m:0) not found in request and no default "
            "value provided. Inputs expected to be in the request {m,x}, or default input alias "
            "set: ",
        ),
        (
            "",
            {"x": tf.make_tensor_proto(np.array([1.0]))},
            [],
            "INVALID_ARGUMENT",
            "Expects arg[0] to be float but double is provided",
        ),
        (
            "two",
            {"x": X, "m": M},
            ["sum", "sum"],
            "INVALID_ARGUMENT",
            "duplicate output tensor alias: sum",
        ),
        (
            "two",
            {"x": X, "m": M},
            ["total"],
            "INVALID_ARGUMENT",
            "output tensor alias not found in signature: total Outputs expected to be in the set "
            "{double_bytes,sum}.",
        ),
    ],
)
def test_refusals(servable, signature, inputs, output_filter, code, text) -> None:
    with pytest.raises(StatusError) as caught:
        servable.predict(signature, inputs, output_filter)
    assert (caught.value.code.name, caught.value.message) == (code, text)


def test_a_shape_that_trips_an_op_is_the_callers_fault(servable: Servable) -> None:
    wrong = tf.make_tensor_proto(np.ones((2, 5), np.float32))
    with pytest.raises(StatusError, match=r"Matrix size-incompatible: In\[0\]: \[2,5\]") as caught:
        servable.predict("product", {"m": wrong})
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "broken",
    [
        {"tensor_content": b"abc"},  # three bytes are no floats
        {"float_val": [1.0, 2.0, 3.0]},  # more than the shape holds
    ],
)
def test_a_tensor_that_contradicts_itself_is_named(servable: Servable, broken) -> None:
    proto = tf.make_tensor_proto(np.zeros(2, np.float32))
    proto.ClearField("tensor_content")
    for field, value in broken.items():
        if isinstance(value, bytes):
            setattr(proto, field, value)
        else:
            getattr(proto, field).extend(value)
    with pytest.raises(StatusError, match="tensor parsing error: x"):
        servable.predict("", {"x": proto})


def test_method_names_are_checked_only_when_asked_for(saved_models, tmp_path) -> None:
    copy = tmp_path / "1"
    shutil.copytree(saved_models[2], copy)
    saved = saved_model_pb2.SavedModel.FromString((copy / "saved_model.pb").read_bytes())
    saved.meta_graphs[0].signature_def["serving_default"].method_name = "my/method"
    (copy / "saved_model.pb").write_bytes(saved.SerializeToString())
    for check in (False, True):
        loaded = Servable(copy, Threads(1, 1), check_method_name=check)
        if check:
            with pytest.raises(StatusError, match="Was: my/method"):
                loaded.predict("", {"x": X})
        else:
            assert loaded.predict("", {"x": X})["y"].shape == (2,)
        loaded.close()


def test_a_declared_shape_is_not_allocated(servable: Servable) -> None:
    proto = tf.make_tensor_proto(np.zeros(1, np.float32))
    for size in (2**50, 2**21, -1):
        proto.tensor_shape.dim[0].size = size
        with pytest.raises(StatusError, match="tensor parsing error: x"):
            servable.predict("", {"x": proto})


@pytest.mark.parametrize(
    ("dtype", "field", "value"), [(tf.uint8, "int_val", 300), (tf.float16, "half_val", -1)]
)
def test_a_value_that_its_type_does_not_have_is_refused(
    servable: Servable, dtype, field, value
) -> None:
    proto = tf.make_tensor_proto(np.zeros(1), dtype)
    proto.ClearField("tensor_content")
    getattr(proto, field)[:] = [value]
    with pytest.raises(StatusError, match="tensor parsing error: x"):
        servable.predict("", {"x": proto})


def test_one_value_may_stand_for_many(servable: Servable) -> None:
    proto = tf.make_tensor_proto(2.0, tf.float32, [2**20])
    assert proto.ByteSize() < 40
    answer = servable.predict("", {"x": proto})["y"]
    assert answer.shape == (2**20,)
    assert set(answer) == {3.0}


def test_names_of_the_caller_are_cut(servable: Servable) -> None:
    for signature, inputs, filters in (
        ("s" * 10**6, {"x": X}, []),
        ("", {"x" * 10**6: X, "x": X}, []),
        ("", {"x": X}, ["y" * 10**6]),
    ):
        with pytest.raises(StatusError) as caught:
            servable.predict(signature, inputs, filters)
        assert len(caught.value.message) < 600


def test_a_run_is_aborted_at_its_deadline(servable: Servable) -> None:
    steps = tf.make_tensor_proto(np.array([2**31 - 1], np.int32))
    started = time.monotonic()
    with pytest.raises(StatusError, match="Timed out waiting for notification") as caught:
        servable.predict("spin", {"x": X, "steps": steps}, timeout_ms=100)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    # Untimed, the loop would take hours; the servable must answer again at once.
    assert time.monotonic() - started < 60
    np.testing.assert_array_equal(servable.predict("", {"x": X})["y"], [3.0, 4.0])


def _write_warmup(path: Path, logs: list[prediction_log_pb2.PredictionLog]) -> None:
    file = path / WARMUP_FILE
    file.parent.mkdir(parents=True)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for log in logs:
            writer.write(log.SerializeToString())


def _log(signature: str) -> prediction_log_pb2.PredictionLog:
    request = predict_pb2.PredictRequest(
        model_spec=model_pb2.ModelSpec(name="m", signature_name=signature), inputs={"x": X}
    )
    return prediction_log_pb2.PredictionLog(
        predict_log=prediction_log_pb2.PredictLog(request=request)
    )


def test_warm_up_replays_every_record(servable: Servable, tmp_path: Path) -> None:
    assert servable.warm_up(tmp_path) == 0
    _write_warmup(tmp_path, [_log(""), _log("scalar")])
    assert servable.warm_up(tmp_path) == 2


def test_warm_up_fails_with_its_record(servable: Servable, tmp_path: Path) -> None:
    _write_warmup(tmp_path, [_log(""), _log("nope")])
    with pytest.raises(StatusError, match='Serving signature key "nope" not found'):
        servable.warm_up(tmp_path)


def test_warm_up_refuses_other_calls(servable: Servable, tmp_path: Path) -> None:
    _write_warmup(tmp_path, [prediction_log_pb2.PredictionLog()])
    with pytest.raises(StatusError) as caught:
        servable.warm_up(tmp_path)
    assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("damage", ["no graph", "half a graph", "no index"])
def test_half_copied_directories_do_not_load(saved_models, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "1"
    shutil.copytree(saved_models[2], copy)
    graph = copy / "saved_model.pb"
    if damage == "no graph":
        graph.unlink()
    elif damage == "half a graph":
        graph.write_bytes(graph.read_bytes()[: graph.stat().st_size // 2])
    else:
        (copy / "variables" / "variables.index").unlink()
    with pytest.raises((StatusError, OSError, ValueError, RuntimeError)):
        Servable(copy, Threads(1, 1))
