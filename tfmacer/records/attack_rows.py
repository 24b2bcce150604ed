"""One row of a table of attacks: what was found on one certificate, and what the rows share."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tfmacer.common.errors import UserError
from tfmacer.guarantee.rule import check_error_rate
from tfmacer.noise.families import DISTRIBUTIONS
from tfmacer.records.cell_text import ABSENT, clock, seconds_of
from tfmacer.records.tables import Settings

COLUMNS = (
    "idx", "label", "predict", "radius", "flipped_within", "attack_radius", "attack_class",
    "searched", "tests", "time", "digest",
)  # fmt: skip


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
