"""What every signature refuses, in each of the ways in which an export is asked."""

import base64
import io
import json
import re
import struct
import zlib

import grpc
import numpy as np
import portpicker
import pytest
import requests
import tensorflow as tf
from PIL import Image
from small_exports import (
    IMAGES,
    REQUESTS,
    ROWS,
    small_network,
    small_smoothing,
)
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from export.signatures import MAX_PROBES, SmoothedClassifier
from serving.common import grpc_server
from serving.common.http_server import HttpServer
from serving.console.images import decode
from serving.model_server import rest
from serving.model_server.configuration import single_model
from serving.model_server.metrics import Metrics
from serving.model_server.registry import Registry
from serving.model_server.servable import Servable, Threads
from serving.model_server.services import Calls, PredictionService
from serving.model_server.status import StatusError
from serving.model_server.versions import LoadPolicy


def picture(form: str, height: int = 8, width: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (width, height)).save(buffer, form)
    return buffer.getvalue()


def _head_of_png(height: int, width: int) -> bytes:
    """What says how large it is, without a pixel: nobody could decode it."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(head)) + b"IHDR" + head + check


def _encoded(*pictures: bytes):
    return np.array(pictures, object)


def _with(value, where=(1, 2, 3, 0)):
    images = IMAGES.copy()
    images[where] = value
    return images


IMAGE_FAULTS = {
    "without its batch dimension": (IMAGES[0], r"\[8,8,1\].* \[\?,8,8,1\]"),
    "with a dimension too many": (IMAGES[..., np.newaxis], r"\[3,8,8,1,1\].* \[\?,8,8,1\]"),
    "one pixel": (np.full((3, 1, 1, 1), 0.5, np.float32), r"\[3,1,1,1\].* \[\?,8,8,1\]"),
    "other channels": (np.zeros((3, 8, 8, 3), np.float32), r"\[3,8,8,3\].* \[\?,8,8,1\]"),
    "flat": (IMAGES.reshape(3, 64), r"\[3,64\].* \[\?,8,8,1\]"),
    "a number": (np.float32(0.5), r"\[\].* \[\?,8,8,1\]"),
    "NaN": (_with(np.nan), "images.* must be finite"),
    "infinite": (_with(np.inf), "images.* must be finite"),
    "minus infinite": (_with(-np.inf), "images.* must be finite"),
}
NOT_A_PICTURE = "encoded_images must be PNG or JPEG of 8 x 8 pixels"
OTHER_FAULTS = [
    ("sample_under_noise", "seeds", ROWS["seeds"][:, :1], r"\[3,1\].* \[\?,2\]"),
    ("sample_under_noise", "seeds", ROWS["seeds"].ravel(), r"\[6\].* \[\?,2\]"),
    ("sample_under_noise", "seeds", ROWS["seeds"][:2], "seeds must have as many rows as images"),
    ("sample_under_noise", "offsets", ROWS["offsets"][:, np.newaxis], r"\[3,1\].* \[\?\]"),
    ("sample_under_noise", "offsets", np.int32(0), r"\[\].* \[\?\]"),
    ("sample_under_noise", "num_samples", np.ones((3, 2), np.int32), r"\[3,2\].* \[\?\]"),
    ("sample_under_noise", "beta", np.ones((3, 1), np.float32), r"\[3,1\].* \[\?\]"),
    ("sample_under_noise", "beta", np.float32([1, np.nan, 1]), "beta must be finite"),
    ("sample_under_noise", "beta", np.float32([1, np.inf, 1]), "beta must be finite"),
    ("tfmacer_info", "probe", np.zeros((2, 2), np.int32), r"\[2,2\].* \[\?\]"),
    ("tfmacer_info", "probe", np.zeros(MAX_PROBES + 1, np.int32), "probe must have at most 1024"),
    ("encoded", "encoded_images", _encoded(picture("PNG"))[np.newaxis], r"\[1,1\].* \[\?\]"),
    ("encoded", "encoded_images", _encoded(picture("PNG", 8, 9)), NOT_A_PICTURE),
    ("encoded", "encoded_images", _encoded(picture("PNG"), picture("PNG", 1, 1)), NOT_A_PICTURE),
    ("encoded", "encoded_images", _encoded(picture("JPEG", 9, 8)), NOT_A_PICTURE),
    ("encoded", "encoded_images", _encoded(picture("GIF")), NOT_A_PICTURE),
    ("encoded", "encoded_images", _encoded(b""), NOT_A_PICTURE),
    ("encoded", "encoded_images", _encoded(b"\x89PNG\r\n\x1a\n"), NOT_A_PICTURE),
    ("encoded", "encoded_images", _encoded(b"\xff\xd8\xff\xe0"), "JPEG"),
    # By its header alone: 400 MB would be decoded otherwise.
    ("encoded", "encoded_images", _encoded(_head_of_png(20_000, 20_000)), NOT_A_PICTURE),
    ("encoded", "encoded_images", _encoded(_head_of_png(2**32 - 1, 8)), NOT_A_PICTURE),
    ("encoded", "encoded_images", _encoded(_head_of_png(8, 8)), "PNG"),
]
# A request to every signature that is answered.
SOUND = REQUESTS | {"sample_under_noise": ROWS}
FAULTS = [
    (signature, "images", value, text)
    for signature in ("serving_default", "logits", "sample_under_noise")
    for value, text in IMAGE_FAULTS.values()
] + OTHER_FAULTS


@pytest.fixture(scope="module")
def base(small_export):
    return small_export.parent


@pytest.fixture(scope="module")
def eagerly(base):
    """Asks through `tf.saved_model.load`."""
    model = tf.saved_model.load(str(base / "1"))

    def ask(signature, inputs):
        tensors = {name: tf.constant(values) for name, values in inputs.items()}
        try:
            return {k: v.numpy() for k, v in model.signatures[signature](**tensors).items()}
        except tf.errors.InvalidArgumentError as error:
            return f"INVALID_ARGUMENT: {error.message}"

    return ask


@pytest.fixture(scope="module")
def in_a_session(base):
    """Asks a v1 Session, the runtime of TensorFlow Serving."""
    servable = Servable(base / "1", Threads(1, 2))

    def ask(signature, inputs):
        protos = {name: tf.make_tensor_proto(values) for name, values in inputs.items()}
        try:
            return servable.predict(signature, protos)
        except StatusError as error:
            return f"{error.code.name}: {error.message}"

    yield ask
    servable.close()


@pytest.fixture(scope="module")
def calls(base):
    policy = LoadPolicy(lambda path: Servable(path, Threads(1, 2)), 0, 0.0)
    registry = Registry(policy, poll_seconds=0)
    registry.configure(single_model("m", str(base)))
    yield Calls(registry, Metrics())
    registry.stop()


@pytest.fixture(scope="module")
def over_grpc(calls):
    server = grpc_server.make_server(threads=2, max_concurrent_rpcs=4, max_message_bytes=2**24)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(calls), server
    )
    port = portpicker.pick_unused_port()
    grpc_server.bind(server, f"127.0.0.1:{port}", "port")
    server.start()

    def ask(signature, inputs):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "m"
        request.model_spec.signature_name = signature
        for name, values in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
        try:
            answer = stub.Predict(request, timeout=60)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
        return {name: tf.make_ndarray(proto) for name, proto in answer.outputs.items()}

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        yield ask
    server.stop(0).wait()


@pytest.fixture(scope="module")
def over_rest(calls):
    port = portpicker.pick_unused_port()
    app = rest.make_app(calls, timeout_ms=60_000, metrics_path=None)
    server = HttpServer(app, "127.0.0.1", port, "rest_api_port")
    server.start()

    def ask(signature, inputs):
        columns = {name: _json(values) for name, values in inputs.items()}
        url = f"http://127.0.0.1:{port}/v1/models/m:predict"
        body = {"signature_name": signature, "inputs": columns}
        answer = requests.post(url, data=json.dumps(body), timeout=60)
        if answer.status_code == 200:
            outputs = answer.json()["outputs"]
            return outputs if isinstance(outputs, dict) else {"outputs": outputs}
        code = {400: "INVALID_ARGUMENT"}[answer.status_code]
        return f"{code}: {answer.json()['error']}"

    yield ask
    server.stop(1)


def _json(values):
    values = np.asarray(values)
    if values.dtype == object:
        encode = np.frompyfunc(lambda each: {"b64": base64.b64encode(each).decode()}, 1, 1)
        values = encode(values)
    return values.tolist()


WAYS = ["eagerly", "in_a_session", "over_grpc", "over_rest"]


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_what_it_should_be_is_refused(way, request) -> None:
    ask = request.getfixturevalue(way)
    for signature, alias, value, text in FAULTS:
        answer = ask(signature, SOUND[signature] | {alias: value})
        assert isinstance(answer, str), (signature, alias, np.shape(value), text)
        assert answer.startswith("INVALID_ARGUMENT: "), (signature, text, answer)
        assert re.search(text, answer, re.DOTALL), (signature, text, answer)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_sound_is_answered(way, request) -> None:
    ask = request.getfixturevalue(way)
    for signature, inputs in SOUND.items():
        assert isinstance(ask(signature, inputs), dict), signature
    pictures = _encoded(picture("JPEG"), picture("PNG"), picture("PNG"))
    assert isinstance(ask("encoded", {"encoded_images": pictures}), dict)
    # A certificate speaks of pixels outside [0, 1] too.
    assert isinstance(ask("logits", {"images": IMAGES * 3 - 1}), dict)
    assert isinstance(ask("tfmacer_info", {"probe": np.zeros(MAX_PROBES, np.int32)}), dict)


class _Decoding(SmoothedClassifier):
    """Answers with what it decoded."""

    def serving_default(self, images):
        return {"images": images}


def _pictures(height, width):
    """Files of every kind that PNG knows with less than full opacity, and some without."""
    rng = np.random.default_rng(0)
    pixels = Image.fromarray(rng.integers(0, 256, (height, width, 4), np.uint8), "RGBA")
    pixels.putpixel((0, 0), (255, 255, 255, 0))
    palette = pixels.convert("RGB").quantize(8)
    for form, image, options in (
        ("PNG", pixels, {}),
        ("PNG", pixels.convert("LA"), {}),
        ("PNG", pixels.convert("RGB"), {}),
        ("PNG", palette, {"transparency": 3}),
        ("PNG", pixels.convert("L"), {"transparency": 255}),
        ("JPEG", Image.new("L", (width, height), 200), {}),
    ):
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        yield buffer.getvalue()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_are_what_the_console_makes_of_them(channels):
    """Transparent parts too; but for rounding, and the weights of colours in grey."""
    shape = (8, 6, channels)
    module = _Decoding(small_network(), small_smoothing(shape), 1)
    files = list(_pictures(*shape[:2]))[: 5 if channels == 4 else None]
    found = tf.function(module.encoded)(tf.constant(files))["images"]
    expected = np.stack([decode(file, shape, resize=False) for file in files]) / 255
    np.testing.assert_allclose(found, expected, atol=2.5 / 255)
    if channels != 4:
        assert (found[0, 0, 0] == 0).numpy().all()
