"""Whole logs verified: by their votes, against their images, or by drawing the votes again."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tfmacer.certification.examples import check_images, examples_of
from tfmacer.common import commandline
from tfmacer.common.errors import UserError
from tfmacer.common.progress import Progress
from tfmacer.common.text import visible
from tfmacer.guarantee.counts import Counts
from tfmacer.records.audit import Trail, read_audit_log, verify_entry
from tfmacer.records.audit_entries import AuditEntry
from tfmacer.records.logs import Log, read_log
from tfmacer.records.rows import Record
from tfmacer.records.settings import NO_PIXELS, LogSettings
from tfmacer.records.verification import Replayed, verify_log
from tfmacer.votes.remote import RemoteVotes
from tfmacer.votes.replay import replay_from, replay_served
from tfmacer.votes.source import VoteSource

if TYPE_CHECKING:
    from tfmacer.data.splits import Split

# That a log may ask for.
_MOST_THREADS = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogVerifier:
    """Verifies certification logs.

    Attributes:
      complete: whether a log in which images of the selection have no row is wrong.
      split_of: opens the split that a log was made from.
      dataset: what the images are compared with, for the report; None does not look at them.
      open_source: opens the source of votes with so many intra-op threads, to draw the votes again;
        None trusts those recorded.
    """

    complete: bool
    split_of: Callable[[Log, LogSettings], "Split"]
    dataset: str | None
    open_source: Callable[[int], VoteSource] | None

    def verify(self, path: Path) -> str | None:
        """Verifies one log, and prints that it is right; returns what is wrong with it."""
        try:
            log = read_log(path)
            # What the records alone show comes first: it takes no time.
            fault = verify_log(log)
            if fault is None and log.settings is not None:
                if self.open_source is not None:
                    fault = self._replayed(log, log.settings, self.open_source)
                elif self.dataset is not None:
                    self._compare(log, log.settings)
        except UserError as error:
            return str(error)
        if fault is not None:
            return f"{path}: {fault}"
        if missing := log.unfinished:
            if self.complete:
                return f"{path}: unfinished: {missing}"
            commandline.say(f"{path}: unfinished: {missing}")
        if self.open_source is not None:
            images = "all votes drawn again"
        elif self.dataset is not None:
            images = f"images compared with {self.dataset}"
        else:
            images = "images not looked at"
        commandline.say(f"{path}: {len(log.records)} records verified, {images}")
        return None

    def _compare(self, log: Log, settings: LogSettings) -> None:
        """Compares names, pixels and labels of a log with the images at hand."""
        split = self.split_of(log, settings)
        if not settings.names_images:
            commandline.say(f"{log.path}: {NO_PIXELS}")
        recorded = settings.images.class_names
        if recorded not in (None, split.class_names):
            raise UserError(
                f"{log.path}: class_names are {recorded}, the dataset's {split.class_names}"
            )
        examples = examples_of(split, settings.classifier.distribution)
        check_images(log.path, log.records, examples([record.idx for record in log.records]))

    def _replayed(
        self, log: Log, settings: LogSettings, open_source: Callable[[int], VoteSource]
    ) -> str | None:
        """Draws the votes of a log again; returns the first fault."""
        source = open_source(_threads(log, settings))
        if not isinstance(source, RemoteVotes):
            _note_versions(log, settings)
        examples = examples_of(self.split_of(log, settings), settings.classifier.distribution)
        found = iter(examples([record.idx for record in log.records]))

        def image_of(idx: int) -> tuple[npt.NDArray[np.float32], int]:
            example = next(each for each in found if each.index == idx)
            return example.image, example.label

        replay = replay_from(source, image_of)

        def counted(settings: LogSettings, record: Record) -> Replayed:
            replayed = replay(settings, record)
            progress.advance()
            return replayed

        with Progress(len(log.records), "images", name=visible(log.path.name)) as progress:
            return verify_log(log, counted)


def verify_audit_log(
    path: Path, *, head: str | None, open_source: Callable[[int], VoteSource] | None
) -> None:
    """Verifies the certificates that a sidecar has served, and prints that they are right.

    Raises:
      UserError: an entry is wrong, or does not follow the one before it; names the certificate.
    """
    # What the entries alone show comes first: it takes no time.
    trail = _follow(path, head, None)
    if head is not None and trail.chain.known is None:
        raise UserError(
            f"{path}: no entry has the digest {head} of --audit_head: its end was cut off, or it "
            f"is another log; {trail.chain}"
        )
    if open_source is not None:
        trail = _follow(path, head, replay_served(open_source(1)))
    drawn = "" if open_source is None else ", all votes drawn again"
    commandline.say(f"{path}: {trail.entries} certificates verified{drawn}")
    commandline.say(f"{path}: {trail.chain}")
    if (known := trail.chain.known) is not None and (last := trail.chain.last) is not None:
        later = last.number - known.number
        commandline.say(f"{path}: --audit_head is entry {known.number}, {later} came after it")


def _follow(path: Path, head: str | None, replay: Callable[[AuditEntry], Counts] | None) -> Trail:
    """Verifies entry after entry."""
    trail = Trail(head)
    with Progress(None, "certificates", name=visible(path.name)) as progress:
        for entry in read_audit_log(path):
            try:
                wrong = trail.follow(entry) or verify_entry(entry, replay)
            except UserError as error:  # its votes cannot be drawn again
                wrong = str(error)
            if wrong is not None:
                raise UserError(f"{entry.where}: certificate {entry.certificate_id}: {wrong}")
            progress.advance()
    return trail


def _environments(settings: LogSettings) -> Sequence[Mapping[str, Any]]:
    """Where the rows were made: one environment, or those of merged shards or of workers."""
    parts = [
        each
        for name, each in settings.environment.items()
        if name != "versions" and isinstance(each, Mapping)
    ]
    return parts or [settings.environment]


def _threads(log: Log, settings: LogSettings) -> int:
    """The intra-op threads to draw with again; says where parts of the log had others."""
    made = [each.get("intra_op_threads", 1) for each in _environments(settings)]
    for threads in made:
        if type(threads) is not int or not 0 <= threads <= _MOST_THREADS:
            raise UserError(
                f"{log.path}: intra_op_threads is {threads!r}, not 0 to {_MOST_THREADS}"
            )
    used: int = made[0]
    if len(set(made)) > 1:
        commandline.say(
            f"{log.path}: its parts were drawn with intra_op_threads of "
            f"{', '.join(map(str, sorted(set(made))))}, here {used}: "
            "votes may differ where two logits tie within rounding"
        )
    return used


def _note_versions(log: Log, settings: LogSettings) -> None:
    """Says where the votes may differ by rounding although nothing was altered."""
    from tfmacer.votes.devices import library_versions

    versions = [each.get("versions") for each in _environments(settings)]
    made = [str(each.get("tensorflow")) for each in versions if isinstance(each, Mapping)]
    here = library_versions()["tensorflow"]
    if set(made) != {here}:
        named = ", ".join(sorted(set(made))) or "of no recorded version"
        commandline.say(
            f"{log.path}: made with TensorFlow {named}, here {here}: "
            "votes may differ where two logits tie within rounding"
        )
