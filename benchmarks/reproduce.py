"""Computes the rows of `benchmarks.reproduce_rows`, each once, over as many sittings as it takes.

  python -m benchmarks.reproduce --list
  python -m benchmarks.reproduce --table=A --data_dir=DIR --max_minutes=60

A row is trained, certified and copied to `results/TABLE/NAME.tsv` with its `.tsv.json` and the
training's `.metrics.csv` (a row of `cost` to `NAME.json`). A row that is there, whole and verified,
is skipped. When the minutes are over, or at SIGTERM, what is unfinished is saved and copied to
`results/unfinished/NAME`, from where a later sitting, on another machine too, goes on; it is
removed when no row needs it any more. To be started in the root of the repository.
"""

import csv
import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from absl import flags

from benchmarks.reproduce_rows import TABLES, Row
from tfmacer.common import commandline
from tfmacer.common.errors import UserError
from tfmacer.records import sealing
from tfmacer.records.logs import read_log, settings_path
from tfmacer.records.runs import RunDirectory, read_text, write_atomically
from tfmacer.records.verification import verify_log

FLAGS = flags.FlagValues()
_TABLE = flags.DEFINE_enum(
    "table", None, list(TABLES), "Table; all of them with --list.", flag_values=FLAGS
)
_ROW = flags.DEFINE_string("row", None, "Its row of this name; default: all.", flag_values=FLAGS)
_MINUTES = flags.DEFINE_float(
    "max_minutes", None, "Stop and save after these; default: never.", 0.0, flag_values=FLAGS
)
_LIST = flags.DEFINE_bool("list", False, "Print rows and how far they are.", flag_values=FLAGS)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where TensorFlow Datasets keeps its data.", flag_values=FLAGS
)
_RUNS_DIR = flags.DEFINE_string(
    "runs_dir", "runs/reproduce", "Where networks are trained.", flag_values=FLAGS
)
_RESULTS_DIR = flags.DEFINE_string(
    "results_dir", "results", "Where results are kept.", flag_values=FLAGS
)

_POLL_SECONDS = 0.2
# Of the result of a row of `cost`.
_COST = {"objective", "sigma", "seconds_per_epoch", "peak_memory_mib"}


class SittingOverError(Exception):
    """The minutes are over, or SIGTERM came; what ran was saved."""


class Sitting:
    """One run of the driver: starts commands, and stops them when its time is over.

    Attributes:
      stop: set at SIGTERM; ends the sitting as the end of its time does.
    """

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes
        self.stop = False

    @property
    def over(self) -> bool:
        """Whether no command is to be started any more."""
        return self.stop or (self._end is not None and time.monotonic() >= self._end)

    def run(self, module: str, arguments: Sequence[str]) -> int:
        """Runs a command of tfmacer; returns its peak memory in KiB.

        Raises:
          SittingOverError: the time is over; the command was told to save and end.
          UserError: the command failed.
        """
        if self.over:
            raise SittingOverError
        command = [sys.executable, "-m", module, *arguments]
        print(f"$ python -m {module} {' '.join(arguments)}", flush=True)
        process, told = subprocess.Popen(command), False
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            if self.over and not told:
                os.kill(process.pid, signal.SIGTERM)  # Popen.terminate could take the status.
                told = True
            time.sleep(_POLL_SECONDS)
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        # SIGTERM to the whole process group reaches a command before this process tells it.
        if told or (self.stop and process.returncode):
            raise SittingOverError
        if process.returncode:
            raise UserError(f"python -m {module} ended with status {process.returncode}")
        return ended[2].ru_maxrss


