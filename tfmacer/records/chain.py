"""JSON lines linked by digests, so that none can be changed or removed unnoticed.

Each line holds its number, the digest of the line before it, and last the SHA-256 of its own text
up to there. The newest digest covers the whole chain: lines written anew, even from the first on,
end with another one.

A file is rotated by renaming it after the number of its last entry; the chain continues in the
next file.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfmacer.records.sealing import json_object

_LINE = re.compile(r'(\{.*), "digest": "([0-9a-f]{64})"\}', re.DOTALL)
_DIGITS = 12
_ROTATED = re.compile(rf"\.[0-9]{{{_DIGITS}}}")


@dataclasses.dataclass(frozen=True)
class Link:
    """An entry's number, from 1, and its digest of 64 hex digits; zeros before the first."""

    number: int
    digest: str


BEGINNING = Link(0, "0" * 64)


@dataclasses.dataclass(frozen=True)
class Place:
    """A line's own link in a chain, and the link that it claims to follow."""

    before: Link
    link: Link


def to_line(fields: Mapping[str, Any], last: Link) -> tuple[str, Link]:
    """The line of these fields, without its newline, that follows `last`; and its own link."""
    number = last.number + 1
    text = json.dumps({**fields, "entry": number, "previous": last.digest}, allow_nan=False)
    digest = _digest(text[:-1])
    return f'{text[:-1]}, "digest": "{digest}"}}', Link(number, digest)


def from_line(line: str) -> tuple[dict[str, Any], Place | None]:
    """Reads a line that `to_line` wrote, or any JSON object.

    Returns:
      Its fields, and its place; None where it is no link of a chain.

    Raises:
      ValueError: it is neither, or its digest is not that of its text.
    """
    fields = json_object(line)
    if not fields.keys() & {"entry", "previous", "digest"}:
        return fields, None
    sealed = _LINE.fullmatch(line)
    if sealed is None or sealed[2] != _digest(sealed[1]):
        raise ValueError("altered after it was written: its digest does not match")
    number, previous = fields.pop("entry", None), fields.pop("previous", None)
    if type(number) is not int or number < 1:
        raise ValueError("its number, entry, must be an integer of 1 or more")
    if not isinstance(previous, str) or not re.fullmatch("[0-9a-f]{64}", previous):
        raise ValueError("previous must be 64 hex digits")
    return fields, Place(Link(number - 1, previous), Link(number, fields.pop("digest")))


class Chain:
    """Checks line by line that each follows the one before it.

    Attributes:
      plain: lines before the first link.
      first: what the first link follows; None as long as there is none.
      last: the last link; None likewise.
      known: the link that has the head asked for; None as long as none has.
    """

    def __init__(self, head: str | None = None) -> None:
        """An empty chain; `head` is the newest digest that is known, if any is."""
        self.plain = 0
        self.first: Link | None = None
        self.last: Link | None = None
        self.known: Link | None = None
        self._head = head

    def follow(self, place: Place | None) -> str | None:
        """Adds the next line; returns what is wrong with its position, None where nothing is."""
        if place is None:
            if self.last is not None:
                return "it has no digest, but the entry before it has one"
            self.plain += 1
            return None
        if self.first is None or self.last is None:
            # Lines of older versions, which have no digest, precede the first link.
            self.first = self.last = BEGINNING if self.plain else place.before
        if place.before != self.last:
            return (
                f"it is entry {place.link.number} and follows digest {place.before.digest}, but "
                f"the entry before it is {self.last.number}, digest {self.last.digest}: entries "
                "were taken out, added or changed"
            )
        self.last = place.link
        for link in (place.before, place.link):
            if link.digest == self._head:
                self.known = link
        return None

    def __str__(self) -> str:
        """Where the chain begins and ends."""
        plain = f"{self.plain} entries have no digest, so one taken out of them does not show"
        if self.first is None or self.last is None:
            return f"no chain: {plain}"
        begin = f"the chain begins with entry {self.first.number + 1}"
        if self.first != BEGINNING:
            begin += f", after digest {self.first.digest} of one that is not here,"
        end = f"{begin} and ends with entry {self.last.number}, digest {self.last.digest}"
        return f"{end}; before it {plain}" if self.plain else end


def rotated_name(path: Path, last: Link) -> Path:
    """What a file with this last link is renamed to; names sort as their entries do."""
    return path.with_name(f"{path.name}.{last.number:0{_DIGITS}d}")


def rotated(path: Path) -> list[Path]:
    """The files that `path` was rotated to and that are still there, the oldest first."""
    return sorted(
        each
        for each in path.parent.iterdir()
        if each.name.startswith(path.name) and _ROTATED.fullmatch(each.name[len(path.name) :])
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
