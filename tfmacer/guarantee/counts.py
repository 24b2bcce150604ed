"""What was drawn for one image."""

import dataclasses

from tfmacer.common.errors import UserError
from tfmacer.guarantee.rule import check_count


@dataclasses.dataclass(frozen=True, kw_only=True)
class Counts:
    """What was drawn for one image, by class.

    Attributes:
      select_counts: `[K]`, votes among the n0 selection draws.
      counts: `[K]`, votes among the n estimation draws.
      n0: selection draws.
      n: estimation draws so far.
      select_sums: `[K]`, sums of the softmax over the selection draws; None unless soft.
      sums: `[K]`, the same over the estimation draws, accumulated in float64.
      square_sums: `[K]`, sums of the squared softmax over the estimation draws.
    """

    select_counts: tuple[int, ...]
    counts: tuple[int, ...]
    n0: int
    n: int
    select_sums: tuple[float, ...] | None = None
    sums: tuple[float, ...] | None = None
    square_sums: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        classes = len(self.counts)
        if classes < 2:
            raise UserError(f"counts must be of 2 classes or more, got {classes}")
        _check_votes("select_counts", self.select_counts, classes, "n0", self.n0)
        _check_votes("counts", self.counts, classes, "n", self.n)
        for name in ("select_sums", "sums", "square_sums"):
            values = getattr(self, name)
            if values is not None:
                total = self.n0 if name == "select_sums" else self.n
                _check_sums(name, values, classes, total)


def _check_votes(
    name: str, votes: tuple[int, ...], classes: int, total_name: str, total: int
) -> None:
    check_count(total_name, total, least=1)
    if len(votes) != classes or min(votes) < 0 or sum(votes) != total:
        raise UserError(
            f"{name} must be {classes} counts of 0 or more that add up to "
            f"{total_name} = {total}, got {votes}"
        )


def _check_sums(name: str, sums: tuple[float, ...], classes: int, total: int) -> None:
    # Softmax scores lie in [0, 1]; in float32 they may exceed 1 by their last place.
    most = total * (1 + 1e-6)
    if len(sums) != classes or not all(0 <= value <= most for value in sums):
        raise UserError(f"{name} must be {classes} numbers between 0 and {total}, got {sums}")
