"""What attacks on certificates found: a table, and beside it the settings that its rows share.

`FILE.tsv` holds one row per certificate attacked, in the order of idx, `FILE.tsv.json` what they
share. Both are kept like certification logs: rows are appended and carry a digest.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tfmacer.errors import UserError
from tfmacer.guarantee.bounds import most_wrong
from tfmacer.records.appending import LockedFile, take_up
from tfmacer.records.logs import Log, read_text, settings_path
from tfmacer.records.rows import ABSENT, clock, seconds_of

FORMAT_VERSION = 1
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
class AttackSettings:
    """What all rows of a falsification share.

    Attributes:
      log_digest: of the certification log whose certificates are attacked, see `log_digest`.
      model_digest: of the network, see `tfmacer.records.runs.model_digest`.
      sigma: scale of the noise.
      noise_family: key of `tfmacer.guarantee.smoothing.LAWS`.
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
    """

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

    @functools.cached_property
    def identity(self) -> str:
        """Canonical text of the settings that determine a row."""
        fields = dataclasses.asdict(self)
        del fields["images"], fields["environment"]
        return json.dumps(fields, sort_keys=True)

    def to_json(self) -> str:
        """The text of `FILE.tsv.json`."""
        fields = dataclasses.asdict(self) | {"format_version": FORMAT_VERSION}
        return json.dumps(fields | {"digest": _digest(_canonical(fields))}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, origin: str) -> "AttackSettings":
        """Reads what `to_json` wrote.

        Args:
          text: the JSON.
          origin: the file, for the error message.

        Raises:
          UserError: not JSON, altered by hand, of another format version, or with a field missing
            or unknown.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            digest = fields.pop("digest")
            if digest != _digest(_canonical(fields)):
                raise UserError("altered after it was written: its digest does not match")
            if (version := fields.pop("format_version")) != FORMAT_VERSION:
                raise UserError(
                    f"format_version is {version!r}, this version of tfmacer reads {FORMAT_VERSION}"
                )
            return cls(**fields | {"images": tuple(fields["images"])})
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError, UserError) as error:
            raise UserError(
                f"{origin}: not usable as a falsification's settings: {error}"
            ) from error

    def differences(self, other: "AttackSettings") -> list[str]:
        """Names and both values of the fields that differ."""
        # Through JSON, where a tuple and a list are the same.
        mine, others = (json.loads(json.dumps(dataclasses.asdict(x))) for x in (self, other))
        return [
            f"{name} is {mine[name]!r}, not {others[name]!r}"
            for name in mine
            if mine[name] != others[name]
        ]


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
    def missing(self) -> list[int]:
        """The idx that were selected and have no row."""
        found = {row.idx for row in self.rows}
        return [idx for idx in self.settings.images if idx not in found]

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
    return _digest(" ".join(f"{record.idx}:{record.digest}" for record in log.records))


def falsification_beside(path: Path) -> Path:
    """Where the falsification of the log `path` stands unless it was put elsewhere."""
    return path.with_name(f"{path.name.removesuffix('.tsv')}.falsified.tsv")


def read_falsification(path: Path) -> Falsification:
    """Reads a table of attacks. A last line without a newline was never finished, and is left out.

    Raises:
      UserError: the file or its settings cannot be read, are something else, or were altered.
    """
    beside = settings_path(path)
    settings = AttackSettings.from_json(read_text(beside), origin=str(beside))
    header, *lines = read_text(path).rpartition("\n")[0].split("\n")
    if header.split("\t") != list(COLUMNS):
        raise UserError(f"{path}: not a falsification: its columns must be {' '.join(COLUMNS)}")
    rows = [_row(path, number, line, settings) for number, line in enumerate(lines, 2)]
    by_idx = {row.idx: row for row in rows}
    if len(by_idx) < len(rows) or not by_idx.keys() <= set(settings.images):
        raise UserError(f"{path}: a row stands twice, or is of an image that was not selected")
    return Falsification(path, tuple(by_idx[idx] for idx in sorted(by_idx)), settings)


class FalsificationWriter:
    """Appends rows to a table of attacks, each on disk when `append` returns; opens or resumes.

    Attributes:
      rows: what the table held when it was opened, and what was appended since.
    """

    def __init__(self, path: Path, settings: AttackSettings) -> None:
        """Locks the table and makes it ready for the next row.

        Raises:
          UserError: another process writes it, it was made with other settings, or the disk
            refuses.
        """
        self.path = path
        self._settings = settings
        self._table = LockedFile(path)
        try:
            self.rows = self._resumed()
        except OSError as error:
            self._table.close()
            raise UserError(f"{path}: cannot be written: {error.strerror}") from error
        except BaseException:
            self._table.close()
            raise

    @property
    def missing(self) -> list[int]:
        """The idx still to be attacked, ascending."""
        done = {row.idx for row in self.rows}
        return [idx for idx in self._settings.images if idx not in done]

    @property
    def falsification(self) -> Falsification:
        """The table as it stands."""
        rows = tuple(sorted(self.rows, key=lambda row: row.idx))
        return Falsification(self.path, rows, self._settings)

    def append(self, row: Attacked) -> None:
        """Writes a row and waits until the disk has it.

        Raises:
          UserError: the disk refuses.
        """
        self._table.append(_line(row, self._settings))
        self.rows.append(row)

    def __enter__(self) -> "FalsificationWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._table.check()
        finally:
            self._table.close()

    def _resumed(self) -> list[Attacked]:
        beside = settings_path(self.path)
        take_up(
            self.path,
            beside,
            self._settings.to_json(),
            lambda: AttackSettings.from_json(read_text(beside), origin=str(beside)).differences(
                self._settings
            ),
        )
        if self._table.open("\t".join(COLUMNS)) is None:
            return []
        return list(read_falsification(self.path).rows)


def _line(row: Attacked, settings: AttackSettings) -> str:
    cells = {
        "idx": str(row.idx),
        "label": str(row.label),
        "predict": str(row.predict),
        "radius": f"{row.radius:.9f}",
        "flipped_within": str(int(row.flipped_within)),
        "attack_radius": ABSENT if row.attack_radius is None else f"{row.attack_radius:.9f}",
        "attack_class": str(row.attack_class),
        "searched": f"{row.searched:.9f}",
        "tests": str(row.tests),
    }
    digest = _digest("\n".join([settings.identity, *cells.values()]))
    return "\t".join([*cells.values(), clock(row.seconds), digest])


def _row(path: Path, number: int, line: str, settings: AttackSettings) -> Attacked:
    try:
        cells = dict(zip(COLUMNS, line.split("\t"), strict=True))
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
        )
        if _line(row, settings) != line:
            raise ValueError("it was altered: it does not match its digest")
    except ValueError as error:
        raise UserError(f"{path}:{number}: corrupt line: {error}") from error
    return row


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _canonical(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True)
