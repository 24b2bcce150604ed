"""Checks every HTTP request before the application sees it, and adds security headers to answers.

Any web page can make a browser on this machine send requests here. Two checks refuse those: the
Host header must name this server (which stops DNS rebinding: a foreign name that resolves to this
address), and a request with an Origin header must come from this server's own page. Numeric
addresses cannot be rebound and are accepted as hosts: scrapes and probes use the address of a pod.
"""

import asyncio
import ipaddress
import logging
import re
import time
from collections.abc import Callable, Collection

import grpc
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.common.logs import FIELD, REQUEST_ID, safe_request_id

logger = logging.getLogger(__name__)

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
HEADERS = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'; require-trusted-types-for 'script'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
# Seconds that a request's body may take to arrive.
BODY_SECONDS = 30.0
_LENGTH = re.compile(r"[0-9]{1,18}")
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?")


# The JSON body of a refusal, from its code, its reason and the request's id.
Refusal = Callable[[grpc.StatusCode, str, str], dict[str, str]]


def described(code: grpc.StatusCode, reason: str, request_id: str) -> dict[str, str]:
    """A refusal as the console's JSON endpoint has it."""
    return {"code": code.name, "message": reason, "request_id": request_id}


class Guard:
    """ASGI middleware, the outermost of all."""

    def __init__(
        self,
        app: ASGIApp,
        names: Collection[str],
        max_body_bytes: int,
        refusal: Refusal = described,
    ) -> None:
        """Lets requests to these host names, or to any IP address, through to the application."""
        self._described = refusal
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._names = {name.lower() for name in names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = safe_request_id(headers.get(REQUEST_ID))
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in {**HEADERS, REQUEST_ID: request_id}.items():
                    answer[name] = value
            await send(message)

        refusal = self._refusal(headers, scope["scheme"])
        if refusal is None:
            bounded = _bounded(receive, self._max_body_bytes)
            await self._app(scope, bounded, send_guarded)
            return
        status, code, reason = refusal
        logger.info("refused: %s", reason, extra={FIELD: {"request_id": request_id}})
        answer = self._described(code, reason, request_id)
        await JSONResponse(answer, status)(scope, receive, send_guarded)

    def _refusal(self, headers: Headers, scheme: str) -> tuple[int, grpc.StatusCode, str] | None:
        """Why the request must not be answered; None where it may."""
        host = headers.get("host", "").lower()
        match = _HOST.fullmatch(host)
        if match is None or not (match["name"] in self._names or _is_address(match["name"])):
            reason = "the Host header names no host of this server; its operator sets --http_hosts"
            return 403, grpc.StatusCode.PERMISSION_DENIED, reason
        if any(origin.lower() != f"{scheme}://{host}" for origin in headers.getlist("origin")):
            reason = "the request comes from a page of another origin"
            return 403, grpc.StatusCode.PERMISSION_DENIED, reason
        length = headers.get("content-length", "0")
        if not _LENGTH.fullmatch(length) or int(length) > self._max_body_bytes:
            reason = f"the body is larger than {self._max_body_bytes} bytes"
            return 413, grpc.StatusCode.RESOURCE_EXHAUSTED, reason
        return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _bounded(receive: Receive, max_bytes: int) -> Receive:
    """Refuses a body that does not arrive in time, or that is too large."""
    deadline = time.monotonic() + BODY_SECONDS
    size = 0
    arrived = False

    async def receive_bounded() -> Message:
        nonlocal size, arrived
        if arrived:
            return await receive()
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                message = await receive()
        except TimeoutError as error:
            raise HTTPException(408, "the body did not arrive in time") from error
        size += len(message.get("body", b""))
        if size > max_bytes:
            raise HTTPException(413, f"the body is larger than {max_bytes} bytes")
        arrived = not message.get("more_body", False)
        return message

    return receive_bounded
