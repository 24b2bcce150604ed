"""What all rows of a certification log share; the text of `LOG.tsv.json`."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from tfmacer.common.errors import UserError
from tfmacer.guarantee.rule import Rule
from tfmacer.records import rows, sealing
from tfmacer.records.rows import Record
from tfmacer.records.runs import UNKNOWN_MODEL, SmoothedClassifier, Smoothing
from tfmacer.records.tables import Settings

NO_PIXELS = (
    "of format version 1, which does not record the pixels: labels alone tell whether the images "
    "are those that were certified"
)
# Keys in the order in which they are written; what a rule or a classifier gets later comes last.
_ORDER = (
    "alpha", "sigma", "noise_family", "noise_params", "block_size", "bound", "bilateral", "beta",
    "stop", "reject_alpha", "n0", "n", "seed", "generator", "num_classes", "input_shape",
    "model_digest", "precision", "dataset", "split", "total", "start", "skip", "num_examples",
    "shard", "environment", "warnings", "class_names", "format_version",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """The images that a log is to hold.

    Attributes:
      dataset: name of the dataset; None for images handed in.
      split: its split.
      total: images in the split.
      start: first position selected.
      skip: step between selected positions.
      num_examples: how many positions are selected at most; None for all.
      shard: `i/N`: of the selected, those whose place p among them has p mod N = i.
      class_names: what the dataset calls its classes; None where unknown.
    """

    dataset: str | None
    split: str | None
    total: int
    start: int = 0
    skip: int = 1
    num_examples: int | None = None
    shard: str | None = None
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.start < 0 or self.skip < 1:
            raise UserError(
                f"start must be 0 or more and skip 1 or more, got {self.start} and {self.skip}"
            )
        if self.total < 0:
            raise UserError(f"total must be 0 or more, got {self.total}")
        if self.num_examples is not None and self.num_examples < 1:
            raise UserError(f"num_examples must be 1 or more, got {self.num_examples}")
        if not self.indices and self.total > 0 and self.shard is None:
            raise UserError(f"start is {self.start}, the split has {self.total} images")

    @property
    def undivided(self) -> range:
        """The idx of the images that all shards together hold."""
        return range(self.start, self.total, self.skip)[: self.num_examples]

    @functools.cached_property
    def indices(self) -> range:
        """The idx of the images."""
        if self.shard is None:
            return self.undivided
        i, n = parse_shard(self.shard)
        return self.undivided[i::n]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSettings(Settings[Record]):
    """What all rows of a log share.

    Attributes:
      classifier: what was certified.
      rule: how.
      images: which images.
      seed: of the run; the draws of an image depend on it and on `idx` alone.
      environment: versions, device and intra-op threads; votes are repeatable bit for bit
        within one environment.
      warnings: what a reader of the results must know.
      format_version: of the settings and the rows.
    """

    WHOSE = "a log's"
    NEWEST = 2
    # Version 2 also has in each row the digest of its pixels and the name of its image.
    SINCE = MappingProxyType({"class_names": 2})
    # The rows of a shard are those of the whole.
    NOT_IDENTITY = ("start", "skip", "num_examples", "shard", "environment", "warnings")

    classifier: SmoothedClassifier
    rule: Rule
    images: Selection
    seed: int
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    format_version: int = NEWEST

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed must be 0 or more, got {self.seed}")
        classes, named = self.classifier.num_classes, self.images.class_names
        # A folder may lack some of the model's classes.
        if named is not None and len(named) > classes:
            raise UserError(f"class_names are {len(named)}, num_classes is {classes}")
        if self.rule.block_size != self.classifier.block_size:
            raise UserError(
                f"block_size of the rule is {self.rule.block_size}, "
                f"the model's {self.classifier.block_size}"
            )
        _ = self.classifier.distribution  # the parameters of the noise must be possible

    @classmethod
    def of(
        cls, smoothing: Smoothing, rule: Rule, images: Selection, **others: Any
    ) -> "LogSettings":
        """The settings of a new log.

        Raises:
          UserError: the rule is for another block size than the model's, or nothing tells which
            model it is.
        """
        if smoothing.model_digest == UNKNOWN_MODEL:
            raise UserError(
                "nothing identifies this model, so a log of it could be taken for another's: give "
                "certify_images a model_digest, e.g. the SHA-256 of its weights and code"
            )
        return cls(classifier=smoothing.classifier, rule=rule, images=images, **others)

    @property
    def indices(self) -> range:
        """The `idx` of every image that the log is to hold."""
        return self.images.indices

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of the log."""
        return rows.columns(soft=self.rule.soft, images=self.names_images)

    @property
    def names_images(self) -> bool:
        """Whether each row has the digest of its pixels."""
        return self.format_version >= 2

    def cells(self, row: Record) -> Mapping[str, str]:
        """See `Settings.cells`."""
        return rows.to_cells(row, self.rule)

    def row(self, cells: Mapping[str, str]) -> Record:
        """See `Settings.row`."""
        return rows.from_cells(cells, self.classifier.num_classes)

    def fields(self) -> dict[str, Any]:
        """See `Settings.fields`."""
        fields = super().fields()
        first = {name: fields.pop(name) for name in _ORDER if name in fields}
        return first | fields

    def differences(self, other: "LogSettings", *, ignoring: Sequence[str] = ()) -> list[str]:
        """Names and both values of the fields that differ, warnings apart."""
        if self.names_images != other.names_images:
            return [
                f"format_version is {self.format_version}, not {other.format_version}: only since "
                "version 2 do logs record the pixels, and can be checked against the images"
            ]
        return super().differences(other, ignoring=("warnings", *ignoring))


def rule_of(fields: Mapping[str, Any]) -> Rule:
    """A rule as JSON has it; what a rule has had since a later format version may be missing.

    Raises:
      ValueError: a field is missing, unknown, of another type or out of range.
    """
    return sealing.build(Rule, fields, optional=LogSettings.SINCE)


def parse_shard(text: str) -> tuple[int, int]:
    """Reads `i/N`, 0 <= i < N; raises UserError where it is anything else."""
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise UserError(f"shard must be i/N with 0 <= i < N, got {text!r}")
    return int(i), int(n)
