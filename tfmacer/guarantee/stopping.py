"""When to stop drawing: the rule a user names, and the schedule of looks it is asked at."""

import dataclasses
import math
from typing import ClassVar, Self

from tfmacer.common.errors import UserError

# Each look comes after a quarter more blocks than the one before, 24 looks on the way to 100,000
# draws in blocks of 256. Simulated `decide` runs drew the fewest samples at 1.1 to 1.25; at 2 a
# quarter more.
GROWTH = 1.25


@dataclasses.dataclass(frozen=True)
class StopRule:
    """When to stop drawing for an image, before its n draws are spent.

    Attributes:
      kind: `fixed`, never; `decide`, once it is known whether a radius can be certified;
        `precision`, once more draws could enlarge the radius only by a given part; `budget`, when
        its time is up.
      value: of `decide`, the radius in units of pixels in [0, 1]; of `precision`, the part, in
        (0, 1); of `budget`, seconds; None for `fixed`.
    """

    kind: str = "fixed"
    value: float | None = None

    _FORMS: ClassVar[str] = "fixed, decide:RADIUS, precision:REL or budget:SECONDS"

    def __post_init__(self) -> None:
        if self.kind == "fixed":
            if self.value is not None:
                raise UserError(f"stop=fixed takes no value, got {self.value}")
            return
        if self.kind not in ("decide", "precision", "budget"):
            raise UserError(f"stop must be {self._FORMS}, got {self.kind!r}")
        if self.value is None or not (math.isfinite(self.value) and self.value > 0):
            raise UserError(f"stop={self.kind} needs a positive number, got {self.value}")
        if self.kind == "precision" and self.value >= 1:
            raise UserError(f"stop=precision needs a part below 1, got {self.value}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `fixed`, `decide:0.5`, `precision:0.05` or `budget:2.5`; `str()` is its inverse.

        Raises:
          UserError: it is none of these, or its number is out of range.
        """
        kind, colon, number = text.partition(":")
        try:
            return cls(kind, float(number) if colon else None)
        except ValueError as error:
            detail = f": {error}" if isinstance(error, UserError) else ""
            raise UserError(f"stop must be {cls._FORMS}, got {text!r}{detail}") from error

    def __str__(self) -> str:
        return self.kind if self.value is None else f"{self.kind}:{self.value!r}"

    @property
    def radius(self) -> float | None:
        """The radius to decide about; None unless `decide`."""
        return self.value if self.kind == "decide" else None

    @property
    def precision(self) -> float | None:
        """The part of the radius that may be missing; None unless `precision`."""
        return self.value if self.kind == "precision" else None

    @property
    def seconds(self) -> float | None:
        """The time for one image; None unless `budget`."""
        return self.value if self.kind == "budget" else None


FIXED = StopRule()


def looks(n: int, block_size: int, growth: float = GROWTH) -> tuple[int, ...]:
    """The numbers of draws at which a sequential rule may stop: fixed before the first draw.

    Args:
      n: draws of a run to the end, 1 or more; the last look.
      block_size: draws per block of the noise stream; all other looks are multiples of it, so that
        no block is drawn twice.
      growth: blocks at a look over those at the look before; above 1.

    Returns:
      Cumulative draws, ascending. Schedules for other n begin with the same looks.
    """
    schedule, blocks = [], 1
    while blocks * block_size < n:
        schedule.append(blocks * block_size)
        blocks = max(blocks + 1, math.ceil(blocks * growth))
    return (*schedule, n)
