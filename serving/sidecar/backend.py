"""Votes of one call, drawn at the backend in turn with those of other calls."""

from typing import Any

import grpc
from typing_extensions import override

from serving.sidecar.calls import Call
from serving.sidecar.limits import FairSlots
from serving.sidecar.metrics import Metrics
from serving.sidecar.models import Models
from tfmacer.votes.endpoint import BackendError, Endpoint, ServedModel
from tfmacer.votes.remote import RemoteVotes
from tfmacer.votes.source import Votes


class Backend:
    """Opens votes of a model for one call; the requests of all calls share the backend's slots."""

    def __init__(
        self,
        endpoint: Endpoint,
        models: Models,
        slots: FairSlots,
        metrics: Metrics,
        *,
        parallelism: int,
        timeout: float,
    ) -> None:
        """Each call has up to `parallelism` requests in flight; one may take `timeout` seconds."""
        self._endpoint = endpoint
        self._models = models
        self._slots = slots
        self._metrics = metrics
        self._parallelism = parallelism
        self._timeout = timeout

    def votes(self, model: ServedModel, call: Call, context: grpc.ServicerContext) -> RemoteVotes:
        """Votes that end with the call: at its deadline, or when its caller has gone."""
        votes = _CallVotes(
            self._models,
            self._metrics,
            self._endpoint,
            model,
            parallelism=self._parallelism,
            timeout=self._timeout,
            slots=self._slots.of(call.client),
            deadline=call.deadline,
        )
        if not context.add_callback(votes.cancel):
            votes.cancel()
        return votes


class _CallVotes(RemoteVotes):
    """Votes that are counted as they come in, not when a call that may take minutes ends."""

    def __init__(self, models: Models, metrics: Metrics, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._models = models
        self._metrics = metrics

    @override
    def sample(self, *rows: Any, **options: Any) -> Votes:
        try:
            votes = super().sample(*rows, **options)
        except BackendError as error:
            if error.code is grpc.StatusCode.ABORTED:
                self._models.look_now()
            raise
        self._metrics.draws.inc(int(votes.counts.sum()))
        return votes
