"""Drawing the votes of a record again, from any source, to compare them with those recorded."""

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tfmacer.common.errors import UserError
from tfmacer.guarantee.counts import Counts
from tfmacer.guarantee.rule import Rule
from tfmacer.records.audit_entries import AuditEntry
from tfmacer.records.rows import Record
from tfmacer.records.runs import LARGEST_REQUEST, UNKNOWN_MODEL, SmoothedClassifier
from tfmacer.records.sealing import pixels_digest
from tfmacer.records.settings import LogSettings
from tfmacer.records.verification import Replay, Replayed
from tfmacer.votes.source import ESTIMATE, SELECT, Seeds, Votes, VoteSource, counts_of, row_seed

# See `VoteSource.sample`.
_LONGEST_STREAM = 2_000_000_000

Images = Callable[[int], tuple[npt.NDArray[np.float32], int]]


def replay_from(source: VoteSource, images: Images) -> Replay:
    """Draws an image's votes again from any source.

    Args:
      source: of the model that the log names.
      images: gives for an idx the image, float32 `[H, W, C]` in [0, 1], and its label.

    Returns:
      A function for `verify_log`. It raises UserError where the source is of another model.
    """

    def replay(settings: LogSettings, record: Record) -> Replayed:
        _check_source(source, settings.classifier)
        given, label = images(record.idx)
        image = settings.classifier.distribution.pixels(given)
        n = record.require_draws().n
        seeds = (
            row_seed(settings.seed, SELECT, record.idx),
            row_seed(settings.seed, ESTIMATE, record.idx),
        )
        return Replayed(
            label=label,
            clean=_clean(source.logits(image[np.newaxis])[0], record),
            draws=_votes(source, image, seeds, settings.rule, n),
            pixels_sha256=pixels_digest(image),
        )

    return replay


def _clean(logits: npt.NDArray[np.float32], record: Record) -> int:
    """The class without noise; the recorded one where it ties with the best within rounding."""
    best = float(logits.max())
    if record.clean is not None and logits[record.clean] >= best - 1e-4 * max(1.0, abs(best)):
        return record.clean
    return int(logits.argmax())


def replay_served(source: VoteSource) -> Callable[[AuditEntry], Counts]:
    """Draws the votes of served certificates again; a function for `verify_entry`.

    It raises UserError where the source is of another model, or the entry keeps no pixels.
    """

    def replay(entry: AuditEntry) -> Counts:
        _check_source(source, entry.smoothing)
        if entry.pixels is None:
            raise UserError(
                "the audit log keeps no pixels (--noaudit_pixels), so nothing can be drawn again"
            )
        seeds = (entry.select_seed, entry.estimate_seed)
        found = entry.certificate
        return _votes(source, entry.pixels, seeds, found.rule, found.draws.n)

    return replay


def _votes(
    source: VoteSource,
    image: npt.NDArray[np.float32],
    seeds: tuple[Seeds, Seeds],
    rule: Rule,
    n: int,
) -> Counts:
    """Votes of one image, its streams cut into requests, some at a time to keep the source busy."""
    for name, draws in (("n0", rule.n0), ("n", n)):
        if draws > _LONGEST_STREAM:
            raise UserError(f"{name} is {draws}, a stream has {_LONGEST_STREAM} draws at most")
    blocks = -(-n // rule.block_size)
    size = rule.block_size * -(-blocks // source.parallelism)
    size = min(size, LARGEST_REQUEST // rule.block_size * rule.block_size)
    parts = (
        (stage, first, min(size, draws - first))
        for stage, draws in enumerate((rule.n0, n))
        for first in range(0, draws, size)
    )
    drawn = [Votes.none(source.smoothing.num_classes)] * 2
    # A record says how many parts there are: their images are not all held at once.
    while some := list(itertools.islice(parts, source.parallelism + 1)):
        votes = source.sample(
            np.repeat(image[np.newaxis], len(some), axis=0),
            np.stack([seeds[stage] for stage, _, _ in some]),
            np.array([first for _, first, _ in some], np.int32),
            np.array([draws for _, _, draws in some], np.int32),
            beta=rule.beta,
        )
        for row, (stage, _, _) in enumerate(some):
            drawn[stage] = drawn[stage].plus(votes.row(row))
    select, estimate = drawn
    return counts_of(select, estimate, rule, n)


def _check_source(source: VoteSource, classifier: SmoothedClassifier) -> None:
    """Refuses a source of another smoothed classifier than the log's."""
    if classifier.model_digest == UNKNOWN_MODEL:
        raise UserError(
            "model_digest is unknown: the records do not say of which model they are, so nothing "
            "tells whether the source is the same"
        )
    if different := source.smoothing.difference(classifier):
        raise UserError(f"the source is another model: its {different}")
