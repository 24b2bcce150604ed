"""Images of a dataset by position, and the check that records are of them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tfmacer.common.errors import UserError
from tfmacer.guarantee.distribution import NoiseDistribution
from tfmacer.records.cell_text import printable
from tfmacer.records.logs import Record
from tfmacer.records.sealing import pixels_digest

if TYPE_CHECKING:
    from tfmacer.data.splits import Split

# Images of a split that are read at a time.
_LOADED = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One image of a dataset.

    Attributes:
      index: position in the split as stored; with the run's seed it names the noise.
      image: float32 `[H, W, C]` in [0, 1], as it is certified: see `NoiseDistribution.pixels`.
      label: the true class, -1 where there is none.
      name: what the dataset calls it; None where it has no name.
    """

    index: int
    image: npt.NDArray[np.float32]
    label: int = -1
    name: str | None = None

    @functools.cached_property
    def pixels_sha256(self) -> str:
        """See `tfmacer.records.sealing.pixels_digest`."""
        return pixels_digest(self.image)


# The examples at some positions, ascending, in their order.
Examples = Callable[[Sequence[int]], Iterable[Example]]


def examples_of(split: "Split", distribution: NoiseDistribution) -> Examples:
    """The images of a split, read a few ahead, as the distribution certifies them."""

    def examples(positions: Sequence[int]) -> Iterator[Example]:
        for start in range(0, len(positions), _LOADED):
            chunk = positions[start : start + _LOADED]
            for index, image, label in zip(chunk, *split.take(chunk), strict=True):
                yield Example(
                    index, distribution.pixels(image), int(label), split.image_name(index)
                )

    return examples


def check_images(path: Path | str, records: Sequence[Record], examples: Iterable[Example]) -> None:
    """Checks that records are of the images at hand: their names, pixels and labels.

    Raises:
      UserError: a record is of another image, name or label; names the first.
    """
    by_idx = {record.idx: record for record in records}
    for example in examples:
        record = by_idx[example.index]
        name = printable(example.name) if example.name else None
        for what, found, right in (
            ("pixels of SHA-256", record.pixels_sha256, example.pixels_sha256),
            ("label", record.label, example.label),
            ("name", record.name if name else None, name),
        ):
            if found not in (None, right):
                called = f" ({name})" if name else ""
                raise UserError(
                    f"{path}: idx {example.index}{called} was certified with {what} {found}, the "
                    f"image at hand has {right}: the log is of other images; choose another file"
                )
