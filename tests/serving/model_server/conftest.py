"""A small SavedModel of the kind that servers are tested with, and the server around it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import portpicker
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from serving.common import grpc_server
from serving.model_server.configuration import single_model
from serving.model_server.metrics import Metrics
from serving.model_server.registry import Registry
from serving.model_server.servable import Servable, Threads
from serving.model_server.services import Calls, ModelService, PredictionService
from serving.model_server.versions import LoadPolicy


class Halves(tf.Module):
    """x / 2 + addend, and signatures that are awkward in one way each."""

    def __init__(self, addend: float) -> None:
        super().__init__()
        self.addend = tf.Variable(addend)

    def signatures(self) -> dict[str, Any]:
        floats = tf.TensorSpec([None], tf.float32, name="x")
        matrix = tf.TensorSpec([None, 2], tf.float32, name="m")

        def function(body: Callable[..., Any], *specs: tf.TensorSpec) -> Any:
            return tf.function(body, input_signature=specs, autograph=False)

        def spin(x: tf.Tensor, steps: tf.Tensor) -> dict[str, tf.Tensor]:
            (value,) = tf.while_loop(
                lambda v: tf.reduce_sum(v) > -1e30,
                lambda v: (v + tf.cast(steps[0], tf.float32),),
                (x,),
                maximum_iterations=steps[0],
            )
            return {"y": value}

        def with_default(x: tf.Tensor, scale: tf.Tensor = tf.constant([3.0])) -> dict[str, Any]:  # noqa: B008
            return {"y": x * scale}

        return {
            "serving_default": function(lambda x: {"y": x / 2 + self.addend}, floats),
            "two": function(
                lambda x, m: {"sum": tf.reduce_sum(m, axis=1) + x, "double_bytes": tf.as_string(x)},
                floats,
                matrix,
            ),
            "product": function(lambda m: {"y": m @ tf.ones([2, 3])}, matrix),
            "scalar": function(lambda x: {"y": tf.reduce_sum(x)}, floats),
            "text": function(
                lambda s: {"s": tf.strings.join([s, "!"])},
                tf.TensorSpec([None], tf.string, name="s"),
            ),
            "integer": function(
                lambda i: {"i": i + 1}, tf.TensorSpec([None, 2], tf.int32, name="i")
            ),
            "spin": function(spin, floats, tf.TensorSpec([1], tf.int32, name="steps")),
            "with_default": tf.function(
                with_default,
                input_signature=[floats, tf.TensorSpec([1], tf.float32, name="scale")],
            ),
        }


@pytest.fixture(scope="session")
def saved_models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Two exports by the number that each adds."""
    root = tmp_path_factory.mktemp("halves")
    for addend in (2, 3):
        module = Halves(float(addend))
        tf.saved_model.save(module, str(root / str(addend)), signatures=module.signatures())
    return {addend: root / str(addend) for addend in (2, 3)}


@pytest.fixture(scope="session")
def servable(saved_models: dict[int, Path]) -> Iterator[Servable]:
    loaded = Servable(saved_models[2], Threads(1, 2))
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def calls(
    saved_models: dict[int, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Calls]:
    """Model `halves`, version 7 (adds 2)."""
    base = tmp_path_factory.mktemp("served")
    shutil.copytree(saved_models[2], base / "7")
    policy = LoadPolicy(lambda path: Servable(path, Threads(1, 2)), 0, 0.0)
    registry = Registry(policy, poll_seconds=0)
    registry.configure(single_model("halves", str(base)))
    yield Calls(registry, Metrics())
    registry.stop()


@pytest.fixture(scope="session")
def channel(calls: Calls) -> Iterator[grpc.Channel]:
    """A channel to a server with both services."""
    server = grpc_server.make_server(threads=4, max_concurrent_rpcs=16, max_message_bytes=2**24)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(calls), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(calls), server)
    port = portpicker.pick_unused_port()
    grpc_server.bind(server, f"127.0.0.1:{port}", "port")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as opened:
        yield opened
    server.stop(0).wait()
