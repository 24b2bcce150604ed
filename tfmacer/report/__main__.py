"""What certification logs say: tables, plots and one HTML page.

  python -m tfmacer.report LOG.tsv ... --out_dir=DIR

Takes logs of this project and of others in the published format, and directories of them. Into DIR
go `report.md`, `report.tex`, `results.csv`, `differences.csv`, the plots as PNG and SVG, and
`report.html`, which holds everything and needs nothing else. With `--published` a further table
puts the papers' own figures beside the runs they belong to.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import rich.console
from absl import flags

from tfmacer import commandline
from tfmacer.errors import UserError
from tfmacer.records.logs import is_log, read_log
from tfmacer.report import formats, published, tables
from tfmacer.report.comparison import (
    Difference,
    name_runs,
    paired_differences,
    seed_groups,
    warnings,
)
from tfmacer.report.page import page
from tfmacer.report.plots import draw_all
from tfmacer.report.summary import Run
from tfmacer.report.tables import Table

FLAGS = flags.FlagValues()
_OUT_DIR = flags.DEFINE_string(
    "out_dir", None, "Where the report goes; made where it is missing.", flag_values=FLAGS
)
_RADII = flags.DEFINE_list(
    "radii", [], "Radii of the tables' columns, e.g. 0,0.5,1; default: round ones.",
    flag_values=FLAGS,
)  # fmt: skip
_PUBLISHED = flags.DEFINE_bool(
    "published", False, "Put what papers report beside each run.", flag_values=FLAGS
)


def _main(arguments: Sequence[str]) -> None:
    if not _OUT_DIR.value:
        raise UserError("--out_dir is missing: name the directory for the report")
    radii = [_radius(text) for text in _RADII.value]
    runs = name_runs([read_log(path) for path in find_logs([Path(text) for text in arguments])])
    if not any(len(run.radii) for run in runs):
        raise UserError("nothing to report: no log holds an image with a true label")
    write_report(runs, Path(_OUT_DIR.value), radii, beside_published=_PUBLISHED.value)


def _radius(text: str) -> float:
    try:
        radius = float(text)
    except ValueError:
        radius = -1.0
    if not 0 <= radius < float("inf"):
        raise UserError(f"--radii: {text!r} is not a radius, a number of 0 or more")
    return radius


def find_logs(paths: Sequence[Path]) -> list[Path]:
    """The logs among files and, at any depth, in directories, each once.

    Raises:
      UserError: none was named, a path is missing, or a directory holds none.
    """
    if not paths:
        raise UserError("name the logs to report on: LOG.tsv ..., or directories of them")
    found: dict[Path, Path] = {}
    for path in paths:
        inside = sorted(file for file in path.rglob("*") if file.is_file() and is_log(file))
        if path.is_dir() and not inside:
            raise UserError(f"{path}: no certification log in this directory")
        for file in inside if path.is_dir() else [path]:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def write_report(
    runs: Sequence[Run],
    out_dir: Path,
    radii: Sequence[float] = (),
    *,
    beside_published: bool = False,
) -> None:
    """Writes every file of the report and prints its main table.

    Args:
      runs: what is reported.
      out_dir: where; made where it is missing.
      radii: of the tables' columns; empty for round ones up to the largest.
      beside_published: whether a table puts what papers report beside the runs.
    """
    radii = sorted(radii) or tables.radii_of(runs)
    pairs = paired_differences(runs, radii)
    shown = [tables.results(runs, radii)]
    shown += [published.table(runs, radii)] if beside_published else []
    shown += [tables.differences(pairs, radii)] if pairs else []
    shown += [tables.groups(groups, radii)] if (groups := seed_groups(runs)) else []
    bounds = tables.dataset_bounds(runs, radii)
    shown += [bounds] if bounds.rows else []
    cautions = warnings(runs)
    plots = draw_all(runs)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for plot in plots:
            for kind in ("png", "svg"):
                (out_dir / f"{plot.name}.{kind}").write_bytes(plot.image(kind))
        texts = {
            "report.md": formats.document(shown, [p.name for p in plots], cautions),
            "report.tex": "\n".join(formats.latex(table) for table in shown),
            "results.csv": tables.results_csv(runs, radii),
            "differences.csv": tables.differences_csv(pairs, radii),
            "report.html": page(runs, shown, plots, cautions),
        }
        for name, text in texts.items():
            (out_dir / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out_dir}: cannot be written: {error.strerror}") from error
    _print(shown[0], pairs, cautions)
    print(f"report: {out_dir / 'report.html'}, and the tables and plots beside it")


def _print(main_table: Table, pairs: Sequence[Difference], cautions: Sequence[str]) -> None:
    console = rich.console.Console(highlight=False, markup=False)
    console.print(formats.terminal(main_table))
    for pair in pairs:
        if pair.acr is not None:
            console.print(
                f"ACR of {pair.first.name} minus {pair.second.name}, {pair.images:,} images: "
                f"{pair.acr.value:+.3f} ({pair.acr.low:+.3f} to {pair.acr.high:+.3f})"
            )
    for caution in cautions:
        console.print(f"warning: {caution}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return commandline.run_with_arguments(
        _main,
        FLAGS,
        argv,
        name="python -m tfmacer.report",
        doc=__doc__ or "",
        arguments="LOG.tsv ...",
    )


if __name__ == "__main__":
    sys.exit(main())
