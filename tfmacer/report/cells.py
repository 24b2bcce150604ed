"""Cells and tables of a report before they have a format."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from tfmacer.common.decimals import Rounding, down, nearest, up
from tfmacer.report.summary import Estimate

ABSENT = DASH = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One value of a table.

    Attributes:
      text: as it is read.
      interval: its interval, smaller and beside it; empty where there is none.
      order: what a sorted column goes by; None goes last.
    """

    text: str
    interval: str = ""
    order: float | str | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table before it has a format."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def words_cell(text: str) -> Cell:
    """A text, which sorts as such."""
    return Cell(text, order=text)


def integer_cell(value: float | None) -> Cell:
    """A count, with commas between thousands."""
    return Cell(ABSENT) if value is None else Cell(f"{value:,.0f}", order=value)


def number_cell(
    value: float | None, decimals: int, rounded: Rounding = nearest, *, times: int = 1
) -> Cell:
    """A number, so many times, rounded to so many decimals."""
    if value is None:
        return Cell(ABSENT)
    return Cell(rounded(value, decimals, times=times), order=value)


def _ends_shown(
    estimate: Estimate, decimals: int, *, times: int = 1, signed: bool = False
) -> Iterator[str]:
    """An estimate to the nearest, and the ends of its interval outward."""
    values = (estimate.value, estimate.low, estimate.high)
    for rounded, value in zip((nearest, down, up), values, strict=True):
        yield rounded(value, decimals, times=times, signed=signed)


def acr_cell(estimate: Estimate | None) -> Cell:
    """An average certified radius and its interval."""
    return Cell(ABSENT) if estimate is None else _estimate(estimate, 3)


def percent_cell(estimate: Estimate | None) -> Cell:
    """A share and its interval, in percent."""
    return Cell(ABSENT) if estimate is None else _estimate(estimate, 1, times=100)


def _estimate(estimate: Estimate, decimals: int, *, times: int = 1) -> Cell:
    value, low, high = _ends_shown(estimate, decimals, times=times)
    return Cell(value, f"{low}{DASH}{high}", estimate.value)


def signed_cell(estimate: Estimate | None, decimals: int, times: int) -> Cell:
    """A difference and its interval, all of them so many times."""
    if estimate is None:
        return Cell(ABSENT)
    value, low, high = (
        text.replace("-", MINUS)
        for text in _ends_shown(estimate, decimals, times=times, signed=True)
    )
    return Cell(value, f"{low} to {high}", estimate.value)


def spread_cell(values: Sequence[float], decimals: int, scale: int) -> Cell:
    """Mean and standard deviation of values, each times `scale`; nothing of fewer than two."""
    if len(values) < 2:
        return Cell(ABSENT)
    mean, deviation = scale * np.mean(values), scale * np.std(values, ddof=1)
    return Cell(f"{mean:.{decimals}f} ± {deviation:.{decimals}f}", order=float(mean))
