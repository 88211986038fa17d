"""An event loop in which time is a number: it waits for nobody, and the same program runs the same way each time.

Every timer is honoured in order, and the clock jumps to the next one instead of waiting for it. There are no threads,
sockets or signals, so what happens next depends on the program and on its dice, which the simulation brings.

A `Life` is one run of a node's process, from its start to its end. The tasks that are started within it belong to it,
and so do those that they start; `end` is kill -9 for all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

T = TypeVar("T")

_CLOCK_RESOLUTION_S = 1e-6


ROUNDS_MAX = 200_000
"""Of the loop; a simulation takes some ten thousand."""


class Deadlock(Exception):
    """Everybody waits, and nothing will ever come; or everybody is busy, and it never ends."""


class _NoSelector:
    """Instead of waiting, time passes."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._rounds = 0

    def pardon(self) -> None:
        """Let them end in peace."""
        self._rounds = 0

    def select(self, timeout: float | None) -> list[Any]:
        self._rounds += 1
        if self._rounds > ROUNDS_MAX:
            raise Deadlock("they are busy without an end")
        if timeout is None:
            raise Deadlock("every task waits, and no timer is set")
        if timeout > 0:
            self._loop.now_s += timeout
        return []


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module's text."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.selector = self._selector = _NoSelector(self)
        self._clock_resolution = _CLOCK_RESOLUTION_S
        self.complaints: list[str] = []
        """What asyncio would have logged: a task that failed and that nobody asked for its result."""
        self.set_task_factory(_make_task)
        self.set_exception_handler(self._complain)

    def time(self) -> float:
        """Seconds since the simulation began."""
        return self.now_s

    def _process_events(self, event_list: list[Any]) -> None:
        """No events ever come from outside."""

    def _write_to_self(self) -> None:
        """Nobody sleeps who would have to be woken."""

    def _complain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.complaints.append(f"{context.get('message', '')}: {error!r}")


class Life:
    """One run of a process; see the module's text.

    Args:
        name: For the timeline.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.over = False
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._context = copy_context()
        self._context.run(_life.set, self)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run something within this life."""
        return asyncio.get_running_loop().create_task(work, context=self._context.copy())

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """A task was started within this life."""
        self._tasks[task] = None
        task.add_done_callback(self._buried)

    def _buried(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)

    def end(self) -> None:
        """Kill it: no task of it does anything any more. What it holds of the world must be cut off before."""
        self.over = True
        for task in list(self._tasks):
            task.cancel()

    async def buried(self) -> None:
        """Wait until every task of it has ended; they cannot do anything on the way."""
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:  # one that shields itself from being cancelled is cancelled again
                task.cancel()
            await asyncio.wait(tasks, timeout=0.001)


_life: ContextVar[Life | None] = ContextVar("life", default=None)


def _make_task(
    loop: asyncio.AbstractEventLoop, work: Any, *, context: Context | None = None, **options: Any
) -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, context=context, **options)
    life = context.get(_life) if context is not None else _life.get()
    if life is not None:
        life.adopt(task)
    return task


def run_virtually(work: Coroutine[Any, Any, T], loop: VirtualLoop) -> T:
    """Run a coroutine to its end, and close the loop."""
    try:
        return loop.run_until_complete(work)
    finally:
        loop.selector.pardon()
        try:
            _cancel_all(loop)
            loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()


def _cancel_all(loop: VirtualLoop) -> None:
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