@dataclasses.dataclass(frozen=True)
class Job:
    """A row and where its files are.

    Attributes:
      table: that it is of.
      row: the row.
      runs: where networks are trained.
      results: where results are kept.
      data_dir: where TensorFlow Datasets keeps its data; None for its own default.
    """

    table: str
    row: Row
    runs: Path
    results: Path
    data_dir: str | None = None

    @property
    def data(self) -> list[str]:
        """The flag that says where the data is, for any command."""
        return [f"--data_dir={self.data_dir}"] if self.data_dir else []

    @property
    def directory(self) -> RunDirectory:
        """Of the network's training; rows of the same network share it."""
        name = self.row.training.name
        return RunDirectory(self.runs / (name if self.row.certify else f"cost-{name}"))

    @property
    def log(self) -> Path:
        """Where the row is certified."""
        return self.directory.certify / f"{self.row.name}.tsv"

    @property
    def result(self) -> Path:
        """Where its result is kept."""
        return (
            self.results / self.table / (self.row.name + (".tsv" if self.row.certify else ".json"))
        )

    @property
    def unfinished(self) -> Path:
        """Where what is unfinished is kept."""
        return self.results / "unfinished" / self.row.training.name

    @property
    def state(self) -> str:
        """How far the row is."""
        if self.result.is_file():
            wrong = _fault(self.result, self.result.stat().st_mtime_ns)
            return "done" if wrong is None else f"damaged: {wrong}"
        if self.row.certify:
            for directory in (self.directory, RunDirectory(self.unfinished)):
                if directory.smoothing.is_file():
                    certified = _lines(directory.certify / self.log.name)
                    return f"trained, {certified} images certified"
                if directory.metrics.is_file():
                    return f"{_lines(directory.metrics)} of {self.row.training.epochs} epochs"
        return "not begun"

    @property
    def needed_again(self) -> bool:
        """Whether the network is that of another row as well, which is not done."""
        others = jobs(None, None, self.runs, self.results)
        return any(
            other.row.training == self.row.training and other.state != "done" for other in others
        )


@functools.cache
def _fault(result: Path, changed: int) -> str | None:
    """What is wrong with a result of this time of change; None where it is whole and verified."""
    try:
        if result.suffix == ".json":
            return None if {*sealing.json_object(read_text(result))} == _COST else "other fields"
        log = read_log(result)
        wrong = log.unfinished or verify_log(log)
    except ValueError as error:
        return str(error)
    return None if wrong is None else str(wrong)


def _lines(table: Path) -> int:
    """Lines below the header of a table; 0 where there is none."""
    return max(len(table.read_text().splitlines()) - 1, 0) if table.is_file() else 0


def compute(job: Job, sitting: Sitting) -> None:
    """Computes a row, from wherever it was left.

    Raises:
      SittingOverError: the time is over; what there is has been kept.
      UserError: a command failed.
    """
    if not job.row.certify:
        measure(job, sitting)
        return
    take_up(job)
    try:
        train(job, sitting)
        sitting.run(
            "tfmacer.certify",
            [f"--run_dir={job.directory.root}", f"--out={job.log}", *job.row.certify, *job.data],
        )
    except SittingOverError:
        keep(job)
        raise
    if missing := read_log(job.log).unfinished:
        raise UserError(f"{job.log}: {missing}")
    job.result.parent.mkdir(parents=True, exist_ok=True)
    # The table last: where it is, the row is done.
    for source, kept in (
        (job.directory.metrics, job.result.with_suffix(".metrics.csv")),
        (settings_path(job.log), settings_path(job.result)),
        (job.log, job.result),
    ):
        write_atomically(kept, source.read_text(encoding="utf-8"))
    if job.needed_again:
        keep(job)
    else:
        shutil.rmtree(job.unfinished, ignore_errors=True)


def train(job: Job, sitting: Sitting) -> int:
    """Trains a row's network, or goes on; returns its peak memory in KiB."""
    return sitting.run(
        "tfmacer.train", [*job.row.training.arguments(str(job.directory.root)), *job.data]
    )


def take_up(job: Job) -> None:
    """Brings back what was kept, as far as it is ahead of what is here."""
    kept, here = RunDirectory(job.unfinished), job.directory
    if _progress(kept) > _progress(here):
        _replace(here.root, kept.root, sorted(kept.root.rglob("*")))
    elif kept.smoothing.is_file():
        for log in kept.certify.glob("*.tsv"):
            if _lines(log) > _lines(here.certify / log.name):
                here.certify.mkdir(exist_ok=True)
                shutil.copy(settings_path(log), here.certify)
                shutil.copy(log, here.certify)


