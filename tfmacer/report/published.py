"""What the papers report, from `published.csv`, and which of it belongs beside a run.

The file holds every table of results of

  MACER: Zhai et al., "MACER: Attack-free and Scalable Robust Training via Maximizing Certified
    Radius", ICLR 2020;
  Consistency: Jeong and Shin, "Consistency Regularization for Certified Robustness of Smoothed
    Classifiers", NeurIPS 2020, with its supplementary material (tables S2 to S7);
  Soap bubbles: "Filling the Soap Bubbles: Efficient Black-Box Adversarial Certification with
    Non-Gaussian Smoothing", under review at ICLR 2020;

one line for each of their rows. `certified` lists `radius:accuracy` in per cent, as printed;
hyperparameters go by the names of the training flags. What the papers leave open is left empty.
The epsilons of Consistency's Table S1, 255 and 512 in 256ths, stand as 1 and 2. MACER's Table 1 was
measured on 500 contiguous images of CIFAR-10: its lines say so, and name the figures of the whole
test set.
"""

import csv
import dataclasses
import functools
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tfmacer.records.runs import RunDirectory
from tfmacer.report import tables
from tfmacer.report.cells import ABSENT, Cell, Table
from tfmacer.report.summary import Run

# The papers' noise; rounding it to 8 bits moves no figure that they print.
_GAUSSIAN = ("gaussian", "rounded_gaussian")
# What follows DATASET_ in DATASET_NETWORK_OBJECTIVE_SIGMA_EPOCHS.tsv, where a log has left its run
# directory; a variant may follow the objective after a dash.
_LOG_NAME = re.compile(
    r"(?P<network>[^_]+)_(?P<objective>[a-z_]+)(?:-.*)?_[\d.]+_(?P<epochs>\d+)\.tsv"
)
# Columns by what stands in them; the two that are lists apart.
_WORDS = ("paper", "table", "kind", "dataset", "network", "method", "norm", "note")
_INTEGERS = ("epochs", "images")
_NUMBERS = ("sigma", "acr", "acr_sd", "seconds_per_epoch", "hours", "memory_gb")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One row of a table of a paper.

    Attributes:
      paper: see the module's docstring.
      table: its number; `S` before those of supplementary material.
      kind: `main`; `study` of a hyperparameter; `cost`, a table of training times.
      dataset: as `--dataset` names it.
      network: as `--network` names it.
      sigma: of the noise; None where the best of several is taken at each radius.
      method: as `--objective` names it; for Soap bubbles, which trains none, the smoothing
        distribution: `gaussian`, `generalized_gaussian` (l2) or `mixed_norm` (linf).
      hyperparameters: names and values, as far as the paper states them.
      norm: of the radii, `l2` or `linf`.
      epochs: trained; None where it is not stated.
      images: certified; None where it is not stated.
      acr: average certified radius; None where it is not reported.
      acr_sd: its standard deviation over seeds.
      certified: certified accuracy in per cent by radius.
      seconds_per_epoch: of training.
      hours: of training, in all.
      memory_gb: of the accelerator, at the peak of training.
      note: what a reader must know before comparing.
    """

    paper: str
    table: str
    kind: str
    dataset: str
    network: str
    sigma: float | None
    method: str
    hyperparameters: Mapping[str, str]
    norm: str
    epochs: int | None
    images: int | None
    acr: float | None
    acr_sd: float | None
    certified: Mapping[float, float]
    seconds_per_epoch: float | None
    hours: float | None
    memory_gb: float | None
    note: str

    @property
    def name(self) -> str:
        """Paper, table, method and hyperparameters in a line."""
        settings = [f"{name}={value}" for name, value in self.hyperparameters.items()]
        settings += [f"epochs={self.epochs}"] if self.epochs else []
        return f"{self.paper}, Table {self.table}: " + " ".join([self.method, *settings])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What published rows are sought for.

    Attributes:
      dataset: as `--dataset` names it.
      sigma: of the noise.
      network: as `--network` names it; None where it is unknown, and any will do.
      method: as `PublishedRow.method`; None where it is unknown, and any will do.
      flags: training flags as far as known, by name; those of a study must be among them.
    """

    dataset: str
    sigma: float
    network: str | None = None
    method: str | None = None
    flags: Mapping[str, str] = dataclasses.field(default_factory=dict)


@functools.cache
def published_rows() -> tuple[PublishedRow, ...]:
    """Every row, in the order of papers and tables."""
    file = importlib.resources.files("tfmacer.report").joinpath("published.csv")
    return tuple(_row(line) for line in csv.DictReader(file.read_text("utf-8").splitlines()))


