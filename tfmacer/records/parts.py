"""Parts of logs, as the workers of a distributed run write them: a few images each, whole or not.

A part holds the rows of the same images for every bound, sealed as they stand in the logs, and
where and when they were made. It is one JSON text with a digest, so that a torn one is known.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tfmacer.records import rows
from tfmacer.records.rows import Record
from tfmacer.records.settings import LogSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """What one worker found for a few images.

    Attributes:
      records: rows of each log, in the order of the images.
      environment: what the worker computed on, see `LogSettings`.
      worker: its machine and process.
      started: when it began, in seconds since 1970.
      finished: when it was through.
    """

    records: tuple[tuple[Record, ...], ...]
    environment: Mapping[str, Any]
    worker: str
    started: float
    finished: float

    def to_text(self, settings: Sequence[LogSettings]) -> str:
        """The text of the part; `settings` are those of each log."""
        fields = dataclasses.asdict(self) | {
            "records": [
                [_line(record, one) for record in found]
                for found, one in zip(self.records, settings, strict=True)
            ]
        }
        return json.dumps(fields | {"digest": _digest(fields)}) + "\n"

    @classmethod
    def from_text(
        cls, text: str, indices: Sequence[int], settings: Sequence[LogSettings]
    ) -> "Part":
        """Reads what `to_text` wrote.

        Args:
          text: of the part.
          indices: the images that it must hold.
          settings: of each log.

        Raises:
          ValueError: it is torn or altered, or holds other images, or rows of other settings.
        """
        try:
            fields = json.loads(text)
            digest = fields.pop("digest")
            lines = fields["records"]
        except (AttributeError, KeyError) as error:
            raise ValueError(f"not a part of a log: {error!r}") from error
        if digest != _digest(fields):
            raise ValueError("its digest does not match")
        fields["records"] = tuple(
            tuple(rows.from_line(line, one.rule.soft, one.num_classes) for line in found)
            for found, one in zip(lines, settings, strict=True)
        )
        part = cls(**fields)
        for found, one in zip(part.records, settings, strict=True):
            if [record.idx for record in found] != list(indices):
                raise ValueError("it holds other images")
            if any(r.digest != rows.sealed(r, one.identity, one.rule.soft).digest for r in found):
                raise ValueError("its rows were made with other settings")
        return part


def _line(record: Record, settings: LogSettings) -> str:
    soft = settings.rule.soft
    return rows.to_line(rows.sealed(record, settings.identity, soft), soft)


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
