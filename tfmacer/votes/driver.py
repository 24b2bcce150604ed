"""Select, draw, stop: turns tasks into certificates by asking any source for votes.

Each image's result depends on its seeds and the rule alone. How many images are drawn side by
side, how the stream is cut into requests and how fast the source answers change only the order in
which images finish; a run that stops early has drawn a prefix of what a fixed run would draw.
"""

import bisect
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import numpy.typing as npt

from tfmacer.common.errors import UserError
from tfmacer.guarantee.certificate import Certificate, certify, decided
from tfmacer.guarantee.counts import Counts
from tfmacer.guarantee.distribution import NoiseDistribution
from tfmacer.guarantee.rule import Rule
from tfmacer.votes.source import ESTIMATE, SELECT, Seeds, Votes, VoteSource, counts_of, row_seed

# A round of requests is sized to take about this long: short enough to stop, report and meet a
# deadline in time, long enough that its start and end cost nothing against it.
ROUND_SECONDS = 0.5
# Requests per place in the source's pipeline in one round; more than one, so that a fast place
# takes over from a slow one.
PARTS_PER_PLACE = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """One image to certify.

    Attributes:
      index: what the caller knows it by.
      image: float32 `[H, W, C]` in [0, 1].
      select_seed: int32 `[2]`, seed of the n0 draws that choose the class.
      estimate_seed: int32 `[2]`, seed of the n draws that bound its probability.
    """

    index: int
    image: npt.NDArray[np.float32]
    select_seed: Seeds
    estimate_seed: Seeds

    @classmethod
    def seeded(cls, seed: int, index: int, image: npt.NDArray[np.float32]) -> "Task":
        """The task of image `index` in a run with one seed."""
        return cls(index, image, row_seed(seed, SELECT, index), row_seed(seed, ESTIMATE, index))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
    """How far one image has come after a round.

    Attributes:
      index: the task's.
      n: estimation draws so far.
      certificate: the statement at the latest look; None before the first one.
      looks: what had been drawn at each look that this round has reached, in order; each makes a
        statement of its own, and the last one made `certificate`.
      extra_certificates: those of the further rules, once done.
      done: nothing more will be drawn for this image; `certificate` is then final.
      seconds: since the image's first request.
    """

    index: int
    n: int
    certificate: Certificate | None
    looks: tuple[Counts, ...] = ()
    extra_certificates: tuple[Certificate, ...] = ()
    done: bool
    seconds: float


@dataclasses.dataclass(eq=False)
class _Tally:
    """Votes of one stage of one image, so far and up to `target` draws.

    Attributes:
      looks: cumulative draws, ascending, at which the votes are kept; `target` is one of them.
      reached: the votes at each look that has not been certified yet.
    """

    seed: Seeds
    looks: tuple[int, ...]
    target: int
    votes: Votes
    drawn: int = 0
    asked: int = 0
    reached: list[tuple[int, Votes]] = dataclasses.field(default_factory=list)

    def next_look(self) -> int:
        """The first look that has not been asked for whole."""
        return self.looks[bisect.bisect_right(self.looks, self.asked)]

    def add(self, num_samples: int, votes: Votes) -> None:
        """Counts the votes of the draws that come next in the stream."""
        self.votes = self.votes.plus(votes)
        self.drawn += num_samples
        if self.drawn in self.looks:
            self.reached.append((self.drawn, self.votes))


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """A piece of one tally's stream, asked for in this round."""

    image: npt.NDArray[np.float32]
    tally: _Tally
    offset: int
    num_samples: int


