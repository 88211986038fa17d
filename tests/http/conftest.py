"""A client that talks to the operations of something, over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
import pytest

from synckit_streams.http.operations import operations
from synckit_streams.http.serving import serve
from synckit_streams.observe.health import Health


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Any
    body: bytes
    json: Any

    @property
    def error(self) -> dict[str, Any]:
        """What went wrong."""
        found: dict[str, Any] = self.json["error"]
        return found


class Client:
    """Asks by method and path."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url

    async def __call__(self, method: str, path: str, **more: Any) -> Answer:
        async with self._session.request(method, self.url + path, **more) as response:
            body = await response.read()
            json = await response.json() if response.content_type == "application/json" else None
            return Answer(response.status, response.headers, body, json)


Served = Callable[..., AbstractAsyncContextManager[Client]]


@asynccontextmanager
async def _served(**shown: Any) -> AsyncIterator[Client]:
    health = Health(dict)
    health.phase = "running"
    async with (
        serve(operations(shown.pop("health", health), **shown)) as url,
        aiohttp.ClientSession() as session,
    ):
        yield Client(session, url)


@pytest.fixture
def served() -> Served:
    """`async with served(hooks=…) as ask: await ask("POST", "/hooks/shop")`."""
    return _served
