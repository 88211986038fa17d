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
from typing import TypeVar

from synckit_streams.errors import (
    LeaseLost,
    StoreBusy,
    StoreClosed,
    StoreError,
    StoreFull,
    SyncKitError,
)
from synckit_streams.model.clock import Key
from synckit_streams.model.event import Draft, Event, Offset
from synckit_streams.model.exchange import AppendResult, Arrival, Moved, PlaceRun, Raised, Summary
from synckit_streams.ports.store import Lease, Opening, StoreFeatures, Transaction
from synckit_streams.stores.block import Block
from synckit_streams.stores.commits import Append, CommitQueue, Finish, InlineExecutor, Share, shares
from synckit_streams.stores.identity import new_origin
from synckit_streams.stores.leases import Leases, Leasing
from synckit_streams.stores.wake import Bell
from synckit_streams.sync import adoption
from synckit_streams.sync import drafts as drafting
from synckit_streams.sync.drafts import Prepared
from synckit_streams.sync.ledger import Changes, Facts, Ledger, Wants
from synckit_streams.sync.request import Request, decide
from synckit_streams.sync.turn import Turn

_T = TypeVar("_T")

Probe = Callable[[str], None]
"""Called with "commit" just before a commit and with "committed" just after it; a test raises from it."""


class LedgerStore(Leasing, ABC):
    """The common part of `MemoryStore` and `SqliteStore`; see the port `EventStore`.

    Args:
        name: For messages.
        threads: False runs everything in the caller, for a simulation.
        probe: See `Probe`.
        read_only: See `EventStore`. `_open` then takes nothing and writes nothing, and gives the origin that the node
            has written under last.
    """

    id: str = ""
    nodes: tuple[str, ...] = ()
    features: StoreFeatures

    def __init__(self, name: str, *, threads: bool, probe: Probe | None, read_only: bool = False) -> None:
        self.name = name
        self.read_only = read_only
        self._threads = threads
        self._probe = probe or (lambda step: None)
        self._writes: Executor | None = None
        self._queue: CommitQueue | None = None
        self._finish: Finish | None = None
        self._opening: Opening | None = None
        self._ledger: Ledger
        self._stale = True
        self._bell = Bell()
        self._leases = Leases()
        self._block: Block | None = None
        """Of whoever has the writer to himself."""
        # The origin that this life has written under, as the disk knows it; "" draws one at the next write.
        self._origin = ""
        # A commit failed in a way that leaves open what the disk holds: the next life must not go on under our origin.
        self._doubt = False

    # --- what a store adds -------------------------------------------------------------------------------------------

    @abstractmethod
    def _open(self, opening: Opening) -> str:
        """On the writer's thread: open the medium; gives the origin to go on with, or ""."""

    @abstractmethod
    def _close(self, origin: str) -> None:
        """On the writer's thread: close, and leave it clean if an origin is given that the next life may go on with."""

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
        """Begin a transaction of somebody's own. What it appends is written, by `_write`, just before its `_end`."""

    @abstractmethod
    def _end(self, *, commit: bool) -> None:
        """End it."""

    @abstractmethod
    def _handle(self, queue: CommitQueue, block: Block) -> Transaction:
        """What the block of `transaction()` gets."""

    def _translate(self, error: BaseException) -> BaseException:
        """A driver's error as one of ours."""
        return error

    def _check_begun(self) -> None:  # where nothing but the store itself can end one
        """That the transaction of somebody's own is still open, before anything more is written in it.

        Raises:
            StoreError: it is not.
        """

    def _hold(self, leases: Sequence[Lease]) -> Sequence[Lease]:
        """Within a transaction, just before its commit: those that nobody has taken, and nobody can until the end."""
        return self._leases.current(leases)

    def _claim_for(self, node: str) -> None:  # most stores have nothing to claim
        """Take the medium for a node, before anything is read."""

    def _unclaim(self) -> None:  # nor to give back
        """Give it back, in whatever state; called once for each `_claim_for`, and at a close without an open."""

    # --- opening and closing -----------------------------------------------------------------------------------------

    @property
    def origin(self) -> str:
        """See `EventStore`."""
        self._opened()
        return self._ledger.origin

    def _opened(self) -> CommitQueue:
        if self._queue is None:
            raise StoreClosed(f"{self.name} is not open")
        return self._queue

    def _writable(self) -> CommitQueue:
        queue = self._opened()
        if self.read_only:
            raise StoreError(f"{self.name} was opened for reading only", hint="its node can write it")
        return queue

    async def open(self, opening: Opening) -> None:
        """See `EventStore`."""
        if self._writes is not None:
            raise StoreError(f"{self.name} is open already")
        self._claim_for(opening.node)
        self._opening = opening
        self._bell = Bell()
        writes = self._writes = (
            ThreadPoolExecutor(1, thread_name_prefix="synckit-write") if self._threads else InlineExecutor()
        )
        queue = CommitQueue(writes, commit=self._commit, begin=self._begin_own, end=self._end_own)

        def opened() -> None:
            try:
                self._stale, self._doubt = True, False
                self._origin = self._open(opening)
                try:
                    self._reload()
                except BaseException:
                    self._close("")
                    raise
            except BaseException as error:
                # Whatever it was: whoever is cancelled here closes what was opened, and this was not.
                self._give_back(writes)
                if isinstance(error, Exception):
                    raise self._translate(error) from error
                raise

        start = queue.run(opened)
        try:
            await asyncio.shield(start)
        except asyncio.CancelledError:
            # Whoever asked is gone: once it is open, it is closed again.
            queue.run(lambda: self._shut() if self._writes is writes else None)
            raise
        self._queue = queue
        if self._ledger.ripe and not self.read_only:
            try:
                await self.append(now_ms=0)
            except BaseException:
                await self.close()
                raise

    async def close(self) -> None:
        """See `EventStore`. What was asked for before is still done; a caller that is cancelled stops waiting only."""
        queue = self._queue
        if queue is not None:
            queue.check_not_holder()
            self._queue = None
            self._finish = Finish(self._shut)
            await queue.ask(self._finish)
        elif self._writes is None:
            self._unclaim()
        elif self._finish is not None:  # somebody is closing it just now
            await asyncio.wait([asyncio.wrap_future(self._finish.done)])

    def abandon(self) -> None:
        """Stop as a killed process does, for a simulation: nothing is left clean, what was not committed is lost."""
        self._queue = None
        if self._writes is not None:
            self._doubt = True
            self._writes.submit(self._shut).result()

    def _shut(self) -> None:
        """On the writer's thread: close, whatever happens."""
        if self._writes is None:  # abandoned
            return
        try:
            self._close("" if self._doubt or self._stale else self._ledger.origin)
        except Exception as error:
            raise self._translate(error) from error
        finally:
            self._stale = True
            self._bell.close()
            self._give_back(self._writes)

    def _give_back(self, writes: Executor) -> None:
        self._writes = None
        self._unclaim()
        writes.shutdown(wait=False)

    def _reload(self) -> None:
        assert self._opening is not None
        opening = self._opening
        self._stale = True
        self._ledger = Ledger(
            log=self.id,
            topics=None if self.read_only else opening.topics,
            held_max=opening.held_max,
            dice=opening.dice,
            draw_origin=lambda: new_origin(opening.node, opening.dice),
        )
        self._load(self._ledger, opening.node)
        self._ledger.origin = self._origin
        self._stale = False

    def _refresh(self) -> None:
        """Within a transaction: let the ledger say what the medium says. Where others write too, what they wrote."""
        if self._stale:
            self._reload()

    # --- appending ---------------------------------------------------------------------------------------------------

    async def append(
        self,
        drafts: Sequence[Draft] = (),
        received: Sequence[Arrival] = (),
        *,
        now_ms: int,
        echoes: Sequence[PlaceRun] = (),
        offsets: Mapping[str, Offset] | None = None,
        voids: Sequence[Key] = (),
        forget: Sequence[str] = (),
        traceparent: str = "",
        alarms: Sequence[Raised] = (),
    ) -> AppendResult:
        """See `EventStore`."""
        queue = self._writable()
        # As they are now: whoever asks goes on to fill the same list, and what is asked once may give nothing twice.
        request = Request(
            drafts=tuple(drafts),
            received=tuple(received),
            now_ms=now_ms,
            echoes=echoes,
            offsets=offsets or {},
            voids=voids,
            forget=forget,
            traceparent=traceparent,
            alarms=alarms,
        )
        result: AppendResult = await queue.ask(Append(request))
        return result

    async def adopt(self, moved: Moved) -> AppendResult:
        """See `EventStore`."""
        result: AppendResult = await self._writable().ask(Append(Request(now_ms=0, moved=moved)))
        return result

    def _commit(self, group: Sequence[Append]) -> None:
        """Transactions for the whole group, nearly always one; each request's answer is its own."""
        ready: list[tuple[Share, Sequence[Prepared]]] = []
        todo = shares(group)[::-1]
        while todo:
            share = todo.pop()
            try:
                ready.append((share, drafting.prepare(share.request.drafts, share.request.traceparent)))
            except Exception as error:  # noqa: BLE001 - about its own drafts; the others do not suffer from it
                if len(share.appends) == 1:
                    share.fail(error)
                else:
                    todo += share.apart()
        while ready:
            ready = self._transact(ready)

    def _transact(self, group: list[tuple[Share, Sequence[Prepared]]]) -> list[tuple[Share, Sequence[Prepared]]]:
        """One transaction; gives the rest of the group, for the next one."""
        turns: list[tuple[Share, Turn]] = []
        todo = group[::-1]
        try:
            with self._transaction():
                self._refresh()
                ledger = self._ledger
                changes = Changes(ledger.position)
                facts = self._facts(
                    ledger.wants(
                        [each[0] for _, prepared in group for each in prepared],
                        [arrival for share, _ in group for arrival in share.request.come],
                    )
                )
                while todo and not changes.reused:
                    share, prepared = todo.pop()
                    try:
                        repeats = drafting.check(ledger, prepared, facts, changes) if prepared else {}
                        if share.request.moved is not None:
                            adoption.check(ledger, share.request.moved)
                    except SyncKitError as error:
                        if len(share.appends) == 1:
                            share.fail(error)
                            continue
                        end = len(prepared)
                        for one in share.apart():
                            todo.append((one, prepared[end - one.request.events : end]))
                            end -= one.request.events
                        continue
                    turns.append((share, decide(share.request, prepared, repeats, ledger, facts, changes)))
                self._write(changes, ledger.origin if ledger.origin != self._origin else "")
        except BaseException as error:  # noqa: BLE001 - every caller of the group gets it
            failure = self._failure(error)
            for share, _ in group:
                share.fail(failure)
            return []
        summaries = self._settle(changes, [turn for _, turn in turns])
        for share, turn in turns:
            results = turn.results(summaries, [len(each.request.drafts) for each in share.appends])
            for append, result in zip(share.appends, results, strict=True):
                append.answer.value = result
        return todo[::-1]

    def _failure(self, error: BaseException, *, stale: bool = True) -> BaseException:
        """Of a transaction: its error as one of ours. What the disk holds is now in question."""
        self._stale = self._stale or stale
        failure = self._translate(error)
        self._doubt = self._doubt or not isinstance(failure, StoreBusy | StoreFull)
        return failure

    def _settle(self, changes: Changes, turns: Sequence[Turn]) -> Mapping[str, Summary]:
        """A transaction was committed: what its topics are now, for whoever asked."""
        ledger = self._ledger
        self._origin = ledger.origin
        ledger.settle(changes)
        if changes.rows:
            self._bell.ring()
        return {topic: ledger.summary(topic) for topic in {topic for turn in turns for topic in turn.topics}}

    # --- reading from the mirror -------------------------------------------------------------------------------------

    def _look_again(self) -> None:
        """On the writer's thread, between two commits: see that the mirror says what the medium says."""
        if self._stale or self.read_only:  # a reader's store is written by somebody else
            self._reload()

    async def _ask(self, question: Callable[[Ledger], _T]) -> _T:
        """What the mirror says."""

        def look() -> _T:
            try:
                self._look_again()
            except Exception as error:
                raise self._translate(error) from error
            return question(self._ledger)

        answer: _T = await self._opened().run(look)
        return answer

    async def summary(self, topic: str) -> Summary:
        """See `EventStore`."""
        return await self._ask(lambda ledger: ledger.summary(topic))

    async def aggregate(self, topic: str, aggregate_id: str) -> Sequence[Event]:
        """See `EventStore`."""
        (found,) = await self.aggregate_many([(topic, aggregate_id)])
        return found

    async def aggregate_many(self, wanted: Sequence[tuple[str, str]]) -> Sequence[Sequence[Event]]:
        """See `EventStore`. A store has one of the two of its own."""
        return [await self.aggregate(*each) for each in wanted]

    async def held(self, *, after: bytes, limit: int) -> Sequence[tuple[Event, bytes]]:
        """See `EventStore`."""
        return await self._ask(lambda ledger: ledger.held(after=after, limit=limit))

    async def voids(self, *, after: Key | None, limit: int) -> Sequence[Key]:
        """See `EventStore`."""
        return await self._ask(lambda ledger: ledger.voids_after(after, limit))

    async def watch(self) -> AsyncIterator[None]:
        """See `EventStore`."""
        self._opened()
        async for _ in self._bell.listen():
            yield

    # --- a transaction of one's own ----------------------------------------------------------------------------------

    def _begin_own(self) -> None:
        try:
            self._begin()
        except Exception as error:
            raise self._translate(error) from error

    def _end_own(self, commit: bool) -> None:
        try:
            self._end_block(commit)
        finally:
            self._block = None

    def _end_block(self, commit: bool) -> None:
        block = self._block
        decided: tuple[Changes, Turn] | None = None
        if commit and block is not None:
            try:
                decided = self._finish_block(block)
            except BaseException as error:
                self._end(commit=False)
                raise self._translate(error) from error
        try:
            self._end(commit=commit)
        except BaseException as error:
            raise self._failure(error, stale=decided is not None) from error
        if block is not None and decided is not None:
            self._stale = False
            changes, turn = decided
            summaries = self._settle(changes, [turn])
            (block.appended,) = turn.results(summaries, [len(block.prepared)])

    def _finish_block(self, block: Block) -> tuple[Changes, Turn] | None:
        """Just before the commit: that it may commit, and what it appends, if it appends something.

        Raises:
            LeaseLost, IdReused, TooLarge, CauseUnknown: it may not.
        """
        if not (block.leases or block.prepared):
            return None
        self._check_begun()
        if block.prepared:
            self._refresh()  # first: whoever waits in line for the numbers must not hold the leases meanwhile
        if block.leases:
            lost = sorted({*block.leases} - {*self._hold(block.leases)})
            if lost:
                raise LeaseLost(f"{lost[0].holder!r:.80} has no longer {', '.join(each.name for each in lost)!r:.80}")
        if not block.prepared:
            return None
        ledger, prepared = self._ledger, block.prepared
        changes = Changes(ledger.position)
        facts = self._facts(ledger.wants([each[0] for each in prepared], ()))
        repeats = drafting.check(ledger, prepared, facts, changes)
        self._stale = True  # until it is committed
        turn = decide(Request(now_ms=block.now_ms), prepared, repeats, ledger, facts, changes)
        self._write(changes, ledger.origin if ledger.origin != self._origin else "")
        return changes, turn

    @asynccontextmanager
    async def transaction(self, leases: Sequence[Lease] = ()) -> AsyncIterator[Transaction]:
        """See `EventStore`."""
        queue, block = self._writable(), Block(leases)
        await queue.take()
        self._block = block
        # Shielded, and asked for before anything is awaited: a caller that is cancelled here must not keep the writer.
        try:
            yield self._handle(queue, block)
        except BaseException:
            block.over = True
            await asyncio.shield(queue.give_back(commit=False))
            raise
        block.over = True
        await asyncio.shield(queue.give_back(commit=True))
