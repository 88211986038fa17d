"""Who is meant by a `CancelledError`."""

from __future__ import annotations

import asyncio


def is_cancelled() -> bool:
    """Whether the present task is to end. If not, the `CancelledError` came out of something that it waited for: a
    listener, say, whose own task was cancelled. That is a failure like any other, and ends nothing of ours."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
