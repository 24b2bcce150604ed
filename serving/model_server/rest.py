"""The REST paths of TensorFlow Serving: predict, status, metadata, metrics."""

import json
import re
import zlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import anyio
import anyio.to_thread
import grpc
import tensorflow as tf
from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
)

from serving.common.http_server import HTTP_STATUS, MAX_BODY_BYTES
from serving.model_server.json_requests import parse_request
from serving.model_server.json_responses import format_response
from serving.model_server.servable import DEFAULT_SIGNATURE
from serving.model_server.services import SIGNATURE_DEF, Calls
from serving.model_server.status import StatusError, invalid
from tfmacer.common.text import cut

# Larger bodies are read two at a time at most: their values take many times their size.
LARGE_BODY_BYTES = 2**20
LARGE_BODIES = 2
_VERSION = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_POST = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){_VERSION}:(?P<method>classify|regress|predict)", re.IGNORECASE
)
_GET = re.compile(rf"/v1/models(?:/(?P<name>[^/:]+))?{_VERSION}(?P<metadata>/metadata)?", re.I)


def make_app(calls: Calls, *, timeout_ms: int, metrics_path: str | None) -> Starlette:
    """The ASGI application; one run of a graph may take `timeout_ms`."""
    large = anyio.CapacityLimiter(LARGE_BODIES)

    async def metrics(request: Request) -> Response:
        del request
        return Response(calls.metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(request: Request) -> Response:
        body, encoding = await request.body(), request.headers.get("content-encoding", "")
        path = request.scope["raw_path"].decode("ascii", errors="replace")

        def answer() -> tuple[int, str]:
            return _process(calls, timeout_ms, request.method, path, _inflated(body, encoding))

        status, text = await anyio.to_thread.run_sync(
            answer, limiter=large if _is_large(body, encoding) else None
        )
        return Response(text, status, media_type="application/json")

    routes = [Route("/{path:path}", models, methods=["GET", "POST", "PUT", "DELETE", "PATCH"])]
    if metrics_path is not None:
        routes.insert(0, Route(metrics_path, metrics))
    handlers = {HTTPException: _http_error, ClientDisconnect: _gone}
    return Starlette(routes=routes, exception_handlers=handlers)


def _is_large(body: bytes, encoding: str) -> bool:
    """Whether a body, inflated where it is compressed, has more than `LARGE_BODY_BYTES`."""
    if len(body) > LARGE_BODY_BYTES or not encoding:
        return len(body) > LARGE_BODY_BYTES
    try:
        begun = zlib.decompressobj(wbits=31).decompress(body, LARGE_BODY_BYTES + 1)
    except zlib.error:  # which `_inflated` says
        return False
    return len(begun) > LARGE_BODY_BYTES


def _inflated(body: bytes, encoding: str) -> bytes:
    """The body as it was before it was compressed.

    Raises:
      HTTPException: an unknown encoding, bytes that are not of it, or too many of them.
    """
    if encoding.lower() in ("", "identity"):
        return body
    if encoding.lower() not in ("gzip", "x-gzip"):
        raise HTTPException(415, f"Content-Encoding {cut(encoding)} is not supported, only gzip")
    inflater = zlib.decompressobj(wbits=31)
    try:
        inflated = inflater.decompress(body, MAX_BODY_BYTES)
    except zlib.error as error:
        raise HTTPException(400, "the body is not gzip") from error
    if inflater.unconsumed_tail:
        raise HTTPException(413, f"the body is larger than {MAX_BODY_BYTES} bytes")
    if not inflater.eof:
        raise HTTPException(400, "the body is not gzip: it ends too early")
    if inflater.unused_data:
        raise HTTPException(400, "the body is not one gzip member: something follows its end")
    return inflated


def refusal(code: grpc.StatusCode, reason: str, request_id: str) -> dict[str, str]:
    """What the guard refuses, as TensorFlow Serving writes its errors."""
    del code, request_id
    return {"error": reason}


async def _http_error(request: Request, error: Exception) -> Response:
    """A body that is too long or too slow, a method that is none of the metrics' own."""
    del request
    assert isinstance(error, HTTPException)
    return Response(_error(error.detail), error.status_code, media_type="application/json")


async def _gone(request: Request, error: Exception) -> Response:
    """Never sent: the caller has closed the connection."""
    del request, error
    return Response(status_code=HTTP_STATUS[grpc.StatusCode.CANCELLED])


def _process(calls: Calls, timeout_ms: int, method: str, path: str, body: bytes) -> tuple[int, str]:
    if not path.lower().startswith("/v1/"):
        return 404, ""
    try:
        post, get = _POST.fullmatch(path), _GET.fullmatch(path)
        if method == "POST" and post:
            return 200, _post(calls, timeout_ms, post, body)
        if method == "GET" and get:
            return 200, _get(calls, get)
        raise invalid(f"Malformed request: {method} {cut(path)}")
    except StatusError as error:
        return HTTP_STATUS.get(error.code, 500), _error(error.message)


def _post(calls: Calls, timeout_ms: int, match: re.Match[str], body: bytes) -> str:
    if match["method"].lower() != "predict":
        raise StatusError(
            grpc.StatusCode.UNIMPLEMENTED, f"{match['method']} is not supported, only predict"
        )
    spec = _model_spec(match)
    with calls.measured(spec.name, "Predict", "REST"):
        return _predict(calls, timeout_ms, spec, body)


def _predict(calls: Calls, timeout_ms: int, spec: Any, body: bytes) -> str:
    def inputs_of(signature_name: str) -> Mapping[str, Any]:
        with calls.registry.use(spec) as (_, servable):
            name = signature_name or DEFAULT_SIGNATURE
            if name not in servable.signature_defs:
                raise invalid(f'Serving signature name: "{cut(name)}" not found in signature def')
            return dict(servable.signature_defs[name].inputs)

    signature, inputs, rows = parse_request(body, inputs_of)
    request = predict_pb2.PredictRequest(model_spec=spec, inputs=inputs)
    request.model_spec.signature_name = signature
    response = calls.predict(request, timeout_ms=timeout_ms)
    outputs = {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}
    return format_response(outputs, rows=rows)


def _get(calls: Calls, match: re.Match[str]) -> str:
    if not match["name"]:
        raise invalid("Missing model name in request.")
    spec = _model_spec(match)
    if match["metadata"]:
        message = calls.metadata(
            get_model_metadata_pb2.GetModelMetadataRequest(
                model_spec=spec, metadata_field=[SIGNATURE_DEF]
            )
        )
    else:
        message = calls.status(get_model_status_pb2.GetModelStatusRequest(model_spec=spec))
    return json_format.MessageToJson(
        message,
        indent=1,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )


def _model_spec(match: re.Match[str]) -> Any:
    spec = model_pb2.ModelSpec(name=unquote(match["name"]))
    if match["version"]:
        digits = match["version"].lstrip("0") or "0"  # Python reads no more than some thousand
        if len(digits) > 19 or (version := int(digits)) >= 2**63:
            raise invalid(f"Failed to convert version: {cut(match['version'])} to numeric.")
        spec.version.value = version
    if match["label"]:
        spec.version_label = unquote(match["label"])
    return spec


def _error(text: str) -> str:
    return json.dumps({"error": text}, indent=4)
