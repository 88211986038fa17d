"""Feeds projections from the log: pages, their effect and the offset behind them in one transaction.

A projection that wants resolved aggregates (`resolved = True`) gets, for each aggregate that a page touches, what it
applied last and what the aggregate resolves to now. What it applied last is kept in its own transaction, so it can
retract exactly that: adding a head's value at each change would give another total on each replica.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import cast

import msgspec

from synckit_streams.errors import (
    ConfigError,
    HandlerError,
    ProjectionFailed,
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreFull,
    StoreUnavailable,
)
from synckit_streams.model.event import Event, Offset, Stored
from synckit_streams.ports.projection import AnyProjection, Batch, Change, Projection, StreamedProjection
from synckit_streams.ports.store import EventStore, Transaction
from synckit_streams.ports.telemetry import TRACES_MAX, Projected
from synckit_streams.runtime.cancel import is_cancelled
from synckit_streams.runtime.driver import Driver, logger
from synckit_streams.runtime.envelope import traces_of
from synckit_streams.runtime.paging import PageSize
from synckit_streams.runtime.switch import Want, read_switch, turn_switch
from synckit_streams.sync.conflict import ConflictResolver, conflict_of, resolve

PAGE_EVENTS = 1_000
"""In a page, unless a projection says how many. Larger ones do not stay in the processor's cache."""
SPAN_EVENTS, SPAN_S = 10_000, 0.05
"""Pages share a transaction until they come to so many events or seconds: a commit costs as much as hundreds of events,
and whoever else wants to write waits meanwhile."""
AGGREGATES_TOGETHER = 64
BATCH_MAX = 10_000
"""Most events in one page of a projection, whatever it asks for."""
STREAM_MAX = 1_000_000
"""Most events in one transaction of a streamed projection."""
CONSUMER = "projection|"
"""Before a projection's name: the consumer under which the store keeps its offset."""


