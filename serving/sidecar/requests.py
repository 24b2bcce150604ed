"""Reads and checks requests. Every refusal is a `UserError` that names field and limit."""

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from serving import certification_pb2 as pb
from serving.sidecar.limits import Limits
from tfmacer.common.errors import UserError
from tfmacer.common.text import LONGEST_VALUE, cut
from tfmacer.guarantee.rule import Rule
from tfmacer.guarantee.stopping import StopRule
from tfmacer.records.runs import Smoothing
from tfmacer.records.sealing import pixels_digest

DEFAULT_N0 = 100
DEFAULT_N = 10_000
DEFAULT_ALPHA = 0.001
DEFAULT_PREDICT_N = 100
# Both are valid at every look, so that a deadline may end the drawing at any. The first serves all
# looks alike, for streams and stop rules; the second keeps most of alpha for the last one, where a
# plan that only a deadline can cut short is expected to end.
ANYTIME_BOUND = "beta_binomial"
FIXED_BOUND = "late_spending"


@dataclasses.dataclass(frozen=True, eq=False)
class Image:
    """The pixels of a request.

    Attributes:
      values: float32 `[H, W, C]` in [0, 1].
      sha256: see `tfmacer.records.sealing.pixels_digest`.
    """

    values: npt.NDArray[np.float32]
    sha256: str


def read_image(pixels: pb.Pixels, smoothing: Smoothing) -> Image:
    """The image that answers to `Pixels` are about; see `NoiseDistribution.pixels`.

    Raises:
      UserError: no values, another shape than the model's, a length that does not fit it, a value
        outside [0, 1], or one that the distribution is not about.
    """
    shape = smoothing.input_shape
    if tuple(pixels.shape) != shape:
        # A few compressed bytes may be millions of numbers: the first ones are enough.
        found = cut(str(list(pixels.shape[:LONGEST_VALUE])))
        raise UserError(f"pixels.shape is {found}, the model takes {list(shape)}")
    kind = pixels.WhichOneof("values")
    if kind is None:
        raise UserError("pixels.values is missing: give uint8 or float32")
    data: bytes = getattr(pixels, kind)
    dtype = np.dtype("u1" if kind == "uint8" else "<f4")
    needed = math.prod(shape) * dtype.itemsize
    if len(data) != needed:
        raise UserError(f"pixels.{kind} has {len(data)} bytes, shape {list(shape)} needs {needed}")
    values = np.frombuffer(data, dtype).reshape(shape)
    if kind == "uint8":
        values = values.astype(np.float32) / np.float32(255)
    outside = ~((values >= 0) & (values <= 1))
    if outside.any():
        where = np.argwhere(outside)[0]
        raise UserError(
            f"pixels.float32 has {values[tuple(where)]} at {where.tolist()}, "
            "values must lie in [0, 1]"
        )
    values = smoothing.distribution.pixels(values.astype(np.float32))
    return Image(values, pixels_digest(values))


def read_rule(
    request: pb.CertifyRequest, limits: Limits, *, block_size: int, anytime: bool
) -> Rule:
    """The sampling plan that a request asks for.

    Raises:
      UserError: a field outside its limits, or values that do not go together.
    """
    # A default was not asked for by the caller, so the operator's limit caps it.
    n0 = request.n0 if request.HasField("n0") else min(DEFAULT_N0, limits.max_n0)
    n = request.n if request.HasField("n") else min(DEFAULT_N, limits.max_n)
    stop = _stop(request, limits)
    return Rule(
        alpha=_alpha(request, limits),
        bound=ANYTIME_BOUND if anytime or stop != StopRule.parse("fixed") else FIXED_BOUND,
        bilateral=request.bilateral,
        n0=int(_between("n0", n0, 1, limits.max_n0)),
        n=int(_between("n", n, 1, limits.max_n)),
        stop=stop,
        block_size=block_size,
    )


def read_prediction(request: pb.PredictRequest, limits: Limits) -> tuple[int, float]:
    """Draws and alpha of a prediction; raises UserError for a field outside its limits."""
    n = request.n if request.HasField("n") else min(DEFAULT_PREDICT_N, limits.max_n)
    return int(_between("n", n, 1, limits.max_n)), _alpha(request, limits)


def _alpha(request: pb.CertifyRequest | pb.PredictRequest, limits: Limits) -> float:
    alpha = request.alpha if request.HasField("alpha") else max(DEFAULT_ALPHA, limits.min_alpha)
    return _between("alpha", alpha, limits.min_alpha, 0.5)


def _stop(request: pb.CertifyRequest, limits: Limits) -> StopRule:
    kind = request.WhichOneof("stop") or "fixed"
    if kind == "fixed":
        return StopRule.parse("fixed")
    value: float = getattr(request, kind)
    high = {"decide": math.inf, "precision": 1.0, "budget": limits.max_seconds}[kind]
    if not 0 < value <= high or math.isinf(value):
        raise UserError(f"{kind} is {value}, it must be positive and at most {high}")
    return StopRule.parse(f"{kind}:{value!r}")


def _between(field: str, value: float, low: float, high: float) -> float:
    if not low <= value <= high:
        raise UserError(f"{field} is {value}, it must lie in [{low}, {high}]")
    return value
