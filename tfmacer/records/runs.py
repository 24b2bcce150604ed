"""The run directory and `smoothing.json`: what a trained smoothed classifier is, on disk."""

import dataclasses
import functools
import glob
import hashlib
import math
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmacer.common.errors import Notice, UserError, naming
from tfmacer.common.unfinished import held, remove_leftovers
from tfmacer.guarantee.distribution import NoiseDistribution, check_sigma
from tfmacer.noise import generators
from tfmacer.noise.families import noise_distribution
from tfmacer.records import sealing

# Since version 2 the text ends with a digest of itself.
FORMAT_VERSION = 2
BLOCK_SIZE = 256
# Draws of one request to a model, which draws whole blocks.
LARGEST_REQUEST = 1_000_000
# In one image: indices into tensors are of 32 bits.
_MOST_NUMBERS = 2**31
# A vote count is kept for each class of each image, and files from outside say how many.
_MOST_CLASSES = 2**20
# Digest of a model that nothing identifies.
UNKNOWN_MODEL = "unknown"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmoothedClassifier:
    """What makes one smoothed classifier, and its votes, different from another.

    Attributes:
      sigma: scale of the noise in units of pixels in [0, 1]; > 0.
      num_classes: K, 2 or more.
      input_shape: `(H, W, C)`.
      model_digest: see `model_digest`.
      noise_family: key of `tfmacer.noise.families.DISTRIBUTIONS`.
      noise_params: the family's further parameters (none for `gaussian`).
      block_size: draws per block of the noise stream.
      generator: of the noise, one of `tfmacer.noise.generators.GENERATORS`.
      precision: dtype policy of the network.
    """

    sigma: float
    num_classes: int
    input_shape: tuple[int, int, int]
    model_digest: str
    noise_family: str = "gaussian"
    noise_params: Mapping[str, float] = dataclasses.field(default_factory=dict)
    block_size: int = BLOCK_SIZE
    generator: str = generators.LATEST
    precision: str = "float32"

    def __post_init__(self) -> None:
        check_sigma(self.sigma)
        check_sizes(self.num_classes, self.input_shape, self.block_size)
        generators.check_generator(self.generator)

    @functools.cached_property
    def distribution(self) -> NoiseDistribution:
        """The distribution of the noise; raises UserError where there is none such."""
        return noise_distribution(
            self.noise_family,
            sigma=self.sigma,
            params=self.noise_params,
            dimension=math.prod(self.input_shape),
            generator=self.generator,
        )

    def difference(self, other: "SmoothedClassifier") -> str | None:
        """The first field in which another one differs, with both values; None where none does."""
        for field in dataclasses.fields(SmoothedClassifier):
            mine, others = getattr(self, field.name), getattr(other, field.name)
            if mine != others:
                return f"{field.name} is {mine}, not {others}"
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Smoothing(SmoothedClassifier):
    """The text of `smoothing.json`: a smoothed classifier, and how it came about.

    Attributes:
      dataset: what it was trained on; None where unknown.
      objective: how it was trained; None where unknown.
      versions: library versions at the time of writing.
      format_version: of the text that `to_json` writes.
    """

    dataset: str | None = None
    objective: str | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @property
    def classifier(self) -> SmoothedClassifier:
        """The same without how it came about."""
        fields = dataclasses.fields(SmoothedClassifier)
        return SmoothedClassifier(**{each.name: getattr(self, each.name) for each in fields})

    def to_json(self) -> str:
        """This description as indented JSON with its digest and a final newline."""
        return sealing.seal(sealing.plain(self))

    @classmethod
    def from_json(cls, text: str, *, origin: str) -> "Smoothing":
        """Reads what `to_json` wrote, in this version or an earlier one.

        A text of version 1 has no digest; a `Notice` says so.

        Raises:
          UserError: not JSON, altered by hand, of an unknown format version, or with a field
            missing, unknown, of another type or out of range.
        """
        try:
            fields = sealing.json_object(text)
            sealed = fields.get("format_version") != 1
            found = cls.from_fields(sealing.unseal(text) if sealed else fields)
        except ValueError as error:
            raise UserError(f"{origin}: not a usable smoothing description: {error}") from error
        if not sealed:
            warnings.warn(
                f"{origin}: written by an earlier version, without a digest: nothing tells "
                "whether it was altered since",
                Notice,
                stacklevel=1,  # one place, so that the same text is shown once
            )
        return found

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> "Smoothing":
        """A description of its fields as JSON has them, without a digest of its own.

        Raises:
          ValueError: a field is missing, unknown, of another type or out of range.
        """
        sealing.check_version(fields, FORMAT_VERSION)
        # Before generators had names there was one.
        known = {"generator": generators.PHILOX, **fields, "format_version": FORMAT_VERSION}
        return sealing.build(cls, known)


