"""The gRPC service `tfmacer.v1.Certifier`.

Votes come from the backend; what to draw, when to stop and what follows from the counts is the
library's. This file only carries requests to it and its certificates back.
"""

import contextlib
import math
import secrets
import uuid
from collections import deque
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from typing_extensions import override

from serving import certification_pb2 as pb
from serving import certification_pb2_grpc
from serving.sidecar.audit import AuditLog, Entry
from serving.sidecar.calls import Call, Calls
from serving.sidecar.limits import FairSlots, Limits
from serving.sidecar.messages import certificate_message, model_message
from serving.sidecar.metrics import Metrics
from serving.sidecar.models import Certifiable, Models
from serving.sidecar.requests import Image, read_image, read_prediction, read_rule
from serving.sidecar.tracing import OFF, Tracing
from tfmacer.guarantee.certificate import Certificate, certify, check_reachable, predict
from tfmacer.guarantee.distribution import NoiseDistribution
from tfmacer.guarantee.rule import Rule
from tfmacer.votes.driver import Progress, Task, draw_certificates
from tfmacer.votes.endpoint import BackendError, Endpoint
from tfmacer.votes.remote import RemoteVotes
from tfmacer.votes.source import Images, Seeds, Votes

# Between two looks at the backend's model while a single answer is being drawn.
CHECK_SECONDS = 0.25


class Backend:
    """Opens votes of a model for one call, on places that all calls share."""

    def __init__(
        self,
        endpoint: Endpoint,
        slots: FairSlots,
        metrics: Metrics,
        *,
        parallelism: int,
        timeout: float,
    ) -> None:
        self._endpoint = endpoint
        self._metrics = metrics
        self._slots = slots
        self._parallelism = parallelism
        self._timeout = timeout

    def votes(self, target: Certifiable, call: Call, context: grpc.ServicerContext) -> RemoteVotes:
        """Votes that end with the call: at its deadline, or when its caller has gone."""
        votes = _CountedVotes(
            self._metrics,
            self._endpoint,
            target.model,
            parallelism=self._parallelism,
            timeout=self._timeout,
            slots=self._slots.of(call.client),
            deadline=call.deadline,
        )
        if not context.add_callback(votes.cancel):
            votes.cancel()
        return votes


