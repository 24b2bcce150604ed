"""The embedded server as a process: start, hot swap, health, drain; and its flags."""

import contextlib
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import portpicker
import pytest
import requests
from processes import ROOT, serving

from serving.model_server import __main__ as model_server
from serving.model_server import flags
from tfmacer.wire import PREDICT, serving_pb2, tensors


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Two SavedModels that add 2 or 3; `slow` adds one, very often."""
    import tensorflow as tf

    root = tmp_path_factory.mktemp("adders")
    for addend in (2, 3):
        module = tf.Module()
        module.addend = tf.Variable(float(addend))
        spec = tf.TensorSpec([None], tf.float32, name="x")

        @tf.function(input_signature=[spec])
        def add(x, module=module):
            return {"y": x + module.addend}

        @tf.function(input_signature=[spec], autograph=False)
        def slow(x):
            (total,) = tf.while_loop(lambda v: v[0] < 3e5, lambda v: (v + 1,), (x,))
            return {"y": total}

        tf.saved_model.save(
            module, str(root / str(addend)), signatures={"serving_default": add, "slow": slow}
        )
    return {addend: root / str(addend) for addend in (2, 3)}


def _ask(channel: grpc.Channel, x: float, signature: str = "") -> grpc.Future:
    method = channel.unary_unary(
        PREDICT,
        request_serializer=serving_pb2.PredictRequest.SerializeToString,
        response_deserializer=serving_pb2.PredictResponse.FromString,
    )
    request = serving_pb2.PredictRequest(
        model_spec=serving_pb2.ModelSpec(name="adder", signature_name=signature),
        inputs={"x": tensors.from_numpy(np.array([x], np.float32))},
    )
    return method.future(request, timeout=120)


def _answer(call) -> float:
    return call.result().outputs["y"].float_val[0]


def test_a_life_in_full(exports, tmp_path: Path) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    base, config = tmp_path / "adder", tmp_path / "models.config"
    monitoring = tmp_path / "monitoring.config"
    shutil.copytree(exports[2], base / "1")
    config.write_text(
        f'model_config_list {{ config {{ name: "adder" base_path: "{base}" '
        'model_platform: "tensorflow" version_labels { key: "stable" value: 1 } } }'
    )
    monitoring.write_text("prometheus_config { enable: true }")
    port, rest = portpicker.pick_unused_port(), portpicker.pick_unused_port()
    unix = tmp_path / "tfs.sock"
    flags = [
        f"--port={port}",
        f"--rest_api_port={rest}",
        f"--grpc_socket_path={unix}",
        f"--model_config_file={config}",
        "--allow_version_labels_for_unavailable_models",
        f"--monitoring_config_file={monitoring}",
        "--file_system_poll_wait_seconds=0.05",
        "--max_num_load_retries=0",
    ]
    url = f"http://127.0.0.1:{rest}"
    with (
        serving("serving.model_server", *flags, stderr=tmp_path / "log") as process,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
        grpc.insecure_channel(f"unix:{unix}") as local,
    ):
        assert _answer(_ask(channel, 1.0)) == 3.0
        assert _answer(_ask(local, 1.0)) == 3.0
        body = {"instances": [1.0]}
        labelled = requests.post(
            f"{url}/v1/models/adder/labels/stable:predict", json=body, timeout=60
        )
        assert labelled.json() == {"predictions": [3.0]}
        text = requests.get(f"{url}/monitoring/prometheus/metrics", timeout=60).text
        assert ':tensorflow:serving:request_count{model_name="adder",status="OK"} 3.0' in text
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "ModelService", "PredictionService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=60)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING

        # A version that appears under its number is served; no call fails meanwhile.
        shutil.copytree(exports[3], base / "next")
        (base / "next").rename(base / "2")
        limit = time.monotonic() + 60
        while (value := _answer(_ask(channel, 1.0))) != 4.0:
            assert value == 3.0
            assert time.monotonic() < limit

        # SIGHUP, as SIGTERM: what is under way finishes, what is new is refused.
        slow = _ask(channel, 0.0, "slow")
        time.sleep(0.3)
        assert not slow.done()
        process.send_signal(signal.SIGHUP)
        code, limit = grpc.StatusCode.OK, time.monotonic() + 60
        while code is grpc.StatusCode.OK and time.monotonic() < limit:
            code = _ask(channel, 1.0).code()
        assert code is grpc.StatusCode.UNAVAILABLE
        assert _answer(slow) == 3e5
        assert process.wait(60) == 0


def test_a_signal_while_a_version_loads_ends_it_at_once(exports, tmp_path: Path) -> None:
    """And well: not by SIGABRT, as TensorFlow does when the interpreter goes around it."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    shutil.copytree(exports[2], tmp_path / "1")
    request = predict_pb2.PredictRequest()
    request.model_spec.signature_name = "slow"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto([0.0]))
    log = prediction_log_pb2.PredictionLog(
        predict_log=prediction_log_pb2.PredictLog(request=request)
    )
    warmup = tmp_path / "1" / "assets.extra" / "tf_serving_warmup_requests"
    warmup.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(warmup)) as writer:
        for _ in range(1000):
            writer.write(log.SerializeToString())
    command = [sys.executable, "-m", "serving.model_server", f"--model_base_path={tmp_path}"]
    port = f"--port={portpicker.pick_unused_port()}"
    with (
        open(tmp_path / "log", "w+") as said,
        subprocess.Popen([*command, port], cwd=ROOT, stderr=said) as process,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(process.kill)
        limit = time.monotonic() + 120
        while "loading default version 1" not in (tmp_path / "log").read_text():
            assert time.monotonic() < limit
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(1.0)
        process.terminate()
        assert process.wait(30) == 0


def test_a_configuration_file_can_be_mended_while_it_waits(tmp_path, monkeypatch) -> None:
    read: list[str] = []
    path, stopped = tmp_path / "models.config", threading.Event()
    text = 'model_config_list {{ config {{ name: "{}" base_path: "/m" model_type: TENSORFLOW }} }}'

    class Waiting:
        def configure(self, config, *, timeout=None, wanted=lambda: True) -> None:
            read.append(config.model_config_list.config[0].name)
            while wanted() and not stopped.is_set():
                time.sleep(0.01)

    def eventually_last(name: str) -> None:
        limit = time.monotonic() + 30
        while read[-1:] != [name]:
            assert time.monotonic() < limit
            time.sleep(0.01)

    path.write_text(text.format("typo"))
    monkeypatch.setattr(flags, "CONFIG_FILE", SimpleNamespace(value=str(path)))
    monkeypatch.setattr(flags, "CONFIG_POLL", SimpleNamespace(value=0.05))
    with contextlib.ExitStack() as stack:
        stack.callback(stopped.set)
        model_server._poll_config(Waiting(), stopped)  # type: ignore[arg-type]
        eventually_last("typo")
        (tmp_path / "new").write_text(text.format("mended"))
        (tmp_path / "new").rename(path)
        eventually_last("mended")
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "config"]
    thread.join(30)
    assert not thread.is_alive()


