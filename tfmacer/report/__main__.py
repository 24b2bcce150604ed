"""What certification logs say: tables, plots and one HTML page.

  python -m tfmacer.report LOG.tsv ... --out_dir=DIR

Takes logs of this project and of others in the published format, and directories of them. Into DIR
go `report.md`, `report.tex`, `results.csv`, `differences.csv`, `seeds.csv`, the plots as PNG and
SVG, and `report.html`, which holds everything and needs nothing else. With `--published` a further
table puts the papers' own figures beside the runs they belong to; with `--linf` l2 runs are shown
in the l-infinity norm as well. What `tfmacer.falsify` found is shown where it stands beside its
log, or is named.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import rich.console
from absl import flags

from tfmacer.common import commandline
from tfmacer.common.decimals import down, up
from tfmacer.common.errors import UserError
from tfmacer.records.falsifications import (
    Falsification,
    falsification_path,
    log_digest,
    read_falsification,
)
from tfmacer.records.logs import is_log, read_log
from tfmacer.report import csv_tables, formats, published, tables
from tfmacer.report.cautions import warnings
from tfmacer.report.cells import Table
from tfmacer.report.comparison import (
    Difference,
    name_runs,
    paired_differences,
    seed_groups,
)
from tfmacer.report.page import page
from tfmacer.report.plots import draw_all
from tfmacer.report.summary import NORMS, Run

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
_LINF = flags.DEFINE_bool(
    "linf", False, "Show l2 runs in the l-infinity norm as well, by radii over sqrt(d).",
    flag_values=FLAGS,
)  # fmt: skip
_FALSIFICATION = flags.DEFINE_list(
    "falsification", [], "Tables of tfmacer.falsify; default: LOG.falsified.tsv beside each log.",
    flag_values=FLAGS,
)  # fmt: skip


def _main(arguments: Sequence[str]) -> None:
    if not _OUT_DIR.value:
        raise UserError("--out_dir is missing: name the directory for the report")
    radii = [_radius(text) for text in _RADII.value]
    runs = name_runs([read_log(path) for path in find_logs([Path(text) for text in arguments])])
    runs = with_attacks(runs, [Path(text) for text in _FALSIFICATION.value])
    if not any(len(run.radii) for run in runs):
        raise UserError("nothing to report: no log holds an image with a true label")
    if _LINF.value:
        runs += [converted for run in runs if (converted := run.in_linf()) is not None]
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
    found: dict[str, Path] = {}
    for path in paths:
        inside = sorted(file for file in path.rglob("*") if file.is_file() and is_log(file))
        if path.is_dir() and not inside:
            raise UserError(f"{path}: no certification log in this directory")
        for file in inside if path.is_dir() else [path]:
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def with_attacks(runs: Sequence[Run], named: Sequence[Path]) -> list[Run]:
    """The runs with what attacks on them found: in the tables named, or else beside their logs.

    Raises:
      UserError: a table cannot be read, or is of none of the logs, or not of the one beside it.
    """
    tables_of: dict[str, list[Falsification]] = {}
    for path in named:
        found = read_falsification(path)
        tables_of.setdefault(found.settings.log_digest, []).append(found)
    attacked = []
    for run in runs:
        mine = tables_of.pop(log_digest(run.log), [])
        beside = falsification_path(run.log.path)
        if not mine and run.settings is not None and beside.exists():
            mine = [read_falsification(beside)]
            if mine[0].settings.log_digest != log_digest(run.log):
                raise UserError(
                    f"{beside}: is of other certificates than those of {run.log.path.name} beside "
                    "it: remove it, or attack the log again"
                )
        for found in mine:
            found.check_of(run.log)
        attacked.append(dataclasses.replace(run, attacks=tuple(mine)))
    for left in tables_of.values():
        raise UserError(f"--falsification={left[0].path}: is of none of the logs of this report")
    return attacked


def write_report(
    runs: Sequence[Run],
    out_dir: Path,
    radii: Sequence[float] = (),
    *,
    beside_published: bool = False,
) -> None:
    """Writes every file of the report, and prints what a terminal has room for."""
    pairs = []
    shown: list[Table] = []
    columns: set[float] = set()
    for norm in NORMS:
        members = [run for run in runs if run.norm == norm]
        if members:
            mine = sorted(radii) or tables.radii_of(members)
            more = paired_differences(members, mine)
            parts = _tables(members, mine, more, beside_published=beside_published)
            shown += [dataclasses.replace(t, title=_titled(t.title, norm, runs)) for t in parts]
            pairs += more
            columns |= set(mine)
    if any(run.attacks for run in runs):
        shown.insert(1, tables.attacks(runs))
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
            "results.csv": csv_tables.results_csv(runs, sorted(columns)),
            "differences.csv": csv_tables.differences_csv(pairs, sorted(columns)),
            "seeds.csv": csv_tables.groups_csv(seed_groups(runs), sorted(columns)),
            "report.html": page(runs, shown, plots, cautions),
        }
        for name, text in texts.items():
            (out_dir / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out_dir}: cannot be written: {error.strerror}") from error
    # The paired differences follow as lines; published rows are too many for a terminal.
    elsewhere = ("Paired", "Beside")
    _print([t for t in shown if not t.title.startswith(elsewhere)], pairs, cautions)
    commandline.say(f"report: {out_dir / 'report.html'}, and the tables and plots beside it")


def _tables(
    runs: Sequence[Run],
    radii: Sequence[float],
    pairs: Sequence[Difference],
    *,
    beside_published: bool,
) -> list[Table]:
    """The tables of runs in one norm."""
    originals = [run for run in runs if not run.converted]
    found = [tables.results(runs, radii)]
    found += [published.table(originals, radii)] if beside_published and originals else []
    found += [tables.differences(pairs, radii)] if pairs else []
    found += [tables.groups(groups, radii)] if (groups := seed_groups(runs)) else []
    bounds = tables.dataset_bounds(runs, radii)
    return [*found, bounds] if bounds.rows else found


def _titled(title: str, norm: str, runs: Sequence[Run]) -> str:
    """The title with the norm, where it is not l2 or not the only one."""
    several = len({run.norm for run in runs}) > 1
    return f"{title}, {NORMS[norm]}" if several or norm != "l2" else title


def _print(printed: Sequence[Table], pairs: Sequence[Difference], cautions: Sequence[str]) -> None:
    console = rich.console.Console(highlight=False, markup=False)
    for table in printed:
        console.print(*formats.terminal(table, console.width), sep="\n")
    for pair in pairs:
        if pair.acr is not None:
            console.print(
                f"ACR of {pair.first.name} minus {pair.second.name}, {pair.images:,} images: "
                f"{pair.acr.value:+.3f} ({down(pair.acr.low, 3, signed=True)} to "
                f"{up(pair.acr.high, 3, signed=True)})"
            )
    for caution in cautions:
        console.print(f"warning: {caution}")


main = commandline.command(
    _main, FLAGS, "python -m tfmacer.report", __doc__, arguments="LOG.tsv ..."
)


if __name__ == "__main__":
    sys.exit(main())
