"""The life of a service in its process: start, work until told to end or until it fails, drain, close."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from synckit_streams.ports.operation import Service

OK = 0
FAILED = 1
WRONG = 2
"""Of a setting: only a change helps, so nobody need try again."""
CLOSE_S = 5.0
"""What a process has, beyond the time to drain, to close what is open and to end; a node also sends what is unsent."""
CUT_S = 1.0
"""The same, for a process that is to end at once."""

_log = logging.getLogger("synckit_streams.workers")


async def lifetime(
    service: Service,
    end: asyncio.Event,
    *,
    drain_s: float,
    started: Callable[[], None],
    draining: Callable[[], None],
) -> None:
    """Run a service until it is told to end.

    Args:
        service: Which.
        end: Set when it shall end.
        drain_s: How long what is under way may take then.
        started: Called when it has begun to work.
        draining: Called when it begins to finish, for whichever reason.

    Raises:
        SyncKitError: it could not be started, or could not go on.
    """
    ending = asyncio.create_task(end.wait())
    left_s = 0.0  # nothing is under way yet
    try:
        if await _first(service.start(), ending):
            return
        started()
        left_s = drain_s
        if not await _first(service.failed(), ending):
            raise RuntimeError(f"{service.name!r} says neither that it fails nor that it goes on: failed() returned")
    finally:
        ending.cancel()
        draining()
        await service.stop(drain_s=left_s)


async def _first(work: Coroutine[Any, Any, None], ending: asyncio.Task[Any]) -> bool:
    """Whether the end was asked for before the work was done; the work is then cancelled."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task, ending}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return False
        return True
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


class Deadline:
    """Ends this process when it has not ended by itself, whatever it hangs in: by a thread, since the loop may hang.

    Args:
        drain_s: What it was given to finish; only to be told.
    """

    def __init__(self, drain_s: float) -> None:
        self._drain_s = drain_s
        self._timer: threading.Timer | None = None

    def set(self, after_s: float, status: int) -> None:
        """From now on; a second call replaces the first."""
        self.lift()
        self._timer = threading.Timer(after_s, self._exit, [status])
        self._timer.daemon = True
        self._timer.start()

    def lift(self) -> None:
        """It has ended by itself."""
        if self._timer is not None:
            self._timer.cancel()

    def _exit(self, status: int) -> None:
        _log.error("it did not end within %g s and what it takes to close, and is cut off", self._drain_s)
        os._exit(status)
