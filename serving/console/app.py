"""The web application: the page, the JSON endpoint and its OpenAPI document."""

import contextlib
import dataclasses
import functools
import importlib.resources
import logging
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.to_thread
import grpc
import numpy as np
import numpy.typing as npt
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from serving import certification_pb2 as pb
from serving.common.http_server import HTTP_STATUS
from serving.common.logs import FIELD
from serving.console import images, messages
from serving.console.bridge import Bridge, RefusedError
from serving.sidecar.limits import Limits
from tfmacer.common.errors import UserError
from tfmacer.version import __version__

logger = logging.getLogger(__name__)

PAGE = {
    "": ("index.html", "text/html"),
    "console.css": ("console.css", "text/css"),
    "console.js": ("console.js", "text/javascript"),
    "pad.js": ("pad.js", "text/javascript"),
    "stream.js": ("stream.js", "text/javascript"),
    "result.js": ("result.js", "text/javascript"),
    "shown.js": ("shown.js", "text/javascript"),
    "favicon.svg": ("favicon.svg", "image/svg+xml"),
}
# Images decoded at once: each may take some 50 MB.
DECODERS = 2
# Characters of a refusal: it may repeat names of fields that the caller made up.
MAX_MESSAGE = 500
# gRPC's status for each of HTTP's own errors.
_CODES = {
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.UNIMPLEMENTED,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_STREAM_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Server-sent events: `pixels` (what a file given as image became), then "
        "`certificate` at every look, each valid in its own right, and `refusal` where the call "
        "failed after the first. Data is JSON.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


def make_app(bridge: Bridge, limits: Limits, *, max_body_bytes: int) -> ASGIApp:
    """The ASGI application, to be wrapped in a `Guard`; the page shows the limits."""
    app = FastAPI(
        title="tfmacer certification",
        version=__version__,
        description="Certified answers of a smoothed image classifier.",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        responses={"default": {"model": messages.Refusal, "description": "A refusal."}},
    )
    app.state.bridge = bridge
    app.state.decoders = anyio.CapacityLimiter(DECODERS)
    app.state.limits = messages.Limits(
        **dataclasses.asdict(limits),
        max_body_bytes=max_body_bytes,
        max_image_pixels=images.MAX_PIXELS,
        image_formats=list(images.FORMATS),
    )
    app.router.routes += [_file(path, *file) for path, file in PAGE.items()]
    app.get("/v1/model", summary="What is served, and what may be asked")(model)
    app.post("/v1/predict", summary="The smoothed class")(predict)
    app.post("/v1/certify", summary="One certificate")(certify)
    app.post(
        "/v1/certify/stream",
        summary="A certificate at every look",
        response_class=StreamingResponse,
        responses=_STREAM_ANSWER,
    )(certify_stream)
    for kind in (RefusedError, UserError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _refusal)
    return app


async def model(request: Request) -> messages.Described:
    """What is served, and what may be asked."""
    served = await request.app.state.bridge.model(request)
    return messages.Described.of(served, limits=request.app.state.limits)


async def predict(request: Request, body: messages.PredictRequest) -> messages.Prediction:
    """The smoothed class, or -1 where the votes are too close to tell; no radius."""
    pixels, became = await _pixels(request, body)
    answer = await request.app.state.bridge.answer(request, "Predict", body.message(pixels))
    return messages.Prediction.of(answer, pixels=became)


async def certify(request: Request, body: messages.CertifyRequest) -> messages.Certificate:
    """One certificate, when the draws have ended."""
    pixels, became = await _pixels(request, body)
    answer = await request.app.state.bridge.answer(request, "Certify", body.message(pixels))
    return messages.Certificate.of(answer, pixels=became)


async def certify_stream(request: Request, body: messages.CertifyRequest) -> Response:
    """Certificates as server-sent events during the draws; disconnecting ends them."""
    pixels, became = await _pixels(request, body)
    stream = await request.app.state.bridge.certify_stream(request, body.message(pixels))

    async def events() -> AsyncIterator[bytes]:
        if became is not None:
            yield _event("pixels", became)
        try:
            async with contextlib.aclosing(stream):
                async for certificate in stream:
                    yield _event("certificate", messages.Certificate.of(certificate))
        except RefusedError as error:
            yield _event("refusal", _answer(request, error.code, error.message))

    return StreamingResponse(events(), media_type="text/event-stream")


async def _pixels(
    request: Request, body: messages.PredictRequest | messages.CertifyRequest
) -> tuple[pb.Pixels, messages.Pixels | None]:
    """What is to be certified, and what to show of it where the caller sent a file."""
    if body.pixels is not None:
        return body.pixels.message(), None
    served = await request.app.state.bridge.model(request)
    decoded: npt.NDArray[np.uint8] = await anyio.to_thread.run_sync(
        functools.partial(
            images.decode,
            messages.from_base64("image", body.image or ""),
            served.input_shape,
            resize=body.resize,
        ),
        limiter=request.app.state.decoders,
    )
    became = messages.Pixels.of(decoded)
    return became.message(), became


def _event(kind: str, data: BaseModel) -> bytes:
    return format_sse_event(event=kind, data_str=data.model_dump_json())


def _file(path: str, name: str, media_type: str) -> Route:
    """A part of the page, read once."""
    content = importlib.resources.files("serving.console").joinpath(name).read_bytes()

    async def answer(request: Request) -> Response:
        del request
        return Response(content, media_type=media_type)

    return Route(f"/{path}", answer, methods=["GET"])


def _refusal(request: Request, error: Exception) -> Response:
    """The answer to an error; all but the service's own refusals are logged here."""
    status, code, message = _described(error)
    answer = _answer(request, code, message)
    if not isinstance(error, RefusedError):
        logger.info("refused", extra={FIELD: answer.model_dump()})
    return JSONResponse(answer.model_dump(), status)


def _described(error: Exception) -> tuple[int, grpc.StatusCode, str]:
    """HTTP status, gRPC status and message."""
    if isinstance(error, RefusedError):
        return HTTP_STATUS.get(error.code, 500), error.code, error.message
    if isinstance(error, UserError):
        return 400, grpc.StatusCode.INVALID_ARGUMENT, str(error)
    if isinstance(error, RequestValidationError):
        complaints = "; ".join(map(_complaint, error.errors()))
        return 400, grpc.StatusCode.INVALID_ARGUMENT, complaints[:MAX_MESSAGE]
    if isinstance(error, HTTPException):
        code = _CODES.get(error.status_code, grpc.StatusCode.INVALID_ARGUMENT)
        return error.status_code, code, str(error.detail)
    return 500, grpc.StatusCode.INTERNAL, "internal error"


def _complaint(found: Any) -> str:
    """What is wrong with one field, without the value, which may be megabytes."""
    if found["type"] == "json_invalid":
        return f"the body is not JSON, at character {found['loc'][-1]}"
    if found["type"] in ("missing", "model_attributes_type") and found["loc"] == ("body",):
        return "the body must be a JSON object, its content-type application/json"
    where = ".".join(map(str, found["loc"][1:])) or "body"
    return f"{where}: {found['msg']}"


def _answer(request: Request, code: grpc.StatusCode, message: str) -> messages.Refusal:
    return messages.Refusal(code=code.name, message=message, request_id=request.state.request_id)
