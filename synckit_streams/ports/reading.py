"""For connectors: waiting at a broker, so that whoever gives up waiting takes nothing away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

STOP_S = 0.05
"""For how long a task that was cancelled may go on before it is cancelled again."""

T = TypeVar("T")


class Reading:
    """Something that waits at a broker, piece by piece. One caller at a time."""

    def __init__(self) -> None:
        self.ended = False
        self._waiting: asyncio.Task[Any] | None = None

    async def wait_for(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T | None:
        """What the work gives; whoever is cancelled over it finds it at the next call. None once this has ended."""
        if self.ended:
            return None
        if self._waiting is None:
            self._waiting = asyncio.create_task(work())
        task = self._waiting
        await asyncio.wait([task])  # not cancelled with us
        if self._waiting is task:
            self._waiting = None
        if self.ended or task.cancelled():
            return None
        result: T = task.result()
        return result

    async def end(self) -> None:
        """Whoever waits comes to the end, and so does the work."""
        self.ended = True
        task, self._waiting = self._waiting, None
        if task is not None:
            await stop(task)
        await self.disconnect()

    async def disconnect(self) -> None:
        """Let go of whatever connection there is."""


async def end_all(readings: Iterable[Reading]) -> None:
    """End some at once: none of them notices first what ends the others, and none waits for another's farewell."""
    ending = list(readings)
    for each in ending:
        each.ended = True
    await asyncio.gather(*(each.end() for each in ending))


async def stop(task: asyncio.Task[Any]) -> None:
    """Cancel a task, as often as it takes: some drivers take a cancellation for a time-out of their own, and go on."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=STOP_S)
    if not task.cancelled():
        task.exception()  # nobody waits for it any more
