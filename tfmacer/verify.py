"""Checks certification logs: every record is computed again from its votes, without TensorFlow.

  python -m tfmacer.verify LOG.tsv ...

Recomputed are the class (from the selection votes), the confidence bounds, the radius, whether
it is correct, and the digest of the row and of the settings; a record that claims more, or less
by more than the rounding of other builds of SciPy, is named. The images are not looked at; with
--dataset their pixels and labels are compared with those recorded, and with --redraw and a source
(--run_dir, --saved_model or --server) the votes themselves are drawn again and compared, too.

  python -m tfmacer.verify --audit_log=FILE [--redraw --saved_model=DIR]

does the same for the certificates that a sidecar has served.
"""

import bisect
import functools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from absl import flags

from tfmacer.common import commandline
from tfmacer.common.errors import UserError
from tfmacer.common.progress import Progress
from tfmacer.common.text import visible
from tfmacer.guarantee.counts import Counts
from tfmacer.records.audit import Trail, read_audit_log, verify_entry
from tfmacer.records.audit_entries import AuditEntry
from tfmacer.records.logs import Log, read_log
from tfmacer.records.naming import ImageFlags
from tfmacer.records.rows import Record
from tfmacer.records.settings import NO_PIXELS, LogSettings
from tfmacer.records.verification import Replay, Replayed, verify_log
from tfmacer.votes.replay import replay_from, replay_served
from tfmacer.votes.source_flags import SourceFlags

if TYPE_CHECKING:
    from tfmacer.data.splits import Split
    from tfmacer.votes.source import VoteSource

# That a log may ask for.
_MOST_THREADS = 1024
# Images read at a time.
_LOADED = 64

FLAGS = flags.FlagValues()
_string = functools.partial(flags.DEFINE_string, flag_values=FLAGS)
_bool = functools.partial(flags.DEFINE_bool, flag_values=FLAGS)

_COMPLETE = _bool("complete", False, "Fail also where images of the selection have no row.")
_REDRAW = _bool("redraw", False, "Draw the votes again from a source, and compare them.")
_SOURCE = SourceFlags(FLAGS, purpose="--redraw")
_AUDIT_LOG = _string("audit_log", None, "A sidecar's audit log to verify, in place of logs.")
_AUDIT_HEAD = _string(
    "audit_head",
    None,
    "Newest digest that is known of --audit_log, from the sidecar's metrics or its log: an entry "
    "must have it, so that a cut end shows.",
)
_IMAGES = ImageFlags.define(
    FLAGS,
    dataset="Where the images are, to compare them with those certified; with --redraw, default: "
    "what the log records, where that is mnist5k or a dataset of TFDS' own on disk.",
    split="Split of it; default: the one that the log records.",
    split_default=None,
)


def _main(paths: Sequence[str]) -> None:
    if bool(paths) == (_AUDIT_LOG.value is not None):
        raise UserError("name the logs to verify, LOG.tsv ..., or else an --audit_log")
    _check_flags()
    if _AUDIT_LOG.value is not None:
        _verify_served(Path(_AUDIT_LOG.value))
        return
    redraw_of = _open() if _REDRAW.value else None
    failures = [text for path in paths if (text := _verify(Path(path), redraw_of)) is not None]
    if failures:
        raise UserError("; ".join(failures))


def _check_flags() -> None:
    _SOURCE.check(wanted=_REDRAW.value)
    images = _IMAGES().given
    if images and _AUDIT_LOG.value is not None:
        raise UserError(f"--{images[0]} is for logs, an --audit_log keeps its images")
    if images and not (_REDRAW.value or "dataset" in images):
        raise UserError(f"--{images[0]} goes with --dataset or --redraw")
    if _AUDIT_HEAD.value is not None:
        if _AUDIT_LOG.value is None:
            raise UserError("--audit_head goes with --audit_log")
        if not re.fullmatch("[0-9a-f]{64}", _AUDIT_HEAD.value):
            raise UserError(f"--audit_head={_AUDIT_HEAD.value} is not a digest of 64 hex digits")


def _verify(path: Path, redraw_of: Callable[[Log], Replay] | None) -> str | None:
    """Verifies one log and says so; returns what is wrong with it."""
    try:
        log = read_log(path)
        # What the record alone shows comes first: it takes no time.
        difference = verify_log(log)
        if difference is None and redraw_of is not None:
            redraw = redraw_of(log)
            with Progress(len(log.records), "images", name=visible(path.name)) as progress:
                difference = verify_log(log, _counted(redraw, progress))
        elif difference is None and _IMAGES().dataset is not None:
            _compare(log)
    except UserError as error:
        return str(error)
    if difference is not None:
        return f"{path}: {difference}"
    if images := log.unfinished:
        if _COMPLETE.value:
            return f"{path}: unfinished: {images}"
        commandline.say(f"{path}: unfinished: {images}")
    if redraw_of is not None:
        images = "all votes drawn again"
    elif _IMAGES().dataset is not None:
        images = f"images compared with {_IMAGES().dataset}"
    else:
        images = "images not looked at"
    commandline.say(f"{path}: {len(log.records)} records verified, {images}")
    return None


