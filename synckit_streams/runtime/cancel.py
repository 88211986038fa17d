"""Who is meant by a `CancelledError`."""

from __future__ import annotations

import asyncio
from typing import Any, Final

AGAIN_S: Final = 1.0
"""How long a task that was cancelled may take before it is cancelled again."""


def is_cancelled(error: BaseException) -> bool:
    """Whether the present task is to end, when somebody else's code has raised this.

    If not, a `CancelledError` came out of something that it waited for: a listener, say, whose own task was cancelled.
    That is a failure like any other, and ends nothing of ours. So is a group of errors: a TaskGroup (before Python
    3.13) asks the task that waits for it to end, and does not take that back.
    """
    if isinstance(error, BaseExceptionGroup) and error.subgroup(asyncio.CancelledError) is None:
        settle_cancelling()
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task until it has ended: somebody else's code in it may swallow being cancelled once."""
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=AGAIN_S)


def settle_cancelling() -> None:
    """Take back what a TaskGroup has left behind; only for whoever knows that nobody else has asked the task to end."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()
