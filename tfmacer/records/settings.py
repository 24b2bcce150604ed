"""What all rows of a certification log share; the text of `LOG.tsv.json`."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tfmacer.common.errors import UserError
from tfmacer.guarantee.distribution import NoiseDistribution
from tfmacer.guarantee.rule import Rule
from tfmacer.guarantee.stopping import StopRule
from tfmacer.noise.families import noise_distribution
from tfmacer.records import rows
from tfmacer.records.locked_table import Settings
from tfmacer.records.rows import Record
from tfmacer.records.runs import UNKNOWN_MODEL, Smoothing, check_sizes

NO_PIXELS = (
    "of format version 1, which does not record the pixels: labels alone tell whether the images "
    "are those that were certified"
)
# Version 2 has in each row the digest of its pixels and the name of its image, and here this.
_SINCE_2 = ("class_names",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSettings(Settings[Record]):
    """What all rows of a log share; the text of `LOG.tsv.json`.

    Attributes:
      alpha: failure probability of each certificate.
      sigma: scale of the noise in units of pixels in [0, 1].
      noise_family: key of `tfmacer.noise.families.DISTRIBUTIONS`.
      noise_params: the family's further parameters.
      block_size: draws per block of the noise stream.
      bound: key of `tfmacer.guarantee.bounds.BOUNDS`.
      bilateral: whether the runner-up is bounded too.
      beta: inverse temperature of the softmax, for bounds on class probabilities.
      stop: text of the `StopRule`.
      reject_alpha: failure probability of a refutation under `stop=decide`.
      n0: draws that choose the class.
      n: draws that estimate its probability, at most.
      seed: of the run; the draws of an image depend on it and on `idx` alone.
      generator: of the noise, one of `tfmacer.noise.generators.GENERATORS`.
      num_classes: K.
      input_shape: `(H, W, C)`.
      model_digest: see `tfmacer.records.runs.model_digest`.
      precision: dtype policy of the network.
      dataset: name of the dataset; None for images handed in.
      split: its split.
      total: images in the split.
      start: first position selected.
      skip: step between selected positions.
      num_examples: how many positions are selected at most; None for all.
      shard: `i/N`: of the selected, those whose place p among them has p mod N = i.
      environment: versions, device and intra-op threads; votes are repeatable bit for bit
        within one environment.
      warnings: what a reader of the results must know.
      class_names: what the dataset calls its classes; None where unknown.
      format_version: of the settings and the rows.
    """

    WHOSE = "a log's"
    NEWEST = 2
    # The rows of a shard are those of the whole.
    NOT_IDENTITY = ("start", "skip", "num_examples", "shard", "environment", "warnings")

    alpha: float
    sigma: float
    noise_family: str = "gaussian"
    noise_params: Mapping[str, float] = dataclasses.field(default_factory=dict)
    block_size: int
    bound: str
    bilateral: bool
    beta: float
    stop: str
    reject_alpha: float
    n0: int
    n: int
    seed: int
    generator: str
    num_classes: int
    input_shape: tuple[int, int, int]
    model_digest: str
    precision: str
    dataset: str | None
    split: str | None
    total: int
    start: int = 0
    skip: int = 1
    num_examples: int | None = None
    shard: str | None = None
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    class_names: tuple[str, ...] | None = None
    format_version: int = NEWEST

    def __post_init__(self) -> None:
        if self.start < 0 or self.skip < 1:
            raise UserError(
                f"start must be 0 or more and skip 1 or more, got {self.start} and {self.skip}"
            )
        if self.seed < 0 or self.total < 0:
            raise UserError(f"seed and total must be 0 or more, got {self.seed} and {self.total}")
        check_sizes(self.num_classes, self.input_shape, self.block_size)
        # A folder may lack some of the model's classes.
        if self.class_names is not None and len(self.class_names) > self.num_classes:
            raise UserError(
                f"class_names are {len(self.class_names)}, num_classes is {self.num_classes}"
            )
        if self.num_examples is not None and self.num_examples < 1:
            raise UserError(f"num_examples must be 1 or more, got {self.num_examples}")
        if not self.indices and self.total > 0 and self.shard is None:
            raise UserError(f"start is {self.start}, the split has {self.total} images")
        # What they are made of must be possible, too.
        _ = self.rule, self.distribution

    @classmethod
    def of(cls, smoothing: Smoothing, rule: Rule, **others: Any) -> "LogSettings":
        """The settings of a run.

        Args:
          smoothing: what is certified.
          rule: how.
          **others: the fields that neither knows: seed, dataset, split, total, and those with
            defaults.

        Raises:
          UserError: the rule is for another block size than the model's, or nothing tells which
            model it is.
        """
        if smoothing.model_digest == UNKNOWN_MODEL:
            raise UserError(
                "nothing identifies this model, so a log of it could be taken for another's: give "
                "certify_images a model_digest, e.g. the SHA-256 of its weights and code"
            )
        if rule.block_size != smoothing.block_size:
            raise UserError(
                f"block_size of the rule is {rule.block_size}, the model's {smoothing.block_size}"
            )
        return cls(
            alpha=rule.alpha,
            sigma=smoothing.sigma,
            noise_family=smoothing.noise_family,
            noise_params=dict(smoothing.noise_params),
            block_size=smoothing.block_size,
            generator=smoothing.generator,
            bound=rule.bound,
            bilateral=rule.bilateral,
            beta=rule.beta,
            stop=str(rule.stop),
            reject_alpha=rule.reject_alpha,
            n0=rule.n0,
            n=rule.n,
            num_classes=smoothing.num_classes,
            input_shape=smoothing.input_shape,
            model_digest=smoothing.model_digest,
            precision=smoothing.precision,
            **others,
        )

    @functools.cached_property
    def rule(self) -> Rule:
        """How the rows were certified."""
        return Rule(
            alpha=self.alpha,
            bound=self.bound,
            bilateral=self.bilateral,
            n0=self.n0,
            n=self.n,
            beta=self.beta,
            stop=StopRule.parse(self.stop),
            reject_alpha=self.reject_alpha,
            block_size=self.block_size,
        )

    @functools.cached_property
    def distribution(self) -> NoiseDistribution:
        """The smoothing distribution."""
        return noise_distribution(
            self.noise_family,
            sigma=self.sigma,
            params=self.noise_params,
            dimension=math.prod(self.input_shape),
            generator=self.generator,
        )

    @functools.cached_property
    def indices(self) -> range:
        """The `idx` of every image that the log is to hold."""
        selected = range(self.start, self.total, self.skip)[: self.num_examples]
        if self.shard is None:
            return selected
        i, n = parse_shard(self.shard)
        return selected[i::n]

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
        return rows.to_cells(row)

    def row(self, cells: Mapping[str, str]) -> Record:
        """See `Settings.row`."""
        return rows.from_cells(cells, self.num_classes)

    def fields(self) -> dict[str, Any]:
        """The fields that the format version has."""
        return {k: v for k, v in super().fields().items() if self.names_images or k not in _SINCE_2}

    def differences(self, other: "LogSettings", *, besides: Sequence[str] = ()) -> list[str]:
        """Names and both values of the fields that differ, warnings apart."""
        if self.format_version != other.format_version:
            return [
                f"format_version is {self.format_version}, not {other.format_version}: only since "
                "version 2 do logs record the pixels, and can be checked against the images"
            ]
        return super().differences(other, besides=("warnings", *besides))


def parse_shard(text: str) -> tuple[int, int]:
    """Reads `i/N`, 0 <= i < N.

    Raises:
      UserError: it is anything else.
    """
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise UserError(f"shard must be i/N with 0 <= i < N, got {text!r}")
    return int(i), int(n)
