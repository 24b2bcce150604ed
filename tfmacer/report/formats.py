"""A table's text: Markdown, LaTeX, the terminal."""

import re
from collections.abc import Iterator, Sequence

import rich.table
import rich.text

from tfmacer.common import text
from tfmacer.report.cells import DASH, MINUS, Cell, Table

# What a name may be broken after; how narrow a column gets, and what is beside its text.
_NAME_PIECE = re.compile(r"[^ _/-]*(?:[ _/-]+|$)")
_NARROWEST = 13
_BORDER = 3

_TEX = str.maketrans(
    {
        **{symbol: f"\\{symbol}" for symbol in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        DASH: "--",
        MINUS: "$-$",
        "±": r"$\pm$",
    }
)


def document(tables: Sequence[Table], plots: Sequence[str], warnings: Sequence[str]) -> str:
    """The whole report in Markdown; the plots are PNG files beside it."""
    parts = ["# Certified robustness\n"]
    if warnings:
        listed = "".join(f"- {text.markdown(warning)}\n" for warning in warnings)
        parts.append(f"**Before you compare**\n\n{listed}")
    parts += [markdown(table) for table in tables]
    parts += [f"![{name}]({name}.png)\n" for name in plots]
    return "\n".join(parts)


def markdown(table: Table) -> str:
    """The table in Markdown, with its title and note."""
    lines = [table.header, ["---"] * len(table.header)]
    lines += [[text.markdown(joined(cell)) for cell in row] for row in table.rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"## {table.title}\n\n{body}\n\n{table.note}\n"


def latex(table: Table) -> str:
    """The table in LaTeX; needs the package `booktabs`."""
    columns = "l" + "r" * (len(table.header) - 1)
    lines = [" & ".join(name.translate(_TEX) for name in table.header)]
    lines += [" & ".join(_tex(cell) for cell in row) for row in table.rows]
    head, *body = (f"{line} \\\\" for line in lines)
    return "\n".join(
        [
            f"% {table.title}. {table.note}",
            f"\\begin{{tabular}}{{{columns}}}",
            "\\toprule",
            head,
            "\\midrule",
            *body,
            "\\bottomrule",
            "\\end{tabular}",
            "",
        ]
    )


def terminal(table: Table, width: int) -> Iterator[rich.table.Table]:
    """The table for a terminal of `width` characters, turned on its side: a column for each row.

    Columns that would have to cut a number to fit are in a further table below.
    """
    room = 0
    below: list[tuple[Sequence[Cell], int]] = []
    for row in table.rows:
        words = [*_NAME_PIECE.findall(row[0].text)]
        words += [word for cell in row[1:] for word in joined(cell).split()]
        needed = max(_NARROWEST, *map(len, words))
        if below and needed + _BORDER > room:
            yield _sideways(table, below)
            below = []
        if not below:
            room = width - max(map(len, table.header)) - _BORDER - 1
        below.append((row, needed))
        room -= needed + _BORDER
    yield _sideways(table, below)


def _sideways(table: Table, rows: Sequence[tuple[Sequence[Cell], int]]) -> rich.table.Table:
    """A column for each of the rows, its name in lines of so many characters."""
    shown = rich.table.Table(title=table.title, title_justify="left")
    shown.add_column(table.header[0], no_wrap=True)
    for row, columns in rows:
        head = rich.text.Text(broken(row[0].text, columns))
        shown.add_column(head, justify="right", overflow="fold")
    for place, name in enumerate(table.header[1:], 1):
        shown.add_row(name, *(_terminal(row[place]) for row, _ in rows))
    return shown


def broken(name: str, columns: int) -> str:
    """A run's name in lines of at most so many characters, between its words where it can be."""
    lines = [""]
    words = _NAME_PIECE.findall(name)
    for piece in (w[i : i + columns] for w in words for i in range(0, len(w), columns)):
        if lines[-1] and len(lines[-1] + piece) > columns:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def joined(cell: Cell) -> str:
    """A cell as plain text."""
    return f"{cell.text} ({cell.interval})" if cell.interval else cell.text


def _tex(cell: Cell) -> str:
    small = f" {{\\scriptsize {cell.interval.translate(_TEX)}}}" if cell.interval else ""
    return cell.text.translate(_TEX) + small


def _terminal(cell: Cell) -> rich.text.Text:
    interval = f" ({cell.interval})" if cell.interval else ""
    return rich.text.Text.assemble(cell.text, (interval, "dim"))
