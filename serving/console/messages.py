"""The JSON of the endpoint: the messages of `certification.proto`, and their schemas.

Field names are the proto's. Bytes are base64, 64-bit numbers are numbers.
"""

import base64
import binascii
from typing import Annotated, Any, Self

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf import json_format
from google.protobuf.message import Message
from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving import certification_pb2 as pb
from tfmacer.common.errors import UserError

Draws = Annotated[int, Field(ge=1, le=2_000_000_000)]
Chance = Annotated[float, Field(gt=0, lt=1, description="The server may have a larger minimum.")]
Positive = Annotated[float, Field(gt=0)]


class _Request(BaseModel):
    # Strict: no number from a string, no unknown field, no NaN.
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Answer(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    @classmethod
    def of(cls, message: Message, **more: Any) -> Self:
        """The JSON of a message."""
        fields = json_format.MessageToDict(
            message,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
        return cls.model_validate(fields | more)


class Pixels(_Request):
    """Pixels row by row, one of two kinds."""

    shape: list[Annotated[int, Field(gt=0, lt=2**31)]] = Field(
        max_length=4, description="[H, W, C], equal to the model's input_shape."
    )
    uint8: str | None = Field(default=None, description="Base64 of a byte a value, 0 to 255.")
    float32: str | None = Field(
        default=None, description="Base64 of four bytes a value, little-endian, in [0, 1]."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.uint8 is None) == (self.float32 is None):
            raise ValueError("give exactly one of uint8 and float32")
        return self

    @classmethod
    def of(cls, values: npt.NDArray[np.uint8]) -> Self:
        """The JSON of an array `[H, W, C]`."""
        return cls(shape=list(values.shape), uint8=base64.b64encode(values.tobytes()).decode())

    def message(self) -> pb.Pixels:
        """The proto of this; raises UserError where the values are not base64."""
        kind = "float32" if self.uint8 is None else "uint8"
        values: Any = {kind: from_base64(f"pixels.{kind}", getattr(self, kind))}
        return pb.Pixels(shape=self.shape, **values)


class _ImageRequest(_Request):
    pixels: Pixels | None = None
    image: str | None = Field(
        default=None, description="Base64 of a PNG, JPEG or WebP file, in place of pixels."
    )
    resize: bool = Field(
        default=False,
        description="Fit a file of another size whole into the model's, with black margins; what "
        "is certified is the outcome, which the answer shows. Otherwise it is refused.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.pixels is None) == (self.image is None):
            raise ValueError("give exactly one of pixels and image")
        if self.resize and self.image is None:
            raise ValueError("resize is about a file in image")
        return self

    def _plan(self) -> dict[str, Any]:
        """What is not about the image, as far as it was given."""
        return self.model_dump(exclude={"pixels", "image", "resize"}, exclude_none=True)


class PredictRequest(_ImageRequest):
    """What `Predict` takes."""

    n: Draws | None = Field(default=None, description="Draws; 100 unless given.")
    alpha: Chance | None = Field(
        default=None, description="Chance of a wrong class; 0.001 unless given."
    )

    def message(self, pixels: pb.Pixels) -> pb.PredictRequest:
        """The proto of this, about these pixels."""
        return pb.PredictRequest(pixels=pixels, **self._plan())


class CertifyRequest(_ImageRequest):
    """What `Certify` and `CertifyStream` take; draws end after n unless a stop rule is given."""

    n0: Draws | None = Field(
        default=None, description="Draws that choose the class; 100 unless given."
    )
    n: Draws | None = Field(
        default=None, description="Draws that bound its probability, at most; 10,000 unless given."
    )
    alpha: Chance | None = Field(
        default=None, description="Chance that the certificate is wrong; 0.001 unless given."
    )
    bilateral: bool = Field(default=False, description="Bound the runner-up's probability as well.")
    decide: Positive | None = Field(
        default=None, description="Stop as soon as this radius is certified or refuted."
    )
    precision: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None,
        description="Stop as soon as more draws could add only this part of the radius.",
    )
    budget: Positive | None = Field(default=None, description="Stop after this many seconds.")

    @model_validator(mode="after")
    def _one_stop_rule(self) -> Self:
        if sum(rule is not None for rule in (self.decide, self.precision, self.budget)) > 1:
            raise ValueError("give at most one of decide, precision and budget")
        return self

    def message(self, pixels: pb.Pixels) -> pb.CertifyRequest:
        """The proto of this, about these pixels."""
        return pb.CertifyRequest(pixels=pixels, **self._plan())


class ServedModel(_Answer):
    """A served model, as far as a certificate depends on it."""

    name: str
    version: int
    digest: str = Field(description="SHA-256 of the network.")
    sigma: float = Field(description="Scale of the noise, in units of pixels in [0, 1].")
    noise_family: str
    noise_params: dict[str, float]
    block_size: int
    num_classes: int
    input_shape: list[int] = Field(description="[H, W, C]")
    precision: str
    generator: str = Field(description="What draws the noise.")


class Limits(BaseModel):
    """What one request may ask for."""

    max_n0: int
    max_n: int
    min_alpha: float
    max_seconds: float
    max_body_bytes: int
    max_image_pixels: int
    image_formats: list[str]


class Described(ServedModel):
    """The model and the limits."""

    limits: Limits


class Prediction(_Answer):
    """The smoothed class, without a radius."""

    predict: int = Field(description="The class, -1 where the votes are too close to tell.")
    p_value: float
    alpha: float
    n: int
    counts: list[int] = Field(description="Votes of each class.")
    model: ServedModel
    pixels_sha256: str = Field(description="Of float32, little-endian, row by row.")
    pixels: Pixels | None = Field(default=None, description="What a file given as image became.")


class Certificate(_Answer):
    """A certified statement about the pixels."""

    predict: int = Field(description="The certified class, -1 where abstaining.")
    radius: float = Field(description="Closer pixels than this do not change the smoothed class.")
    norm: str
    alpha: float
    select_counts: list[int]
    counts: list[int] = Field(description="Votes of each class among n draws.")
    n0: int
    n: int
    p_lower: float
    p_upper_second: float | None = None
    bound: str
    bilateral: bool
    stopped_early: bool
    model: ServedModel
    pixels_sha256: str = Field(description="Of float32, little-endian, row by row.")
    certificate_id: str
    statement: str = Field(description="In prose, what is guaranteed and what is not.")
    drawn: int = Field(description="Draws so far; more than n where an earlier look was better.")
    pixels: Pixels | None = Field(default=None, description="What a file given as image became.")


class Refusal(BaseModel):
    """Every answer that is no success."""

    code: str = Field(
        description="Name of a gRPC status.",
        json_schema_extra={"enum": [code.name for code in grpc.StatusCode if code.value[0]]},
    )
    message: str
    request_id: str


def from_base64(field: str, text: str) -> bytes:
    """The bytes; raises UserError, naming `field`, where the text is not base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UserError(f"{field} is not base64: {error}") from error
