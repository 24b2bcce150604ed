"""The studies of hyperparameters, as data: which rows they compare, and what the papers say."""

import dataclasses
from collections.abc import Iterable, Mapping

from benchmarks.reproduce_rows import TABLES
from tfmacer.report.published import PublishedRow, published_rows

# A large radius at each sigma, which 10,000 draws can certify and the papers' tables have.
_LARGE = {0.25: 0.75, 0.5: 1.5, 1.0: 2.5}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One row of a study.

    Attributes:
      row: its name in `benchmarks.reproduce_rows`, the stem of its log.
      value: of the hyperparameter.
      line: of a second hyperparameter; empty where there is none.
      settings: those of the paper's row; empty where it has none.
    """

    row: str
    value: str
    line: str = ""
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """Both hyperparameters."""
        return f"{self.line}, {self.value}" if self.line else self.value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Rows that differ in one or two hyperparameters.

    Attributes:
      title: one line.
      axis: what the values are.
      sigma: of the noise.
      points: line by line, values ascending.
      default: the point that the others are compared with.
      claim: what the paper says of it, or that none has it.
      paper: as in `tfmacer/report/published.csv`.
      table: its number there; empty where no figures are published.
      curves_at: the value at which the lines' curves are drawn; None draws every value.
      apart: whether the default is none of the values, and the paper says in words alone that
        it lies above them all.
    """

    title: str
    axis: str
    sigma: float
    points: tuple[Point, ...]
    default: Point
    claim: str
    paper: str
    table: str = ""
    curves_at: str | None = None
    apart: bool = False

    @property
    def large(self) -> float:
        """A large radius at this sigma."""
        return _LARGE[self.sigma]

    @property
    def lines(self) -> tuple[str, ...]:
        """Values of the second hyperparameter; one empty text where there is none."""
        return tuple(dict.fromkeys(point.line for point in self.points))

    @property
    def values(self) -> tuple[str, ...]:
        """Values of the hyperparameter."""
        return tuple(dict.fromkeys(point.value for point in self.points))

    @property
    def drawn(self) -> tuple[Point, ...]:
        """The points whose curves are drawn."""
        return tuple(p for p in self.points if self.curves_at in (None, p.value))

    def published(self, point: Point) -> PublishedRow | None:
        """The paper's row of these settings at the same sigma."""
        if not self.table or not point.settings:
            return None
        found = [
            row
            for row in published_rows()
            if (row.paper, row.table, row.sigma) == (self.paper, self.table, self.sigma)
            and all(row.hyperparameters.get(k) == v for k, v in point.settings.items())
        ]
        (row,) = found
        return row


def _name(table: str, objective: str, sigma: float, variant: str) -> str:
    """The row's name; a variant that no row has is an error here, not a missing result."""
    wanted = (objective, sigma, variant)
    (name,) = (
        row.name
        for row in TABLES[table]
        if (row.training.objective, row.training.sigma, row.training.variant) == wanted
    )
    return name


def _macer(
    title: str, axis: str, flag: str, table: str, values: Iterable[int], usual: int, claim: str
) -> Study:
    points = {
        value: Point(
            row=_name("macer", "macer", 0.5, "" if value == usual else f"{axis}{value}"),
            value=str(value),
            settings={flag: str(value)},
        )
        for value in values
    }
    return Study(
        title=title,
        axis=axis,
        sigma=0.5,
        points=tuple(points.values()),
        default=points[usual],
        claim=claim,
        paper="MACER",
        table=table,
    )


def macer() -> list[Study]:
    """MACER's Figure 3 (Tables 10 to 13), then clipping against lambda."""
    clipped = {
        (clip, weight): Point(
            row=_name("macer", "macer", 0.5, _clip_variant(clip, weight)),
            line=f"clip {clip}",
            value=str(weight),
        )
        for clip in ("off", "0.5", "1", "5")
        for weight in (1, 4, 16)
    }
    return [
        _macer("k, noisy copies of an image in training", "k", "num_noise", "10", (1, 4, 16), 16,
               "More copies usually do better; the curve of 16 lies above that of 1 everywhere."),
        _macer("lambda, weight of the robustness loss", "lambda", "lambda", "11", (0, 1, 4, 16),
               16, "A trade-off: as lambda grows, accuracy without perturbation falls and that at "
               "large radii rises."),
        _macer("gamma, where the hinge of the robustness loss cuts off", "gamma", "gamma", "12",
               (2, 4, 8, 16), 8, "A small gamma cuts off large radii; a larger one certifies more "
               "there, for less accuracy without perturbation."),
        _macer("beta, inverse temperature in the robustness loss", "beta", "beta", "13",
               (1, 4, 16, 64), 16, "A larger beta does better; in Table 13 the largest, 64, does "
               "not."),
        Study(
            title="clip_norm, largest norm of the gradient, against lambda",
            axis="lambda",
            sigma=0.5,
            points=tuple(clipped.values()),
            default=clipped["off", 16],
            claim="No paper has it.",
            paper="",
            curves_at="16",
        ),
    ]  # fmt: skip