def check_sizes(num_classes: int, input_shape: tuple[int, int, int], block_size: int) -> None:
    """Raises UserError where no classifier and no block of its noise has these sizes."""
    if not 2 <= num_classes <= _MOST_CLASSES:
        raise UserError(f"num_classes must be 2 to {_MOST_CLASSES}, got {num_classes}")
    if len(input_shape) != 3 or min(input_shape) < 1 or math.prod(input_shape) >= _MOST_NUMBERS:
        raise UserError(
            f"input_shape must be (H, W, C), of less than 2^31 numbers, got {input_shape}"
        )
    if not 1 <= block_size <= LARGEST_REQUEST:
        raise UserError(f"block_size must be 1 to {LARGEST_REQUEST}, got {block_size}")


def model_digest(config_json: str, variables: Iterable[tuple[str, npt.NDArray[Any]]]) -> str:
    """SHA-256 (hex) of a network: its JSON config, then each variable in layer order.

    Args:
      config_json: the network's architecture as Keras writes it into `model.keras`.
      variables: name and value of each variable, in layer order; names, shapes, dtypes and
        little-endian bytes enter the digest.
    """
    digest = hashlib.sha256(config_json.encode())
    for name, value in variables:
        little = np.ascontiguousarray(value)
        little = little.astype(little.dtype.newbyteorder("<"), copy=False)
        digest.update(f"\n{name} {list(value.shape)} {value.dtype.name}\n".encode())
        digest.update(little.tobytes())
    return digest.hexdigest()


class RunDirectory:
    """The layout of one training run on disk. Creating the object touches nothing.

    Attributes:
      root: the directory.
      flags: every flag of the run; usable as `--flagfile`.
      model: the base network alone, as Keras saves it.
      smoothing: what a certificate must know of the classifier.
      metrics: one row per epoch.
      checkpoints: folder of checkpoints for resuming.
      tensorboard: folder of event files.
      certify: folder of certification logs.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.flags = root / "flags.txt"
        self.model = root / "model.keras"
        self.smoothing = root / "smoothing.json"
        self.metrics = root / "metrics.csv"
        self.checkpoints = root / "checkpoints"
        self.tensorboard = root / "tensorboard"
        self.certify = root / "certify"

    def read_smoothing(self) -> Smoothing:
        """Reads `smoothing.json`; raises UserError where no finished run is here."""
        for path in (self.smoothing, self.model):
            if not path.is_file():
                raise UserError(
                    f"{self.root}: not a finished run directory: {path.name} is missing"
                )
        return Smoothing.from_json(read_text(self.smoothing), origin=str(self.smoothing))

    def recorded_flag(self, name: str) -> str | None:
        """The value that the run's `flags.txt` gives a flag; None where it gives none."""
        lines = read_text(self.flags).splitlines() if self.flags.is_file() else []
        start = f"--{name}="
        return next((line.removeprefix(start) for line in lines if line.startswith(start)), None)


def read_text(path: Path) -> str:
    """A file's text; raises UserError, naming it, where it cannot be read."""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read: not UTF-8 text") from error
    except (OSError, ValueError) as error:  # of which the latter a path with NUL
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read: {reason}") from error


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` so that a reader, or a kill, never sees a part of it.

    What an earlier, killed call has left beside `path` is removed.
    """
    remove_leftovers(path.parent, f".{glob.escape(path.name)}.*.tmp")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def make() -> Path:
        temporary.touch()
        return temporary

    with naming(path), held(make):
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
