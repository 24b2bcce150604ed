"""One loaded version of a model: a SavedModel in a Session of TensorFlow's C++ runtime.

TensorFlow Serving runs a DirectSession as well, so the runtime's own errors (dtypes, shapes,
deadlines) are the same. `tf.saved_model.load` would run the same graph eagerly, with other error
messages, and could not abort a run at its deadline.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import tensorflow as tf

# A private API, covered by a test: `Session.run` casts arrays to the placeholder's dtype, and so
# would accept what TensorFlow Serving refuses.
from tensorflow.python.client import pywrap_tf_session
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from serving.model_server.status import StatusError, invalid, runtime_errors
from tfmacer.common.errors import UserError
from tfmacer.common.text import cut
from tfmacer.votes.admission import NotAdmittedError, check_saved_model

DEFAULT_SIGNATURE = "serving_default"
WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")
MAX_WARMUP_RECORDS = 1000
# Elements that shapes may add to the values sent, in all inputs of a request.
MAX_FILLED_ELEMENTS = 2**20
_METHODS = tuple(f"tensorflow/serving/{method}" for method in ("predict", "classify", "regress"))

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Threads:
    """TensorFlow's thread counts for one session; 0 takes TensorFlow's own choice."""

    intra_op: int = 0
    inter_op: int = 0


class Servable:
    """A SavedModel version ready to answer. Thread-safe; `close` only when no call is under way."""

    def __init__(
        self,
        path: Path,
        threads: Threads,
        *,
        any_ops: bool = False,
        check_method_name: bool = False,
    ) -> None:
        """Loads the SavedModel's `serve` graph, restores its variables and runs its init op.

        Raises:
          StatusError: FAILED_PRECONDITION, it would do more than compute, or cannot be read; or
            TensorFlow refuses it.
          OSError: what it needs is missing.
          ValueError: there is no graph tagged `serve`.
        """
        self._check_method_name = check_method_name
        if not any_ops:
            try:
                check_saved_model(path)
            except UserError as error:
                raise StatusError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    str(error),
                    final=isinstance(error, NotAdmittedError),
                ) from error
        graph = tf.Graph()
        config = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=threads.intra_op,
            inter_op_parallelism_threads=threads.inter_op,
        )
        self._session = tf.compat.v1.Session(graph=graph, config=config)
        try:
            with graph.as_default(), runtime_errors():
                meta_graph = tf.compat.v1.saved_model.loader.load(
                    self._session, ["serve"], str(path)
                )
        except BaseException:
            self._session.close()
            raise
        self._graph = graph
        self.signature_defs: Mapping[str, Any] = dict(meta_graph.signature_def)

    def close(self) -> None:
        """Frees the session and what it holds."""
        self._session.close()

    def signature(self, name: str) -> Any:
        """The signature of that name, `serving_default` for ""; raises StatusError without it."""
        name = name or DEFAULT_SIGNATURE
        if name not in self.signature_defs:
            raise StatusError(
                grpc.StatusCode.FAILED_PRECONDITION,
                f'Serving signature key "{cut(name)}" not found.',
            )
        return self.signature_defs[name]

    def predict(
        self,
        signature_name: str,
        inputs: Mapping[str, Any],
        output_filter: Iterable[str] = (),
        *,
        timeout_ms: int = 0,
    ) -> dict[str, Array]:
        """Runs a signature.

        Args:
          signature_name: empty for `serving_default`.
          inputs: TensorProto by alias.
          output_filter: aliases wanted; none means all.
          timeout_ms: when the run is aborted; 0 never.

        Raises:
          StatusError: the request does not fit the signature, or the run failed.
        """
        signature = self.signature(signature_name)
        if self._check_method_name and signature.method_name not in _METHODS:
            raise StatusError(
                grpc.StatusCode.INTERNAL,
                "Expected prediction signature method_name to be one of "
                f"{{{', '.join(_METHODS)}}}. Was: {signature.method_name}",
            )
        feeds = _feeds(signature, inputs)
        wanted = _wanted(signature, list(output_filter))
        values = self._run(feeds, [signature.outputs[alias].name for alias in wanted], timeout_ms)
        return dict(zip(wanted, values, strict=True))

    def warm_up(self, path: Path) -> int:
        """Replays the version's warm-up records, if it has any; returns how many.

        Raises:
          StatusError: a record fails, is not a Predict call, or there are too many.
        """
        file = path / WARMUP_FILE
        if not file.is_file():
            return 0
        number = 0
        with runtime_errors():
            for number, record in enumerate(tf.compat.v1.io.tf_record_iterator(str(file)), start=1):
                if number > MAX_WARMUP_RECORDS:
                    raise invalid(
                        f"Number of warmup records exceeds the maximum ({MAX_WARMUP_RECORDS}) "
                        f"at {file}"
                    )
                log = prediction_log_pb2.PredictionLog.FromString(record)
                if log.WhichOneof("log_type") != "predict_log":
                    raise StatusError(
                        grpc.StatusCode.UNIMPLEMENTED,
                        f"Unsupported log_type for warmup: {log.WhichOneof('log_type')}",
                    )
                request: predict_pb2.PredictRequest = log.predict_log.request
                self.predict(
                    request.model_spec.signature_name, request.inputs, request.output_filter
                )
        return number

    def _run(self, feeds: Mapping[str, Array], fetches: list[str], timeout_ms: int) -> list[Array]:
        options = (
            pywrap_tf_session.TF_NewBufferFromString(
                tf.compat.v1.RunOptions(timeout_in_ms=timeout_ms).SerializeToString()
            )
            if timeout_ms
            else None
        )
        try:
            with runtime_errors():
                values: list[Array] = pywrap_tf_session.TF_SessionRun_wrapper(
                    self._session._session,
                    options,
                    {self._output(name): array for name, array in feeds.items()},
                    [self._output(name) for name in fetches],
                    [],
                    None,
                )
                return values
        finally:
            if options is not None:
                pywrap_tf_session.TF_DeleteBuffer(options)

    def _output(self, name: str) -> Any:
        return self._graph.get_tensor_by_name(name)._as_tf_output()


def _feeds(signature: Any, inputs: Mapping[str, Any]) -> dict[str, Array]:
    """Arrays by tensor name, defaults filled in."""
    needed, sent = set(signature.inputs), set(inputs)
    if len(sent) > len(needed) or (len(sent) < len(needed) and not signature.defaults):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(needed)} "
            f"len({cut(_names(sent))}) != len({_names(needed)}). "
            f"Sent extra: {cut(_names(sent - needed))}. "
            f"Missing but required: {_names(needed - sent)}."
        )
    feeds = {}
    filled = 0
    for alias in sorted(needed):
        name = signature.inputs[alias].name
        if alias in inputs:
            tensor = inputs[alias]
        elif alias in signature.defaults:
            tensor = signature.defaults[alias]
        else:
            raise invalid(
                f"Signature input alias: {alias}(feed name: {name}) not found in request and no "
                f"default value provided. Inputs expected to be in the request {_names(needed)}, "
                f"or default input alias set: {','.join(sorted(signature.defaults))}"
            )
        filled += _filled(tensor)
        if filled > MAX_FILLED_ELEMENTS:
            raise invalid(f"tensor parsing error: {alias}: more elements than were sent")
        feeds[name] = _array(alias, tensor)
    return feeds


def _array(alias: str, tensor: Any) -> Array:
    try:
        # Of an unknown size, NumPy would make what fits.
        if tensor.tensor_shape.unknown_rank or any(d.size < 0 for d in tensor.tensor_shape.dim):
            raise ValueError("the shape is not known")
        array: Array = tf.make_ndarray(tensor)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise invalid(f"tensor parsing error: {alias}") from error
    return np.ascontiguousarray(array).reshape(array.shape)


def _filled(tensor: Any) -> int:
    """How many elements one value stands for, beyond those that were sent.

    Otherwise a shape alone could allocate any amount of memory before anything is computed.
    """
    elements: int = math.prod(dim.size for dim in tensor.tensor_shape.dim)
    return max(0, elements - int(tensor.ByteSize()))


def _wanted(signature: Any, output_filter: list[str]) -> list[str]:
    seen: set[str] = set()
    for alias in output_filter:
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {cut(alias)} "
                f"Outputs expected to be in the set {_names(signature.outputs)}."
            )
        if alias in seen:
            raise invalid(f"duplicate output tensor alias: {cut(alias)}")
        seen.add(alias)
    return output_filter or sorted(signature.outputs)


def _names(names: Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"
