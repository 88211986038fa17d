"""One meeting at a time, and auto-sync, which is always at one, makes room for whoever asks for his own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from synckit_streams.errors import ConfigError


class Turns:
    """See the module's text."""

    def __init__(self) -> None:
        self.guest_came = asyncio.Event()
        """Set while somebody but auto-sync wants a meeting, or has one."""
        self._meeting = asyncio.Lock()
        self._meets: asyncio.Task[object] | None = None
        self._guests = 0

    @asynccontextmanager
    async def turn(self, *, guest: bool) -> AsyncIterator[None]:
        """Wait for one's turn, and have it.

        Args:
            guest: Whoever is not auto-sync, which makes room for a guest, and for the guests behind him.

        Raises:
            ConfigError: he who asks is at a meeting himself.
        """
        if self._meets is not None and self._meets is asyncio.current_task():
            raise ConfigError(
                "a sync was asked for inside a sync, whose end it would wait for",
                hint="in a listener or a projection, start a task for it: asyncio.create_task(node.sync())",
            )
        self._guests += guest
        if guest:
            self.guest_came.set()
        try:
            async with self._meeting:
                self._meets = asyncio.current_task()
                try:
                    yield
                finally:
                    self._meets = None
        finally:
            self._guests -= guest
            if not self._guests:
                self.guest_came.clear()
