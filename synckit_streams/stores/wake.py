"""Telling readers, on whatever event loop, that the log has grown."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from threading import Lock


class Bell:
    """Rung by the writer's thread, heard on any event loop; several rings before one looks are one."""

    def __init__(self) -> None:
        self._ears: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._lock = Lock()
        self._closed = False

    def ring(self) -> None:
        """Wake everybody."""
        with self._lock:
            ears = list(self._ears.items())
        for event, loop in ears:
            with suppress(RuntimeError):  # the listener's loop is closed: nobody listens there any more
                loop.call_soon_threadsafe(event.set)

    def close(self) -> None:
        """Let every listener end."""
        self._closed = True
        self.ring()

    async def listen(self) -> AsyncIterator[None]:
        """Yields once for each time somebody rang since the last look."""
        event = asyncio.Event()
        with self._lock:
            self._ears[event] = asyncio.get_running_loop()
        try:
            while not self._closed:
                await event.wait()
                event.clear()
                if not self._closed:
                    yield
        finally:
            with self._lock:
                self._ears.pop(event, None)
