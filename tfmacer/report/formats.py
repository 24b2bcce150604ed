"""A table's text: Markdown, LaTeX, the terminal."""

from collections.abc import Sequence

import rich.table
import rich.text

from tfmacer.report.tables import DASH, MINUS, Cell, Table

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
        listed = "".join(f"- {warning}\n" for warning in warnings)
        parts.append(f"**Before you compare**\n\n{listed}")
    parts += [markdown(table) for table in tables]
    parts += [f"![{name}]({name}.png)\n" for name in plots]
    return "\n".join(parts)


def markdown(table: Table) -> str:
    """The table in Markdown, with its title and note."""
    lines = [table.header, ["---"] * len(table.header)]
    lines += [[joined(cell).replace("|", "\\|") for cell in row] for row in table.rows]
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


def terminal(table: Table) -> rich.table.Table:
    """The table for a terminal, turned on its side: a column for each of its rows."""
    shown = rich.table.Table(title=table.title, title_justify="left")
    shown.add_column(table.header[0])
    for row in table.rows:
        shown.add_column(rich.text.Text(row[0].text), justify="right", overflow="fold")
    for place, name in enumerate(table.header[1:], 1):
        shown.add_row(name, *(_terminal(row[place]) for row in table.rows))
    return shown


def joined(cell: Cell) -> str:
    """A cell as plain text."""
    return f"{cell.text} ({cell.interval})" if cell.interval else cell.text


def _tex(cell: Cell) -> str:
    small = f" {{\\scriptsize {cell.interval.translate(_TEX)}}}" if cell.interval else ""
    return cell.text.translate(_TEX) + small


def _terminal(cell: Cell) -> rich.text.Text:
    interval = f" ({cell.interval})" if cell.interval else ""
    return rich.text.Text.assemble(cell.text, (interval, "dim"))
