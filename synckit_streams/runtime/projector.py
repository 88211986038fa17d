"""Feeds projections from the log: pages, their effect and the offset behind them in one transaction.

A projection that wants resolved aggregates (`resolved = True`) gets, for each aggregate that a page touches, what it
applied last and what the aggregate resolves to now. What it applied last is kept in its own transaction, so it can
retract exactly that: adding a head's value at each change would give another total on each replica.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from typing import cast

import msgspec

from synckit_streams.errors import (
    ConfigError,
    HandlerError,
    LeaseLost,
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
from synckit_streams.ports.telemetry import Projected
from synckit_streams.runtime.cancel import is_cancelled
from synckit_streams.runtime.driver import Driver, logger
from synckit_streams.runtime.paging import PageSize
from synckit_streams.runtime.rebuilding import CONSUMER, Rebuilder
from synckit_streams.runtime.span import SPAN_EVENTS, Pages, Span, is_streamed
from synckit_streams.runtime.switch import Want, turn_switch
from synckit_streams.runtime.tenure import Tenure
from synckit_streams.runtime.trial import Failing, Trial, terms_of, trouble_name
from synckit_streams.sync.conflict import ConflictResolver, conflict_of, resolve

PAGE_EVENTS = 1_000
"""In a page, unless a projection says how many. Larger ones do not stay in the processor's cache."""
AGGREGATES_TOGETHER = 64
BATCH_MAX = 10_000
"""Most events in one page of a projection, whatever it asks for."""
STREAM_MAX = 1_000_000
"""Most events in one transaction of a streamed projection."""


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
        for each in projections:
            terms_of(each).check(f"the projection {each.name!r:.80}", each.topics)
        self._ready: set[str] = set()
        self._trials = {each.name: Trial(driver, each, f"{CONSUMER}{each.name}", posts=True) for each in projections}
        self.tenure = Tenure(driver.store, [f"{CONSUMER}{each.name}" for each in projections])
        self._rebuilder = Rebuilder(driver, self)
        self._batches = {each.name: getattr(each, "batch", PAGE_EVENTS) for each in projections}
        self._page_sizes = {
            each.name: PageSize(min(self._batches[each.name], PAGE_EVENTS if is_streamed(each) else BATCH_MAX))
            for each in projections
        }

    def __bool__(self) -> bool:
        return bool(self._projections)

    async def catch_up(self, *, patient: bool = False) -> tuple[int, list[ProjectionFailed]]:
        """Apply everything that is in the log; gives how many events were applied, and what failed meanwhile.

        Each projection goes as far as it can; one that raises does not stop the others. One that another process runs
        is left to that process.

        Args:
            patient: Leave a projection that has just failed until its next attempt is due.

        Raises:
            StoreError: the store failed.
        """
        applied = 0
        failures: list[ProjectionFailed] = []
        async with self.tenure.held():
            for projection in self._projections:
                if self.tenure.has(f"{CONSUMER}{projection.name}"):
                    applied += await self._bring_up(projection, failures, patient=patient)
        return applied, failures

    async def _bring_up(self, projection: AnyProjection, failures: list[ProjectionFailed], *, patient: bool) -> int:
        """Up to the end of the log, and with it what is built beside it."""
        applied, live, more, building = 0, True, True, True
        trial = self._trials[projection.name]
        try:
            while more or building:
                if live:
                    try:
                        with self._driver.operation("project"):
                            count, more = await self._try(projection, trial, patient=patient)
                        applied += count
                    except ProjectionFailed as error:
                        failures.append(error)
                        live = more = False
                building = await self._rebuilder.advance(projection, patient=patient)
            if live:
                trial.caught_up()
        except ProjectionFailed as error:
            failures.append(error)
        except LeaseLost as error:
            logger.warning("%s: the projection %r: %s", self._driver.settings.node, projection.name, error)
            self.tenure.lost(f"{CONSUMER}{projection.name}")
            trial.forget()
        return applied

    @property
    def failing(self) -> dict[str, Failing]:
        """The projections that stand before an event that they cannot take."""
        found = {name: trial.failing for name, trial in self._trials.items()}
        return {name: each for name, each in found.items() if each is not None}

    async def close(self) -> None:
        """Let go of whatever was opened for a rebuild."""
        await self._rebuilder.close()

    async def _try(self, projection: AnyProjection, trial: Trial, *, patient: bool) -> tuple[int, bool]:
        """A span; what it raises is tried again, or set aside."""
        try:
            return await self._span(projection, trial, patient=patient)
        except ProjectionFailed as error:
            return 0, await trial.failed(error, partial(self._transaction, projection))

    def _transaction(self, projection: AnyProjection) -> AbstractAsyncContextManager[Transaction]:
        """One of the store's, for as long as it is this process that runs the projection."""
        return self._driver.transaction(self.tenure.leases(f"{CONSUMER}{projection.name}"))

    async def _span(self, projection: AnyProjection, trial: Trial, *, patient: bool) -> tuple[int, bool]:
        """Pages and the offset behind them, in one transaction; how many were wanted, and whether the log goes on."""
        store = self._driver.store
        started = time.perf_counter()
        consumer = f"{CONSUMER}{projection.name}"
        async with self._transaction(projection) as tx:
            offset = await tx.offset(consumer)
            what = await self._rebuilder.obey(tx, projection)
            if what is Want.REBUILD:
                return 0, True
            if what is Want.REPLAY:
                offset = await self._rebuilder.replayed(tx, projection)
                await tx.set_offset(consumer, offset)
            if what in (Want.REBUILD_IN_PLACE, Want.RESET):
                logger.info("%s: the projection %r begins anew", self._driver.settings.node, projection.name)
                offset = None
                await turn_switch(tx, [projection.name], Want.PAUSE if what is Want.RESET else Want.RUN)
            if offset is None and (what is not Want.RUN or projection.name not in self._ready):
                await self.run(projection, projection.reset(tx))
                await tx.forget_applied(projection.name)  # of an earlier life
                await tx.forget_applied(trouble_name(projection.name))
                trial.forget()
            span = Span(offset or Offset(store.id, 0), (await store.end()).position)
            waits = what in (Want.PAUSE, Want.RESET) or await trial.look(tx, patient=patient)
            if not waits:
                await self.apply(projection, tx, span, trial)
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

    async def apply(self, projection: AnyProjection, tx: Transaction, span: Span, trial: Trial) -> None:
        """Give it its pages.

        Raises:
            ProjectionFailed: it raised, or took too long.
        """
        timeout_s = trial.terms.timeout_s
        async with aclosing(self._pages(projection, tx, span, trial)) as pages:
            if not is_streamed(projection):
                async for batch in pages:
                    await self.run(projection, cast(Projection, projection).apply(batch, tx), timeout_s)
            elif (first := await anext(pages, None)) is not None:
                stream = Pages(first, pages)
                await self.run(projection, cast(StreamedProjection, projection).apply(stream, tx), timeout_s)
                if not stream.taken:
                    raise ProjectionFailed(
                        f"the projection {projection.name!r} is streamed, and read no page",
                        hint="async for page in pages: …",
                    )
        if span.read:
            await trial.succeeded(tx, span.offset)

    async def _pages(
        self, projection: AnyProjection, tx: Transaction, span: Span, trial: Trial
    ) -> AsyncGenerator[Batch, None]:
        """As many as the transaction takes."""
        store, loop = self._driver.store, asyncio.get_running_loop()
        page_size = self._page_sizes[projection.name]
        events_max, until = SPAN_EVENTS, loop.time() + span.lasts_s
        if is_streamed(projection):
            events_max, until = self._batches[projection.name], math.inf
        topics, types = frozenset(projection.topics), frozenset(projection.types)
        while span.more:
            limit = min(page_size.events, events_max - span.read)
            page = await store.log(after=span.offset, limit=trial.limit(limit))
            if not page:
                break
            page_size.learn([each.event for each in page])
            page, ours = await trial.cut(tx, page)
            if topics:
                ours = [each for each in ours if each.event.topic in topics]
            wanted = [each for each in ours if not each.twin]
            if types:
                wanted = [each for each in wanted if each.event.type in types]
            trial.begin(ours, page[-1].offset)
            changes = await self._changes(store, tx, projection, wanted, ours) if projection.resolved else ()
            span.advance(page, wanted)
            if wanted or changes:
                yield Batch(wanted, changes)
            if trial.alone or span.read >= events_max or loop.time() >= until:
                break

    async def run(self, projection: AnyProjection, work: Awaitable[None], timeout_s: float | None = None) -> None:
        """Something of the projection's own.

        Args:
            projection: Whose.
            work: What it does.
            timeout_s: How long it may take.

        Raises:
            ProjectionFailed: it raised, or took longer.
        """
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                await work
        except (ConfigError, ProjectionFailed, StoreBusy, StoreClosed, StoreCorrupt, StoreFull, StoreUnavailable):
            raise  # not the projection's doing
        except (asyncio.CancelledError, Exception) as error:
            if is_cancelled(error):
                raise
            if isinstance(error, TimeoutError) and limit.expired():
                error.args = (f"it did not end within {timeout_s:g} s",)
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


async def _aggregates(
    store: EventStore, wanted: Sequence[tuple[str, str, bytes | None]]
) -> AsyncIterator[tuple[str, str, bytes | None, Sequence[Event]]]:
    """Each with its events. Several at a time are asked for: a store on a server has a way to go for each call."""
    for at in range(0, len(wanted), AGGREGATES_TOGETHER):
        part = wanted[at : at + AGGREGATES_TOGETHER]
        found = await store.aggregate_many([(topic, aggregate_id) for topic, aggregate_id, _ in part])
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
