"""Certifies examples one after another, and writes a row of each log for every one."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from tfmacer.certification.examples import Example, Examples, check_images
from tfmacer.certification.preflight import preflight
from tfmacer.common.errors import UserError
from tfmacer.guarantee.certificate import Certificate
from tfmacer.guarantee.rule import Rule
from tfmacer.records.locked_table import LockedTable
from tfmacer.records.logs import Record
from tfmacer.votes.driver import Progress, Task, draw_certificates
from tfmacer.votes.source import VoteSource

# Images whose class without noise is computed in one forward pass.
_CLEAN_BATCH = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certified:
    """The outcome for one example.

    Attributes:
      example: the image certified.
      certificates: the statement about it by each rule, in their order.
      clean: the base network's class without noise.
      seconds: from its first draw to its last.
    """

    example: Example
    certificates: tuple[Certificate, ...]
    clean: int
    seconds: float

    @property
    def records(self) -> tuple[Record, ...]:
        """The row of each rule's log."""
        return tuple(
            Record.of(
                certificate,
                idx=self.example.index,
                label=self.example.label,
                clean=self.clean,
                seconds=self.seconds,
                pixels_sha256=self.example.pixels_sha256,
                name=self.example.name,
            )
            for certificate in self.certificates
        )


def certify_examples(
    source: VoteSource,
    examples: Iterable[Example],
    rules: Sequence[Rule],
    *,
    seed: int = 0,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Iterator[Certified]:
    """Certifies examples as they are drawn from the iterable.

    Args:
      source: where votes come from.
      examples: the images; taken a few at a time.
      rules: sampling plan, bound and stop rule; the first one governs the drawing, the others
        certify from the same draws.
      seed: of the noise; with an example's index it determines the certificate.
      on_progress: called after each round with how far each image has come.

    Yields:
      Each example with its certificate, in the order in which they finish.
    """
    waiting: dict[int, tuple[Example, int]] = {}

    def tasks() -> Iterator[Task]:
        for batch in _batches(examples, _CLEAN_BATCH):
            logits = source.logits(np.stack([example.image for example in batch]))
            if not (finite := np.isfinite(logits).all(axis=1)).all():
                idx = batch[int(finite.argmin())].index
                raise UserError(f"idx {idx}: the model's logits without noise are not finite")
            for example, clean in zip(batch, logits.argmax(axis=1), strict=True):
                waiting[example.index] = (example, int(clean))
                yield Task.seeded(seed, example.index, example.image)

    for progress in draw_certificates(source, tasks(), rules[0], extra_rules=rules[1:]):
        on_progress(progress)
        if progress.done and progress.certificate is not None:
            example, clean = waiting.pop(progress.index)
            yield Certified(
                example=example,
                certificates=(progress.certificate, *progress.extra_certificates),
                clean=clean,
                seconds=progress.seconds,
            )


def prepare_logs(
    source: VoteSource, examples: Examples, writers: Sequence[LockedTable[Record]]
) -> tuple[list[int], float]:
    """Checks everything before images are certified into logs.

    Returns:
      Indices that some log lacks, ascending; and draws per second, 0 where nothing is to be drawn.

    Raises:
      UserError: see `check_images` and `preflight`.
    """
    for writer in writers:
        check_images(writer.path, writer.rows, examples(sorted(row.idx for row in writer.rows)))
    missing = sorted(set().union(*(writer.missing for writer in writers)))
    few = [example.image for example in examples(missing[:2])]
    return missing, preflight(source, few) if few else 0.0


def record_examples(
    source: VoteSource,
    examples: Iterable[Example],
    rules: Sequence[Rule],
    writers: Sequence[LockedTable[Record]],
    *,
    seed: int = 0,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_record: Callable[[Record], None] = lambda record: None,
) -> None:
    """Certifies examples into logs, one for each rule; a row is on disk before the next image's."""
    missing = [set(writer.missing) for writer in writers]
    for done in certify_examples(source, examples, rules, seed=seed, on_progress=on_progress):
        for writer, record, wanted in zip(writers, done.records, missing, strict=True):
            if record.idx in wanted:
                writer.append(record)
        on_record(done.records[0])


def _batches(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    iterator = iter(examples)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
