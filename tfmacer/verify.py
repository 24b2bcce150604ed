"""Checks certification logs: every record is computed again from its votes, without TensorFlow.

  python -m tfmacer.verify LOG.tsv ...

Recomputed are the class (from the selection votes), the confidence bounds, the radius, whether
it is correct, and the digest of the row and of the settings; a record that claims more, or less
by more than the rounding of other builds of SciPy, is named. The images are not looked at; with
--dataset their pixels and labels are compared with those recorded, and with --replay and a source
(--run_dir, --saved_model or --server) the votes themselves are drawn again and compared, too.

  python -m tfmacer.verify --audit_log=FILE [--replay --saved_model=DIR]

does the same for the certificates that a sidecar has served.
"""

import functools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from tfmacer.certification.verifying import LogVerifier, verify_audit_log
from tfmacer.common import commandline
from tfmacer.common.errors import UserError
from tfmacer.records.image_flags import ImageFlags
from tfmacer.records.logs import Log
from tfmacer.records.settings import LogSettings
from tfmacer.votes.source_flags import SourceFlags

if TYPE_CHECKING:
    from tfmacer.data.splits import Split
    from tfmacer.votes.source import VoteSource

FLAGS = flags.FlagValues()
_string = functools.partial(flags.DEFINE_string, flag_values=FLAGS)
_bool = functools.partial(flags.DEFINE_bool, flag_values=FLAGS)

_COMPLETE = _bool("complete", False, "Fail also where images of the selection have no row.")
_REPLAY = _bool("replay", False, "Draw the votes again from a source, and compare them.")
_SOURCE = SourceFlags(FLAGS, purpose="--replay")
_AUDIT_LOG = _string("audit_log", None, "A sidecar's audit log to verify, in place of logs.")
_AUDIT_HEAD = _string(
    "audit_head",
    None,
    "Newest digest that is known of --audit_log, from the sidecar's metrics or its log: an entry "
    "must have it, so that a cut end shows.",
)
_IMAGES = ImageFlags.define(
    FLAGS,
    dataset="Where the images are, to compare them with those certified; with --replay, default: "
    "what the log records, where that is mnist5k or a dataset of TFDS' own on disk.",
    split="Split of it; default: the one that the log records.",
    split_default=None,
)


def _main(paths: Sequence[str]) -> None:
    if bool(paths) == (_AUDIT_LOG.value is not None):
        raise UserError("name the logs to verify, LOG.tsv ..., or else an --audit_log")
    _check_flags()
    open_source = functools.cache(_open_source) if _REPLAY.value else None
    if _AUDIT_LOG.value is not None:
        verify_audit_log(Path(_AUDIT_LOG.value), head=_AUDIT_HEAD.value, open_source=open_source)
        return
    verifier = LogVerifier(
        complete=_COMPLETE.value,
        split_of=_split_of,
        dataset=_IMAGES().dataset,
        open_source=open_source,
    )
    failures = [fault for path in paths if (fault := verifier.verify(Path(path))) is not None]
    if failures:
        raise UserError("; ".join(failures))


def _check_flags() -> None:
    _SOURCE.check(wanted=_REPLAY.value)
    images = _IMAGES().given
    if images and _AUDIT_LOG.value is not None:
        raise UserError(f"--{images[0]} is for logs, an --audit_log keeps its images")
    if images and not (_REPLAY.value or "dataset" in images):
        raise UserError(f"--{images[0]} goes with --dataset or --replay")
    if _AUDIT_HEAD.value is not None:
        if _AUDIT_LOG.value is None:
            raise UserError("--audit_head goes with --audit_log")
        if not re.fullmatch("[0-9a-f]{64}", _AUDIT_HEAD.value):
            raise UserError(f"--audit_head={_AUDIT_HEAD.value} is not a digest of 64 hex digits")


def _open_source(threads: int) -> "VoteSource":
    _SOURCE.load_tensorflow()
    return _SOURCE.open(intra_op_threads=threads)


def _split_of(log: Log, settings: LogSettings) -> "Split":
    """The split that a log is of."""
    _SOURCE.load_tensorflow()
    from tfmacer.data.datasets import split_of_log

    images = _IMAGES()
    return split_of_log(images.of_log(log, run=_SOURCE.run), images, settings, log.path)


main = commandline.command(
    _main, FLAGS, "python -m tfmacer.verify", __doc__, arguments="LOG.tsv ..."
)


if __name__ == "__main__":
    sys.exit(main())
