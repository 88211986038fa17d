"""Keeps a node in sync by itself: one sync at a time, live between them, with backoff while offline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from synckit_streams.errors import SyncKitError, Timeout, Unavailable
from synckit_streams.runtime.driver import logger
from synckit_streams.runtime.result import SyncResult
from synckit_streams.sync.pace import next_delay_ms

BACKOFF_BASE_MS = 500
BACKOFF_MS_MAX = 60_000
WAKE_LEAST_S = 1.0
"""However fast somebody writes while offline, the broker is tried no more often than this."""
CUT_S = 0.5
"""How long a meeting that nobody waits for any more may take to let go."""

Meet = Callable[[asyncio.Event], Awaitable[SyncResult]]
"""One meeting, and then live until the event is set or the interval is over; the result is of the meeting."""


class AutoSync:
    """The task behind `start_auto_sync`.

    Args:
        meet: Does one round.
        dice: A draw from [0, 1).
    """

    def __init__(self, meet: Meet, dice: Callable[[], float]) -> None:
        self._meet = meet
        self._dice = dice
        self._stop = asyncio.Event()
        self._wake = asyncio.Event()
        self._failures = 0
        self._task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begin."""
        self._stop.clear()
        self._task = asyncio.create_task(self._run(), name="synckit-auto-sync")

    def met(self) -> None:
        """A meeting succeeded; what happens to the connection afterwards is another matter."""
        self._failures = 0

    def wake(self) -> None:
        """Something was written here: do not sleep through it."""
        self._wake.set()

    async def stop(self) -> None:
        """End the round that is running, and wait for it; a listener, who is part of the round, does not wait."""
        if self._task is None:
            return
        self._stop.set()
        self._wake.set()
        task, self._task = self._task, None
        if task is asyncio.current_task():
            return
        try:
            # However it ended: whoever stops it has more to do.
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task], timeout=CUT_S)
            raise

    async def _run(self) -> None:
        while not self._stop.is_set():
            # Cleared before the try and not before the sleep: what is written while the try fails is worth another one.
            self._wake.clear()
            try:
                await self._meet(self._stop)
            except Exception as error:  # noqa: BLE001 - whatever it was, the next meeting may go well
                self._failures += 1
                delay_ms = next_delay_ms(
                    self._failures, base_ms=BACKOFF_BASE_MS, delay_ms_max=BACKOFF_MS_MAX, dice=self._dice()
                )
                if isinstance(error, Unavailable | Timeout):  # being offline is normal
                    logger.info("offline (%s); the next try is in %.1f s", error, delay_ms / 1000)
                elif isinstance(error, SyncKitError):  # somebody has to do something about it
                    logger.warning("a sync failed (%s); the next try is in %.1f s", error, delay_ms / 1000)
                else:  # a defect, of ours or of a connector
                    logger.exception("a sync failed; the next try is in %.1f s", delay_ms / 1000)
                await self._sleep(delay_ms / 1000)

    async def _sleep(self, seconds: float) -> None:
        if self._stop.is_set():
            return
        least = min(seconds, WAKE_LEAST_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(least):
                await self._stop.wait()
                return
        with suppress(TimeoutError):
            async with asyncio.timeout(max(seconds - least, 0)):
                await self._wake.wait()
