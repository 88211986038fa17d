"""A receiver of webhooks: a real HTTP server that answers as a test tells it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Answer = tuple[int, dict[str, str]]


class Receiver:
    """Keeps what it answered with 2xx; `answer` says how, for a batch of events."""

    def __init__(self) -> None:
        self.url = ""
        self.taken: list[dict[str, Any]] = []
        self.batches: list[list[dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.hangs = 0
        """So many batches are not answered."""
        self.answer: Callable[[list[dict[str, Any]]], Answer] = lambda batch: (204, {})

    async def take(self, request: web.Request) -> web.Response:
        """One batch."""
        batch = json.loads(await request.text())
        self.batches.append(batch)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.hangs:
            self.hangs -= 1
            await asyncio.Event().wait()
        status, headers = self.answer(batch)
        if 200 <= status < 300:
            self.taken += batch
        return web.Response(status=status, headers=headers, text="" if status < 300 else f"this is {status}")


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """A receiver that runs."""
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/take", receiver.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        receiver.url = f"http://127.0.0.1:{port}/take"
        yield receiver
    finally:
        await runner.cleanup()