def _row(line: Mapping[str, str]) -> PublishedRow:
    pairs = (pair.partition(":") for pair in line["certified"].split())
    settings = (setting.partition("=") for setting in line["hyperparameters"].split())
    fields: dict[str, Any] = {name: line[name] for name in _WORDS}
    fields |= {name: int(line[name]) if line[name] else None for name in _INTEGERS}
    fields |= {name: float(line[name]) if line[name] else None for name in _NUMBERS}
    return PublishedRow(
        **fields,
        hyperparameters={name: value for name, _, value in settings},
        certified={_radius(radius): float(value) for radius, _, value in pairs},
    )


def _radius(text: str) -> float:
    """A radius, which may be written as a fraction of 255."""
    number, _, parts = text.partition("/")
    return float(number) / float(parts or 1)


def rows_beside(subject: Subject) -> list[PublishedRow]:
    """The rows of the subject's dataset, sigma, network and method.

    Rows of a study or of a table of costs are among them where the subject has all of their
    hyperparameters; they would drown the others otherwise.
    """
    return [
        row
        for row in published_rows()
        if (row.dataset, row.sigma) == (subject.dataset, subject.sigma)
        and subject.network in (None, row.network)
        and subject.method in (None, row.method)
        and (row.kind == "main" or _has_settings(subject, row))
    ]


def _has_settings(subject: Subject, row: PublishedRow) -> bool:
    wanted = dict(row.hyperparameters) | ({"epochs": str(row.epochs)} if row.epochs else {})
    return bool(wanted) and all(
        name in subject.flags and _same(subject.flags[name], value)
        for name, value in wanted.items()
    )


def _same(first: str, second: str) -> bool:
    try:
        return float(first) == float(second)
    except ValueError:
        return first == second


def subject_of(run: Run) -> Subject | None:
    """What the papers would call a run; None where that cannot be known, or is nothing of theirs.

    Network, method and flags are those of the run directory that the log lies in, or else those
    that its file's name says.
    """
    if run.settings is None:
        return None
    images, classifier = run.settings.images, run.settings.classifier
    if images.dataset is None:
        return None
    if classifier.noise_family not in _GAUSSIAN or (images.split or "").startswith("train"):
        return None
    known = _of_run_directory(run) or _of_file_name(run, images.dataset)
    return Subject(
        dataset=images.dataset,
        sigma=classifier.sigma,
        network=known.get("network"),
        method=known.get("objective"),
        flags=known,
    )


def _of_run_directory(run: Run) -> dict[str, str]:
    path = run.log.path.resolve()
    directory = RunDirectory(path.parent.parent)
    if path.parent != directory.certify:
        return {}
    names = {name for row in published_rows() for name in row.hyperparameters}
    names |= {"network", "objective", "epochs"}
    found = {name: directory.recorded_flag(name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _of_file_name(run: Run, dataset: str) -> dict[str, str]:
    found = _LOG_NAME.fullmatch(run.log.path.name.removeprefix(f"{dataset}_"))
    return found.groupdict() if found else {}


def table(runs: Sequence[Run], radii: Sequence[float]) -> Table:
    """Each run, and below it the published rows that belong beside it."""
    whole = tables.results(runs, radii)
    notes: dict[str, int] = {}  # with their numbers
    shown = []
    for run, cells in zip(runs, whole.rows, strict=True):
        shown.append((*cells[:3], *cells[4 : 4 + len(radii)]))
        subject = subject_of(run)
        shown += [_cells(row, radii, notes) for row in (rows_beside(subject) if subject else [])]
    return Table(
        "Beside published results",
        "Each run, then what papers report for its dataset, sigma, network and method, with "
        "n = 100,000 and alpha = 0.001 where they say it; a dash is what they do not report. "
        + " ".join(f"[{number}] {note}." for note, number in notes.items()),
        (*whole.header[:3], *whole.header[4 : 4 + len(radii)]),
        tuple(shown),
    )


def _cells(row: PublishedRow, radii: Sequence[float], notes: dict[str, int]) -> tuple[Cell, ...]:
    mark = f" [{notes.setdefault(row.note, len(notes) + 1)}]" if row.note else ""
    name = row.name + mark
    spread = f"± {row.acr_sd:.4f}" if row.acr_sd is not None else ""
    decimals = 4 if spread else 3
    acr = Cell(ABSENT) if row.acr is None else Cell(f"{row.acr:.{decimals}f}", spread, row.acr)
    by_radius = {round(radius, 9): accuracy for radius, accuracy in row.certified.items()}
    return (
        Cell(name, order=name),
        Cell(ABSENT) if row.images is None else Cell(f"{row.images:,}", order=row.images),
        acr,
        *(_accuracy(by_radius.get(round(radius, 9))) for radius in radii),
    )


def _accuracy(value: float | None) -> Cell:
    return Cell(ABSENT) if value is None else Cell(f"{value:g}", order=value / 100)
