"""Parts of logs, as the workers of a distributed run write them: a few images each, whole or not.

A part holds the rows of the same images for every bound, sealed as they stand in the logs, and
where and when they were made. It is one JSON text with a digest, so that a torn one is known.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tfmacer.records import sealing
from tfmacer.records.rows import Record
from tfmacer.records.settings import LogSettings
from tfmacer.records.tables import altered


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Origin:
    """Where and when rows were made.

    Attributes:
      environment: what the worker computed on, see `LogSettings`.
      worker: its machine and process.
      started: when it began, in seconds since 1970.
      finished: when it was through.
    """

    environment: Mapping[str, Any]
    worker: str
    started: float
    finished: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartialResult(_Origin):
    """What one worker found for a few images.

    Attributes:
      records: rows of each log, in the order of the images.
    """

    records: tuple[tuple[Record, ...], ...]

    def to_text(self, settings: Sequence[LogSettings]) -> str:
        """The text of the part; `settings` are those of each log."""
        lines = [
            [one.to_line(one.sealed(record)) for record in found]
            for found, one in zip(self.records, settings, strict=True)
        ]
        return sealing.seal(sealing.plain(self) | {"records": lines}, indent=None)

    @classmethod
    def from_text(
        cls, text: str, indices: Sequence[int], settings: Sequence[LogSettings]
    ) -> "PartialResult":
        """Reads what `to_text` wrote.

        Raises:
          ValueError: it is torn or altered, or holds other images, or rows of other settings.
        """
        fields = sealing.unseal(text)
        lines = fields.pop("records", None)
        if not isinstance(lines, list) or not all(isinstance(found, list) for found in lines):
            raise ValueError("it holds no rows")
        found = tuple(
            tuple(one.from_line(str(line)) for line in some)
            for some, one in zip(lines, settings, strict=True)
        )
        part = cls(records=found, **vars(sealing.build(_Origin, fields)))
        for records, one in zip(part.records, settings, strict=True):
            if [record.idx for record in records] != list(indices):
                raise ValueError("it holds other images")
            if altered(one, records) is not None:
                raise ValueError("its rows were made with other settings")
        return part
