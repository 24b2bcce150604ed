"""What all rows of a certification log share; the text of `LOG.tsv.json`."""

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tfmacer.errors import UserError
from tfmacer.guarantee.rule import Rule
from tfmacer.guarantee.smoothing import Law, law
from tfmacer.guarantee.stopping import StopRule
from tfmacer.records.runs import Smoothing

FORMAT_VERSION = 1
GENERATOR = "philox"
# These say which images and where, not how: they do not enter the digest of a row, so that the
# rows of a shard are those of the whole.
_NOT_IDENTITY = ("start", "skip", "num_examples", "shard", "environment", "warnings")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSettings:
    """What all rows of a log share; the text of `LOG.tsv.json`.

    Attributes:
      alpha: failure probability of each certificate.
      sigma: scale of the noise in units of pixels in [0, 1].
      noise_family: key of `tfmacer.guarantee.smoothing.LAWS`.
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
      generator: algorithm that draws the noise.
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
    """

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
    generator: str = GENERATOR
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

    def __post_init__(self) -> None:
        if self.start < 0 or self.skip < 1:
            raise UserError(
                f"start must be 0 or more and skip 1 or more, got {self.start} and {self.skip}"
            )
        if self.num_examples is not None and self.num_examples < 1:
            raise UserError(f"num_examples must be 1 or more, got {self.num_examples}")
        if not self.indices and self.total > 0 and self.shard is None:
            raise UserError(f"start is {self.start}, the split has {self.total} images")

    @classmethod
    def of(cls, smoothing: Smoothing, rule: Rule, **others: Any) -> "LogSettings":
        """The settings of a run.

        Args:
          smoothing: what is certified.
          rule: how.
          **others: the fields that neither knows: seed, dataset, split, total, and those with
            defaults.

        Raises:
          UserError: the rule is for another block size than the model's.
        """
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
    def law(self) -> Law:
        """The smoothing distribution."""
        return law(
            self.noise_family,
            sigma=self.sigma,
            params=self.noise_params,
            dimension=math.prod(self.input_shape),
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
    def identity(self) -> str:
        """Canonical text of the settings that determine a row."""
        fields = {k: v for k, v in dataclasses.asdict(self).items() if k not in _NOT_IDENTITY}
        return _canonical(fields)

    def to_json(self) -> str:
        """The text of `LOG.tsv.json`."""
        fields = dataclasses.asdict(self) | {"format_version": FORMAT_VERSION}
        return json.dumps(fields | {"digest": _digest(fields)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, origin: str) -> "LogSettings":
        """Reads what `to_json` wrote.

        Args:
          text: the JSON.
          origin: the file, for the error message.

        Raises:
          UserError: not JSON, altered by hand, of another format version, or with a field
            missing, unknown or out of range.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            digest = fields.pop("digest")
            if fields.get("format_version") != FORMAT_VERSION:
                raise UserError(
                    f"format_version is {fields.get('format_version')!r}, "
                    f"this version of tfmacer reads {FORMAT_VERSION}"
                )
            if digest != _digest(fields):
                raise UserError("altered after it was written: its digest does not match")
            del fields["format_version"]
            fields["input_shape"] = tuple(fields["input_shape"])
            fields["warnings"] = tuple(fields["warnings"])
            return cls(**fields)
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError, UserError) as error:
            raise UserError(f"{origin}: not usable as a log's settings: {error}") from error

    def differences(self, other: "LogSettings", *, besides: Sequence[str] = ()) -> list[str]:
        """Names and both values of the fields that differ, warnings apart."""
        # Through JSON, where a tuple and a list are the same.
        mine, others = (_flat(json.loads(json.dumps(dataclasses.asdict(x)))) for x in (self, other))
        skipped = {"warnings", *besides}
        return [
            f"{name} is {mine.get(name)!r}, not {others.get(name)!r}"
            for name in dict.fromkeys([*mine, *others])
            if name.split(".")[0] not in skipped and mine.get(name) != others.get(name)
        ]


def parse_shard(text: str) -> tuple[int, int]:
    """Reads `i/N`, 0 <= i < N.

    Raises:
      UserError: it is anything else.
    """
    i, slash, n = text.partition("/")
    if not (slash and i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise UserError(f"shard must be i/N with 0 <= i < N, got {text!r}")
    return int(i), int(n)


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(fields).encode()).hexdigest()[:16]


def _canonical(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, sort_keys=True)


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
