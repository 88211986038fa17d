"""The block of an `async with store.transaction()`: what it needs at its end, the same for every store.

What it appends is prepared at once and waits here: numbers are given out in one line, and nobody's events shall wait
for a block that takes its time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from synckit_streams.errors import Invalid, StoreError
from synckit_streams.model.event import Draft
from synckit_streams.model.exchange import AppendResult
from synckit_streams.ports.store import Lease
from synckit_streams.sync.drafts import Prepared, prepare


class Thread(Protocol):
    """On which the statements of a block run, one after another."""

    def run(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run something there, whether or not anybody awaits it."""


class Block:
    """See the module's text.

    Args:
        leases: What whoever runs it must still have at its end.
    """

    def __init__(self, leases: Sequence[Lease]) -> None:
        if isinstance(leases, Lease):  # a tuple of text too, so nothing else would notice
            raise Invalid(f"{leases!r:.80} is one lease", hint="transaction takes a list of them")
        self.leases = tuple(leases)
        self.over = False
        self.ended_by = ""
        """A statement in it that has ended its transaction."""
        self.prepared: list[Prepared] = []
        self.now_ms = 0
        self.appended: AppendResult | None = None

    def check(self) -> None:
        """Raises `StoreError` when it has ended: what it was given is of no use any more."""
        if self.over:
            raise StoreError("the transaction is over", hint="use it inside its `async with` block")


class Appending:
    """The part of a `Transaction` that appends.

    Args:
        block: Of the transaction.
    """

    def __init__(self, block: Block) -> None:
        self._block = block

    async def append(self, drafts: Sequence[Draft], *, now_ms: int, traceparent: str = "") -> None:
        """See `Transaction`."""
        block = self._block
        block.check()
        block.prepared += prepare(drafts, traceparent)
        block.now_ms = max(block.now_ms, now_ms)

    @property
    def appended(self) -> AppendResult | None:
        """See `Transaction`."""
        return self._block.appended
