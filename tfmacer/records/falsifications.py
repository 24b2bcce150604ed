"""What attacks on certificates found: a table, and the settings that its rows share.

`FILE.tsv` holds one row per certificate attacked, `FILE.tsv.json` what the rows share. Both are
kept like certification logs: rows are appended and carry a digest.
"""

import dataclasses
from pathlib import Path
from typing import Any

from tfmacer.common.errors import UserError
from tfmacer.guarantee.dataset import most_wrong
from tfmacer.records import sealing
from tfmacer.records.attack_rows import Attacked, AttackSettings
from tfmacer.records.logs import Log
from tfmacer.records.tables import check_rows, gaps, read_rows, read_settings

# Probability that sound certificates are called false: many more flips than alpha makes likely.
RISK = 0.001


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
        """Makes sure that this is about the certificates of a log, as it records them.

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
    """What an attack's settings say of a log; raises UserError for another project's log."""
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


def falsification_path(path: Path) -> Path:
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