def test_a_broken_export_fails_the_start_with_its_reason(tmp_path: Path) -> None:
    """And flags of TensorFlow Serving that change no answer are taken, and said to be ignored."""
    (tmp_path / "1").mkdir()
    flags = ["--grpc_channel_arguments=grpc.x=1", "--noflush_filesystem_caches", "--port=0"]
    flags += ["--num_load_threads=2", f"--grpc_socket_path={tmp_path / 's'}", "--model_name=m"]
    flags += [f"--model_base_path={tmp_path}", "--max_num_load_retries=0"]
    log = tmp_path / "log"
    with pytest.raises(AssertionError), serving("serving.model_server", *flags, stderr=log):
        pass
    text = log.read_text()
    for name in ("grpc_channel_arguments", "flush_filesystem_caches", "num_load_threads"):
        assert f"--{name} is accepted and ignored" in text
    assert text.count("is accepted and ignored") == 3
    assert text.splitlines()[-1].startswith(
        "error: Failed to start server. Error: UNKNOWN: 1 servable(s) did not become available: "
        "{{name: m version: 1} due to error: "
    )


def test_a_graph_that_writes_files_is_served_only_where_that_is_asked_for(tmp_path: Path) -> None:
    import models_that_write

    models_that_write.initializing(tmp_path / "m" / "1", str(tmp_path / "theirs"))
    log = tmp_path / "log"
    flags = [f"--model_base_path={tmp_path / 'm'}", "--model_name=m", "--max_num_load_retries=0"]
    flags.append(f"--port={portpicker.pick_unused_port()}")
    with (
        pytest.raises(AssertionError),
        serving("serving.model_server", *flags, stderr=log),
    ):
        pass
    line = log.read_text().splitlines()[-1]
    assert "a model may only compute: SaveV2 outside the saver (function __infer" in line
    assert not list(tmp_path.glob("theirs*"))
    with serving("serving.model_server", *flags, "--allow_any_ops", stderr=log):
        pass
    assert f"WARNING --allow_any_ops: {tmp_path}/m/1 is loaded whatever it does" in log.read_text()
    assert list(tmp_path.glob("theirs*"))


