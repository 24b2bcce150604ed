"""The gRPC service `tfmacer.v1.Certifier`: one call from the request to the answer.

What to draw, when to stop and what follows from the counts is the library's.
"""

import datetime
import uuid
from collections import deque
from collections.abc import Iterator

import grpc
from typing_extensions import override

from serving import certification_pb2 as pb
from serving import certification_pb2_grpc
from serving.sidecar.audit import AuditLog
from serving.sidecar.backend import Backend
from serving.sidecar.calls import Call, Calls
from serving.sidecar.drawing import Look, draw_counts, fresh_seed, looks
from serving.sidecar.limits import Limits
from serving.sidecar.messages import certificate_message, model_message
from serving.sidecar.metrics import Metrics
from serving.sidecar.models import Models
from serving.sidecar.requests import Image, read_image, read_prediction, read_rule
from serving.sidecar.tracing import OFF, Tracing
from tfmacer.guarantee.certificate import check_reachable
from tfmacer.guarantee.prediction import predict
from tfmacer.records.audit_entries import AuditEntry
from tfmacer.votes.driver import Task


class Certifier(certification_pb2_grpc.CertifierServicer):
    """Answers Predict, Certify, CertifyStream and GetModel."""

    def __init__(
        self,
        models: Models,
        backend: Backend,
        calls: Calls,
        metrics: Metrics,
        *,
        limits: Limits,
        audit: AuditLog | None,
        seed: int | None = None,
        tracing: Tracing = OFF,
    ) -> None:
        """A `seed` is for tests only: whoever knows it can look for images with lucky noise."""
        self._models = models
        self._backend = backend
        self._calls = calls
        self._metrics = metrics
        self._limits = limits
        self._audit = audit
        self._seed = seed
        self._tracing = tracing

    @override
    def GetModel(self, request: pb.GetModelRequest, context: grpc.ServicerContext) -> pb.Model:
        """What is served."""
        with self._calls.open(context, "GetModel", draws=False) as call:
            message = model_message(self._models.current())
            call.outcome = "described"
        return message

    @override
    def Predict(self, request: pb.PredictRequest, context: grpc.ServicerContext) -> pb.Prediction:
        """The smoothed classifier's class, or abstention."""
        with self._calls.open(context, "Predict") as call:
            model = self._models.current()
            n, alpha = read_prediction(request, self._limits)
            image = read_image(request.pixels, model.smoothing)
            votes = self._backend.votes(model, call, context)
            counts = draw_counts(votes, image, self._task(image).select_seed, n)
            self._models.check_unchanged(model, timeout=call.remaining())
            prediction = predict(counts, alpha)
            call.outcome = "abstain" if prediction.predict < 0 else "predicted"
            message = pb.Prediction(
                predict=prediction.predict,
                p_value=prediction.p_value,
                alpha=alpha,
                n=n,
                counts=counts,
                model=model_message(model),
                pixels_sha256=image.sha256,
            )
        return message

    @override
    def Certify(self, request: pb.CertifyRequest, context: grpc.ServicerContext) -> pb.Certificate:
        """The certificate that the rule asks for, or the best one that time allows."""
        with self._calls.open(context, "Certify") as call:
            (last,) = deque(self._certificates(request, context, call, every=False), maxlen=1)
        return last

    @override
    def CertifyStream(
        self, request: pb.CertifyRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.Certificate]:
        """A certificate at every look; the radius never falls."""
        with self._calls.open(context, "CertifyStream") as call:
            yield from self._certificates(request, context, call, every=True)

    def _certificates(
        self, request: pb.CertifyRequest, context: grpc.ServicerContext, call: Call, *, every: bool
    ) -> Iterator[pb.Certificate]:
        """The whole way of one image: the last certificate, or one at every look."""
        model = self._models.current()
        smoothing = model.smoothing
        rule = read_rule(request, self._limits, block_size=smoothing.block_size, anytime=every)
        check_reachable(rule, smoothing.distribution)
        image = read_image(request.pixels, smoothing)
        task = self._task(image)
        votes = self._backend.votes(model, call, context)
        certificate_id = uuid.uuid4().hex
        look: Look | None = None
        try:
            for look in looks(
                votes,
                task,
                rule,
                call,
                every=every,
                check=lambda: self._models.check_unchanged(model, timeout=call.remaining()),
                bound=self._tracing.bound,
            ):
                yield certificate_message(
                    look.certificate,
                    model,
                    certificate_id=certificate_id,
                    sha256=image.sha256,
                    drawn=look.drawn,
                )
        finally:
            votes.cancel()
            call.notes |= {"certificate_id": certificate_id, "drawn": look.drawn if look else 0}
            if look is not None:
                given = look.certificate
                call.outcome = "abstain" if given.predict < 0 else "certified"
                call.notes |= {"predict": given.predict, "radius": given.radius}
                self._metrics.radius.observe(given.radius)
                entry = AuditEntry(
                    certificate_id=certificate_id,
                    time=datetime.datetime.now(datetime.UTC).isoformat(),
                    request_id=call.request_id,
                    client=call.client,
                    pixels_sha256=image.sha256,
                    pixels=image.values,
                    model_name=model.name,
                    model_version=model.version,
                    smoothing=smoothing,
                    select_seed=task.select_seed,
                    estimate_seed=task.estimate_seed,
                    certificate=given,
                )
                if self._audit is not None:
                    self._audit.after(context, entry)

    def _task(self, image: Image) -> Task:
        """The request's noise: fresh from the operating system, unless an operator fixed it."""
        if self._seed is not None:
            return Task.seeded(self._seed, 0, image.values)
        return Task(0, image.values, fresh_seed(), fresh_seed())
