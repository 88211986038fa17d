"""Answers in JSON, and what becomes of an error.

`{"error":{"code","message","hint","retryable"}}`, as the command line says errors. The code is `SK…` where the error
is one of this library's; what only HTTP knows has the kinds of go-sync-kit: `NOT_FOUND`, `METHOD_NOT_ALLOWED`,
`TOO_LARGE`, …
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from synckit_streams.errors import ConfigError, FeatureUnsupported, MissingDependency, SyncKitError, TooLarge, WireError

RETRY_AFTER_S = 1
"""What a sender is told to wait whom we could not serve just now."""

_encode = msgspec.json.Encoder(enc_hook=str).encode
_log = logging.getLogger(__name__)

_KINDS: dict[int, str] = {
    HTTPStatus.BAD_REQUEST: "INVALID",
    HTTPStatus.FORBIDDEN: "PERMISSION",
    HTTPStatus.NOT_FOUND: "NOT_FOUND",
    HTTPStatus.METHOD_NOT_ALLOWED: "METHOD_NOT_ALLOWED",
    HTTPStatus.REQUEST_TIMEOUT: "TIMEOUT",
    HTTPStatus.CONFLICT: "CONFLICT",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "TOO_LARGE",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "TOO_LARGE",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "INVALID",
    HTTPStatus.UNPROCESSABLE_ENTITY: "INVALID",
    HTTPStatus.TOO_MANY_REQUESTS: "UNAVAILABLE",
    HTTPStatus.INTERNAL_SERVER_ERROR: "INTERNAL",
    HTTPStatus.SERVICE_UNAVAILABLE: "UNAVAILABLE",
    HTTPStatus.GATEWAY_TIMEOUT: "TIMEOUT",
}
_RETRYABLE = {"INTERNAL", "TIMEOUT", "UNAVAILABLE"}


def answer(body: Any, status: int = HTTPStatus.OK, headers: Mapping[str, str] | None = None) -> Response:
    """JSON that nobody keeps: what is shown here is true for this moment."""
    return Response(_encode(body), status, {"cache-control": "no-store", **(headers or {})}, "application/json")


def problem(
    status: int, message: str, *, hint: str = "", code: str = "", more: Mapping[str, Any] | None = None
) -> Response:
    """An error.

    Args:
        status: HTTP status.
        message: What is wrong.
        hint: What the caller can do about it.
        code: Ours; "" takes the kind that belongs to the status.
        more: What stands beside it.
    """
    code = code or _KINDS.get(status, "INVALID" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "INTERNAL")
    retryable = code in _RETRYABLE or status == HTTPStatus.SERVICE_UNAVAILABLE
    headers = {"retry-after": str(RETRY_AFTER_S)} if status in (429, 503) else None
    told = {"code": code, "message": message, "hint": hint, "retryable": retryable}
    return answer({"error": told, **(more or {})}, status, headers)


def refused(error: SyncKitError, more: Mapping[str, Any] | None = None) -> Response:
    """An error of ours, with the status that fits it."""
    if isinstance(error, TooLarge):
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    elif isinstance(error, WireError):
        status = HTTPStatus.BAD_REQUEST
    elif isinstance(error, MissingDependency | FeatureUnsupported):
        status = HTTPStatus.NOT_IMPLEMENTED
    elif error.retryable:
        status = HTTPStatus.SERVICE_UNAVAILABLE
    else:
        status = HTTPStatus.CONFLICT if isinstance(error, ConfigError) else HTTPStatus.INTERNAL_SERVER_ERROR
    return problem(status, error.message, hint=error.hint, code=error.code, more=more)


class AnsweredBy(Response):
    """The answer of another ASGI application.

    Args:
        app: It.
    """

    def __init__(self, app: ASGIApp) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        await self._app(scope, receive, send)


async def of_http(request: Request, error: Exception) -> Response:
    """For starlette: no route, or not by this method."""
    assert isinstance(error, HTTPException)
    message = {404: f"there is nothing at {request.url.path}", 405: f"not by {request.method}"}
    found = problem(error.status_code, message.get(error.status_code, error.detail))
    found.headers.update(error.headers or {})
    return found


async def of_ours(request: Request, error: Exception) -> Response:
    """For starlette: what a callable of ours raised."""
    assert isinstance(error, SyncKitError)
    _log.warning("%s %s: %s", request.method, request.url.path, error)
    return refused(error)


class Guarded:
    """An application whose every failure is an answer, and in the log.

    Starlette's own last resort answers, and raises again for a server that would log it a second time.

    Args:
        app: The application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        begun = False

        async def noting(message: Any) -> None:
            nonlocal begun
            begun = begun or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            _log.exception("%s %s failed", scope.get("method"), scope.get("path"))
            if begun:
                raise  # half an answer is on its way: cutting the connection is all that can still be said
            said = problem(HTTPStatus.INTERNAL_SERVER_ERROR, "it failed; the server's log says why")
            await said(scope, receive, send)