@pytest.mark.parametrize(
    ("flags", "status", "text"),
    [
        ([], 1, "give exactly one of --model_base_path and --model_config_file"),
        (["--model_base_path=/nowhere"], 1, "--model_base_path=/nowhere: there is no such"),
        (["--model_config_file=/nowhere"], 1, "--model_config_file=/nowhere: there is no such"),
        (["--model_base_path=/", "--enable_batching"], 1, "--enable_batching is not supported"),
        (["--model_base_path=/", "--port=0"], 1, "--port=0: give a port, or --grpc_socket_path"),
        (["--model_base_path=/", "--port=99999"], 2, "port"),
        (["--model_base_path=/", "--batching_parameters_file=x"], 2, "batching_parameters_file"),
        (["--model_base_path=/", "--monitoring_config_file=/x"], 1, "/x: there is no such file"),
        (["--model_base_path=/", "--ssl_config_file=/x"], 1, "/x: there is no such file"),
        (["--model_base_path=/", "--ssl_config_file=" + __file__], 1, "no text-format SSLConfig"),
        (["--model_base_path=/", "--host=0.0.0.0"], 1, "give --ssl_config_file, or --allow_plain"),
    ],
)
def test_bad_flags_are_one_clear_line(capsys, flags, status, text) -> None:
    assert model_server.main(flags) == status
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_a_port_in_use_is_named() -> None:
    from serving.common import grpc_server
    from tfmacer.common.errors import UserError

    def make() -> grpc.Server:
        return grpc_server.make_server(threads=1, max_concurrent_rpcs=1, max_message_bytes=1000)

    port = portpicker.pick_unused_port()
    first = make()
    grpc_server.bind(first, f"127.0.0.1:{port}", "port")
    with pytest.raises(UserError, match=f"--port: cannot listen on 127.0.0.1:{port}"):
        grpc_server.bind(make(), f"127.0.0.1:{port}", "port")
    first.stop(0).wait()


def test_a_socket_of_a_dead_server_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    from serving.common import grpc_server
    from tfmacer.common.errors import UserError

    def make() -> grpc.Server:
        return grpc_server.make_server(threads=1, max_concurrent_rpcs=1, max_message_bytes=1000)

    def bind(server: grpc.Server) -> None:
        grpc_server.bind(server, f"unix:{path}", "grpc_socket_path")

    path = tmp_path / "tfs.sock"
    path.touch()
    with pytest.raises(UserError, match=f"--grpc_socket_path={path}: exists already"):
        bind(make())
    assert path.exists()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))  # closed without being removed
    server = make()
    bind(server)
    server.start()
    with pytest.raises(UserError, match="exists already"):
        bind(make())
    with grpc.insecure_channel(f"unix:{path}") as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
    server.stop(0).wait()


def test_calls_beyond_the_limit_are_refused() -> None:
    from serving.common import grpc_server

    held = threading.Event()
    server = grpc_server.make_server(threads=1, max_concurrent_rpcs=2, max_message_bytes=1000)
    handler = grpc.unary_unary_rpc_method_handler(
        lambda request, context: b"" if held.wait(60) else None
    )
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Service", {"Hold": handler}),)
    )
    port = portpicker.pick_unused_port()
    grpc_server.bind(server, f"127.0.0.1:{port}", "port")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        hold = channel.unary_unary("/test.Service/Hold")
        ended: queue.Queue[grpc.StatusCode] = queue.Queue()
        for _ in range(5):
            hold.future(b"", timeout=60).add_done_callback(lambda call: ended.put(call.code()))
        refused = [ended.get(timeout=60) for _ in range(3)]
        held.set()
        assert refused == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 3
        assert [ended.get(timeout=60) for _ in range(2)] == [grpc.StatusCode.OK] * 2
    server.stop(0).wait()