class Projector:
    """Runs the projections of one node, one after another.

    Args:
        driver: Of the node.
        projections: Each with a name of its own.
        resolver: For those that want resolved aggregates.
    """

    def __init__(
        self, driver: Driver, projections: Sequence[Projection | StreamedProjection], resolver: ConflictResolver
    ) -> None:
        self._driver = driver
        self._projections = tuple(projections)
        self._resolver = resolver
        self._ready: set[str] = set()
        self._batches = {each.name: getattr(each, "batch", PAGE_EVENTS) for each in projections}
        self._page_sizes = {
            each.name: PageSize(min(self._batches[each.name], PAGE_EVENTS if is_streamed(each) else BATCH_MAX))
            for each in projections
        }
        self._alone: set[str] = set()
        """Those that failed on a later page: each page is a transaction, until they have caught up."""

    def __bool__(self) -> bool:
        return bool(self._projections)

    async def catch_up(self) -> tuple[int, list[ProjectionFailed]]:
        """Apply everything that is in the log; gives how many events were applied, and what failed meanwhile.

        Each projection goes as far as it can; one that raises does not stop the others.

        Raises:
            StoreError: the store failed.
        """
        applied = 0
        failures: list[ProjectionFailed] = []
        for projection in self._projections:
            more = True
            while more:
                alone = projection.name in self._alone
                try:
                    with self._driver.operation("project"):
                        count, more = await self._span(projection)
                except ProjectionFailed as error:
                    if not alone and projection.name in self._alone:
                        continue  # whatever precedes the page that failed shall not be undone with it
                    failures.append(error)
                    break
                applied += count
            else:
                self._alone.discard(projection.name)
        return applied, failures

    async def _span(self, projection: AnyProjection) -> tuple[int, bool]:
        """Pages and the offset behind them, in one transaction; how many were wanted, and whether the log goes on."""
        store = self._driver.store
        started = time.perf_counter()
        consumer = f"{CONSUMER}{projection.name}"
        async with store.transaction() as tx:
            offset = await tx.offset(consumer)
            what = await read_switch(tx, projection.name)
            if what in (Want.REBUILD, Want.RESET):
                logger.info("%s: the projection %r begins anew", self._driver.settings.node, projection.name)
                offset = None
                await turn_switch(tx, [projection.name], Want.PAUSE if what is Want.RESET else Want.RUN)
            if offset is None and (what is not Want.RUN or projection.name not in self._ready):
                await self._run(projection, projection.reset(tx))
                await tx.forget_applied(projection.name)  # of an earlier life
            span = Span(offset or Offset(store.id, 0), (await store.end()).position)
            if what not in (Want.PAUSE, Want.RESET):
                await self._apply(projection, tx, span)
            if offset != span.offset:
                # Also where it stands before nothing, so that `reset` runs once.
                await tx.set_offset(consumer, span.offset)
        # Not before its tables are on the disk.
        self._ready.add(projection.name)
        if not span.read:
            return 0, False
        self._driver.observe(
            Projected(
                node=self._driver.settings.node,
                projection=projection.name,
                events=span.wanted,
                traceparents=span.traceparents,
                traces=span.traces,
                duration_s=time.perf_counter() - started,
            )
        )
        return span.wanted, span.more

    async def _apply(self, projection: AnyProjection, tx: Transaction, span: Span) -> None:
        """Give it its pages.

        Raises:
            ProjectionFailed: it raised; if it had several pages, each of them shall have a transaction of its own.
        """
        try:
            async with aclosing(self._pages(projection, tx, span)) as pages:
                if not is_streamed(projection):
                    async for batch in pages:
                        await self._run(projection, cast(Projection, projection).apply(batch, tx))
                elif (first := await anext(pages, None)) is not None:
                    stream = Pages(first, pages)
                    await self._run(projection, cast(StreamedProjection, projection).apply(stream, tx))
                    if not stream.taken:
                        raise ProjectionFailed(
                            f"the projection {projection.name!r} is streamed, and read no page",
                            hint="async for page in pages: …",
                        )
        except ProjectionFailed:
            if span.pages > 1:
                self._alone.add(projection.name)
            raise

    async def _pages(self, projection: AnyProjection, tx: Transaction, span: Span) -> AsyncGenerator[Batch, None]:
        """As many as the transaction takes."""
        store, loop = self._driver.store, asyncio.get_running_loop()
        page_size = self._page_sizes[projection.name]
        events_max, until = SPAN_EVENTS, loop.time() + SPAN_S
        if is_streamed(projection):
            events_max, until = self._batches[projection.name], math.inf
        while span.more:
            page = await store.log(after=span.offset, limit=min(page_size.events, events_max - span.read))
            if not page:
                break
            events = [each.event for each in page]
            page_size.learn(events)
            ours: Sequence[Stored] = page
            if projection.topics:
                ours = [each for each, event in zip(page, events, strict=True) if event.topic in projection.topics]
            wanted = [each for each in ours if not each.twin]
            if projection.types:
                wanted = [each for each in wanted if each.event.type in projection.types]
            changes = await self._changes(store, tx, projection, wanted, ours) if projection.resolved else ()
            span.advance(page, wanted)
            if wanted or changes:
                yield Batch(wanted, changes)
            if projection.name in self._alone or span.read >= events_max or loop.time() >= until:
                break

    async def _run(self, projection: AnyProjection, work: Callable[[], object] | object) -> None:
        try:
            await work  # type: ignore[misc]
        except (ConfigError, ProjectionFailed, StoreBusy, StoreClosed, StoreCorrupt, StoreFull, StoreUnavailable):
            raise  # not the projection's doing
        except (asyncio.CancelledError, Exception) as error:
            if is_cancelled(error):
                raise
            raise ProjectionFailed(
                f"the projection {projection.name!r} raised {type(error).__name__}: {error}"
            ) from error

    async def _changes(
        self,
        store: EventStore,
        tx: Transaction,
        projection: AnyProjection,
        wanted: Sequence[Stored],
        ours: Sequence[Stored],
    ) -> list[Change]:
        # What a projection does not want changes what its aggregates resolve to all the same: an event of another
        # type may be the last write, and a twin brings what its writer knew.
        follows = {(each.event.topic, each.event.aggregate_id) for each in wanted}
        touched = list(dict.fromkeys((each.event.topic, each.event.aggregate_id) for each in ours))
        states = await tx.applied(projection.name, touched) if touched else ()
        looked_at = [
            (*of, state) for of, state in zip(touched, states, strict=True) if state is not None or of in follows
        ]
        changes: list[Change] = []
        async for topic, aggregate_id, state, events in _aggregates(store, looked_at):
            try:
                current = resolve(self._resolver, conflict_of(topic, aggregate_id, events)).data
            except HandlerError as error:
                raise ProjectionFailed(
                    f"the projection {projection.name!r} has no state for {aggregate_id!r}: {error.message}"
                ) from error
            previous = None if state is None else msgspec.json.decode(state)
            if state is not None and previous == current:
                continue
            changes.append(Change(topic, aggregate_id, previous, current))
        applied = [(each.topic, each.aggregate_id, _json(projection, each)) for each in changes]
        await tx.note_applied(projection.name, applied)
        return changes


