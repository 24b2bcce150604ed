"""One row of a certification log: what was found for one image, and its text."""

import dataclasses
import functools
import math
import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from tfmacer.guarantee.certificate import Certificate, round_down
from tfmacer.guarantee.counts import Counts
from tfmacer.records.locked_table import ABSENT

# The columns of the field's published logs come first, so that their readers read ours.
PUBLISHED_COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
HARD_COLUMNS = (
    *PUBLISHED_COLUMNS,
    "clean",
    "n0",
    "n",
    "select_counts",
    "counts",
    "p_lower",
    "p_upper_second",
    "bound",
    "stopped_early",
)
SOFT_COLUMNS = ("select_sums", "sums", "square_sums")
# Since format version 2.
IMAGE_COLUMNS = ("pixels_sha256", "name")
_Number = TypeVar("_Number", int, float)
_TIME = re.compile(r"(?:(\d{1,9}) days?, )?(\d{1,9}):(\d\d):(\d\d(?:\.\d+)?)", re.ASCII)
# As numbers are written by anyone; Python itself also takes digits of other scripts, 1_000 and inf.
_INTEGER = re.compile(r"-?\d{1,18}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
# Far beyond any, and such that means and squares of radii are finite.
_LARGEST_RADIUS = 1e100
# `correct` as the published logs of this field have it.
_TRUTHS = {"0": False, "1": True, "False": False, "True": True}
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What was found for one image. Fields that a published log lacks are None there.

    Attributes:
      idx: 0-based position of the image in the split as stored.
      label: the true class, -1 where there is none.
      predict: the certified class, -1 for abstain.
      radius: certified radius in pixels in [0, 1], rounded toward zero at 9 decimals.
      correct: whether `predict` is the label; false without a label.
      seconds: wall-clock time spent on the image.
      clean: class of the base network without noise.
      n0: draws that chose the class.
      n: draws that estimated its probability.
      select_counts: votes per class `[K]` among the n0.
      counts: votes per class `[K]` among the n.
      p_lower: lower confidence bound on the probability of the chosen class.
      p_upper_second: upper confidence bound on the runner-up's; None unless bilateral.
      bound: name of the bound.
      stopped_early: whether fewer than the planned draws decided.
      select_sums: sums of class probabilities `[K]` over the n0; None for bounds on votes.
      sums: the same over the n.
      square_sums: sums of their squares over the n.
      pixels_sha256: of the image, see `tfmacer.records.sealing.pixels_digest`; None in logs of
        format version 1.
      name: the image's file in its folder, see `printable`; None where it has none.
      digest: first 16 hex digits of the SHA-256 of the row and of what determines it.
    """

    idx: int
    label: int
    predict: int
    radius: float
    correct: bool
    seconds: float
    clean: int | None = None
    n0: int | None = None
    n: int | None = None
    select_counts: tuple[int, ...] | None = None
    counts: tuple[int, ...] | None = None
    p_lower: float | None = None
    p_upper_second: float | None = None
    bound: str | None = None
    stopped_early: bool | None = None
    select_sums: tuple[float, ...] | None = None
    sums: tuple[float, ...] | None = None
    square_sums: tuple[float, ...] | None = None
    pixels_sha256: str | None = None
    name: str | None = None
    digest: str | None = None

    @classmethod
    def of(
        cls,
        certificate: Certificate,
        *,
        idx: int,
        label: int,
        clean: int,
        seconds: float,
        pixels_sha256: str,
        name: str | None = None,
    ) -> "Record":
        """The record of a certificate.

        Args:
          certificate: what was certified.
          idx: position of the image in the split as stored.
          label: the true class, -1 where there is none.
          clean: class of the base network without noise.
          seconds: time spent on the image.
          pixels_sha256: of the image, see `tfmacer.records.sealing.pixels_digest`.
          name: what the dataset calls the image; None where it has no name for it.
        """
        second = certificate.p_upper_second
        return cls(
            idx=int(idx),
            label=int(label),
            predict=int(certificate.predict),
            radius=round_down(certificate.radius),
            correct=label >= 0 and certificate.predict == label,
            seconds=seconds,
            clean=int(clean),
            n0=int(certificate.n0),
            n=int(certificate.n),
            select_counts=tuple(map(int, certificate.select_counts)),
            counts=tuple(map(int, certificate.counts)),
            p_lower=float(certificate.p_lower),
            p_upper_second=None if second is None else float(second),
            bound=certificate.bound,
            stopped_early=bool(certificate.stopped_early),
            select_sums=_floats(certificate.select_sums),
            sums=_floats(certificate.sums),
            square_sums=_floats(certificate.square_sums),
            pixels_sha256=pixels_sha256,
            name=printable(name) if name else None,
        )

    @property
    def all_counts(self) -> Counts:
        """The votes that the record was made from.

        Raises:
          ValueError: a published log keeps none.
        """
        if self.n0 is None or self.n is None or self.select_counts is None or self.counts is None:
            raise ValueError(f"the record of idx {self.idx} keeps no votes")
        return Counts(
            select_counts=self.select_counts,
            counts=self.counts,
            n0=self.n0,
            n=self.n,
            select_sums=self.select_sums,
            sums=self.sums,
            square_sums=self.square_sums,
        )


def columns(*, soft: bool, images: bool) -> tuple[str, ...]:
    """Names of the columns of our logs, the digest last.

    Args:
      soft: whether the bound is on class probabilities, whose sums are then kept.
      images: whether rows name their image, since format version 2.
    """
    return (
        *HARD_COLUMNS,
        *(SOFT_COLUMNS if soft else ()),
        *(IMAGE_COLUMNS if images else ()),
        "digest",
    )


def printable(name: str) -> str:
    """A name for one cell: what is not printable, and `%`, as `%` and hex digits, as in a URL."""
    if name == ABSENT:
        return "%2D"
    return "".join(
        each
        if each.isprintable() and each != "%"
        else urllib.parse.quote(each, safe="", errors="surrogateescape")
        for each in name
    )


def from_published(cells: Mapping[str, str]) -> Record:
    """Reads a row of another project's log.

    Args:
      cells: text by column; `time` may be missing.

    Raises:
      ValueError: a cell cannot be read, or the cells cannot all be true of one certificate.
    """
    idx, label, predict = (_integer(name, cells[name]) for name in PUBLISHED_COLUMNS[:3])
    radius = _named_number("radius", cells["radius"])
    correct = _TRUTHS.get(cells["correct"])
    if idx < 0:
        raise ValueError(f"idx is {idx}, positions begin at 0")
    if label < -1 or predict < -1:
        raise ValueError(
            f"label is {label} and predict {predict}: a class is 0 or more, no label and abstain "
            "are -1"
        )
    if radius < 0:
        raise ValueError(f"radius is {cells['radius']}, a certified radius is 0 or more")
    if radius > _LARGEST_RADIUS:
        raise ValueError(f"radius is {cells['radius']}, which is no distance of images")
    if predict < 0 < radius:
        raise ValueError(f"radius is {cells['radius']}, but predict is -1: abstain has no radius")
    if correct is None:
        raise ValueError(f"correct is {cells['correct']!r}, not one of {', '.join(_TRUTHS)}")
    if correct != (label == predict >= 0):
        raise ValueError(
            f"correct is {cells['correct']}, but label is {label} and predict is {predict}"
        )
    return Record(
        idx=idx,
        label=label,
        predict=predict,
        radius=radius,
        correct=correct,
        seconds=seconds_of(cells.get("time", "0")),
    )


def to_cells(record: Record) -> dict[str, str]:
    """Text by column, of all that a log may have, the digest left out."""
    return {
        "idx": str(record.idx),
        "label": str(record.label),
        "predict": str(record.predict),
        # Nearest, not down: the record's radius already is a multiple of 1e-9.
        "radius": f"{record.radius:.9f}",
        "correct": str(int(record.correct)),
        "time": clock(record.seconds),
        "clean": _text(record.clean),
        "n0": _text(record.n0),
        "n": _text(record.n),
        "select_counts": _sparse(record.select_counts),
        "counts": _sparse(record.counts),
        "p_lower": _text(record.p_lower),
        "p_upper_second": _text(record.p_upper_second),
        "bound": record.bound or ABSENT,
        "stopped_early": str(int(bool(record.stopped_early))),
        "select_sums": _sparse(record.select_sums),
        "sums": _sparse(record.sums),
        "square_sums": _sparse(record.square_sums),
        "pixels_sha256": record.pixels_sha256 or ABSENT,
        "name": record.name or ABSENT,
    }


def from_cells(cells: Mapping[str, str], num_classes: int) -> Record:
    """The record of a row of ours; raises ValueError where a cell cannot be read."""

    def votes(name: str) -> tuple[int, ...]:
        return _dense(cells[name], num_classes, functools.partial(_integer, name))

    def sums(name: str) -> tuple[float, ...] | None:
        return _dense(cells[name], num_classes, _number) if name in cells else None

    return dataclasses.replace(
        from_published(cells),
        clean=None if cells["clean"] == ABSENT else _integer("clean", cells["clean"]),
        n0=_integer("n0", cells["n0"]),
        n=_integer("n", cells["n"]),
        select_counts=votes("select_counts"),
        counts=votes("counts"),
        p_lower=_number(cells["p_lower"]),
        p_upper_second=(
            None if cells["p_upper_second"] == ABSENT else _number(cells["p_upper_second"])
        ),
        bound=cells["bound"],
        stopped_early=bool(int(cells["stopped_early"])),
        select_sums=sums("select_sums"),
        sums=sums("sums"),
        square_sums=sums("square_sums"),
        pixels_sha256=_sha256(cells["pixels_sha256"]) if "pixels_sha256" in cells else None,
        name=_name(cells.get("name", ABSENT)),
        digest=cells["digest"],
    )


def _sha256(text: str) -> str:
    if not _SHA256.fullmatch(text):
        raise ValueError(f"pixels_sha256 is {text[:80]!r}, no SHA-256 in hex digits")
    return text


def _name(text: str) -> str | None:
    if not text or not text.isprintable():
        raise ValueError(f"name is {text!r}, which is not printable")
    return None if text == ABSENT else text


def _floats(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(map(float, values))


def _text(value: float | None) -> str:
    return ABSENT if value is None else repr(value)


def _integer(name: str, text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError(f"{name} is {text!r}, not a whole number")
    return int(text)


def _named_number(name: str, text: str) -> float:
    try:
        return _number(text)
    except ValueError as error:
        raise ValueError(f"{name} is {error}") from error


def _number(text: str) -> float:
    if not _DECIMAL.fullmatch(text) or not math.isfinite(value := float(text)):
        raise ValueError(f"{text!r}, not a finite number")
    return value


def _sparse(values: Sequence[float] | None) -> str:
    """`class:value` joined by commas, ascending, without zeros; `-` where nothing is left."""
    if values is None:
        return ABSENT
    return ",".join(f"{k}:{value!r}" for k, value in enumerate(values) if value) or ABSENT


def _dense(text: str, num_classes: int, read: Callable[[str], _Number]) -> tuple[_Number, ...]:
    values = [read("0")] * num_classes
    for part in text.split(",") if text != ABSENT else ():
        k, _, value = part.partition(":")
        if not 0 <= int(k) < num_classes:
            raise ValueError(f"class {k} is not one of {num_classes}")
        values[int(k)] = read(value)
    return tuple(values)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss.ffffff."""
    microseconds = round(seconds * 1e6)
    minutes, microseconds = divmod(microseconds, 60_000_000)
    hours, minutes = divmod(minutes, 60)
    whole, microseconds = divmod(microseconds, 1_000_000)
    return f"{hours}:{minutes:02d}:{whole:02d}.{microseconds:06d}"


def seconds_of(text: str) -> float:
    """Reads a clock as Python writes its `timedelta`, or plain seconds."""
    parts = _TIME.fullmatch(text)
    if parts is None:
        seconds = _named_number("time", text)
        if seconds < 0:
            raise ValueError(f"time is {text!r}, less than 0")
        return seconds
    days, hours, minutes, rest = parts.groups()
    return 86400 * int(days or 0) + 3600 * int(hours) + 60 * int(minutes) + float(rest)
