"""Some lanes of a handler group, worked on by one task: handlers are called, and what came of them is committed.

An event whose handler raises is *parked*: it waits beside its lane, with what comes of the same aggregate, and its
attempts are counted on the disk. When they are used up it goes to the dead-letter topic, in the same commit that lets
its aggregate go on. Of a batch that fails, halving tells who it is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from synckit_streams.errors import (
    CauseUnknown,
    IdReused,
    Invalid,
    LeaseLost,
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreUnavailable,
    SyncKitError,
    TooLarge,
    Unfit,
)
from synckit_streams.model.event import Draft, Offset, Stored
from synckit_streams.ports.telemetry import TRACES_MAX, Handled
from synckit_streams.runtime.cancel import settle_cancelling
from synckit_streams.runtime.desk import CAREFUL_EVENTS, Desk, Item
from synckit_streams.runtime.envelope import traces_of
from synckit_streams.runtime.handling import Handler, HandlerContext
from synckit_streams.runtime.in_hand import Trace
from synckit_streams.runtime.lanes import PARKED_EVENTS_MAX, Aggregate, Lane, Parked
from synckit_streams.runtime.policy import KILLS_MIN, Killed, dead_letter, mistake_in, reason_of
from synckit_streams.runtime.unit import UNIT_EVENTS, Part, Unit

logger = logging.getLogger("synckit_streams")

UNIT_S, HOLD_S = 0.03, 0.01
"""A unit to which one call after another adds is committed after so long, and sooner if its transaction is open, for
which others wait."""
IDLE_POSITIONS = 1_000
"""A lane in which nothing happens is moved on when the others are so far ahead."""
STORE_AWAY = (StoreBusy, StoreFull, StoreUnavailable, StoreClosed, StoreCorrupt, LeaseLost)
"""The store's doing, and not the handler's."""
REFUSED = (IdReused, CauseUnknown, Invalid, TooLarge)
"""What a store says of an event that it is given to write."""
DOWN = "what its handler depends on is down"
"""Why an event waits that was not tried."""


class Restart(Exception):
    """Read the lanes anew."""


class Strand:
    """See the module's text.

    Args:
        desk: Of the group.
        number: Its own among the group's.
    """

    def __init__(self, desk: Desk, number: int) -> None:
        self._number = number
        self.lanes: dict[int, Lane] = {}
        self.woken = asyncio.Event()
        self.busy = asyncio.Lock()
        """While a unit is being filled and committed."""
        self.calling_since: float | None = None
        """When the call began that is under way, by the monotonic clock."""
        self._desk = desk
        self._driver = desk.driver
        self._pending: deque[Item] = deque()
        self._slow_s = 0.0
        """How long calls take, the slow ones of late."""
        self._batch_max = 0
        """0 is whatever the handler takes; less while a batch is being halved in which somebody failed."""

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do but wait."""
        return not self._pending and not self.busy.locked()

    def clear(self) -> None:
        """Forget everything: it is read anew."""
        self.lanes = {}
        while self._pending:
            self._take()
        self._batch_max = 0

    def add(self, item: Item) -> None:
        """One more event, behind the others."""
        self._pending.append(item)
        self._desk.pending_events += 1
        self._desk.pending_bytes += len(item.stored.event.payload)

    def _take(self) -> Item:
        item = self._pending.popleft()
        self._desk.pending_events -= 1
        self._desk.pending_bytes -= len(item.stored.event.payload)
        self._desk.room.set()
        return item

    def drop(self, lane: Lane) -> None:
        """Nothing more of this lane; only while nothing is under way."""
        del self.lanes[lane.number]
        for _ in range(len(self._pending)):
            item = self._take()
            if item.lane is not lane:
                self.add(item)

    # --- its life ----------------------------------------------------------------------------------------------------

    async def work(self) -> None:
        """Until the group is stopped.

        Raises:
            Restart, StoreError: everything has to be read anew.
            FeatureUnsupported, MissingDependency: a handler can never work here.
        """
        while not self._desk.stopped.is_set():
            self.woken.clear()
            async with self.busy:
                did = await self._unit()
            if not did and not self.woken.is_set() and not self._desk.stopped.is_set():
                await self._rest()
        async with self.busy:
            await self._unit()  # moves idle lanes on, and begins nothing

    async def _unit(self) -> int:
        """Fill a unit and commit it; gives how much was done."""
        desk = self._desk
        if not desk.suspects.come(self):
            return 0
        unit = Unit(self._driver, desk.group, self.lanes.values())
        started = time.monotonic()
        events_max = 1 if desk.careful else UNIT_EVENTS
        turn, did, due = 0, 0, self._due()
        try:
            while unit.events < events_max and time.monotonic() - started < (HOLD_S if unit.begun else UNIT_S):
                # While the transaction is open others that write wait: not for a handler that takes its time.
                if desk.stopped.is_set() or (unit.begun and self._slow_s > HOLD_S / 2):
                    break
                if desk.suspects.is_alone(self):
                    break
                # In turns: all that has waited for a dependency which is back must not keep what is new waiting.
                turn += 1
                if (turn % 2 == 0 or not due) and self._pending and (done := await self._next(unit)):
                    did += done
                elif due:
                    did += await self._again(unit, *due.pop()[:2])
                else:
                    break
            if not self._pending:
                self._move_on(unit)
            await self._commit(unit)
        except BaseException:
            await unit.roll_back()
            raise
        finally:
            if desk.suspects.go(self):
                desk.changed.set()
        return did

    async def _alone(self, unit: Unit) -> bool:
        """Whether nothing else of the group is under way until this unit ends; not what is in the unit, either."""
        return not (unit or unit.begun) and await self._desk.suspects.alone(self)

    async def _rest(self) -> None:
        """Until there is something to do."""
        desk, now_ms = self._desk, self._driver.world.wall_ms()
        times = [each.due_ms for lane in self.lanes.values() for each in lane.parked.values() if each.due_ms > now_ms]
        times += [each.until_ms for each in desk.circuits.values() if each.open and not each.trying]
        delay_s = max(min(times) - now_ms, 1) / 1000 if times else None
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self.woken.wait()

    def _due(self) -> list[tuple[Lane, Aggregate, Parked]]:
        """What has waited long enough, the first one last."""
        now_ms = self._driver.world.wall_ms()
        away = {name for name, circuit in self._desk.circuits.items() if not circuit.ready}
        due = [
            (lane, aggregate, parked)
            for lane in self.lanes.values()
            for aggregate, parked in lane.parked.items()
            if parked.due_ms <= now_ms and parked.handler not in away
        ]
        return sorted(due, key=lambda each: -each[2].due_ms)

    def _move_on(self, unit: Unit) -> None:
        """Lanes in which nothing happens need not be read from where something happened last."""
        far = 0 if self._desk.stopped.is_set() else IDLE_POSITIONS
        for lane in self.lanes.values():
            if self._desk.read - lane.position > far:
                unit.pass_by(lane, self._desk.read)

    async def _commit(self, unit: Unit) -> None:
        """A unit. What the store says of an event that a handler returned is that handler's failure, and so is a
        transaction that it has spoilt: in PostgreSQL, by going on after a statement that failed.

        Raises:
            Restart: who returned it cannot be told; they are to be committed one by one.
        """
        started = time.perf_counter()
        begun = unit.begun
        try:
            await unit.commit()
        except SyncKitError as error:
            spoilt = begun and type(error) is StoreError
            if not spoilt and not isinstance(error, REFUSED):
                raise
            if unit.last is None:
                self._desk.careful = CAREFUL_EVENTS
                raise Restart from error
            handler, lane, parked, stored = unit.last
            unit = Unit(self._driver, self._desk.group, self.lanes.values())
            unit.pass_by(lane, max(lane.position, stored.position))
            self._failed(unit, handler, lane, parked, stored, error)
            await unit.commit()
        self._desk.careful = max(self._desk.careful - unit.events, 0)
        if unit.events:
            self._desk.progressed(unit, time.perf_counter() - started)

    # --- one event after another -------------------------------------------------------------------------------------

    async def _next(self, unit: Unit) -> int:
        """The next events of one handler, as many as it takes at a time; 0 when they have to wait."""
        stored, lane, handler = self._pending[0]
        aggregate = (stored.event.topic, stored.event.aggregate_id)
        waiting = lane.parked.get(aggregate)
        if handler is None:
            self._put_back(unit, self._take())
            return 1
        if waiting is not None:
            if len(waiting.positions) >= PARKED_EVENTS_MAX:
                return 0
            self._take()
            unit.park(lane, aggregate, waiting.with_more(stored.position))
            unit.pass_by(lane, stored.position)
            unit.count(1)
            return 1
        if lane.full:
            return 0
        if not self._desk.circuits[handler.name].ready:
            return self._set_aside(unit, handler)
        if stored.position in self._desk.suspects:
            if not await self._alone(unit):
                return 0
            if deaths := self._desk.suspects.deaths(stored.position):
                self._take()
                unit.pass_by(lane, stored.position)
                self._died(unit, deaths, handler, lane, Parked((stored.position,)), stored)
                return 1
        items = self._run_of(handler)
        error = await self._call(unit, handler, [item.stored for item in items], 1)
        if error is not None and len(items) > 1:
            self._batch_max = len(items) // 2
            return 1
        self._batch_max = 2 * self._batch_max if self._batch_max < handler.batch else 0
        if error is not None and self._desk.circuits[handler.name].open:
            return 1  # nobody's fault: it is tried again as it stands
        unit.last = (handler, lane, Parked((stored.position,)), stored) if len(items) == 1 else None
        for item in items:
            self._take()
            unit.pass_by(item.lane, item.stored.position)
        unit.count(len(items))
        if error is not None:
            self._failed(unit, handler, lane, Parked((stored.position,)), stored, error)
        return len(items)

    def _set_aside(self, unit: Unit, handler: Handler) -> int:
        """The next event waits beside its lane while what its handler depends on is down, so that other handlers go on.
        Where there is no other it stays where it is, and costs nothing."""
        if len(self._desk.circuits) == 1:
            return 0
        stored, lane, _ = self._take()
        due_ms = self._desk.circuits[handler.name].until_ms
        waiting = Parked((stored.position,), due_ms=due_ms, reason=DOWN, handler=handler.name)
        unit.park(lane, (stored.event.topic, stored.event.aggregate_id), waiting)
        unit.pass_by(lane, stored.position)
        unit.count(1)
        return 1

    def _run_of(self, handler: Handler) -> list[Item]:
        """The next events for one call."""
        count_max = 1 if self._desk.careful else min(handler.batch, self._batch_max or handler.batch)
        suspects = self._desk.suspects or None
        items: list[Item] = []
        for item in self._pending:
            if len(items) == count_max or item.handler is not handler or item.lane.waits(item.stored):
                break
            if suspects is not None and items and (item.stored.position in suspects or suspects.is_alone(self)):
                break
            items.append(item)
        return items

    def _put_back(self, unit: Unit, item: Item) -> None:
        """A dead letter is to be tried again."""
        settled = self._desk.settled(item.stored)
        assert settled is not None
        aggregate = (settled.topic, settled.aggregate_id)
        waiting = item.lane.parked.get(aggregate, Parked(()))
        if settled.position not in waiting.positions:
            # Not before the one that is being tried: its attempts are counted.
            positions = (*waiting.positions[:1], *sorted((*waiting.positions[1:], settled.position)))
            unit.park(item.lane, aggregate, msgspec.structs.replace(waiting, positions=positions))
        unit.pass_by(item.lane, item.stored.position)
        unit.count(1)

    async def _again(self, unit: Unit, lane: Lane, aggregate: Aggregate) -> int:
        """The next attempt at an event that waits; 0 when it has to wait on."""
        parked = lane.parked[aggregate]  # more may have come behind since it was found to be due
        if (known := self._desk.circuits.get(parked.handler)) is not None and not known.ready:
            return 0  # it has opened just now
        store = self._driver.store
        position = parked.positions[0]
        page = await store.log(after=Offset(store.id, position - 1), limit=1)
        stored = page[0] if page and page[0].position == position else None
        handler = self._desk.handler(stored) if stored is not None else None
        if stored is None or handler is None:
            unit.park(lane, aggregate, parked.without_first())  # nobody takes it any more
            return 1
        # Not written: whoever reads it anew looks anew.
        parked = lane.parked[aggregate] = msgspec.structs.replace(parked, handler=handler.name)
        if not self._desk.circuits[handler.name].ready:
            return 0
        if position in self._desk.suspects:
            if not await self._alone(unit):
                return 0
            if deaths := self._desk.suspects.deaths(position):
                self._died(unit, deaths, handler, lane, parked, stored)
                return 1
        error = await self._call(unit, handler, [stored], parked.attempts + 1)
        if error is not None and self._desk.circuits[handler.name].open:
            return 1
        unit.last = (handler, lane, parked, stored)
        unit.count(1)
        if error is None:
            unit.park(lane, aggregate, parked.without_first())
        else:
            self._failed(unit, handler, lane, parked, stored, error)
        return 1

    async def _call(self, unit: Unit, handler: Handler, events: Sequence[Stored], attempt: int) -> BaseException | None:
        """One call; gives what it raised. What it returned is in the unit then."""
        desk, driver = self._desk, self._driver
        circuit, part = desk.circuits[handler.name], unit.part()
        context = HandlerContext(
            group=desk.group,
            handler=handler.name,
            node=driver.settings.node,
            stored=events,
            attempt=attempt,
            begin=part.begin,
        )
        circuit.begin()
        desk.suspects.take(self, self._number, events[0].position, len(events))
        started = self.calling_since = time.perf_counter()
        error: BaseException | None = None
        drafts: Sequence[Draft] = ()
        was_open = circuit.open
        limit = asyncio.timeout(handler.timeout_s)
        try:
            with driver.operation("handle") as traceparent:
                try:
                    async with limit:
                        drafts = context.outgoing(await handler.handle(events, context))
                    await part.keep()
                except BaseException as raised:
                    if desk.ending or (isinstance(raised, STORE_AWAY) and part.begun):
                        raise
                    if (mistake := mistake_in(raised)) is not None:
                        whose = f"the handler {handler.name!r} of the group {desk.group!r} cannot work"
                        raise type(mistake)(f"{whose}: {mistake.message}", hint=mistake.hint) from raised
                    settle_cancelling()
                    error = raised
                    if isinstance(raised, TimeoutError) and limit.expired():
                        raised.args = (f"the handler did not end within {handler.timeout_s:g} s",)
                    await self._undo(part)
                self._observe(handler, events, error, time.perf_counter() - started)
        finally:
            desk.suspects.in_hand.lay_down(self._number)
            if desk.suspects.is_alone(self):
                unit.counted += desk.suspects.acquit(events[0].position)
            context.end()
            self._slow_s = max(time.perf_counter() - started, 0.9 * self._slow_s)
            circuit.tell(error)
            self.calling_since = None
        if was_open != circuit.open:
            desk.changed.set()
        if error is None:
            if drafts:
                unit.answers.append((traceparent, drafts))
            desk.tally.handled += len(events)
        else:
            desk.tally.failed += 1
        return error

    async def _undo(self, part: Part) -> None:
        """What a call that failed has done.

        Raises:
            Restart: others have done something before it in the same transaction, which has ended.
        """
        try:
            await part.undo()
        except STORE_AWAY:
            raise
        except StoreError as error:
            self._desk.careful = CAREFUL_EVENTS
            raise Restart from error

    def _died(
        self, unit: Unit, deaths: Sequence[Trace], handler: Handler, lane: Lane, parked: Parked, stored: Stored
    ) -> None:
        """Whoever tried it last is gone, and could not count it."""
        unit.count(1)
        unit.counted += deaths
        parked = msgspec.structs.replace(parked, attempts=parked.attempts + len(deaths) - 1)
        self._failed(unit, handler, lane, parked, stored, Killed())
        if unit.dead:
            unit.counted += self._desk.suspects.acquit(stored.position)

    def _failed(
        self, unit: Unit, handler: Handler, lane: Lane, parked: Parked, stored: Stored, error: BaseException
    ) -> None:
        """It waits for its next attempt, or has had its last one."""
        desk, world, attempts = self._desk, self._driver.world, parked.attempts + 1
        aggregate = (stored.event.topic, stored.event.aggregate_id)
        attempts_max = max(handler.retry.max_attempts, KILLS_MIN if isinstance(error, Killed) else 1)
        if attempts < attempts_max and not isinstance(error, Unfit):
            due_ms = world.wall_ms() + handler.retry.delay_ms(attempts, world.dice())
            unit.park(lane, aggregate, Parked(parked.positions, attempts, due_ms, reason_of(error), handler.name))
            return
        node = self._driver.settings.node
        names = {"group": desk.group, "handler": handler.name, "node": node}
        unit.answers.append(("", [dead_letter(handler.dead_letter, stored, attempts, error, **names)]))
        unit.dead += 1
        unit.park(lane, aggregate, parked.without_first())
        desk.tally.dead += 1
        logger.error("group %s: %s gave up %s: %s", desk.group, handler.name, stored.event.key, reason_of(error))

    def _observe(self, handler: Handler, events: Sequence[Stored], error: BaseException | None, took_s: float) -> None:
        traces = traces_of(each.event for each in events)
        self._driver.observe(
            Handled(
                node=self._driver.settings.node,
                group=self._desk.group,
                handler=handler.name,
                events=len(events),
                error="" if error is None else type(error).__name__,
                traceparents=traces[:TRACES_MAX],
                traces=len(traces),
                duration_s=took_s,
            )
        )
