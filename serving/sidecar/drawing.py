"""What is drawn for one image, and the certificates that follow while it is drawn."""

import dataclasses
import math
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import grpc
import numpy as np

from serving.sidecar.calls import Call
from serving.sidecar.requests import Image
from tfmacer.guarantee.certificate import Certificate, certify
from tfmacer.guarantee.rule import Rule
from tfmacer.votes.driver import Progress, Task, draw_certificates
from tfmacer.votes.endpoint import BackendError
from tfmacer.votes.remote import RemoteVotes
from tfmacer.votes.source import Seeds

# Between two looks at the backend's model while a single answer is being drawn.
CHECK_SECONDS = 0.25


@dataclasses.dataclass(frozen=True)
class Look:
    """A certificate, and the estimation draws when it was made."""

    certificate: Certificate
    drawn: int


def looks(
    votes: RemoteVotes,
    task: Task,
    rule: Rule,
    call: Call,
    *,
    every: bool,
    check: Callable[[], None],
    bound: Callable[[], AbstractContextManager[object]],
) -> Iterator[Look]:
    """Draws as a rule plans and certifies.

    Args:
      votes: of the model.
      task: image and seeds.
      rule: sampling plan, bound and stop rule.
      call: whose deadline ends the draws with the best certificate so far.
      every: yield at every look of the plan, a radius that never falls; otherwise only the last.
      check: raises BackendError where the model at the backend is another one by now; called
        before a certificate is given, and in between.
      bound: entered around the computation of a certificate.

    Raises:
      BackendError: of `check` or of the backend; DEADLINE_EXCEEDED where the deadline came before
        the first look.
    """

    def certificates(progress: Progress) -> Iterator[Certificate]:
        """Those of a round: of the last look that it reached, or of every one."""
        for counts in progress.looks[:-1] if every else ():
            with bound():
                certificate = certify(counts, rule, votes.smoothing.distribution)
            yield certificate
        if progress.looks and progress.certificate is not None:
            yield progress.certificate

    best: Certificate | None = None
    drawn, checked = 0, -math.inf
    try:
        for progress in draw_certificates(votes, [task], rule, around_certify=bound):
            drawn = progress.n
            # A certificate that has not been checked is not given, even at a deadline.
            due = every or progress.seconds - checked >= CHECK_SECONDS
            if not (progress.done or (progress.looks and due)):
                continue
            check()
            checked = progress.seconds
            for found in certificates(progress):
                # All looks hold together, so the largest radius among them does.
                best = found if best is None or found.radius >= best.radius else best
                if every:
                    yield Look(best, found.draws.n)
            if progress.done and not every and progress.certificate is not None:
                yield Look(progress.certificate, drawn)
    except BackendError as error:
        if not call.out_of_time():
            raise
        if best is None:
            raise BackendError(
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"{drawn} of the {rule.looks[0]} draws of the first certificate were "
                f"answered in time: {error}",
            ) from error
        yield Look(best, drawn)


def draw_counts(votes: RemoteVotes, image: Image, seed: Seeds, n: int) -> tuple[int, ...]:
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


def fresh_seed() -> Seeds:
    """64 bits of the operating system's entropy, int32 `[2]`."""
    return np.frombuffer(secrets.token_bytes(8), dtype="<i4").astype(np.int32)
