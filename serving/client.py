"""Asks the certification sidecar about one image and prints label, certified radius, confidence.

  python -m serving.client --target=localhost:8600 digit.png

The image is decoded here, and its pixels are sent: decoders differ, and a certificate is about
pixels. With --stream (the default) the certificate is seen growing while samples accumulate.
"""

import fractions
import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from absl import flags
from google.protobuf import json_format
from PIL import Image

from serving import certification_pb2 as pb
from serving.certification_pb2_grpc import CertifierStub
from tfmacer.common import commandline
from tfmacer.common.decimals import down
from tfmacer.common.errors import UserError
from tfmacer.common.progress import Progress
from tfmacer.guarantee.stopping import StopRule
from tfmacer.records.sealing import pixels_digest
from tfmacer.wire.channel import ChannelFlags, open_channel

FLAGS = flags.FlagValues()

_TARGET = flags.DEFINE_string(
    "target", "127.0.0.1:8600", "HOST:PORT of the sidecar.", flag_values=FLAGS
)
_TLS = ChannelFlags("tls", "the sidecar", FLAGS, allow="allow_plaintext")
_N0 = flags.DEFINE_integer("n0", 100, "Draws that choose the class.", 1, flag_values=FLAGS)
_N = flags.DEFINE_integer(
    "n", 10_000, "Draws that bound its probability, at most.", 1, flag_values=FLAGS
)
_ALPHA = flags.DEFINE_float(
    "alpha", 0.001, "Chance that the certificate is wrong.", 0, 1, flag_values=FLAGS
)
_BILATERAL = flags.DEFINE_bool(
    "bilateral", False, "Bound the runner-up's probability as well.", flag_values=FLAGS
)
_STOP = flags.DEFINE_string(
    "stop",
    "fixed",
    "When to stop drawing: fixed, decide:RADIUS, precision:RELATIVE or budget:SECONDS.",
    flag_values=FLAGS,
)
_STREAM = flags.DEFINE_bool(
    "stream",
    True,
    "Show the certificate growing; --nostream waits for one, whose radius for a fixed n is a "
    "little larger.",
    flag_values=FLAGS,
)
_DEADLINE = flags.DEFINE_float(
    "deadline",
    None,
    "Seconds to wait for the answer; then the best certificate so far counts.",
    0.01,
    flag_values=FLAGS,
)
_JSON = flags.DEFINE_bool("json", False, "Print the certificate as JSON.", flag_values=FLAGS)

# The modes of Pillow by the number of channels of the model.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_CONNECT_SECONDS = 10.0
# Of a printed radius.
_DECIMALS = 4


def read_pixels(path: Path, shape: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Decodes an image file to uint8 `[H, W, C]`; never resizes.

    Raises:
      UserError: no image, or of another size than the model's.
    """
    height, width, channels = shape
    if channels not in _MODES:
        raise UserError(f"{path}: the model takes {channels} channels, files give 1, 3 or 4")
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            if image.size != (width, height):
                raise UserError(
                    f"{path}: is {image.width}x{image.height} pixels, "
                    f"the model takes {width}x{height}"
                )
            decoded = image.convert(_MODES[channels])
    except UserError:
        raise
    except Exception as error:  # decoders raise anything on malformed files
        raise UserError(f"{path}: not a readable image: {error}") from error
    return np.asarray(decoded, np.uint8).reshape(height, width, channels)


def make_request(pixels: npt.NDArray[np.uint8]) -> pb.CertifyRequest:
    """The request that the flags ask for."""
    stop = StopRule.parse(_STOP.value)
    request = pb.CertifyRequest(
        pixels=pb.Pixels(shape=pixels.shape, uint8=pixels.tobytes()),
        n0=_N0.value,
        n=_N.value,
        alpha=_ALPHA.value,
        bilateral=_BILATERAL.value,
    )
    kind, _, value = str(stop).partition(":")
    if kind == "fixed":
        request.fixed.SetInParent()
    else:
        setattr(request, kind, float(value))
    return request


def _main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise UserError(f"expected one image file, got {len(arguments)} arguments")
    path = Path(arguments[0])
    StopRule.parse(_STOP.value)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    with open_channel(_TARGET.value, _TLS.read("target", _TARGET.value)) as channel:
        stub = CertifierStub(channel)
        try:
            model = stub.GetModel(pb.GetModelRequest(), timeout=_CONNECT_SECONDS)
            pixels = read_pixels(path, model.input_shape)
            certificate = _certify(stub, make_request(pixels))
        except grpc.RpcError as error:
            raise _failure(error) from error
    if certificate.pixels_sha256 != pixels_digest(pixels.astype(np.float32) / np.float32(255)):
        raise UserError(f"{_TARGET.value}: the certificate is about other pixels than were sent")
    _print(certificate)


def _certify(stub: CertifierStub, request: pb.CertifyRequest) -> pb.Certificate:
    if not _STREAM.value:
        return stub.Certify(request, timeout=_DEADLINE.value)
    (last,) = deque(_shown(stub.CertifyStream(request, timeout=_DEADLINE.value)), maxlen=1)
    return last


def _shown(certificates: Iterable[pb.Certificate]) -> Iterator[pb.Certificate]:
    """Passes certificates on and shows the latest on standard error."""
    with Progress(_N.value, "samples") as progress:
        for certificate in certificates:
            radius = down(certificate.radius, _DECIMALS)
            progress.show(certificate.drawn, f"{_label(certificate)}, radius {radius}")
            yield certificate


def _print(certificate: pb.Certificate) -> None:
    if _JSON.value:
        text = json_format.MessageToJson(
            certificate,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
        commandline.say(*text.splitlines())
        return
    commandline.say(
        _label(certificate),
        f"certified radius: {down(certificate.radius, _DECIMALS)} ({certificate.norm})",
        f"confidence: {confidence(certificate.alpha)}%",
        f"samples: {certificate.n0} to choose the class, {certificate.n} to bound it",
        f"certificate: {certificate.certificate_id}",
        certificate.statement,
    )


def confidence(alpha: float) -> str:
    """1 - alpha, as it is written, in per cent, rounded down; alpha must lie in (0, 1)."""
    if not 0 < alpha < 1:
        raise UserError(f"{_TARGET.value}: the certificate has alpha {alpha}, not in (0, 1)")
    share = down(1 - fractions.Fraction(repr(alpha)), 10, times=100)
    return share.rstrip("0").rstrip(".")


def _label(certificate: pb.Certificate) -> str:
    return "label: " + (str(certificate.predict) if certificate.predict >= 0 else "abstained")


def _failure(error: Any) -> UserError:
    return UserError(f"{_TARGET.value}: {error.code().name}: {error.details()}")


main = commandline.command(_main, FLAGS, "python -m serving.client", __doc__, arguments="IMAGE")


if __name__ == "__main__":
    sys.exit(main())
