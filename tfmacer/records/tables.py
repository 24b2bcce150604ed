"""Sealed tables: a file of rows, and a file of the settings that they share.

`FILE.tsv` begins with the names of its columns and holds one row per image, in any order;
`FILE.tsv.json` holds what the rows share. Certification logs and tables of attacks on them are such
tables.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from tfmacer.common.errors import UserError
from tfmacer.records import sealing
from tfmacer.records.cell_text import ABSENT
from tfmacer.records.runs import read_text

# How many further wrong lines an error names.
_NAMED = 5


class Row(Protocol):
    """What a table holds of one image; a dataclass."""

    @property
    def idx(self) -> int:
        """Its position in the split as stored."""
        ...

    @property
    def digest(self) -> str | None:
        """Of the row and of the settings that determine it."""
        ...


RowT = TypeVar("RowT", bound=Row)
SettingsT = TypeVar("SettingsT", bound="Settings[Any]")


class Settings(abc.ABC, Generic[RowT]):
    """What the rows of a table share, and how they are written; to be a frozen dataclass.

    Attributes:
      WHOSE: kind of table, for messages.
      NEWEST: format version that is written.
      format_version: of these settings and their rows.
    """

    WHOSE: ClassVar[str]
    NEWEST: ClassVar[int]
    # Fields that format version 1 lacks, each with the version that added it.
    SINCE: ClassVar[Mapping[str, int]] = MappingProxyType({})
    # Fields that say which images, and where they were computed, not how: they are left out of the
    # digest of a row.
    NOT_IDENTITY: ClassVar[tuple[str, ...]]
    format_version: int

    @property
    @abc.abstractmethod
    def columns(self) -> Sequence[str]:
        """Names of the columns, the digest last."""

    @property
    @abc.abstractmethod
    def indices(self) -> Sequence[int]:
        """The idx of every image that the table is to hold, ascending."""

    @abc.abstractmethod
    def cells(self, row: RowT) -> Mapping[str, str]:
        """Text by column, at least of all but the digest."""

    @abc.abstractmethod
    def row(self, cells: Mapping[str, str]) -> RowT:
        """The row of text by column; raises ValueError where a cell cannot be read."""

    def fields(self) -> dict[str, Any]:
        """The fields that the format version has, as JSON has them."""
        since = self.SINCE
        fields = sealing.plain(self)
        return {k: v for k, v in fields.items() if since.get(k, 1) <= self.format_version}

    @functools.cached_property
    def identity(self) -> str:
        """Canonical text of the settings that determine a row."""
        # When rows of version 1 were written, there was no other.
        left_out = (*self.NOT_IDENTITY, *(("format_version",) if self.format_version == 1 else ()))
        return sealing.canonical({k: v for k, v in self.fields().items() if k not in left_out})

    def sealed(self, row: RowT) -> RowT:
        """The row with its digest, which covers the identity and all cells but the time."""
        cells = self.cells(row)
        text = [cells[name] for name in self.columns if name not in ("time", "digest")]
        digest = sealing.digest("\n".join([self.identity, *text]))
        return dataclasses.replace(row, digest=digest)  # type: ignore[type-var]

    def to_line(self, row: RowT) -> str:
        """The row as a line, without the newline, its digest as it is."""
        cells = self.cells(row)
        return "\t".join([*(cells[name] for name in self.columns[:-1]), row.digest or ABSENT])

    def from_line(self, line: str) -> RowT:
        """Reads a line, but for its digest; raises ValueError for what `to_line` does not write."""
        found = line.split("\t")
        if len(found) != len(self.columns):
            raise ValueError(f"{len(found)} columns, not {len(self.columns)}")
        try:
            row = self.row(dict(zip(self.columns, found, strict=True)))
            written = self.to_line(row).split("\t")
        except OverflowError as error:
            raise ValueError(f"a number is out of range: {error}") from error
        # Each value has one spelling, so that no line can be altered without altering a value.
        for name, mine, right in zip(self.columns, found, written, strict=True):
            if mine != right:
                raise ValueError(f"{name} is {mine!r}, which would be written as {right!r}")
        return row

    def to_json(self) -> str:
        """The text of `FILE.tsv.json`."""
        return sealing.seal(self.fields())

    @classmethod
    def from_json(cls, text: str, *, origin: str) -> Self:
        """Reads what `to_json` wrote, in this format version or an earlier one.

        Raises:
          UserError: not JSON, altered by hand, of an unknown format version, or with a field
            missing, unknown, of another type or out of range.
        """
        try:
            fields = sealing.unseal(text)
            sealing.check_version(fields, cls.NEWEST)
            version = fields["format_version"]
            later = [name for name, since in cls.SINCE.items() if since > version]
            return sealing.build(cls, fields, optional=later)
        except ValueError as error:
            raise UserError(f"{origin}: not usable as {cls.WHOSE} settings: {error}") from error

    def differences(self, other: Self, *, ignoring: Sequence[str] = ()) -> list[str]:
        """Names and both values of the fields that differ."""
        return sealing.differences(self.fields(), other.fields(), ignoring=ignoring)


def settings_path(path: Path) -> Path:
    """The file of the settings of a table."""
    return path.with_name(path.name + ".json")


def read_settings(path: Path, kind: type[SettingsT]) -> SettingsT:
    """Reads the settings of the table `path`; raises UserError where they cannot be used."""
    settings = settings_path(path)
    return kind.from_json(read_text(settings), origin=str(settings))


def read_rows(path: Path, settings: Settings[RowT]) -> tuple[RowT, ...]:
    """Reads a table, sorted by idx.

    A last line without a newline is a row that was never finished, and is left out.

    Raises:
      UserError: the file cannot be read, has other columns, or a line or idx that cannot be; names
        the line.
    """
    header, *lines = read_text(path).rpartition("\n")[0].split("\n")
    if header != "\t".join(settings.columns):
        raise UserError(
            f"{path}:1: the columns of such a table with its settings are "
            f"{' '.join(settings.columns)}"
        )

    return read_lines(path, enumerate(lines, 2), settings.from_line)


def read_lines(
    path: Path, lines: Iterable[tuple[int, str]], read: Callable[[str], RowT]
) -> tuple[RowT, ...]:
    """Reads lines, each with its number, which errors name; rows sorted by idx.

    Raises:
      UserError: `read` raises ValueError for a line, or two lines are of one idx.
    """
    by_idx: dict[int, tuple[int, RowT]] = {}
    wrong: list[tuple[int, str]] = []
    for number, line in lines:
        try:
            row = read(line)
        except ValueError as error:
            wrong.append((number, f"corrupt line: {error}"))
            continue
        before, _ = by_idx.setdefault(row.idx, (number, row))
        if before != number:
            wrong.append((number, f"idx {row.idx} is there twice, first in line {before}"))
    if wrong:
        (number, what), *others = wrong
        named = ", ".join(str(other) for other, _ in others[:_NAMED])
        more = f", and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        as_well = f"; wrong as well: line {named}{more}" if others else ""
        raise UserError(f"{path}:{number}: {what}{as_well}")
    return tuple(by_idx[idx][1] for idx in sorted(by_idx))


def altered(settings: Settings[RowT], rows: Iterable[RowT]) -> RowT | None:
    """The first row whose digest does not fit it, or whose image was not selected."""
    wanted = _members(settings.indices)
    for row in rows:
        if row.digest != settings.sealed(row).digest or row.idx not in wanted:
            return row
    return None


def check_rows(path: Path, settings: Settings[RowT], rows: Iterable[RowT]) -> None:
    """Raises UserError where a row was altered; names the first, see `altered`."""
    if (row := altered(settings, rows)) is not None:
        raise UserError(
            f"{path}: the row of idx {row.idx} is corrupt or was altered: "
            "it does not match its digest, or the images that were selected"
        )


def _members(indices: Sequence[int]) -> Container[int]:
    return indices if isinstance(indices, range) else frozenset(indices)


def gaps(indices: Sequence[int], rows: Sequence[Row]) -> str | None:
    """Says how many of the images have no row, and which is the first; None where all have one."""
    found = {row.idx for row in rows}
    wanted = _members(indices)
    # Counted, not listed: a file may claim any number of images.
    count = len(indices) - sum(idx in wanted for idx in found)
    if not count:
        return None
    first = next(idx for idx in indices if idx not in found)
    return f"{count} of {len(indices)} images have no row, the first is idx {first}"
