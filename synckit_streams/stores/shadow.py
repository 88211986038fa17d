"""The half of a shadow that is the same in every database: a connection with a thread of its own, and its transactions.

It is nobody else's, so what is built beside the live model holds up no append.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

from synckit_streams.errors import LeaseLost, StoreClosed, StoreError
from synckit_streams.ports.store import Lease, Transaction
from synckit_streams.stores.block import Block


def shadow_name(projection: str) -> str:
    """What tells one projection's shadow from another's: 12 hex digits, since a name may be anything."""
    return sha256(projection.encode()).hexdigest()[:12]


def outside(tables: str) -> StoreError:
    """What is raised when a projection writes elsewhere than it has said."""
    return StoreError(
        f"the projection writes {tables}, which it has not named in its `tables`",
        hint="name every table that it writes, without a schema; or rebuild it in place",
    )


class Workbench(ABC):
    """See the module's text. One caller at a time."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="synckit-rebuild")

    def run(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        """Something on its thread, after whatever was asked before; it runs whether or not anybody awaits it."""
        try:
            return asyncio.get_running_loop().run_in_executor(self._thread, work)
        except RuntimeError:  # closed by another task just now
            raise StoreClosed("what is built beside is closed, and its node with it") from None

    def _do(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        def translated() -> Any:
            try:
                return work()
            except Exception as error:
                raise self._translate(error) from error

        return self.run(translated)

    @asynccontextmanager
    async def _block(self, begin: Callable[[], None], leases: Sequence[Lease]) -> AsyncIterator[Transaction]:
        block = Block(leases)

        def begun() -> None:
            self._roll_back()  # what somebody left behind who was cancelled
            try:
                begin()
            except BaseException:
                self._roll_back()
                raise

        await self._do(begun)
        try:
            yield self._handle(block)
        except BaseException:
            block.over = True
            await asyncio.shield(self._do(self._roll_back))
            raise
        block.over = True
        await asyncio.shield(self._do(lambda: self._end(block)))

    def _end(self, block: Block) -> None:
        try:
            if block.prepared:
                raise StoreError(
                    "a read model that is built anew appends events",
                    hint="they were written once; let a handler write them, or rebuild it in place",
                )
            lost = sorted({*block.leases} - {*self._hold(block.leases)})
            if lost:
                raise LeaseLost(f"{lost[0].holder!r:.80} has no longer {', '.join(each.name for each in lost)!r:.80}")
            self._commit(block)
        except BaseException:
            self._roll_back()
            raise

    async def close(self) -> None:
        """See `Shadow`."""
        await self._do(self._disconnect)
        self._thread.shutdown()

    @abstractmethod
    def _handle(self, block: Block) -> Transaction:
        """What the caller works with."""

    @abstractmethod
    def _hold(self, leases: Sequence[Lease]) -> Sequence[Lease]:
        """Those that are still the caller's, until the transaction has ended."""

    @abstractmethod
    def _commit(self, block: Block) -> None:
        """What was done is kept, if it was done inside."""

    @abstractmethod
    def _roll_back(self) -> None:
        """Undo what is open; nothing to do if nothing is."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Let go of the connection."""

    @abstractmethod
    def _translate(self, error: Exception) -> BaseException:
        """A driver's error as one of ours."""
