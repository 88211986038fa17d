"""What every store of one process shares: the queue, the group commit, and the ledger's life.

A store adds where the rows are: how facts are looked up, how changes are written inside one transaction, and how the
ledger is loaded. If a transaction fails, for whatever reason, the ledger is loaded anew before the next one: memory is
never ahead of the disk.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager

from synckit_streams.errors import StoreClosed, StoreError, SyncKitError
from synckit_streams.model.clock import Key
from synckit_streams.model.event import Draft, Offset
from synckit_streams.model.exchange import AppendResult, Arrival, Summary
from synckit_streams.ports.store import Opening, Transaction
from synckit_streams.stores.commits import Append, Begin, CommitQueue, InlineExecutor
from synckit_streams.stores.identity import new_origin
from synckit_streams.stores.wake import Bell
from synckit_streams.sync.ledger import Changes, Facts, Ledger, Wants

Probe = Callable[[str], None]
"""Called with "commit" just before a commit and with "committed" just after it; a test raises from it."""


class LedgerStore(ABC):
    """The common part of `MemoryStore` and `SqliteStore`; see the port `EventStore`.

    Args:
        name: For messages.
        threads: False runs everything in the caller, for a simulation.
        probe: See `Probe`.
    """

    id: str = ""

    def __init__(self, name: str, *, threads: bool, probe: Probe | None) -> None:
        self.name = name
        self._threads = threads
        self._probe = probe or (lambda step: None)
        self._writes: Executor | None = None
        self._queue: CommitQueue | None = None
        self._opening: Opening | None = None
        self._ledger: Ledger
        self._stale = True
        self._bell = Bell()
        # The origin that this life has written under, as the disk knows it; "" draws one at the next write.
        self._origin = ""

    # --- what a store adds -------------------------------------------------------------------------------------------

    @abstractmethod
    def _open(self, opening: Opening) -> str:
        """On the writer's thread: open the medium; gives the origin to go on with, or ""."""

    @abstractmethod
    def _close(self, origin: str) -> None:
        """On the writer's thread: leave it clean, if an origin was used, and close."""

    @abstractmethod
    def _load(self, ledger: Ledger, node: str) -> None:
        """Fill a new ledger from the medium."""

    @abstractmethod
    def _facts(self, wants: Wants) -> Facts:
        """Look up what the ledger wants."""

    @abstractmethod
    def _transaction(self) -> AbstractContextManager[None]:
        """One transaction: it commits when the block ends, and rolls back when it raises."""

    @abstractmethod
    def _write(self, changes: Changes, origin: str) -> None:
        """Write the rows; `origin` is new and must be written too, or "" if the disk knows it."""

    @abstractmethod
    def _begin(self) -> None:
        """Begin a transaction of somebody's own."""

    @abstractmethod
    def _end(self, *, commit: bool) -> None:
        """End it."""

    @abstractmethod
    def _handle(self, queue: CommitQueue) -> Transaction:
        """What the block of `transaction()` gets."""

    def _translate(self, error: BaseException) -> BaseException:
        """A driver's error as one of ours."""
        return error

    def _claim_for(self, node: str) -> None:  # noqa: B027 - most stores have nothing to claim
        """Take the medium for a node, before anything is read."""

    def _unclaim(self) -> None:  # noqa: B027 - nor to give back
        """Give it back."""

    # --- opening and closing -----------------------------------------------------------------------------------------

    @property
    def origin(self) -> str:
        """See `EventStore`."""
        return self._ledger.origin

    def _opened(self) -> CommitQueue:
        if self._queue is None:
            raise StoreClosed(f"{self.name} is not open")
        return self._queue

    async def open(self, opening: Opening) -> None:
        """See `EventStore`."""
        if self._queue is not None:
            raise StoreError(f"{self.name} is open already")
        self._claim_for(opening.node)
        self._opening = opening
        self._writes = ThreadPoolExecutor(1, thread_name_prefix="synckit-write") if self._threads else InlineExecutor()
        queue = CommitQueue(self._writes, self._commit, self._begin_own)

        def opened() -> None:
            try:
                self._origin = self._open(opening)
                self._reload()
            except Exception as error:
                raise self._translate(error) from error

        try:
            await queue.run(opened)
        except BaseException:
            queue.close()
            self._writes.shutdown(wait=False)
            self._unclaim()
            raise
        self._queue = queue

    async def close(self) -> None:
        """See `EventStore`."""
        queue, self._queue = self._queue, None
        if queue is not None and self._writes is not None:
            try:
                await queue.run(lambda: self._close(self._ledger.origin))
            finally:
                queue.close()
                self._writes.shutdown(wait=False)
                self._bell.close()
        self._unclaim()

    def _reload(self) -> None:
        assert self._opening is not None
        opening = self._opening
        self._stale = True
        self._ledger = Ledger(
            log=self.id,
            topics=opening.topics,
            held_max=opening.held_max,
            dice=opening.dice,
            draw_origin=lambda: new_origin(opening.node, opening.dice),
        )
        self._load(self._ledger, opening.node)
        self._ledger.origin = self._origin
        self._stale = False

    # --- appending ---------------------------------------------------------------------------------------------------

    async def append(
        self,
        drafts: Sequence[Draft] = (),
        received: Sequence[Arrival] = (),
        *,
        now_ms: int,
        offsets: Mapping[str, Offset] | None = None,
        voids: Sequence[Key] = (),
        forget: Sequence[str] = (),
        traceparent: str = "",
    ) -> AppendResult:
        """See `EventStore`."""
        request = Append(drafts, received, now_ms, offsets or {}, voids, forget, traceparent)
        result: AppendResult = await self._opened().ask(request)
        return result

    def _commit(self, group: Sequence[Append]) -> None:
        """One transaction for the whole group; each request's answer is its own."""
        changes = Changes()
        try:
            if self._stale:
                self._reload()
            with self._transaction():
                for request in group:
                    self._apply(request, changes)
                new = self._ledger.origin if self._ledger.origin != self._origin else ""
                self._write(changes, new)
        except BaseException as error:  # noqa: BLE001 - every caller of the group gets it
            self._stale = True
            failure = self._translate(error)
            for request in group:
                request.answer.value = None
                request.answer.error = request.answer.error or failure
            return
        self._origin = self._ledger.origin
        self._ledger.settle()
        if changes.rows:
            self._bell.ring()

    def _apply(self, request: Append, changes: Changes) -> None:
        facts = self._facts(self._ledger.wants(request.drafts, request.received))
        try:
            request.answer.value = self._ledger.apply(
                request.drafts,
                request.received,
                facts,
                changes,
                now_ms=request.now_ms,
                offsets=request.offsets,
                voids=request.voids,
                forget=request.forget,
                traceparent=request.traceparent,
            )
        except SyncKitError as error:  # about its drafts, and found before anything changed
            request.answer.error = error

    async def summary(self, topic: str) -> Summary:
        """See `EventStore`."""

        def look() -> Summary:
            if self._stale:
                self._reload()
            return self._ledger.summary(topic)

        summary: Summary = await self._opened().run(look)
        return summary

    async def watch(self) -> AsyncIterator[None]:
        """See `EventStore`."""
        async for _ in self._bell.listen():
            yield

    # --- a transaction of one's own ----------------------------------------------------------------------------------

    def _begin_own(self) -> None:
        try:
            self._begin()
        except Exception as error:
            raise self._translate(error) from error

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """See `EventStore`."""
        queue = self._opened()
        await queue.ask(Begin())

        def end(*, commit: bool) -> None:
            try:
                self._end(commit=commit)
            except Exception as error:
                raise self._translate(error) from error
            finally:
                queue.done()

        # Shielded: a caller that is cancelled here must not leave the writer taken for ever.
        try:
            yield self._handle(queue)
        except BaseException:
            await asyncio.shield(queue.run(lambda: end(commit=False)))
            raise
        await asyncio.shield(queue.run(lambda: end(commit=True)))
