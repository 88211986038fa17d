"""`POST /hooks/{name}`: what others send to us. It is answered when it is durably kept, and not before.

Senders try again for as long as they get no 2xx, and whoever takes the webhook knows what came before. So whatever is
not certain is answered with 503, and sent again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from synckit_streams.errors import SyncKitError
from synckit_streams.http.answers import problem, refused
from synckit_streams.ports.operation import Webhook

BODY_BYTES_MAX = 1024**2
"""Largest body of a webhook."""
HEADERS_MAX = 100
"""Most header lines of a webhook."""
BODY_S_MAX = 30.0
"""How long a sender may take for the body."""
KEPT_S_MAX = 30.0
"""How long keeping it may take, before the sender is told to come again."""
AT_ONCE_MAX = 64
"""Webhooks that are taken at the same time; with the largest body it bounds the memory that they need."""

_log = logging.getLogger(__name__)


def hook_routes(hooks: Mapping[str, Webhook], *, body_bytes_max: int = BODY_BYTES_MAX) -> list[BaseRoute]:
    """The route.

    Args:
        hooks: By name. It is looked into at each request, so it may change.
        body_bytes_max: Largest body.
    """
    return [Route("/hooks/{name}", _Taking(hooks, body_bytes_max).take, methods=["POST"])]


class _Taking:
    """Takes one webhook after another, and a bounded number at a time."""

    def __init__(self, hooks: Mapping[str, Webhook], body_bytes_max: int) -> None:
        self._hooks = hooks
        self._body_bytes_max = body_bytes_max
        self._under_way = 0

    async def take(self, request: Request) -> Response:
        name = request.path_params["name"]
        hook = self._hooks.get(name)
        if hook is None:
            return problem(HTTPStatus.NOT_FOUND, f"there is no webhook {name!r}")
        if self._under_way >= AT_ONCE_MAX:
            return problem(HTTPStatus.SERVICE_UNAVAILABLE, f"{AT_ONCE_MAX} webhooks are being taken just now")
        self._under_way += 1
        try:
            headers = self._headers(request)
            return await _kept(hook, name, headers, await self._body(request))
        except HTTPException as error:
            return problem(error.status_code, error.detail)
        finally:
            self._under_way -= 1

    def _headers(self, request: Request) -> Mapping[str, str]:
        if len(request.headers) > HEADERS_MAX:
            raise HTTPException(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {HEADERS_MAX} header lines")
        headers: dict[str, str] = {}
        for name, value in request.headers.items():
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            # Whoever checks a signature needs the bytes as they were signed, and nobody wants to unpack a bomb.
            raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"unsupported content encoding: {encoding}")
        return headers

    async def _body(self, request: Request) -> bytes:
        most = self._body_bytes_max
        too_large = HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {most:,} bytes")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_S_MAX):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise too_large
        except TimeoutError:
            raise HTTPException(HTTPStatus.REQUEST_TIMEOUT, f"no whole body within {BODY_S_MAX:g} s") from None
        except ClientDisconnect:
            raise HTTPException(HTTPStatus.BAD_REQUEST, "the sender went away before its body was whole") from None
        return bytes(body)


async def _kept(hook: Webhook, name: str, headers: Mapping[str, str], body: bytes) -> Response:
    try:
        async with asyncio.timeout(KEPT_S_MAX):
            hooked = await hook(headers, body)
    except TimeoutError:
        _log.warning("webhook %s: not kept within %g s; its sender is told to come again", name, KEPT_S_MAX)
        return problem(HTTPStatus.SERVICE_UNAVAILABLE, f"not kept within {KEPT_S_MAX:g} s", hint="send it again")
    except SyncKitError as error:
        _log.warning("webhook %s: %s", name, error)
        return refused(error)
    if hooked.status >= HTTPStatus.BAD_REQUEST:
        return problem(hooked.status, hooked.text or "refused")
    if hooked.status == HTTPStatus.NO_CONTENT or not hooked.text:
        return Response(status_code=hooked.status)
    return PlainTextResponse(hooked.text, hooked.status)
