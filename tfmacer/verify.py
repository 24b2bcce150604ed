"""Checks certification logs: every record is computed again from its votes, without TensorFlow.

  python -m tfmacer.verify LOG.tsv ...

Recomputed are the class (from the selection votes), the confidence bounds, the radius, whether
it is correct, and the digest of the row and of the settings; a record that differs in either
direction is named. With --redraw and a source (--run_dir, --saved_model or --server) the votes
themselves are drawn again and compared.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from absl import flags

from tfmacer import commandline
from tfmacer.errors import UserError
from tfmacer.guarantee.certificate import Counts
from tfmacer.records.logs import read_log
from tfmacer.records.rows import Record
from tfmacer.records.settings import LogSettings
from tfmacer.records.verification import Redraw, Redrawn, verify_log
from tfmacer.votes.source import ESTIMATE, SELECT, VoteSource, row_seed

_LARGEST_REQUEST = 1_000_000

Images = Callable[[int], tuple[npt.NDArray[np.float32], int]]


def redraw_from(source: VoteSource, images: Images) -> Redraw:
    """Draws an image's votes again from any source.

    Args:
      source: of the model that the log names.
      images: gives for an idx the image, float32 `[H, W, C]` in [0, 1], and its label.

    Returns:
      A function for `verify_log`. It raises UserError where the source is of another model.
    """

    def redraw(settings: LogSettings, record: Record) -> Redrawn:
        _check_source(source, settings)
        image, label = images(record.idx)
        drawn = record.all_counts
        return Redrawn(
            label=label,
            clean=int(np.argmax(source.logits(image[np.newaxis])[0])),
            counts=_votes(source, image, settings, record.idx, drawn.n0, drawn.n),
        )

    return redraw


def _votes(
    source: VoteSource,
    image: npt.NDArray[np.float32],
    settings: LogSettings,
    idx: int,
    n0: int,
    n: int,
) -> Counts:
    """Votes of one image, its stream cut into as many requests as keep the source busy."""
    blocks = -(-n // settings.block_size)
    size = settings.block_size * -(-blocks // source.parallelism)
    size = min(size, _LARGEST_REQUEST // settings.block_size * settings.block_size)
    parts = [(SELECT, 0, n0)]
    parts += [(ESTIMATE, first, min(size, n - first)) for first in range(0, n, size)]
    votes = source.sample(
        np.repeat(image[np.newaxis], len(parts), axis=0),
        np.stack([row_seed(settings.seed, stage, idx) for stage, _, _ in parts]),
        np.array([first for _, first, _ in parts], np.int32),
        np.array([draws for _, _, draws in parts], np.int32),
        beta=settings.beta,
    )
    soft = {
        "select_sums": tuple(votes.sums[0].tolist()),
        "sums": tuple(votes.sums[1:].sum(axis=0).tolist()),
        "square_sums": tuple(votes.square_sums[1:].sum(axis=0).tolist()),
    }
    return Counts(
        select_counts=tuple(votes.counts[0].tolist()),
        counts=tuple(votes.counts[1:].sum(axis=0).tolist()),
        n0=n0,
        n=n,
        **(soft if settings.rule.soft else {}),
    )


def _check_source(source: VoteSource, settings: LogSettings) -> None:
    """Refuses a source of another smoothed classifier than the log's."""
    for field in (
        "model_digest",
        "sigma",
        "noise_family",
        "noise_params",
        "block_size",
        "num_classes",
        "input_shape",
        "precision",
    ):
        theirs, ours = getattr(source.smoothing, field), getattr(settings, field)
        if theirs != ours:
            raise UserError(f"the source is another model: its {field} is {theirs}, not {ours}")


FLAGS = flags.FlagValues()
_REDRAW = flags.DEFINE_bool(
    "redraw", False, "Draw the votes again from a source and compare them.", flag_values=FLAGS
)
_COMPLETE = flags.DEFINE_bool(
    "complete", False, "Fail also where images of the selection have no row.", flag_values=FLAGS
)
_RUN_DIR = flags.DEFINE_string(
    "run_dir", None, "Source for --redraw: a run directory.", flag_values=FLAGS
)
_SAVED_MODEL = flags.DEFINE_string(
    "saved_model", None, "Source for --redraw: an export.", flag_values=FLAGS
)
_SERVER = flags.DEFINE_string(
    "server", None, "Source for --redraw: HOST:PORT of a TF Serving endpoint.", flag_values=FLAGS
)
_MODEL_NAME = flags.DEFINE_string(
    "model_name", None, "Name of the model on --server.", flag_values=FLAGS
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where TFDS datasets are kept; default: TFDS's own.", flag_values=FLAGS
)


def _main(paths: Sequence[str]) -> None:
    if not paths:
        raise UserError("name the logs to verify: LOG.tsv ...")
    failures = [failure for path in paths if (failure := _verify(Path(path))) is not None]
    if failures:
        raise UserError("; ".join(failures))


def _verify(path: Path) -> str | None:
    """Verifies one log and says so; what is wrong with it otherwise."""
    try:
        log = read_log(path)
        difference = verify_log(log)
    except UserError as error:
        return str(error)
    if difference is not None:
        return f"{path}: {difference}"
    missing = log.missing
    if missing:
        text = (
            f"{path}: unfinished: {len(missing)} images have no row, the first is idx {missing[0]}"
        )
        if _COMPLETE.value:
            return text
        print(text)
    print(f"{path}: {len(log.records)} records verified")
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return commandline.run_with_arguments(
        _main,
        FLAGS,
        argv,
        name="python -m tfmacer.verify",
        doc=__doc__ or "",
        arguments="LOG.tsv ...",
    )


if __name__ == "__main__":
    sys.exit(main())
