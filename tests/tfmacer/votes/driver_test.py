"""The driver against a source that draws from known class probabilities, without TensorFlow."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from tfmacer.common.errors import UserError
from tfmacer.guarantee.certificate import certify
from tfmacer.guarantee.rule import Rule
from tfmacer.guarantee.stopping import StopRule
from tfmacer.records.runs import Smoothing
from tfmacer.votes.driver import Progress, Task, draw_certificates
from tfmacer.votes.source import ESTIMATE, SELECT, Votes, row_seed

SHAPE = (1, 1, 1)
BLOCK = 32


class KnownVotes:
    """Draw j of a stream votes by one uniform number of the stream's own generator.

    The single pixel of an image is the probability of class 1 of 3; the rest is split 3 to 1.
    """

    def __init__(self, parallelism: int = 2, broken_after: int | None = None) -> None:
        self.smoothing = Smoothing(
            sigma=0.5, num_classes=3, input_shape=SHAPE, model_digest="t", block_size=BLOCK
        )
        self.parallelism = parallelism
        self.calls: list[list[tuple[int, int]]] = []
        self._broken_after = broken_after

    def draws(self, image: np.ndarray, seed: np.ndarray, n: int) -> np.ndarray:
        uniform = np.random.default_rng(seed.astype(np.int64) + 2**31).random(n)
        p = float(image[0, 0, 0])
        return np.where(uniform < p, 1, np.where(uniform < p + 0.75 * (1 - p), 0, 2))

    def sample(self, images, seeds, offsets, num_samples, *, beta=1.0) -> Votes:
        self.calls.append(list(zip(offsets.tolist(), num_samples.tolist(), strict=True)))
        votes = []
        for image, seed, offset, n in zip(images, seeds, offsets, num_samples, strict=True):
            drawn = self.draws(image, seed, offset + n)[offset:]
            if self._broken_after is not None and offset + n > self._broken_after:
                drawn = drawn[:-1]
            votes.append(np.bincount(drawn, minlength=3))
        counts = np.array(votes, np.int64)
        return Votes(counts, counts * 1.0, counts * 1.0)

    def logits(self, images):
        return np.zeros((len(images), 3), np.float32)


def tasks(probabilities: list[float]) -> Iterator[Task]:
    for index, p in enumerate(probabilities):
        yield Task.seeded(5, index, np.full(SHAPE, p, np.float32))


def finals(source: KnownVotes, probabilities: list[float], rule: Rule) -> dict[int, Progress]:
    events = draw_certificates(source, tasks(probabilities), rule)
    return {event.index: event for event in events if event.done}


MIXED = [0.99, 0.5, 0.9, 0.2, 0.75, 0.999, 0.6, 0.85]


def test_a_fixed_run_counts_exactly_its_draws():
    source = KnownVotes()
    found = finals(source, MIXED, Rule(n0=50, n=1000, block_size=BLOCK))
    for index, p in enumerate(MIXED):
        certificate = found[index].certificate
        image = np.full(SHAPE, p, np.float32)
        for counts, stage, n in (
            (certificate.draws.select_counts, SELECT, 50),
            (certificate.draws.counts, ESTIMATE, 1000),
        ):
            expected = np.bincount(source.draws(image, row_seed(5, stage, index), n), minlength=3)
            assert list(counts) == expected.tolist()
        assert certificate.draws.n == 1000


@pytest.mark.parametrize("stop", ["fixed", "decide:0.4", "precision:0.1"])
def test_certificates_do_not_depend_on_the_schedule(stop, monkeypatch):
    rule = Rule(
        n0=50,
        n=4000,
        alpha=0.01,
        reject_alpha=0.01,
        bound="clopper_pearson" if stop == "fixed" else "beta_binomial",
        stop=StopRule.parse(stop),
        block_size=BLOCK,
    )
    reference = finals(KnownVotes(parallelism=1), MIXED, rule)
    for parallelism, seconds in itertools.product((1, 3, 8), (0.0, 1e9)):
        # A round's size adapts to its duration: 0 keeps rounds small, 1e9 doubles them each time.
        monkeypatch.setattr("tfmacer.votes.driver.ROUND_SECONDS", seconds)
        other = finals(KnownVotes(parallelism), MIXED, rule)
        assert {i: e.certificate for i, e in other.items()} == {
            i: e.certificate for i, e in reference.items()
        }
    alone = finals(KnownVotes(), MIXED[:1], rule)
    assert alone[0].certificate == reference[0].certificate


def test_an_early_stop_draws_a_prefix_and_no_block_past_its_look():
    source = KnownVotes()
    rule = Rule(
        n0=50,
        n=100_000,
        bound="beta_binomial",
        stop=StopRule.parse("decide:0.1"),
        block_size=BLOCK,
    )
    found = finals(source, [0.99], rule)
    certificate = found[0].certificate
    assert certificate.stopped_early
    assert certificate.draws.n in rule.looks
    assert certificate.draws.n < 2000
    drawn = source.draws(
        np.full(SHAPE, 0.99, np.float32), row_seed(5, ESTIMATE, 0), certificate.draws.n
    )
    assert list(certificate.draws.counts) == np.bincount(drawn, minlength=3).tolist()
    asked = sum(n for call in source.calls for _, n in call)
    assert asked == certificate.draws.n + 50


def test_requests_meet_on_block_borders_and_never_overlap():
    source = KnownVotes(parallelism=3)
    finals(source, [0.7], Rule(n0=50, n=1000, block_size=BLOCK))
    # The selection stream is asked for in the first request, and is complete with it.
    parts = [part for call in source.calls for part in call]
    assert parts[:2] == [(0, 32), (32, 18)]
    ends = list(itertools.accumulate(n for _, n in parts[2:]))
    assert [offset for offset, _ in parts[2:]] == [0, *ends[:-1]]
    assert all(offset % BLOCK == 0 for offset, _ in parts[2:])
    assert ends[-1] == 1000


def test_a_fixed_plan_passes_its_looks_and_keeps_what_they_saw():
    """Nothing drawn can end it, so it asks ahead; each look has the counts of its own draws."""
    source = KnownVotes(parallelism=8)
    rule = Rule(n0=50, n=3000, bound="late_spending", block_size=BLOCK)
    events = list(draw_certificates(source, tasks([0.7]), rule))
    image, seed = np.full(SHAPE, 0.7, np.float32), row_seed(5, ESTIMATE, 0)
    seen = [counts for event in events for counts in event.looks]
    assert [counts.n for counts in seen] == list(rule.looks)
    for counts in seen:
        drawn = source.draws(image, seed, counts.n)
        assert list(counts.counts) == np.bincount(drawn, minlength=3).tolist()
    noise = source.smoothing.distribution
    for event in events:
        if event.looks:
            assert event.certificate == certify(event.looks[-1], rule, noise)
            assert event.n >= event.certificate.draws.n
    assert len(source.calls) <= len(rule.looks) / 2
    # The first request fills every place once, so that the first look is not long in coming.
    assert len(source.calls[0]) == 8


def test_the_last_round_is_spread_over_all_places():
    """However large the rounds have grown: nobody works alone at the end."""
    source = KnownVotes(parallelism=4)
    finals(source, [0.7], Rule(n0=BLOCK, n=100 * BLOCK, block_size=BLOCK))
    # Rounds of 4, 8, 16 and 32 blocks; 41 are left of 101, for a round of 64.
    *full, last = source.calls
    assert [sum(n for _, n in call) // BLOCK for call in full] == [4, 8, 16, 32]
    blocks = [n // BLOCK for _, n in last]
    assert sum(blocks) == 41
    assert max(blocks) == 6  # an eighth, rounded up


def test_a_budget_asks_ahead_too_and_rests_on_a_look(monkeypatch):
    clock = itertools.count(0, 0.4)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    source = KnownVotes(parallelism=7)
    rule = Rule(n=100_000, bound="beta_binomial", stop="budget:3", block_size=BLOCK)
    [event] = finals(source, [0.9], rule).values()
    n = event.certificate.draws.n
    assert n in rule.looks
    assert n < event.n
    drawn = source.draws(np.full(SHAPE, 0.9, np.float32), row_seed(5, ESTIMATE, 0), n)
    assert list(event.certificate.draws.counts) == np.bincount(drawn, minlength=3).tolist()


def test_undecided_images_share_a_round():
    """Images that need one block each are drawn side by side, not one a round."""
    source = KnownVotes(parallelism=4)
    rule = Rule(
        n0=BLOCK,
        n=100_000,
        bound="beta_binomial",
        stop=StopRule.parse("decide:0.1"),
        block_size=BLOCK,
    )
    finals(source, [0.999] * 40, rule)
    assert len(source.calls) < 40


def test_closing_the_iterator_stops_the_drawing():
    source = KnownVotes()
    events = draw_certificates(source, tasks([0.9]), Rule(n=100_000, block_size=BLOCK))
    next(events)
    events.close()
    assert sum(n for call in source.calls for _, n in call) < 1000


def test_a_budget_ends_with_the_latest_look(monkeypatch):
    clock = itertools.count(0, 0.4)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    rule = Rule(
        n=1_000_000, bound="beta_binomial", stop=StopRule.parse("budget:2"), block_size=BLOCK
    )
    [event] = finals(KnownVotes(), [0.9], rule).values()
    assert event.seconds >= 2
    assert event.certificate.draws.n in rule.looks
    assert event.certificate.draws.n < 1_000_000


def test_lost_votes_are_an_error_never_a_certificate():
    with pytest.raises(UserError, match="not finite in 1 of"):
        finals(KnownVotes(broken_after=500), [0.9], Rule(n=1000, block_size=BLOCK))


def test_a_rule_for_another_block_size_is_refused():
    with pytest.raises(UserError, match="block_size of the rule is 64, the model's is 32"):
        finals(KnownVotes(), [0.9], Rule(n=1000, block_size=64))