class Span:
    """How far one transaction of a projection has come.

    Args:
        offset: Where it began, and then of the last event that was read.
        end: Of the log, when it began.
    """

    def __init__(self, offset: Offset, end: int) -> None:
        self.offset = offset
        self.pages = 0
        self.read = 0
        self.wanted = 0
        self.traces = 0
        self.traceparents: list[str] = []
        self._end = end

    @property
    def more(self) -> bool:
        """Whether the log goes on."""
        return self.offset.position < self._end

    def advance(self, page: Sequence[Stored], wanted: Sequence[Stored]) -> None:
        """A page was read, of which these were wanted."""
        self.offset = page[-1].offset
        self.pages += 1
        self.read += len(page)
        self.wanted += len(wanted)
        traces = traces_of(each.event for each in wanted)
        self.traces += len(traces)
        self.traceparents += traces[: TRACES_MAX - len(self.traceparents)]


class Pages:
    """The pages of one transaction, as a streamed projection takes them: one at a time is in memory.

    Args:
        first: Is there already.
        rest: Are read when they are asked for.
    """

    def __init__(self, first: Batch, rest: AsyncIterator[Batch]) -> None:
        self._first: Batch | None = first
        self._rest = rest

    @property
    def taken(self) -> bool:
        """Whether any was."""
        return self._first is None

    def __aiter__(self) -> Pages:
        return self

    async def __anext__(self) -> Batch:
        if self._first is None:
            return await anext(self._rest)
        first, self._first = self._first, None
        return first


def is_streamed(projection: AnyProjection) -> bool:
    """Whether it takes the pages of a transaction itself."""
    return getattr(projection, "streamed", False)


async def _aggregates(
    store: EventStore, wanted: Sequence[tuple[str, str, bytes | None]]
) -> AsyncIterator[tuple[str, str, bytes | None, Sequence[Event]]]:
    """Each with its events. Several at a time are asked for: a store on a server has a way to go for each."""
    for at in range(0, len(wanted), AGGREGATES_TOGETHER):
        part = wanted[at : at + AGGREGATES_TOGETHER]
        found = await asyncio.gather(*(store.aggregate(topic, aggregate_id) for topic, aggregate_id, _ in part))
        for (topic, aggregate_id, state), events in zip(part, found, strict=True):
            yield topic, aggregate_id, state, events


def _json(projection: AnyProjection, change: Change) -> bytes:
    """What is kept of an aggregate's state.

    Raises:
        ProjectionFailed: the resolver gave what JSON cannot say.
    """
    try:
        return msgspec.json.encode(change.current)
    except (TypeError, ValueError, RecursionError, OverflowError, msgspec.MsgspecError) as error:
        raise ProjectionFailed(
            f"the projection {projection.name!r} cannot keep the state of {change.aggregate_id!r}: {error}",
            hint="a resolver's data must be JSON, or the projection must do without `resolved`",
        ) from error