def _progress(directory: RunDirectory) -> tuple[bool, int, bool]:
    """Whether a network is trained, the epochs it has had, and whether it has been begun."""
    return directory.smoothing.is_file(), _lines(directory.metrics), directory.flags.is_file()


def _replace(folder: Path, source: Path, paths: Iterable[Path]) -> None:
    """Makes a folder of files below another one; until it is whole, what was there stays."""
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for path in paths:
        if path.is_file():
            copied = part / path.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copied)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def keep(job: Job) -> None:
    """Copies what a later sitting needs: the newest checkpoint; or the network and open logs."""
    run, others = job.directory, jobs(None, None, job.runs, job.results)
    if run.smoothing.is_file():
        found = [run.model, run.smoothing]
        for log in run.certify.glob("*.tsv"):
            if not any(o.result.name == log.name and o.state == "done" for o in others):
                found += [log, settings_path(log)]
    else:
        found = [run.checkpoints / name for name in newest_checkpoint(run.checkpoints)]
    if found:
        _replace(job.unfinished, run.root, [run.flags, run.metrics, *found])


def newest_checkpoint(folder: Path) -> list[str]:
    """The files of the newest checkpoint, and the file that names it."""
    index = max(folder.glob("*.index"), key=lambda path: path.stat().st_mtime_ns, default=None)
    if index is None:
        return []
    return ["checkpoint", *sorted(path.name for path in folder.glob(f"{index.stem}.*"))]


def measure(job: Job, sitting: Sitting) -> None:
    """Time and memory of a training from its start; an interrupted one says nothing and is lost."""
    shutil.rmtree(job.directory.root, ignore_errors=True)
    kib = train(job, sitting)
    with open(job.directory.metrics, newline="") as file:
        seconds = [float(line["seconds"]) for line in csv.DictReader(file)]
    found = {
        "objective": job.row.training.objective,
        "sigma": job.row.training.sigma,
        "seconds_per_epoch": seconds[-1],
        "peak_memory_mib": round(kib / 1024),
    }
    job.result.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(job.result, json.dumps(found, indent=2) + "\n")


def jobs(
    table: str | None, row: str | None, runs: Path, results: Path, data_dir: str | None = None
) -> list[Job]:
    """The rows of a table and of a name, or of any where it is None.

    Raises:
      UserError: there are none.
    """
    found = [
        Job(name, each, runs, results, data_dir)
        for name, rows in TABLES.items()
        for each in rows
        if table in (None, name) and row in (None, each.name)
    ]
    if not found:
        where = f" in --table={table}" if table else ""
        raise UserError(f"--row={row}: no such row{where}; --list names them")
    return found


def _main() -> None:
    if _TABLE.value is None and not _LIST.value:
        raise UserError(f"--table must be given: one of {', '.join(TABLES)}")
    runs, results = Path(_RUNS_DIR.value), Path(_RESULTS_DIR.value)
    wanted = jobs(_TABLE.value, _ROW.value, runs, results, _DATA_DIR.value)
    if _LIST.value:
        for job in wanted:
            print(f"{job.table:<12}{job.row.name:<66}{job.state}")
        return
    sitting = Sitting(_MINUTES.value)
    signal.signal(signal.SIGTERM, lambda *_: setattr(sitting, "stop", True))
    failed = _compute_all([job for job in wanted if job.state != "done"], sitting)
    if failed:
        raise UserError("; ".join(failed))


def _compute_all(todo: Sequence[Job], sitting: Sitting) -> list[str]:
    """Computes the rows one after another; says which failed. One failure does not stop others."""
    failed = []
    for job in todo:
        try:
            compute(job, sitting)
        except SittingOverError:
            print(f"{job.row.name}: {job.state}; the time is over", flush=True)
            break
        except UserError as error:
            print(f"{job.row.name}: {error}", file=sys.stderr, flush=True)
            failed.append(f"{job.row.name}: {error}")
        else:
            print(f"{job.result}: done", flush=True)
    return failed


main = commandline.command(_main, FLAGS, "python -m benchmarks.reproduce", __doc__)


if __name__ == "__main__":
    sys.exit(main())
