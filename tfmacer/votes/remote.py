"""Votes from a TensorFlow Serving endpoint, without TensorFlow in this process.

The noise is drawn by the served graph from the seeds in the request, so asking again after a
failure gives the same votes; the version is pinned, so that no two models' votes are ever added.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import grpc
import numpy as np
import numpy.typing as npt

from tfmacer.records.runs import Smoothing
from tfmacer.votes.endpoint import (
    BackendError,
    Endpoint,
    ServedModel,
    check_served,
    predict_request,
    served_model,
)
from tfmacer.votes.source import Images, Ints, Seeds, Votes
from tfmacer.wire import serving_pb2, tensors
from tfmacer.wire.channel import DIRECT, Transport

Answer = TypeVar("Answer")
_Call = Any  # a grpc.Call that is a grpc.Future of a PredictResponse as well


class Slots(Protocol):
    """Places for requests in flight; a `threading.Semaphore` is one."""

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Takes a place; False where none came free within `timeout` seconds."""
        ...

    def release(self) -> None:
        """Gives a place back."""
        ...


class RemoteVotes:
    """A `VoteSource` over one version of a served model; one Predict call per row.

    One thread at a time may sample; `cancel` may be called from any.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        model: ServedModel,
        *,
        parallelism: int | None = None,
        timeout: float = 60.0,
        slots: Slots | None = None,
        deadline: float | None = None,
        check: bool = False,
    ) -> None:
        """Asks nothing yet.

        Args:
          endpoint: who serves the model; stays the caller's to close.
          model: from `served_model`.
          parallelism: rows in flight at once; None takes the number of cores of this machine.
          timeout: seconds that one row's answer may take, retries included.
          slots: places shared with other sources at the same endpoint; None makes `parallelism`.
          deadline: on `time.monotonic()`'s clock, when every call must have ended.
          check: whether `sample` makes sure afterwards that the version is still the same model;
            False leaves that to the caller.
        """
        self._endpoint = endpoint
        self.model = model
        self.parallelism = parallelism or os.cpu_count() or 1
        self._timeout = timeout
        self._slots = slots or threading.BoundedSemaphore(self.parallelism)
        self._deadline = deadline
        self._check = check
        self._cancelled = threading.Event()
        self._calls: set[_Call] = set()
        self._lock = threading.Lock()

    @classmethod
    def connect(
        cls,
        target: str,
        model_name: str,
        *,
        transport: Transport = DIRECT,
        parallelism: int | None = None,
        timeout: float = 60.0,
    ) -> "RemoteVotes":
        """Votes of the version that `target` (HOST:PORT) serves now, and of no other model.

        Raises:
          BackendError: see `served_model`.
        """
        endpoint = Endpoint(target, transport=transport)
        model = served_model(endpoint, model_name)
        return cls(endpoint, model, parallelism=parallelism, timeout=timeout, check=True)

    @property
    def smoothing(self) -> Smoothing:
        """What is smoothed, and how."""
        return self.model.smoothing

    def sample(
        self, images: Images, seeds: Seeds, offsets: Ints, num_samples: Ints, *, beta: float = 1.0
    ) -> Votes:
        """See `VoteSource.sample`.

        Raises:
          BackendError: no usable answer; nothing is left in flight.
        """
        inputs = {
            "images": np.asarray(images, np.float32),
            "seeds": np.asarray(seeds, np.int32),
            "offsets": np.asarray(offsets, np.int32),
            "num_samples": np.asarray(num_samples, np.int32),
            "beta": np.full(len(images), beta, np.float32),
        }
        rows = self._ask(
            "sample_under_noise",
            inputs,
            lambda answer, row: self._votes(answer, int(num_samples[row])),
        )
        if self._check:
            check_served(self._endpoint, self.model, timeout=self._timeout)
        return Votes(*(np.concatenate(field) for field in zip(*rows, strict=True)))

    def logits(self, images: Images) -> npt.NDArray[np.float32]:
        """See `VoteSource.logits`."""
        rows = self._ask(
            "logits",
            {"images": np.asarray(images, np.float32)},
            lambda answer, _: self._output(answer, "logits", serving_pb2.DT_FLOAT),
        )
        return np.concatenate(rows)

    def cancel(self) -> None:
        """Ends the calls in flight and refuses further ones."""
        self._cancelled.set()
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.cancel()

    def close(self) -> None:
        """Closes the endpoint."""
        self.cancel()
        self._endpoint.close()

    def _ask(
        self,
        signature: str,
        inputs: Mapping[str, npt.NDArray[Any]],
        read: Callable[[serving_pb2.PredictResponse, int], Answer],
    ) -> list[Answer]:
        """One call for each row, `slots` at once; what `read` makes of each, in order.

        Whatever fails, `read` included, cancels the calls that are still in flight.
        """
        calls: list[_Call] = []
        failed = threading.Event()
        try:
            for row in range(len(inputs["images"])):
                request = predict_request(
                    self.model.name,
                    self.model.version,
                    signature,
                    {name: values[row : row + 1] for name, values in inputs.items()},
                )
                self._wait_for_slot()
                if failed.is_set():  # the failed call's error is raised below
                    self._slots.release()
                    break
                calls.append(self._send(request, failed))
            return [read(self._result(call), row) for row, call in enumerate(calls)]
        finally:
            for call in calls:
                call.cancel()

    def _wait_for_slot(self) -> None:
        """Takes a place, or raises once past the deadline or cancelled.

        A wait is not cut short by `cancel`: a caller that has cancelled asks for nothing more, and
        the place is given back as soon as it is granted.
        """
        if not self._slots.acquire(timeout=self._remaining()):
            raise self._error(grpc.StatusCode.DEADLINE_EXCEEDED, "no place came free in time")
        if self._cancelled.is_set():
            self._slots.release()
            raise self._error(grpc.StatusCode.CANCELLED, "cancelled")

    def _send(self, request: serving_pb2.PredictRequest, failed: threading.Event) -> _Call:
        """Starts a call, which gives its place back when it ends."""
        try:
            remaining = self._remaining()
            timeout = self._timeout if remaining is None else min(self._timeout, remaining)
            call: _Call = self._endpoint.predict.future(request, timeout=timeout)
        except BaseException:
            self._slots.release()
            raise
        with self._lock:
            self._calls.add(call)

        def ended(call: _Call) -> None:
            with self._lock:
                self._calls.discard(call)
            if call.code() is not grpc.StatusCode.OK:
                failed.set()
            self._slots.release()

        call.add_done_callback(ended)
        if self._cancelled.is_set():  # `cancel` may have looked before the call was in the set
            call.cancel()
        return call

    def _result(self, call: _Call) -> serving_pb2.PredictResponse:
        try:
            answer: serving_pb2.PredictResponse = call.result()
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            if self._cancelled.is_set():
                raise self._error(grpc.StatusCode.CANCELLED, "cancelled") from error
            if call.code() is grpc.StatusCode.NOT_FOUND:
                raise self._error(
                    grpc.StatusCode.ABORTED, "this version is no longer served"
                ) from error
            raise self._endpoint.explain(call, self._asked) from error
        found = answer.model_spec.version.value
        if found != self.model.version:
            raise self._error(
                grpc.StatusCode.ABORTED, f"version {found} answered: votes are never mixed"
            )
        return answer

    def _votes(self, answer: serving_pb2.PredictResponse, asked: int) -> Votes:
        votes = Votes(
            self._output(answer, "counts", serving_pb2.DT_INT64),
            self._output(answer, "sums", serving_pb2.DT_DOUBLE),
            self._output(answer, "square_sums", serving_pb2.DT_DOUBLE),
        )
        total = sum(votes.counts[0].tolist())  # in 64 bits, a sum may come out as any other
        if (votes.counts < 0).any() or total != asked:
            raise self._error(
                grpc.StatusCode.INTERNAL,
                f"counts {total} votes in {asked} draws; fewer means logits that are not finite",
            )
        # Softmax adds up to 1 in every draw, within float32; the slack is far above that.
        slack = 1e-3 * asked + 1e-6
        moments = (votes.square_sums, votes.sums - votes.square_sums)
        if not (
            abs(votes.sums.sum() - asked) <= slack and all((m >= -slack).all() for m in moments)
        ):
            raise self._error(
                grpc.StatusCode.INTERNAL, "sums and square_sums are no moments of probabilities"
            )
        return votes

    def _output(
        self,
        answer: serving_pb2.PredictResponse,
        name: str,
        data_type: serving_pb2.DataType.ValueType,
    ) -> npt.NDArray[Any]:
        if name not in answer.outputs:
            raise self._error(grpc.StatusCode.INTERNAL, f"the answer has no output {name}")
        try:
            return tensors.to_numpy(
                answer.outputs[name], data_type, (1, self.smoothing.num_classes)
            )
        except ValueError as error:
            raise self._error(grpc.StatusCode.INTERNAL, f"output {name}: {error}") from error

    def _remaining(self) -> float | None:
        """Seconds until the deadline, 0 or more; None where there is none."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    @property
    def _asked(self) -> str:
        return f"model {self.model.name} version {self.model.version}"

    def _error(self, code: grpc.StatusCode, text: str) -> BackendError:
        return BackendError(code, f"backend {self._endpoint.target}: {self._asked}: {text}")