def _clip_variant(clip: str, weight: int) -> str:
    if clip == "off":
        return "" if weight == 16 else f"lambda{weight}"
    return f"clip{clip}-lambda{weight}"


def _loss_variant(form: str, weight: int) -> str:
    if form == "default":
        return "" if weight == 5 else f"lambda{weight}"
    return f"{form}-lambda{weight}"


def consistency() -> list[Study]:
    """The consistency paper's supplementary Tables 4 (loss), 5 (m) and 6 (lambda)."""
    losses = {
        (form, weight): Point(
            row=_name("consistency", "consistency", 1.0, _loss_variant(form, weight)),
            line=form,
            value=str(weight),
            settings={"consistency_loss": form, "lambda": str(weight)}
            if (form, weight) != ("default", 50)
            else {},
        )
        for form in ("default", "kl", "mse")
        for weight in (5, 20, 50)
    }
    weights = {
        weight: Point(
            row=_name("consistency", "consistency" if weight else "gaussian", 1.0,
                      "" if weight in (0, 5) else f"lambda{weight}"),
            value=str(weight),
            settings={"lambda": str(weight)},
        )
        for weight in (0, 1, 5, 10, 15, 20, 25, 30, 50)
    }  # fmt: skip
    return [
        Study(
            title="Form of the loss, against lambda",
            axis="lambda",
            sigma=1.0,
            points=tuple(losses.values()),
            default=losses["default", 5],
            claim="MSE and KL help too, but reach no better ACR than the default loss, also at a "
            "moderately large lambda.",
            paper="Consistency",
            table="S4",
            curves_at="5",
        ),
        *(_copies(sigma) for sigma in (0.25, 0.5, 1.0)),
        Study(
            title="lambda, weight of the consistency loss",
            axis="lambda",
            sigma=1.0,
            points=tuple(weights.values()),
            default=weights[5],
            claim="A trade-off between accuracy and robustness; above 20 the classifier falls "
            "apart. At 0 it is Gaussian training.",
            paper="Consistency",
            table="S6",
        ),
    ]


def _copies(sigma: float) -> Study:
    points = [
        Point(
            row=_name("consistency", "consistency", sigma, "" if m == 2 else f"m{m}"),
            value=str(m),
            settings={"num_noise": str(m)},
        )
        for m in (2, 4, 8)
    ]
    return Study(
        title=f"m, noisy copies of an image in training, sigma {sigma:g}",
        axis="m",
        sigma=sigma,
        points=tuple(points),
        default=points[0],
        claim="Nearly the same for all m, slightly better for a larger one.",
        paper="Consistency",
        table="S5",
    )


def soft() -> list[Study]:
    """MACER's Figure 4: Soft-RS (empirical Bernstein) beside Hard-RS (Clopper-Pearson)."""
    found = []
    for training in dict.fromkeys(row.training for row in TABLES["soft"]):
        points = [
            Point(row=row.name, value=row.variant.removeprefix("soft"))
            for row in TABLES["soft"]
            if row.training == training
        ]
        found.append(
            Study(
                title=f"Hard-RS, and Soft-RS by beta: {training.name}",
                axis="beta",
                sigma=training.sigma,
                points=tuple(points),
                default=points[0],
                claim="Hard-RS certifies more than Soft-RS; a gap is left as beta grows, since the "
                "empirical Bernstein bound is looser than Clopper-Pearson's.",
                paper="MACER",
                apart=True,
            )
        )
    return found


STUDIES = {"macer": macer, "consistency": consistency, "soft": soft}
