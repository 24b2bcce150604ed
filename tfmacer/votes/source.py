"""The interface between what draws noise and what is concluded from it.

A `VoteSource` answers "how often does each class win among these draws". A network in this
process, a loaded SavedModel and a TensorFlow Serving endpoint are sources; selection, bounds,
radii, stopping, logs and servers are written once, above them.
"""

import hashlib
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from tfmacer.guarantee.counts import Counts
from tfmacer.guarantee.rule import Rule
from tfmacer.records.runs import Smoothing

Images = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Seeds = Ints

SELECT = "select"
ESTIMATE = "estimate"


class Votes(NamedTuple):
    """The votes of a batch of draws; a row is an image, or a part of an image's stream.

    Attributes:
      counts: int64 `[B, K]`, how often each class had the largest logit.
      sums: float64 `[B, K]`, sum over the draws of softmax(beta x logits).
      square_sums: float64 `[B, K]`, sum of the squares of the same.
    """

    counts: npt.NDArray[np.int64]
    sums: npt.NDArray[np.float64]
    square_sums: npt.NDArray[np.float64]

    @classmethod
    def none(cls, classes: int) -> "Votes":
        """The votes of one row before its first draw; its arrays are `[K]`."""
        return cls(np.zeros(classes, np.int64), np.zeros(classes), np.zeros(classes))

    def row(self, index: int) -> "Votes":
        """The votes of one row."""
        return Votes(self.counts[index], self.sums[index], self.square_sums[index])

    def plus(self, more: "Votes") -> "Votes":
        """The votes of both sets of draws together."""
        return Votes(
            self.counts + more.counts,
            self.sums + more.sums,
            self.square_sums + more.square_sums,
        )


class VoteSource(Protocol):
    """Counts votes of a smoothed classifier over a reproducible stream of noisy draws.

    The draws of a row depend on its seed and their index in the stream alone, so counts add over
    any split of the stream and do not depend on the other rows of a call.
    """

    @property
    def smoothing(self) -> Smoothing:
        """What is smoothed, and how."""
        ...

    @property
    def parallelism(self) -> int:
        """How many rows are worth asking for at once to keep the source busy."""
        ...

    def sample(
        self, images: Images, seeds: Seeds, offsets: Ints, num_samples: Ints, *, beta: float = 1.0
    ) -> Votes:
        """Counts the draws `offsets[i] <= j < offsets[i] + num_samples[i]` of each row i.

        Args:
          images: float32 `[B, H, W, C]` in [0, 1].
          seeds: int32 `[B, 2]`, see `row_seed`.
          offsets: int32 `[B]`, index of the first draw, 0 to 2e9.
          num_samples: int32 `[B]`, 0 to 1e6; multiples of the block are cheapest.
          beta: inverse temperature of the softmax in `sums` and `square_sums`.
        """
        ...

    def logits(self, images: Images) -> npt.NDArray[np.float32]:
        """Logits `[B, K]` of the base network, without noise."""
        ...


def counts_of(select: Votes, estimate: Votes, rule: Rule, n: int) -> Counts:
    """What a rule sees of the votes `[K]` of its n0 selection draws and of n estimation draws."""
    sums = (
        {
            "select_sums": tuple(select.sums.tolist()),
            "sums": tuple(estimate.sums.tolist()),
            "square_sums": tuple(estimate.square_sums.tolist()),
        }
        if rule.soft
        else {}
    )
    select_counts, counts = tuple(select.counts.tolist()), tuple(estimate.counts.tolist())
    return Counts(select_counts=select_counts, counts=counts, n0=rule.n0, n=n, **sums)


def row_seed(seed: int, stage: str, index: int) -> Seeds:
    """Seed of one image's stream: int32 `[2]`.

    Args:
      seed: the run's seed.
      stage: `SELECT` or `ESTIMATE`; the two streams are independent.
      index: the image's position in the split as stored.
    """
    text = f"tfmacer/1|{seed}|{stage}|{index}"
    return np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], "<i4").astype(np.int32)
