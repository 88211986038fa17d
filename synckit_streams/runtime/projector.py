"""Feeds projections from the log: a page, its effect and its offset in one transaction.

A projection that wants resolved aggregates (`resolved = True`) gets, for each aggregate that a page touches, what it
applied last and what the aggregate resolves to now. What it applied last is kept in its own transaction, so it can
retract exactly that: adding a head's value at each change would give another total on each replica.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

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
from synckit_streams.ports.projection import Batch, Change, Projection
from synckit_streams.ports.store import EventStore, Transaction
from synckit_streams.ports.telemetry import TRACES_MAX, Projected
from synckit_streams.runtime.cancel import is_cancelled
from synckit_streams.runtime.driver import Driver, logger
from synckit_streams.runtime.envelope import traces_of
from synckit_streams.runtime.paging import PageSize
from synckit_streams.runtime.switch import Want, read_switch, turn_switch
from synckit_streams.sync.conflict import ConflictResolver, conflict_of, resolve

PAGE_EVENTS = 1_000
AGGREGATES_TOGETHER = 64
BATCH_MAX = 10_000
"""Most events in one page of a projection, whatever it asks for."""
CONSUMER = "projection|"
"""Before a projection's name: the consumer under which the store keeps its offset."""


class Projector:
    """Runs the projections of one node, one after another.

    Args:
        driver: Of the node.
        projections: Each with a name of its own.
        resolver: For those that want resolved aggregates.
    """

    def __init__(self, driver: Driver, projections: Sequence[Projection], resolver: ConflictResolver) -> None:
        self._driver = driver
        self._projections = tuple(projections)
        self._resolver = resolver
        self._ready: set[str] = set()
        self._page_sizes = {
            each.name: PageSize(min(getattr(each, "batch", PAGE_EVENTS), BATCH_MAX)) for each in projections
        }

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
            try:
                more = True
                while more:
                    with self._driver.operation("project"):
                        count, more = await self._page(projection)
                    applied += count
            except ProjectionFailed as error:
                failures.append(error)
        return applied, failures

    async def _page(self, projection: Projection) -> tuple[int, bool]:
        """One page and its offset, in one transaction; how many were wanted, and whether the log goes on behind it."""
        store = self._driver.store
        started = time.perf_counter()
        consumer = f"{CONSUMER}{projection.name}"
        page_size = self._page_sizes[projection.name]
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
            if what in (Want.PAUSE, Want.RESET):
                await tx.set_offset(consumer, offset or Offset(store.id, 0))
                return 0, False
            page = await store.log(after=offset, limit=page_size.events)
            page_size.learn(each.event for each in page)
            if not page and offset is None:
                # Where it stands is kept even when nothing was there, so that `reset` runs once.
                await tx.set_offset(consumer, Offset(store.id, 0))
            ours = [each for each in page if not projection.topics or each.event.topic in projection.topics]
            wanted = [
                each for each in ours if not each.twin and (not projection.types or each.event.type in projection.types)
            ]
            changes = await self._changes(store, tx, projection, wanted, ours) if projection.resolved else ()
            if wanted or changes:
                await self._run(projection, projection.apply(Batch(wanted, changes), tx))
            more = False
            if page:
                await tx.set_offset(consumer, page[-1].offset)
                more = page[-1].position < (await store.end()).position
        # Not before its tables are on the disk.
        self._ready.add(projection.name)
        if not page:
            return 0, False
        traces = traces_of(each.event for each in wanted)
        self._driver.observe(
            Projected(
                node=self._driver.settings.node,
                projection=projection.name,
                events=len(wanted),
                traceparents=traces[:TRACES_MAX],
                traces=len(traces),
                duration_s=time.perf_counter() - started,
            )
        )
        return len(wanted), more

    async def _run(self, projection: Projection, work: Callable[[], object] | object) -> None:
        try:
            await work  # type: ignore[misc]
        except (ConfigError, StoreBusy, StoreClosed, StoreCorrupt, StoreFull, StoreUnavailable):
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
        projection: Projection,
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
    """Each with its events. Several at a time are asked for: a store on a server has a way to go for each."""
    for at in range(0, len(wanted), AGGREGATES_TOGETHER):
        part = wanted[at : at + AGGREGATES_TOGETHER]
        found = await asyncio.gather(*(store.aggregate(topic, aggregate_id) for topic, aggregate_id, _ in part))
        for (topic, aggregate_id, state), events in zip(part, found, strict=True):
            yield topic, aggregate_id, state, events


def _json(projection: Projection, change: Change) -> bytes:
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
