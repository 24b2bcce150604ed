"""The run directory and `smoothing.json`: what a trained smoothed classifier is, on disk."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmacer.errors import UserError

FORMAT_VERSION = 1
BLOCK_SIZE = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Smoothing:
    """The text of `smoothing.json`: all that a certificate must know of its classifier.

    Attributes:
      sigma: scale of the noise in units of pixels in [0, 1]; > 0.
      noise_family: key of `tfmacer.guarantee.smoothing.LAWS`.
      noise_params: the family's further parameters (none for `gaussian`).
      block_size: draws per block of the noise stream; part of the draws' identity.
      num_classes: K, 2 or more.
      input_shape: `(H, W, C)`.
      dataset: what it was trained on; None where unknown.
      objective: how it was trained; None where unknown.
      precision: dtype policy of the network; part of the classifier's identity.
      model_digest: see `model_digest`.
      versions: library versions at the time of writing.
      format_version: of this file.
    """

    sigma: float
    num_classes: int
    input_shape: tuple[int, int, int]
    model_digest: str
    noise_family: str = "gaussian"
    noise_params: Mapping[str, float] = dataclasses.field(default_factory=dict)
    block_size: int = BLOCK_SIZE
    dataset: str | None = None
    objective: str | None = None
    precision: str = "float32"
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise UserError(f"sigma must be positive and finite, got {self.sigma}")
        if self.num_classes < 2:
            raise UserError(f"num_classes must be 2 or more, got {self.num_classes}")
        if len(self.input_shape) != 3 or min(self.input_shape) < 1:
            raise UserError(f"input_shape must be (H, W, C), got {self.input_shape}")

    def to_json(self) -> str:
        """This description as indented JSON with a final newline."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, origin: str) -> "Smoothing":
        """Reads what `to_json` wrote.

        Args:
          text: the JSON.
          origin: file or server it came from, for the error message.

        Raises:
          UserError: not JSON, a field missing or unknown, or another format version.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            if fields.get("format_version") != FORMAT_VERSION:
                raise UserError(
                    f"format_version is {fields.get('format_version')!r}, "
                    f"this version of tfmacer reads {FORMAT_VERSION}"
                )
            fields["input_shape"] = tuple(fields["input_shape"])
            return cls(**fields)
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError, UserError) as error:
            raise UserError(f"{origin}: not a usable smoothing description: {error}") from error


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


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """The layout of one training run on disk. Creating the object touches nothing."""

    root: Path

    @property
    def flags(self) -> Path:
        """Every flag of the run; usable as `--flagfile`."""
        return self.root / "flags.txt"

    @property
    def model(self) -> Path:
        """The base network alone, as Keras saves it."""
        return self.root / "model.keras"

    @property
    def smoothing(self) -> Path:
        """What a certificate must know of the classifier."""
        return self.root / "smoothing.json"

    @property
    def metrics(self) -> Path:
        """One row per epoch."""
        return self.root / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints for resuming."""
        return self.root / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        """Folder of event files."""
        return self.root / "tensorboard"

    @property
    def certify(self) -> Path:
        """Folder of certification logs."""
        return self.root / "certify"

    def read_smoothing(self) -> Smoothing:
        """Reads `smoothing.json`.

        Raises:
          UserError: there is no finished run here, or the file cannot be used.
        """
        for path in (self.smoothing, self.model):
            if not path.is_file():
                raise UserError(
                    f"{self.root}: not a finished run directory: {path.name} is missing"
                )
        return Smoothing.from_json(self.smoothing.read_text(), origin=str(self.smoothing))

    def recorded_flag(self, name: str) -> str | None:
        """The value that the run's `flags.txt` gives a flag; None where it gives none."""
        lines = self.flags.read_text().splitlines() if self.flags.is_file() else []
        start = f"--{name}="
        return next((line.removeprefix(start) for line in lines if line.startswith(start)), None)


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` so that a reader, or a kill, never sees a part of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
