"""The place of one worker: there is always a process in it, or the next one is about to be started.

A process that ends unasked is replaced, after a pause that doubles with each failure and has full jitter: what made
all of them fail (a database that restarts) is not stormed by all of them at once. A process that has worked for a
while starts the count anew.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from collections.abc import Callable, Sequence
from typing import Literal

from synckit_streams.cli.workers.child import Child
from synckit_streams.cli.workers.lifetime import FAILED, WRONG
from synckit_streams.cli.workers.worker import Assignment
from synckit_streams.ports.operation import Check
from synckit_streams.sync.pace import next_delay_ms

PAUSE_BASE_MS = 500
"""Upper bound of the pause after the first failure."""
PAUSE_MS_MAX = 30_000
"""The longest pause."""
STEADY_S = 10.0
"""Who has worked for so long did not fail at the same as before."""
CRASH_LOOP = 5
"""So many failures in a row are an error, and not only a warning."""

AfterWrong = Literal["give-up", "pause", "wait"]

_log = logging.getLogger("synckit_streams.workers")


class Slot:
    """One worker, over all the processes that it is.

    Args:
        assignment: What each of them is told.
        after_wrong: What is done when a setting is wrong: "give-up" ends everything (nothing has worked yet), "wait"
            waits to be woken (somebody edits the program), "pause" tries again like after any failure.
        changed: Called when a process becomes ready, or ends.
    """

    def __init__(
        self, assignment: Assignment, *, after_wrong: Callable[[], AfterWrong], changed: Callable[[], None]
    ) -> None:
        self.number = assignment.worker
        self.restarts = 0
        """Processes that were started after the first one."""
        self.child: Child | None = None
        self.gave_up = False
        self._assignment = assignment
        self._after_wrong = after_wrong
        self._changed = changed
        self._detail = "it is starting"
        self._failures = 0
        self._woken = asyncio.Event()
        self._ending = False
        self._replacing = False
        self._next: asyncio.Future[bool] | None = None

    @property
    def name(self) -> str:
        """As it is called in logs and reports."""
        return f"worker-{self.number}"

    @property
    def is_ready(self) -> bool:
        """Whether a process works in it just now."""
        return self.child is not None and self.child.is_ready

    async def checks(self, *, needed: bool) -> Sequence[Check]:
        """How the process is, and how it says that its parts are.

        Args:
            needed: Whether nobody else does its work.
        """
        if self.child is None or not self.child.is_ready:
            return [Check("process", False, needed, self._detail)]
        return [Check("process", True), *await self.child.checks()]

    async def keep(self) -> None:
        """Have a process in it until it is ended."""
        while not self._ending and not self.gave_up:
            self._woken.clear()
            status, worked_s = await self._one()
            if self._ending:
                return
            if self._replacing:
                self._replacing = False
            else:
                await self._after(status, worked_s)
            self.restarts += 1

    async def _one(self) -> tuple[int, float]:
        """One process; gives its status, and for how long it worked."""
        try:
            child = self.child = await Child.start(self._assignment)
        except OSError as error:
            _log.error("%s cannot be started: %s", self.name, error)
            self._tell(False)
            return FAILED, 0.0
        if self._ending:
            child.kill()
        began = time.monotonic()
        if await child.ready:
            began = time.monotonic()
            _log.info("%s is ready (pid %d)", self.name, child.pid)
            self._tell(True)
            status = await child.ended()
            worked_s = time.monotonic() - began
        else:
            status, worked_s = await child.ended(), 0.0
            self._tell(False)
        self.child = None
        self._detail = f"it {_how(status)}"
        self._changed()
        return status, worked_s

    def _tell(self, ready: bool) -> None:
        """To whoever waits for the new process; what the one does that makes room for it is of no interest."""
        if self._next is not None and not self._next.done() and (self._ending or not self._replacing):
            self._next.set_result(ready)
        self._changed()

    async def _after(self, status: int, worked_s: float) -> None:
        """A process ended that nobody asked to."""
        after_wrong = self._after_wrong() if status == WRONG else "pause"
        if after_wrong == "give-up":
            self.gave_up = True
            self._changed()
        elif after_wrong == "wait":
            self._detail = "it waits until the program is changed"
            _log.info("%s: waiting until a file changes", self.name)
            await self._woken.wait()
        else:
            await self._pause(status, worked_s)

    async def _pause(self, status: int, worked_s: float) -> None:
        self._failures = 1 if worked_s >= STEADY_S else self._failures + 1
        pause_s = (
            next_delay_ms(self._failures, base_ms=PAUSE_BASE_MS, delay_ms_max=PAUSE_MS_MAX, dice=random.random()) / 1000
        )
        if self._failures < CRASH_LOOP:
            _log.warning("%s %s; the next one is started in %.1f s", self.name, _how(status), pause_s)
        else:
            self._detail = f"it {_how(status)}, {self._failures} times in a row"
            _log.error(
                "%s is in a crash loop: it %s %d times in a row, and never worked for %g s; "
                "look above for what it said. The next one is started in %.1f s",
                self.name,
                _how(status),
                self._failures,
                STEADY_S,
                pause_s,
            )
        try:
            async with asyncio.timeout(pause_s):
                await self._woken.wait()
        except TimeoutError:
            return

    async def renew(self, *, drain_s: float) -> None:
        """A new process in place of the present one, which has ended when this returns.

        Args:
            drain_s: How long the present one may take to finish.
        """
        self._next = asyncio.get_running_loop().create_future()
        self._failures = 0
        if self.child is not None:
            self._replacing = True
            await self.child.end(drain_s=drain_s)
        else:
            self._woken.set()

    async def renewed(self) -> bool:
        """Wait for the new process; gives whether it became ready."""
        return self._next is None or await self._next

    async def end(self, *, drain_s: float) -> bool:
        """No process from now on; gives whether the last one ended by itself and in time.

        Args:
            drain_s: How long it may take.
        """
        self._let_go()
        return self.child is None or await self.child.end(drain_s=drain_s)

    def kill(self) -> None:
        """End it at once."""
        self._let_go()
        if self.child is not None:
            self.child.kill()

    def _let_go(self) -> None:
        self._ending = True
        self._woken.set()
        self._tell(False)


def _how(status: int) -> str:
    if status < 0:
        return f"was killed by {signal.Signals(-status).name}"
    return f"ended with status {status}" if status else "ended by itself"
