"""A table's text: Markdown, LaTeX, the terminal."""

from collections.abc import Sequence

import rich.markup
import rich.table

from tfmacer.report.tables import Cell, Table

_TEX = str.maketrans(
    {
        **{symbol: f"\\{symbol}" for symbol in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\\": r"\textbackslash{}",
        "–": "--",  # noqa: RUF001 - as above
        "−": "$-$",  # noqa: RUF001 - a minus sign
        "±": r"$\pm$",
    }
)


def document(tables: Sequence[Table], plots: Sequence[str], warnings: Sequence[str]) -> str:
    """The whole report in Markdown; the plots are PNG files beside it."""
    parts = ["# Certified robustness\n"]
    if warnings:
        parts.append("".join(f"- {warning}\n" for warning in ["**Before you compare**", *warnings]))
    parts += [markdown(table) for table in tables]
    parts += [f"![{name}]({name}.png)\n" for name in plots]
    return "\n".join(parts)


def markdown(table: Table) -> str:
    """The table in Markdown, with its title and note."""
    lines = [table.header, ["---"] * len(table.header)]
    lines += [[_joined(cell).replace("|", "\\|") for cell in row] for row in table.rows]
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
    """The table for a terminal."""
    shown = rich.table.Table(title=table.title, title_justify="left", caption_justify="left")
    for place, name in enumerate(table.header):
        shown.add_column(name, justify="right" if place else "left", no_wrap=place > 0)
    for row in table.rows:
        shown.add_row(*map(_terminal, row))
    return shown


def _joined(cell: Cell) -> str:
    return f"{cell.text} ({cell.interval})" if cell.interval else cell.text


def _tex(cell: Cell) -> str:
    small = f" {{\\scriptsize {cell.interval.translate(_TEX)}}}" if cell.interval else ""
    return cell.text.translate(_TEX) + small


def _terminal(cell: Cell) -> str:
    text = rich.markup.escape(cell.text)
    return f"{text}\n[dim]{cell.interval}[/]" if cell.interval else text
