"""A stand-in for TensorFlow Serving over a smoothed model, without TensorFlow: it may misbehave.

Votes are a fixed function of (seed, index of the draw), as a real export's are, so what is drawn
does not depend on how the stream is cut.
"""

import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np

from tfmacer import wire
from tfmacer.records.runs import Smoothing
from tfmacer.votes.source import Votes
from tfmacer.wire import serving_pb2, tensors

BLOCK = 64
SMOOTHING = Smoothing(
    sigma=0.5,
    num_classes=3,
    input_shape=(4, 4, 1),
    model_digest="ab" * 32,
    block_size=BLOCK,
)
Outputs = dict[str, np.ndarray]


def expected_votes(probabilities: list[float], seed: tuple[int, int], offset: int, n: int) -> Votes:
    """The votes of draws `offset <= j < offset + n` of one stream, each row [1, K]."""
    classes = len(probabilities)
    first, last = offset // BLOCK, -(-(offset + n) // BLOCK)
    draws = np.concatenate(
        [
            np.random.default_rng([value % 2**32 for value in seed] + [block]).choice(
                classes, BLOCK, p=probabilities
            )
            for block in range(first, max(last, first + 1))
        ]
    )[offset - first * BLOCK :][:n]
    counts = np.bincount(draws, minlength=classes)
    soft = 0.9 * np.eye(classes)[draws] + 0.1 / classes
    return Votes(
        counts[np.newaxis].astype(np.int64), soft.sum(0)[np.newaxis], (soft**2).sum(0)[np.newaxis]
    )


@dataclasses.dataclass
class FakeBackend:
    """Serves model `m`; set the fields to make it misbehave.

    Attributes:
      probabilities: of the classes under noise.
      smoothing: what `tfmacer_info` says.
      versions: state by version number, as GetModelStatus tells.
      answering: the version that Predict claims; None echoes the one asked for.
      seconds: how long each sampling call takes.
      info_seconds: how long each answer of `tfmacer_info` takes.
      per_draw: further seconds for each draw.
      unavailable: sampling calls still to be refused with UNAVAILABLE.
      spoil: changes the outputs of a sampling call.
      requests: sampling calls seen.
    """

    probabilities: list[float] = dataclasses.field(default_factory=lambda: [0.05, 0.9, 0.05])
    smoothing: Smoothing = SMOOTHING
    versions: dict[int, int] = dataclasses.field(default_factory=lambda: {3: 30})
    answering: int | None = None
    seconds: float = 0.0
    info_seconds: float = 0.0
    per_draw: float = 0.0
    unavailable: int = 0
    signatures: tuple[str, ...] = ("tfmacer_info", "sample_under_noise", "logits")
    spoil: Callable[[Outputs], Outputs] = lambda outputs: outputs
    on_sample: Callable[[], None] = lambda: None
    requests: list[serving_pb2.PredictRequest] = dataclasses.field(default_factory=list)
    bytes_received: int = 0
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._at_once = 0
        self._server: grpc.Server | None = None

    def start(self, port: int, credentials: grpc.ServerCredentials | None = None) -> None:
        """Listens on 127.0.0.1:port, with TLS where credentials are given."""
        self._server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        methods = {
            wire.PREDICT: (self._predict, serving_pb2.PredictRequest.FromString),
            wire.GET_MODEL_STATUS: (self._status, serving_pb2.GetModelStatusRequest.FromString),
        }
        self._server.add_generic_rpc_handlers(
            tuple(
                grpc.method_handlers_generic_handler(
                    path.split("/")[1],
                    {
                        path.split("/")[2]: grpc.unary_unary_rpc_method_handler(
                            method, parser, lambda message: message.SerializeToString()
                        )
                    },
                )
                for path, (method, parser) in methods.items()
            )
        )
        if credentials:
            self._server.add_secure_port(f"127.0.0.1:{port}", credentials)
        else:
            self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    def stop(self) -> None:
        """Drops every call, as a killed process would."""
        assert self._server is not None
        self._server.stop(0).wait()

    def _status(self, request, context):
        if request.model_spec.name != "m":
            context.abort(grpc.StatusCode.NOT_FOUND, "Could not find any versions of model")
        return serving_pb2.GetModelStatusResponse(
            model_version_status=[
                serving_pb2.ModelVersionStatus(version=version, state=state)
                for version, state in self.versions.items()
            ]
        )

    def _predict(self, request, context):
        spec = request.model_spec
        newest = max((v for v, state in self.versions.items() if state == 30), default=0)
        version = spec.version.value if spec.HasField("version") else newest
        if spec.name != "m" or self.versions.get(version) != 30:
            context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"Servable not found for request: Specific({spec.name}, {version})",
            )
        if spec.signature_name not in self.signatures:
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f'Serving signature key "{spec.signature_name}" not found.',
            )
        answer = serving_pb2.PredictResponse()
        answer.model_spec.name = "m"
        answer.model_spec.signature_name = spec.signature_name
        answer.model_spec.version.value = self.answering or version
        if spec.signature_name == "tfmacer_info":
            time.sleep(self.info_seconds)
            text = answer.outputs["smoothing"]
            text.dtype = serving_pb2.DT_STRING
            text.tensor_shape.dim.add(size=1)
            text.string_val.append(self.smoothing.to_json().encode())
            return answer
        for name, values in self._answer(request, context).items():
            answer.outputs[name].CopyFrom(tensors.from_numpy(values))
        return answer

    def _answer(self, request, context) -> Outputs:
        if request.model_spec.signature_name == "logits":
            return {"logits": np.log(np.array([self.probabilities], np.float32))}
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            self.requests.append(request)
            self.bytes_received += request.ByteSize()
            refuse = self.unavailable > 0
            self.unavailable -= refuse
        try:
            self.on_sample()
            if refuse:
                context.abort(grpc.StatusCode.UNAVAILABLE, "try again")
            return self._votes(request)
        finally:
            with self._lock:
                self._at_once -= 1

    def _votes(self, request) -> Outputs:
        def value(name: str, data_type, shape) -> np.ndarray:
            return tensors.to_numpy(request.inputs[name], data_type, shape)

        value("images", serving_pb2.DT_FLOAT, (1, *self.smoothing.input_shape))
        seed = value("seeds", serving_pb2.DT_INT32, (1, 2))[0]
        offset = int(value("offsets", serving_pb2.DT_INT32, (1,))[0])
        n = int(value("num_samples", serving_pb2.DT_INT32, (1,))[0])
        value("beta", serving_pb2.DT_FLOAT, (1,))
        time.sleep(self.seconds + n * self.per_draw)
        votes = expected_votes(self.probabilities, tuple(seed.tolist()), offset, n)
        return self.spoil(votes._asdict())
