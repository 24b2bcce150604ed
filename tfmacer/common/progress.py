"""How far a long command has come: a bar on a terminal, a line now and then elsewhere."""

import datetime
import sys
import time
from typing import Self, TextIO

import rich.console
import rich.progress
import rich.table

from tfmacer.common import commandline

# Between two lines where there is no terminal to draw a bar on, in seconds.
LINE_EVERY = 15.0


class Progress:
    """Shows on standard error how much of a known, or unknown, amount is done."""

    def __init__(
        self,
        total: int | None,
        unit: str,
        *,
        done: int = 0,
        name: str = "",
        lines: bool = True,
        file: TextIO | None = None,
    ) -> None:
        """Starts the display.

        Args:
          total: how much there is in all; None where unknown.
          unit: of what, in the plural.
          done: how much of it was done before.
          name: shown before the bar, such as the name of a file.
          lines: whether to print lines where there is no terminal.
          file: where the display goes; standard error by default.
        """
        stream = sys.stderr if file is None else file
        self._total, self._unit, self._lines = total, unit, lines
        self._first = self._done = done
        self._note = ""
        self._started = self._printed = time.monotonic()
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(bar_width=20),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn(unit),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("{task.fields[left]} left"),
            rich.progress.TextColumn(
                "{task.fields[note]}", markup=False, table_column=rich.table.Column()
            ),
            console=rich.console.Console(file=stream),
            disable=not stream.isatty(),
        )
        self._task = self._bar.add_task(name, total=total, completed=done, note="", left="?")

    def advance(self, note: str = "") -> None:
        """One more is done; see `show`."""
        self.show(self._done + 1, note)

    def show(self, done: int, note: str = "") -> None:
        """Says how much is done in all; the last note is printed at the end as well."""
        self._done, self._note = done, note
        left = self.left()
        self._bar.update(self._task, completed=done, note=note, left=left)
        if time.monotonic() - self._printed >= LINE_EVERY:
            self._print_line(f", {left} left")

    def left(self) -> str:
        """Hours, minutes and seconds until all is done, if it goes on as fast; `?` if unknown."""
        new = self._done - self._first
        if self._total is None or new <= 0:
            return "?"
        seconds = (time.monotonic() - self._started) / new * (self._total - self._done)
        return str(datetime.timedelta(seconds=round(seconds)))

    def print(self, line: str) -> None:
        """Prints a line above the bar."""
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
        if self._note and not any(error):
            self._print_line("")

    def _print_line(self, end: str) -> None:
        if self._lines and self._bar.disable:
            self._printed = time.monotonic()
            of = "" if self._total is None else f" of {self._total:,}"
            said = f", {self._note}" if self._note else ""
            commandline.note(f"{self._done:,}{of} {self._unit}{said}{end}")
