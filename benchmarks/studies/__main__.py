"""Tables and figures of what `benchmarks.reproduce` has computed, beside the papers'.

  python -m benchmarks.studies --table=macer --out_dir=DIR

`macer` is that paper's Figure 3 and Tables 10 to 13, `consistency` the supplementary Tables 4 to 6
of that paper, `soft` MACER's Figure 4, `cost` time and memory of training. Into DIR go TABLE.md
and, but for `cost`, the figure as TABLE.png and TABLE.svg. Rows without a result, since they were
not computed or their training diverged, are named and left out.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags

from benchmarks.studies import comparison, cost
from benchmarks.studies.figure import figure
from benchmarks.studies.points import STUDIES, Study
from tfmacer.common import commandline
from tfmacer.common.errors import UserError
from tfmacer.records.logs import read_log
from tfmacer.report import formats
from tfmacer.report.cells import Table
from tfmacer.report.drawing import Plot
from tfmacer.report.summary import Run

FLAGS = flags.FlagValues()
_TABLE = flags.DEFINE_enum(
    "table", None, [*STUDIES, "cost"], "Table to show.", required=True, flag_values=FLAGS
)
_RESULTS_DIR = flags.DEFINE_string(
    "results_dir", "results", "Where results are kept.", flag_values=FLAGS
)
_OUT_DIR = flags.DEFINE_string(
    "out_dir", None, "Where tables and figures go; made where it is missing.", required=True,
    flag_values=FLAGS,
)  # fmt: skip


def _main() -> None:
    name = _TABLE.value
    folder = Path(_RESULTS_DIR.value) / name
    plot = None
    if name == "cost":
        costs = cost.read(folder)
        tables = [cost.table(costs)]
        missing = [row[0].text for row in tables[0].rows if row[0].text not in costs]
        found = len(costs)
    else:
        studies = STUDIES[name]()
        runs = _runs(folder, studies)
        tables = [comparison.table(study, runs) for study in studies]
        missing = sorted({p.row for s in studies for p in s.points} - set(runs))
        plot, found = figure(name, studies, runs), len(runs)
    if not found:
        raise UserError(
            f"{folder}: no result; python -m benchmarks.reproduce --table={name} computes them"
        )
    _write(name, tables, plot, missing)


def _runs(folder: Path, studies: Sequence[Study]) -> Mapping[str, Run]:
    """The results that there are, by the names of their rows."""
    names = dict.fromkeys(point.row for study in studies for point in study.points)
    paths = {name: folder / f"{name}.tsv" for name in names}
    runs = {name: Run(name, read_log(path)) for name, path in paths.items() if path.is_file()}
    return {name: run for name, run in runs.items() if len(run.radii)}


def _write(name: str, tables: Sequence[Table], plot: Plot | None, missing: Sequence[str]) -> None:
    out_dir = Path(_OUT_DIR.value)
    parts = [f"# {name}\n", f"{comparison.READING}\n"] if plot is not None else [f"# {name}\n"]
    parts += [formats.markdown(table) for table in tables]
    if plot is not None:
        parts.append(f"![{plot.title}]({name}.png)\n\n{plot.note}\n")
    if missing:
        parts.append("Without a result: " + ", ".join(f"`{row}`" for row in missing) + ".\n")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / f"{name}.md").write_text("\n".join(parts), encoding="utf-8")
        if plot is not None:
            for kind in ("png", "svg"):
                (out_dir / f"{name}.{kind}").write_bytes(plot.image(kind))
    except OSError as error:
        raise UserError(f"{out_dir}: cannot be written: {error.strerror}") from error
    for table in tables:
        _print(table)
    for row in missing:
        print(f"without a result: {row}")
    print(f"studies: {out_dir / name}.md" + (", and its figure beside it" if plot else ""))


def _print(table: Table) -> None:
    """A line for each row: its columns by their names, empty ones left out."""
    print(table.title)
    for row in table.rows:
        named = zip(table.header[1:], row[1:], strict=True)
        shown = [f"{name} {formats.joined(cell)}" for name, cell in named if cell.text]
        print(f"  {row[0].text}: {'; '.join(shown)}")
    print(f"  {table.note}")


main = commandline.command(_main, FLAGS, "python -m benchmarks.studies", __doc__)


if __name__ == "__main__":
    sys.exit(main())
