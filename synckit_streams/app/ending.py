"""How an app ends in time: one deadline over everything, so that whoever supervises it need not kill it.

First what has begun is finished, for as long as was given to drain. What then remains is cut off, and the rest (hooks,
the lifespan, sending what is unsent) shares a few seconds more. Whatever is left undone is said, and nothing is lost:
it is in the log, and is done at the next start.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

from synckit_streams.runtime.group import Group

logger = logging.getLogger("synckit_streams")

DEAF_S = 1.0
"""How long what was cut off may take to see it."""
SEND_S = 3.0
"""How long hooks and sending may take beyond the time to drain. With `DEAF_S`, and a second to close what is open, it
is what a supervisor gives."""


class Ending:
    """See the module's text; it begins when it is made.

    Args:
        name: Of the app.
        drain_s: How long what has begun may take to finish.
    """

    def __init__(self, name: str, drain_s: float) -> None:
        self._name = name
        self._drain_s = drain_s
        self._until = asyncio.get_running_loop().time() + drain_s + DEAF_S + SEND_S

    async def finish(self, tasks: Collection[asyncio.Task[None]], groups: Sequence[Group]) -> None:
        """Wait for what works, cut it off when its time is over, and tell what is left."""
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=self._drain_s)
            for task in late:
                logger.warning("%s: %s is cut off after %g s", self._name, task.get_name(), self._drain_s)
                task.cancel()
            _, deaf = await asyncio.wait(tasks, timeout=DEAF_S)
            if deaf:
                logger.error("%s: %d tasks do not end; a handler swallows CancelledError", self._name, len(deaf))
        for group in groups:
            if group.pending or group.parked:
                logger.info(
                    "%s: group %s leaves %d events for its next start, and %d aggregates that wait for another attempt",
                    self._name,
                    group.name,
                    group.pending,
                    group.parked,
                )

    async def in_time(self, what: str, work: Awaitable[Any]) -> None:
        """Do this too, as far as there is time."""
        try:
            async with asyncio.timeout_at(self._until):
                await work
        except TimeoutError:
            if asyncio.get_running_loop().time() < self._until:
                raise  # its own
            logger.warning("%s: %s did not end in time, and is cut off", self._name, what)


@asynccontextmanager
async def told_to_end() -> AsyncIterator[asyncio.Event]:
    """An event that Ctrl-C and SIGTERM set."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    try:
        yield stopped
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
