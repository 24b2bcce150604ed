"""What attacks on certificates found: a table, and beside it the settings that its rows share.

`FILE.tsv` holds one row per certificate attacked, in the order of idx, `FILE.tsv.json` what they
share. Both are kept like certification logs: rows are appended and carry a digest.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfmacer.common.errors import UserError
from tfmacer.guarantee.dataset import most_wrong
from tfmacer.guarantee.rule import check_error_rate
from tfmacer.noise.families import DISTRIBUTIONS
from tfmacer.records import sealing
from tfmacer.records.cell_text import ABSENT, clock, seconds_of
from tfmacer.records.logs import Log
from tfmacer.records.tables import (
    Settings,
    check_rows,
    gaps,
    read_rows,
    read_settings,
)

COLUMNS = (
    "idx",
    "label",
    "predict",
    "radius",
    "flipped_within",
    "attack_radius",
    "attack_class",
    "searched",
    "tests",
    "time",
    "digest",
)
# Probability that sound certificates are called false: many more flips than alpha makes likely.
RISK = 0.001


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackSettings(Settings["Attacked"]):
    """What all rows of a falsification share.

    Attributes:
      log_digest: of the certification log whose certificates are attacked, see `log_digest`.
      model_digest: of the network, see `tfmacer.records.runs.model_digest`.
      sigma: scale of the noise.
      noise_family: key of `tfmacer.noise.families.DISTRIBUTIONS`.
      noise_params: the family's further parameters.
      norm: of the radii, `l2` or `linf`.
      certificate_alpha: failure probability of each certificate.
      attack: `pgd` or `ddn`.
      steps: of the attack.
      num_noise: noisy copies over which its slope is averaged.
      n: draws by which PREDICT confirms a flip.
      alpha: probability, for each image, that some confirmation of it is wrong.
      clip: whether attacked pixels stay in [0, 1].
      seed: of the noise of attacks and confirmations.
      examined: images of the log that were considered, certified or not: each might have been
        certified falsely.
      images: idx of the certificates attacked, ascending.
      environment: versions, device and intra-op threads.
      format_version: of the settings and the rows.
    """

    WHOSE = "a falsification's"
    NEWEST = 1
    NOT_IDENTITY = ("images", "environment")

    log_digest: str
    model_digest: str
    sigma: float
    noise_family: str
    noise_params: Mapping[str, float]
    norm: str
    certificate_alpha: float
    attack: str
    steps: int
    num_noise: int
    n: int
    alpha: float
    clip: bool
    seed: int
    examined: int
    images: tuple[int, ...]
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    format_version: int = NEWEST

    def __post_init__(self) -> None:
        if (
            self.noise_family not in DISTRIBUTIONS
            or self.norm != DISTRIBUTIONS[self.noise_family].norm
        ):
            raise UserError(f"norm {self.norm!r} is not that of {self.noise_family!r} noise")
        for name in ("alpha", "certificate_alpha"):
            check_error_rate(name, getattr(self, name))
        if list(self.images) != sorted(set(self.images)) or min(self.images, default=0) < 0:
            raise UserError("images must be idx of 0 or more, ascending, each once")
        if self.examined < len(self.images):
            raise UserError(
                f"examined is {self.examined}, below the {len(self.images)} images attacked"
            )

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns of the table."""
        return COLUMNS

    @property
    def indices(self) -> Sequence[int]:
        """The idx of every image that the table is to hold."""
        return self.images

    def cells(self, row: "Attacked") -> Mapping[str, str]:
        """See `Settings.cells`."""
        found = row.attack_radius
        return {
            "idx": str(row.idx),
            "label": str(row.label),
            "predict": str(row.predict),
            "radius": f"{row.radius:.9f}",
            "flipped_within": str(int(row.flipped_within)),
            "attack_radius": ABSENT if found is None else f"{found:.9f}",
            "attack_class": str(row.attack_class),
            "searched": f"{row.searched:.9f}",
            "tests": str(row.tests),
            "time": clock(row.seconds),
        }

    def row(self, cells: Mapping[str, str]) -> "Attacked":
        """See `Settings.row`; refuses what no attack finds."""
        found = cells["attack_radius"]
        row = Attacked(
            idx=int(cells["idx"]),
            label=int(cells["label"]),
            predict=int(cells["predict"]),
            radius=float(cells["radius"]),
            flipped_within=bool(int(cells["flipped_within"])),
            attack_radius=None if found == ABSENT else float(found),
            attack_class=int(cells["attack_class"]),
            searched=float(cells["searched"]),
            tests=int(cells["tests"]),
            seconds=seconds_of(cells["time"]),
            digest=cells["digest"],
        )
        if self.sealed(row).digest != row.digest:
            raise ValueError("it was altered: it does not match its digest")
        row.check()
        return row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attacked:
    """What attacks on one certificate found.

    Attributes:
      idx: position of the image in the split as stored.
      label: its true class, -1 where there is none.
      predict: the certified class.
      radius: the certified radius.
      flipped_within: whether a change smaller than the radius was confirmed to give another class.
      attack_radius: norm of the smallest change so confirmed, rounded up at 9 decimals: an upper
        bound on the true radius; None where none was found.
      attack_class: the class there, -1 where none was found.
      searched: norm of the largest change that was tried.
      tests: how many changes were put to PREDICT.
      seconds: wall-clock time spent on the image.
      digest: of the row and of what determines it.
    """

    idx: int
    label: int
    predict: int
    radius: float
    flipped_within: bool
    attack_radius: float | None
    attack_class: int
    searched: float
    tests: int
    seconds: float
    digest: str | None = dataclasses.field(default=None, compare=False)

    def check(self) -> None:
        """Raises ValueError where no attack finds this."""
        found = self.attack_radius
        if not (math.isfinite(self.radius) and self.radius > 0 and self.predict >= 0):
            raise ValueError(f"radius {self.radius} of class {self.predict} is no certificate")
        if self.label < -1 or not (math.isfinite(self.searched) and self.searched > 0):
            raise ValueError(f"label is {self.label}, searched {self.searched}")
        if found is None:
            if self.flipped_within or self.attack_class != -1 or self.tests < 0:
                raise ValueError("without an attack_radius nothing was flipped, to no class")
            return
        if not (math.isfinite(found) and found > 0) or self.tests < 1:
            raise ValueError(f"attack_radius is {found} after {self.tests} tests")
        if self.attack_class in (-1, self.predict):
            raise ValueError(f"attack_class is {self.attack_class}, which is no other class")
        # Rounded up, either may be the radius itself.
        if (found > self.radius) if self.flipped_within else (found < self.radius):
            raise ValueError(
                f"flipped_within is {int(self.flipped_within)}, but attack_radius is {found} and "
                f"radius {self.radius}"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Falsification:
    """A table of attacks as read.

    Attributes:
      path: of the table.
      rows: sorted by idx.
      settings: what they share.
    """

    path: Path
    rows: tuple[Attacked, ...]
    settings: AttackSettings

    @property
    def unfinished(self) -> str | None:
        """How many of the images have no row; None where all have one."""
        return gaps(self.settings.images, self.rows)

    def check_of(self, log: Log) -> None:
        """Makes sure that this is about the certificates of a log, as they stand there.

        Raises:
          UserError: it says otherwise of the log, or of a certificate; names the first.
        """
        for name, theirs in attacked_log(log).items():
            if (mine := getattr(self.settings, name)) != theirs:
                raise UserError(
                    f"{self.path}: {name} is {mine}, that of {log.path.name} is {theirs}"
                )
        if self.settings.examined > len(log.records):
            raise UserError(
                f"{self.path}: examined is {self.settings.examined}, {log.path.name} has "
                f"{len(log.records)} images"
            )
        certified = {r.idx: (r.label, r.predict, r.radius) for r in log.records}
        for row in self.rows:
            found, right = (row.label, row.predict, row.radius), certified.get(row.idx)
            if found != right:
                raise UserError(
                    f"{self.path}: idx {row.idx}: label, predict and radius are {found}, in "
                    f"{log.path.name} {right}"
                )

    @property
    def within(self) -> list[Attacked]:
        """The rows whose certificate was found to be false."""
        return [row for row in self.rows if row.flipped_within]

    @property
    def allowed(self) -> int:
        """How many of `within` sound certificates leave likely.

        A flip within a radius means that the certificate was wrong, which has probability at most
        certificate_alpha, or a confirmation, at most alpha; images are independent. More than the
        1 - RISK quantile of the binomial distribution of their sum is too many. All images that
        were examined count: the alpha of one that abstained was spent, too.
        """
        if not self.rows:
            return 0
        rate = self.settings.certificate_alpha + self.settings.alpha
        return most_wrong(self.settings.examined, min(rate, 1 - 1e-9), RISK)


def log_digest(log: Log) -> str:
    """What tells the certificates of a log from all others: their own digests, in order of idx."""
    return sealing.digest(" ".join(f"{record.idx}:{record.digest}" for record in log.records))


def attacked_log(log: Log) -> dict[str, Any]:
    """What the settings of a falsification say of the log whose certificates are attacked.

    Raises:
      UserError: it is another project's, which does not say of which model it is.
    """
    if log.settings is None:
        raise UserError(f"{log.path}: not a log of tfmacer: nothing tells which model it is of")
    classifier = log.settings.classifier
    return {
        "log_digest": log_digest(log),
        "model_digest": classifier.model_digest,
        "sigma": classifier.sigma,
        "noise_family": classifier.noise_family,
        "noise_params": classifier.noise_params,
        "norm": classifier.distribution.norm,
        "certificate_alpha": log.settings.rule.alpha,
    }


def falsification_beside(path: Path) -> Path:
    """Where the falsification of the log `path` stands unless it was put elsewhere."""
    return path.with_name(f"{path.name.removesuffix('.tsv')}.falsified.tsv")


def read_falsification(path: Path) -> Falsification:
    """Reads a table of attacks. A last line without a newline was never finished, and is left out.

    Raises:
      UserError: the file or its settings cannot be read, are something else, or were altered.
    """
    settings = read_settings(path, AttackSettings)
    rows = read_rows(path, settings)
    check_rows(path, settings, rows)
    return Falsification(path, rows, settings)