def _compare(log: Log) -> None:
    """Compares names, pixels and labels of a log with the dataset given."""
    _SOURCE.load_tensorflow()
    from tfmacer.certification.examples import check_images, examples_of

    split, settings = _split(log), _settings(log)
    if not settings.names_images:
        commandline.say(f"{log.path}: {NO_PIXELS}")
    recorded = settings.images.class_names
    if recorded not in (None, split.class_names):
        raise UserError(
            f"{log.path}: class_names are {recorded}, the dataset's {split.class_names}"
        )
    examples = examples_of(split, settings.classifier.distribution)
    check_images(log.path, log.records, examples([record.idx for record in log.records]))


def _verify_served(path: Path) -> None:
    """Verifies an audit log and says so.

    Raises:
      UserError: an entry is wrong, or does not follow the one before it; names the certificate.
    """
    # What the record alone shows comes first: it takes no time.
    trail = _follow(path, None)
    if _AUDIT_HEAD.value is not None and trail.chain.known is None:
        raise UserError(
            f"{path}: no entry has the digest {_AUDIT_HEAD.value} of --audit_head: its end was cut "
            f"off, or it is another log; {trail.chain}"
        )
    if _REDRAW.value:
        _SOURCE.load_tensorflow()
        trail = _follow(path, replay_served(_SOURCE.open(intra_op_threads=1)))
    drawn = ", all votes drawn again" if _REDRAW.value else ""
    commandline.say(f"{path}: {trail.entries} certificates verified{drawn}")
    commandline.say(f"{path}: {trail.chain}")
    if (known := trail.chain.known) is not None and (last := trail.chain.last) is not None:
        later = last.number - known.number
        commandline.say(f"{path}: --audit_head is entry {known.number}, {later} came after it")


def _follow(path: Path, redraw: Callable[[AuditEntry], Counts] | None) -> Trail:
    """Verifies entry after entry."""
    trail = Trail(_AUDIT_HEAD.value)
    with Progress(None, "certificates", name=visible(path.name)) as progress:
        for entry in read_audit_log(path):
            try:
                wrong = trail.follow(entry) or verify_entry(entry, redraw)
            except UserError as error:  # its votes cannot be drawn again
                wrong = str(error)
            if wrong is not None:
                raise UserError(f"{entry.where}: certificate {entry.certificate_id}: {wrong}")
            progress.advance()
    return trail


def _open() -> Callable[[Log], Replay]:
    """Loads TensorFlow; opens the source when the first log tells how many threads it used."""
    _SOURCE.load_tensorflow()
    sources: dict[int, VoteSource] = {}

    def redraw_of(log: Log) -> Replay:
        if log.settings is None:
            raise UserError(f"{log.path}: not a log of tfmacer")
        threads = _threads(log, log.settings)
        if threads not in sources:
            sources[threads] = _SOURCE.open(intra_op_threads=threads)
        _note_environment(log, log.settings)
        images = _ByIdx(_split(log), [record.idx for record in log.records])
        return replay_from(sources[threads], images)

    return redraw_of


def _counted(redraw: Replay, progress: Progress) -> Replay:
    """The same, which counts the images."""

    def counted(settings: LogSettings, record: Record) -> Replayed:
        redrawn = redraw(settings, record)
        progress.advance()
        return redrawn

    return counted


def _environments(settings: LogSettings) -> list[Mapping[str, Any]]:
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


def _note_environment(log: Log, settings: LogSettings) -> None:
    """Says where the votes may differ by rounding although nothing was altered."""
    from tfmacer.votes.devices import library_versions

    versions = [each.get("versions") for each in _environments(settings)]
    made = [str(each.get("tensorflow")) for each in versions if isinstance(each, Mapping)]
    here = library_versions()["tensorflow"]
    if _SOURCE.server is None and set(made) != {here}:
        named = ", ".join(sorted(set(made))) or "of no recorded version"
        commandline.say(
            f"{log.path}: made with TensorFlow {named}, here {here}: "
            "votes may differ where two logits tie within rounding"
        )


def _split(log: Log) -> "Split":
    """The split that a log is of."""
    from tfmacer.data.datasets import split_of_log

    images = _IMAGES()
    named = images.of_log(log, run=_SOURCE.run)
    return split_of_log(named, images, _settings(log), log.path)


def _settings(log: Log) -> LogSettings:
    if log.settings is None:
        raise UserError(f"{log.path}: not a log of tfmacer")
    return log.settings


class _ByIdx:
    """Images and labels of a split by idx, read a few ahead: records are verified in order."""

    def __init__(self, split: "Split", positions: Sequence[int]) -> None:
        self._split = split
        self._positions = positions
        self._loaded: dict[int, tuple[npt.NDArray[np.float32], int]] = {}

    def __call__(self, idx: int) -> tuple[npt.NDArray[np.float32], int]:
        if idx not in self._loaded:
            place = bisect.bisect_left(self._positions, idx)
            wanted = self._positions[place : place + _LOADED]
            images, labels = self._split.take(wanted)
            self._loaded = {
                one: (image, int(label))
                for one, image, label in zip(wanted, images, labels, strict=True)
            }
        return self._loaded[idx]


main = commandline.command(
    _main, FLAGS, "python -m tfmacer.verify", __doc__, arguments="LOG.tsv ..."
)


if __name__ == "__main__":
    sys.exit(main())