class _Stream:
    """One image under way: its two tallies and the looks still ahead."""

    def __init__(self, task: Task, rule: Rule, classes: int, started: float) -> None:
        self.task = task
        self.started = started
        none = Votes.none(classes)
        self.select = _Tally(task.select_seed, (rule.n0,), rule.n0, none)
        # Where nothing that is drawn can end the drawing, no look is waited for.
        ahead = rule.stop.kind in ("fixed", "budget")
        first = rule.n if ahead else rule.looks[0]
        self.estimate = _Tally(task.estimate_seed, rule.looks, first, none)
        self.certificate: Certificate | None = None
        self.n = 0
        self.seen = none

    def missing(self, block_size: int) -> int:
        """Blocks that have not been asked for, up to the next look that is waited for."""
        return sum(
            -(-tally.target // block_size) - -(-tally.asked // block_size)
            for tally in (self.select, self.estimate)
        )

    def parts(self, blocks: int, part_blocks: int, block_size: int) -> Iterator[_Part]:
        """Cuts what is missing into parts, `blocks` in all at most."""
        for tally in (self.select, self.estimate):
            while blocks > 0 and tally.asked < tally.target:
                # Parts end on block borders, so that no block is drawn twice, and at looks.
                stop = (tally.asked // block_size + min(part_blocks, blocks)) * block_size
                part = _Part(
                    self.task.image, tally, tally.asked, min(stop, tally.next_look()) - tally.asked
                )
                tally.asked += part.num_samples
                blocks -= -(-part.num_samples // block_size)
                yield part

    def look(
        self,
        rule: Rule,
        distribution: NoiseDistribution,
        around_certify: Callable[[], AbstractContextManager[object]],
    ) -> tuple[list[Counts], bool]:
        """Certifies at the last look that has just been reached; True where the rule stops there.

        Returns:
          What had been drawn at each of these looks, and whether the image is finished.
        """
        if not self.estimate.reached or self.select.drawn < rule.n0:
            return [], False
        reached: list[Counts] = []
        while self.estimate.reached:
            self.n, self.seen = self.estimate.reached.pop(0)
            reached.append(counts_of(self.select.votes, self.seen, rule, self.n))
        with around_certify():
            self.certificate = certify(reached[-1], rule, distribution)
            stops = self.n == rule.n or decided(reached[-1], rule, distribution)
        if not stops and self.n == self.estimate.target:
            self.estimate.target = self.estimate.next_look()
        return reached, stops


def draw_certificates(
    source: VoteSource,
    tasks: Iterable[Task],
    rule: Rule,
    *,
    extra_rules: Sequence[Rule] = (),
    around_certify: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[Progress]:
    """Draws votes until every task is decided, several images side by side where that helps.

    Closing the iterator stops the drawing after the request under way.

    Args:
      source: where votes come from.
      tasks: the images, taken as they are needed.
      rule: sampling plan, bound and stop rule; its block size must be the source's.
      extra_rules: for fixed numbers of draws, certified from the same votes at the end.
      around_certify: entered around the computation of a certificate, to measure it.

    Yields:
      After each round of requests, the progress of every image that advanced in it.

    Raises:
      UserError: the rule's block size is not the source's, the noise distribution does not certify
        such images, or votes are missing because the network's logits were not finite.
    """
    smoothing, distribution = source.smoothing, source.smoothing.distribution
    if rule.block_size != smoothing.block_size:
        raise UserError(
            f"block_size of the rule is {rule.block_size}, the model's is {smoothing.block_size}"
        )
    pending = iter(tasks)
    streams: list[_Stream] = []
    places = PARTS_PER_PLACE * source.parallelism
    # One request a place: the first look comes soon, for a deadline that comes soon after.
    blocks = source.parallelism
    while True:
        started = time.monotonic()
        shares: list[tuple[_Stream, int]] = []
        room = blocks
        unplanned = iter(list(streams))
        while room > 0:
            stream = next(unplanned, None)
            if stream is None:
                task = next(pending, None)
                if task is None:
                    break
                task = dataclasses.replace(task, image=distribution.pixels(task.image))
                stream = _Stream(task, rule, smoothing.num_classes, started)
                streams.append(stream)
            share = min(room, stream.missing(smoothing.block_size))
            shares.append((stream, share))
            room -= share
        # Of what this round has, so that the last one is spread over all places, too.
        part_blocks = -(-(blocks - room) // places)
        parts = [
            part
            for stream, share in shares
            for part in stream.parts(share, part_blocks, smoothing.block_size)
        ]
        if not parts:
            return
        _draw(source, parts, rule.beta)
        now = time.monotonic()
        for stream in list(streams):
            if not any(part.tally in (stream.select, stream.estimate) for part in parts):
                continue
            out_of_time = rule.stop.seconds is not None and (
                now - stream.started >= rule.stop.seconds
            )
            reached, stops = stream.look(rule, distribution, around_certify)
            done = stops or (out_of_time and stream.certificate is not None)
            if done:
                streams.remove(stream)
            yield Progress(
                index=stream.task.index,
                n=stream.estimate.drawn,
                certificate=stream.certificate,
                looks=tuple(reached),
                extra_certificates=tuple(
                    certify(
                        counts_of(stream.select.votes, stream.seen, r, stream.n), r, distribution
                    )
                    for r in (extra_rules if done else ())
                ),
                done=done,
                seconds=now - stream.started,
            )
        if room <= 0 and (blocks < places or now - started < ROUND_SECONDS / 2):
            blocks *= 2


def _draw(source: VoteSource, parts: list[_Part], beta: float) -> None:
    """Asks for all parts at once and adds the answers to their tallies."""
    votes = source.sample(
        np.stack([part.image for part in parts]),
        np.stack([part.tally.seed for part in parts]),
        np.array([part.offset for part in parts], np.int32),
        np.array([part.num_samples for part in parts], np.int32),
        beta=beta,
    )
    for row, part in enumerate(parts):
        answer = votes.row(row)
        missing = part.num_samples - int(answer.counts.sum())
        if missing:
            raise UserError(
                f"the network's logits were not finite in {missing} of {part.num_samples} draws: "
                "no certificate can be given for it"
            )
        part.tally.add(part.num_samples, answer)