class _CountedVotes(RemoteVotes):
    """Votes that are counted as they come in, not when a call that may take minutes ends."""

    def __init__(self, metrics: Metrics, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._metrics = metrics

    @override
    def sample(
        self,
        images: Images,
        seeds: Seeds,
        offsets: npt.NDArray[np.int32],
        num_samples: npt.NDArray[np.int32],
        *,
        beta: float = 1.0,
    ) -> Votes:
        """See `RemoteVotes.sample`."""
        votes = super().sample(images, seeds, offsets, num_samples, beta=beta)
        self._metrics.draws.inc(int(num_samples.sum()))
        return votes


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
        """Only keeps its arguments.

        Args:
          models: which version to certify.
          backend: where votes come from.
          calls: opens and ends calls.
          metrics: what is counted.
          limits: on one request.
          audit: where seeds are recorded; None nowhere.
          seed: fixes every request's noise to that of image 0 of a run with this seed. For tests
            only: whoever knows it can look for images on which the noise is lucky.
          tracing: where the time that bounds take is noted.
        """
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
            message = model_message(self._models.current().model)
            call.outcome = "described"
        return message

    @override
    def Predict(self, request: pb.PredictRequest, context: grpc.ServicerContext) -> pb.Prediction:
        """The smoothed classifier's class, or abstention."""
        with self._calls.open(context, "Predict") as call:
            target = self._models.current()
            n, alpha = read_prediction(request, self._limits)
            image = read_image(
                request.pixels, target.model.smoothing.input_shape, target.distribution
            )
            votes = self._backend.votes(target, call, context)
            with self._following_versions():
                counts = _draw(votes, image, self._task(image).select_seed, n)
                self._models.check_unchanged(target, timeout=call.remaining())
            prediction = predict(counts, alpha)
            call.outcome = "abstain" if prediction.predict < 0 else "predicted"
            message = pb.Prediction(
                predict=prediction.predict,
                p_value=prediction.p_value,
                alpha=alpha,
                n=n,
                counts=counts,
                model=model_message(target.model),
                pixels_sha256=image.sha256,
            )
        return message

    @override
    def Certify(self, request: pb.CertifyRequest, context: grpc.ServicerContext) -> pb.Certificate:
        """The certificate that the rule asks for, or the best one that time allows."""
        with self._calls.open(context, "Certify") as call:
            (last,) = deque(self._certificates(request, context, call, anytime=False), maxlen=1)
        return last

    @override
    def CertifyStream(
        self, request: pb.CertifyRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.Certificate]:
        """A certificate at every look; the radius never falls."""
        with self._calls.open(context, "CertifyStream") as call:
            yield from self._certificates(request, context, call, anytime=True)

    def _certificates(
        self,
        request: pb.CertifyRequest,
        context: grpc.ServicerContext,
        call: Call,
        *,
        anytime: bool,
    ) -> Iterator[pb.Certificate]:
        target = self._models.current()
        rule = read_rule(
            request, self._limits, block_size=target.model.smoothing.block_size, anytime=anytime
        )
        check_reachable(rule, target.distribution)
        image = read_image(request.pixels, target.model.smoothing.input_shape, target.distribution)
        votes = self._backend.votes(target, call, context)
        task = self._task(image)
        certificate_id = uuid.uuid4().hex
        sent: Certificate | None = None
        drawn = 0
        try:
            for certificate, drawn in self._looks(
                votes, task, rule, target, call, monotone=anytime
            ):
                sent = certificate
                yield certificate_message(
                    certificate,
                    target.model,
                    certificate_id=certificate_id,
                    sha256=image.sha256,
                    drawn=drawn,
                )
        finally:
            votes.cancel()
            call.notes |= {"certificate_id": certificate_id, "drawn": drawn}
            if sent is not None:
                call.outcome = "abstain" if sent.predict < 0 else "certified"
                call.notes |= {"predict": sent.predict, "radius": sent.radius}
                self._metrics.radius.observe(sent.radius)
                self._record(
                    context,
                    Entry(
                        certificate_id=certificate_id,
                        request_id=call.request_id,
                        client=call.client,
                        image=image,
                        model=target.model,
                        rule=rule,
                        task=task,
                        certificate=sent,
                    ),
                )

    def _looks(
        self,
        votes: RemoteVotes,
        task: Task,
        rule: Rule,
        target: Certifiable,
        call: Call,
        *,
        monotone: bool,
    ) -> Iterator[tuple[Certificate, int]]:
        """A certificate, and the draws so far: the last one, or where monotone one at every look.

        At a deadline it is the best one so far.
        """
        best: Certificate | None = None
        drawn, checked = 0, -math.inf
        with self._following_versions():
            try:
                for progress in draw_certificates(
                    votes, [task], rule, target.distribution, bounding=self._tracing.bound
                ):
                    drawn = progress.n
                    # What has not been checked is not spoken of, even at a deadline.
                    due = monotone or progress.seconds - checked >= CHECK_SECONDS
                    if not (progress.done or (progress.looks and due)):
                        continue
                    self._models.check_unchanged(target, timeout=call.remaining())
                    checked = progress.seconds
                    for look in self._statements(
                        progress, rule, target.distribution, every=monotone
                    ):
                        # All looks hold together, so the largest radius among them does.
                        best = look if best is None or look.radius >= best.radius else best
                        if monotone:
                            yield best, look.n
                    if progress.done and not monotone and progress.certificate is not None:
                        yield progress.certificate, drawn
            except BackendError as error:
                if not call.out_of_time():
                    raise
                if best is None:
                    raise BackendError(
                        grpc.StatusCode.DEADLINE_EXCEEDED,
                        f"{drawn} of the {rule.looks[0]} draws of the first certificate were "
                        f"answered in time: {error}",
                    ) from error
                yield best, drawn

    def _statements(
        self, progress: Progress, rule: Rule, distribution: NoiseDistribution, *, every: bool
    ) -> Iterator[Certificate]:
        """The certificates of a round: of the last look it reached, or of every one."""
        if every:
            for counts in progress.looks[:-1]:
                with self._tracing.bound():
                    certificate = certify(counts, rule, distribution)
                yield certificate
        if progress.looks and progress.certificate is not None:
            yield progress.certificate

    @contextlib.contextmanager
    def _following_versions(self) -> Iterator[None]:
        try:
            yield
        except BackendError as error:
            if error.code is grpc.StatusCode.ABORTED:
                self._models.look_now()
            raise

    def _task(self, image: Image) -> Task:
        """The request's noise: fresh from the operating system, unless an operator fixed it."""
        if self._seed is not None:
            return Task.seeded(self._seed, 0, image.values)
        return Task(0, image.values, _fresh_seed(), _fresh_seed())

    def _record(self, context: grpc.ServicerContext, entry: Entry) -> None:
        if self._audit is not None:
            self._audit.after(context, entry)


def _fresh_seed() -> Seeds:
    """64 bits of the operating system's entropy, int32 `[2]`."""
    return np.frombuffer(secrets.token_bytes(8), dtype="<i4").astype(np.int32)


def _draw(votes: RemoteVotes, image: Image, seed: Seeds, n: int) -> tuple[int, ...]:
    """Counts `[K]` of the first n draws of one stream.

    A request for each block: small pieces let other clients in between, end soon after a
    cancellation, and come back in time from the slowest network too.
    """
    block = votes.smoothing.block_size
    offsets = np.arange(0, n, block, dtype=np.int32)
    rows = len(offsets)
    counted = votes.sample(
        np.broadcast_to(image.values, (rows, *image.values.shape)),
        np.broadcast_to(seed, (rows, 2)),
        offsets,
        np.minimum(block, n - offsets).astype(np.int32),
    )
    return tuple(counted.counts.sum(axis=0).tolist())
