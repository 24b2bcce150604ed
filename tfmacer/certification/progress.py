"""What a long certification shows while it runs."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tfmacer.common.decimals import down, up
from tfmacer.common.progress import Progress
from tfmacer.guarantee.bounds import clopper_pearson_lower, clopper_pearson_upper
from tfmacer.records.rows import Record

if TYPE_CHECKING:
    from tfmacer.votes import driver


class CertificationProgress(Progress):
    """Images done, certified accuracy so far with its 95 % interval, draws a second, time left."""

    def __init__(self, total: int, done: Sequence[Record]) -> None:
        """Starts the display; `done` are the records that exist already."""
        super().__init__(total, "images", done=len(done))
        self._labelled = sum(record.label >= 0 for record in done)
        self._right = sum(record.correct for record in done)
        self._draws = 0
        self._last: dict[int, int] = {}

    def drawn(self, progress: "driver.Progress") -> None:
        """Counts draws made for an image."""
        self._draws += progress.n - self._last.pop(progress.index, 0)
        if not progress.done:
            self._last[progress.index] = progress.n

    def finished(self, record: Record, *, draws: int = 0) -> None:
        """Counts a finished image, and draws for it that `drawn` was not told of."""
        self._draws += draws
        self._labelled += record.label >= 0
        self._right += record.correct
        self.advance(self._summary())

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
