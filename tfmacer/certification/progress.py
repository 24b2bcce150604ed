"""What a long certification shows while it runs."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tqdm import tqdm

from tfmacer.common import commandline
from tfmacer.common.decimals import down, up
from tfmacer.guarantee.bounds import clopper_pearson_lower, clopper_pearson_upper
from tfmacer.records.rows import Record

if TYPE_CHECKING:
    from tfmacer.votes.driver import Progress

# Without a terminal there is no bar to redraw; a line is printed this often, in seconds.
_LINE_EVERY = 15.0


class Meter:
    """Images done, certified accuracy so far with its 95 % interval, draws a second, time left."""

    def __init__(self, total: int, done: Sequence[Record]) -> None:
        """Starts the display.

        Args:
          total: how many images there are in all.
          done: the records that exist already.
        """
        self._bar = tqdm(
            total=total,
            initial=len(done),
            unit="image",
            smoothing=0.05,
            dynamic_ncols=True,
            disable=None,
        )
        self._count, self._total = len(done), total
        self._new = 0
        self._labelled = sum(record.label >= 0 for record in done)
        self._right = sum(record.correct for record in done)
        self._draws = 0
        self._last: dict[int, int] = {}
        self._started = self._printed = time.monotonic()

    def drawn(self, progress: "Progress") -> None:
        """Takes note of draws made for an image."""
        self._draws += progress.n - self._last.pop(progress.index, 0)
        if not progress.done:
            self._last[progress.index] = progress.n

    def finished(self, record: Record, *, draws: int = 0) -> None:
        """Takes note of a finished image, and of draws for it that `drawn` was not told of."""
        self._draws += draws
        self._labelled += record.label >= 0
        self._right += record.correct
        self._count += 1
        self._new += 1
        self._bar.set_postfix_str(self._summary(), refresh=False)
        self._bar.update()
        now = time.monotonic()
        due = now - self._printed >= _LINE_EVERY or self._count == self._total
        if self._bar.disable and due:
            self._printed = now
            left = (now - self._started) / self._new * (self._total - self._count)
            left_text = tqdm.format_interval(left)
            commandline.note(
                f"{self._count} of {self._total} images, {self._summary()}, {left_text} left"
            )

    def _summary(self) -> str:
        speed = self._draws / max(time.monotonic() - self._started, 1e-9)
        text = f"{speed:,.0f} draws/s"
        if self._labelled:
            low = clopper_pearson_lower(self._right, self._labelled, 0.025)
            high = clopper_pearson_upper(self._right, self._labelled, 0.025)
            share = self._right / self._labelled
            ends = f"{down(low, 1, times=100)}%, {up(high, 1, times=100)}%"
            text = f"certified {share:.1%} [{ends}], {text}"
        return text

    def __enter__(self) -> "Meter":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
