"""What is checked of a model before its votes are trusted."""

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tfmacer.common.errors import UserError
from tfmacer.records.runs import Smoothing
from tfmacer.votes.source import VoteSource


def check_shape(smoothing: Smoothing, shape: Sequence[int], *, what: str = "images") -> None:
    """Raises UserError where images of `shape` (H, W, C) do not fit the model."""
    if tuple(shape) != smoothing.input_shape:
        raise UserError(
            f"{what} are {'x'.join(map(str, shape))} (H x W x C), "
            f"the model takes {'x'.join(map(str, smoothing.input_shape))}"
        )


def preflight(source: VoteSource, images: Sequence[npt.NDArray[np.float32]]) -> float:
    """Checks that the classifier is a function of one noisy image alone; measures its speed.

    Args:
      source: where votes come from.
      images: one or more images, float32 `[H, W, C]` in [0, 1]; two suffice.

    Returns:
      Draws per second, one image at a time, from a short run.

    Raises:
      UserError: equal draws give different votes or scores (dropout or other randomness is
        active), an image's logits depend on the other images of its batch (batch statistics are
        active), or are not finite.
    """
    # With the negative of the first image there are two images, even if only one was given.
    batch = np.stack([*images, 1 - images[0]])
    together = source.logits(batch)
    if not np.isfinite(together).all():
        raise UserError("the model's logits of an image without noise are not finite")
    scale = max(1.0, float(np.abs(together).max()))

    def differ(others: npt.NDArray[np.float32]) -> bool:
        return not float(np.abs(others - together).max()) <= 1e-3 * scale

    random = UserError(
        "the model answers differently on equal noisy images: dropout or other randomness is "
        "active; certify the model in inference mode"
    )
    if differ(source.logits(batch)):
        raise random
    if differ(np.concatenate([source.logits(image[np.newaxis]) for image in batch])):
        raise UserError(
            "the model's logits of an image depend on the rest of its batch: batch "
            "statistics are active; certify the model in inference mode"
        )
    block = source.smoothing.block_size
    rows = source.parallelism
    request = (
        np.repeat(batch[:1], rows, axis=0),
        np.tile(np.array([[1, 2]], np.int32), (rows, 1)),
        np.zeros(rows, np.int32),
        np.full(rows, block, np.int32),
    )
    first = source.sample(*request)
    started = time.monotonic()
    second = source.sample(*request)
    elapsed = time.monotonic() - started
    for votes in (first, second):
        equal = (votes.counts == first.counts[0]).all()
        if not equal or np.abs(votes.sums - first.sums[0]).max() > 1e-3 * block:
            raise random
    return rows * block / max(elapsed, 1e-9)
