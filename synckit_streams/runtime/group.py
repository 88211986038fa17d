"""A handler group at work: it pulls the log of its store, lane by lane, and commits effect and place together.

Theory of operation. One reader takes pages of the log and deals the events out to *strands*, by lane. A strand calls
the handlers of its events one after another and commits what came of them in a `Unit`: what the handlers did in the
store's database, the events that they returned, and how far the lanes have come. No delivery of a broker ever calls a
handler: what is in the log was committed, deduplicated and acknowledged before.

Where several processes share the store, each has a part of the lanes, by leases. If the store fails, or somebody else
has a lane, everything in memory is thrown away and read anew.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

from synckit_streams.errors import LeaseLost, StoreClosed, StoreError
from synckit_streams.model.event import Offset, Stored
from synckit_streams.ports.store import Lease
from synckit_streams.runtime.desk import Desk, Item, Tally
from synckit_streams.runtime.driver import Driver
from synckit_streams.runtime.handling import Handler
from synckit_streams.runtime.keeping import LEASE_S, Keeper
from synckit_streams.runtime.lanes import LANES, Aggregate, Lane, Parked, decode_parked, lane_name, lane_of
from synckit_streams.runtime.paging import PageSize
from synckit_streams.runtime.policy import REDRIVEN
from synckit_streams.runtime.strand import Restart, Strand
from synckit_streams.sync.pace import next_delay_ms

logger = logging.getLogger("synckit_streams")

PAGE_EVENTS = 1_000
PENDING_EVENTS_MAX = 4_000
"""So many events are taken from the log ahead of the handlers, or two batches for each strand if that is more."""
PENDING_BYTES_MAX = 16 * 1024 * 1024
AGAIN_MS, AGAIN_MS_MAX = 100, 10_000
"""How long a group waits after its store failed."""


class Group:
    """See the module's text.

    Args:
        driver: Of the node, whose log is read.
        name: Of the group; its places are kept under it.
        handlers: Each with a name of its own; an event goes to the one that names its type, else to the one that takes
            every type of its topic.
        concurrency: How many strands there are.
        lease_s: For how long a worker that says nothing keeps its lanes, where several share the store.
        latest: Whether a group that is new to the store begins with what comes, and not with what is there.
    """

    def __init__(
        self,
        driver: Driver,
        name: str,
        handlers: Sequence[Handler],
        *,
        concurrency: int = 1,
        lease_s: float = LEASE_S,
        latest: bool = False,
    ) -> None:
        self.name = name
        self.error: BaseException | None = None
        """What the store said when it failed last; None when it works."""
        self._driver = driver
        self._latest = latest
        self._handlers = tuple(handlers)
        self._desk = Desk(driver, name, handlers, min(concurrency, LANES))
        self._dead_letters = frozenset(each.dead_letter for each in handlers)
        self._strands = [Strand(self._desk, number) for number in range(min(concurrency, LANES))]
        self._reading = True
        self._pending_max = max(PENDING_EVENTS_MAX, 2 * sum(each.batch for each in handlers) * len(self._strands))
        self._bell = asyncio.Event()
        self._keeper = Keeper(driver.store, name, lease_s) if driver.store.features.shared else None
        self._leases: dict[int, Lease] = {}
        """By which we have our lanes; also while the store is away."""
        self._failures = 0
        self._page_size = PageSize(PAGE_EVENTS)

    # --- its life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until `stop`. Whatever the store does, it goes on when the store does.

        Raises:
            StoreClosed: the store was closed.
            FeatureUnsupported, MissingDependency: a handler can never work here; see `policy.mistake_in`.
        """
        try:
            with self._desk.suspects.in_hand.open():
                while not self._stopping:
                    try:
                        await self._live()
                    except Restart:
                        continue
                    except StoreClosed:
                        raise
                    except StoreError as error:
                        await self._back_off(error)
        finally:
            if self._keeper is not None:
                with suppress(StoreError):  # whoever cannot say that he goes is gone when his leases have run out
                    await self._keeper.leave(self._leases)

    async def _back_off(self, error: StoreError) -> None:
        self.error = error
        self._failures += 1
        dice = self._driver.world.dice()
        delay_ms = next_delay_ms(self._failures, base_ms=AGAIN_MS, delay_ms_max=AGAIN_MS_MAX, dice=dice)
        logger.warning("group %s: %s; it goes on in %.1f s", self.name, error, delay_ms / 1000)
        with suppress(TimeoutError):
            async with asyncio.timeout(delay_ms / 1000):
                await self._desk.stopped.wait()

    async def stop(self) -> None:
        """Finish what has begun, commit it, and begin nothing more; `run` then returns."""
        self._desk.stopped.set()
        self.poke()

    @property
    def _stopping(self) -> bool:
        return self._desk.stopped.is_set()

    def poke(self) -> None:
        """Look again: time has passed, or the log has grown."""
        self._bell.set()
        self._desk.room.set()
        self._desk.changed.set()
        for strand in self._strands:
            strand.woken.set()

    async def _live(self) -> None:
        """From reading the lanes to the first failure."""
        self._reading, self._desk.ending = True, False
        self._desk.lanes.clear()
        self._desk.suspects.clear()
        for strand in self._strands:
            strand.clear()
        # What was being committed when the last life was cut short goes on by itself. Only when it has ended does the
        # store say where the lanes are: read before, the same events would be handled once more.
        async with self._driver.store.transaction():
            pass
        self._desk.read = (await self._driver.store.end()).position
        if self._keeper is None:
            await self._gain(dict.fromkeys(range(LANES)))
        else:
            await self._keep_once(self._keeper)
        work = [self._take(), self._keep(), *(strand.work() for strand in self._strands)]
        aside = [asyncio.create_task(each) for each in (self._listen(), self._pass_on())]
        tasks = [asyncio.create_task(each, name=f"synckit-{self.name}") for each in work]
        # The work ends when all of it is done, or with the first that fails; what stands beside it never ends well.
        work_done: asyncio.Future[Any] = asyncio.gather(*tasks)
        work_done.add_done_callback(lambda done: done.cancelled() or done.exception())  # it is raised below
        try:
            await asyncio.wait({work_done, *aside}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._reading = self._desk.ending = True
            for task in (*tasks, *aside):
                task.cancel()
            ended = await asyncio.gather(*tasks, *aside, return_exceptions=True)
        for result in ended:
            if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
                raise result

    async def _listen(self) -> None:
        async for _ in self._driver.store.watch():
            self._bell.set()

    async def _pass_on(self) -> None:
        """What one strand finds out about a circuit concerns all of them."""
        while True:
            await self._desk.changed.wait()
            self._desk.changed.clear()
            for strand in self._strands:
                strand.woken.set()

    # --- which lanes -------------------------------------------------------------------------------------------------

    async def _gain(self, leases: Mapping[int, Lease | None]) -> None:
        """Begin with these lanes, as the store has them."""
        names = {number: lane_name(self.name, number) for number in leases}
        offsets = await self._offsets(names.values(), [each for each in leases.values() if each is not None])
        parked = await asyncio.gather(*(self._parked_in(name) for name in names.values()))
        self._desk.look_for_deaths()
        for (number, name), waiting in zip(names.items(), parked, strict=True):
            position = offsets[name].position if name in offsets else 0
            lane = self._desk.lanes[number] = Lane(number, position, waiting, leases[number])
            self._strand(lane).lanes[number] = lane
            self._desk.read = min(self._desk.read, position)
        self.poke()

    async def _offsets(self, names: Collection[str], leases: Sequence[Lease]) -> Mapping[str, Offset]:
        """Where these lanes stand; a lane that begins at the end of the log keeps that place from now on."""
        store = self._driver.store
        found = await store.offsets()
        new = [name for name in names if name not in found] if self._latest else []
        if not new:
            return found
        end = await store.end()
        async with store.transaction(leases) as tx:
            await tx.set_offsets(dict.fromkeys(new, end))
        return {**found, **dict.fromkeys(new, end)}

    async def _parked_in(self, name: str) -> dict[Aggregate, Parked]:
        parked: dict[Aggregate, Parked] = {}
        after: Aggregate | None = None
        while page := await self._driver.store.applied(name, after=after, limit=PAGE_EVENTS):
            parked.update({(topic, aggregate_id): decode_parked(state) for topic, aggregate_id, state in page})
            after = page[-1][:2]
        return parked

    async def _keep(self) -> None:
        """Where others share the store: keep our part of the lanes, and no more."""
        keeper = self._keeper
        while keeper is not None and not self._stopping:
            with suppress(TimeoutError):
                async with asyncio.timeout(keeper.pause_s):
                    await self._desk.stopped.wait()
            if not self._stopping:
                await self._keep_once(keeper)

    async def _keep_once(self, keeper: Keeper) -> None:
        part = await keeper.look(self._leases)
        lost = self._leases.keys() - part.kept.keys()
        self._leases = part.kept | part.gained
        if lost & self._desk.lanes.keys():
            raise LeaseLost(f"{len(lost)} lanes of the group {self.name} are somebody else's now")
        if anew := {number: lease for number, lease in self._leases.items() if number not in self._desk.lanes}:
            await self._gain(anew)
        for number in random.sample(sorted(part.kept), part.surplus):
            await self._let_go(self._desk.lanes[number])

    async def _let_go(self, lane: Lane) -> None:
        """Somebody else is to have it: what has begun in it is committed, and nothing more begins."""
        strand = self._strand(lane)
        async with strand.busy:
            strand.drop(lane)
            del self._desk.lanes[lane.number]
            await self._driver.store.release([self._leases.pop(lane.number)])

    # --- taking from the log -----------------------------------------------------------------------------------------

    async def _take(self) -> None:
        """Deal out the log, as far ahead of the strands as there is room."""
        store, desk = self._driver.store, self._desk
        while not self._stopping:
            self._bell.clear()
            self._reading = True
            begin = desk.read
            page = await store.log(after=Offset(store.id, begin), limit=self._page_size.events)
            self._failures, self.error = 0, None
            # From here to where `read` is moved nothing is awaited: lanes that come are not so far as the others, and
            # what they lack would be passed over.
            if desk.read < begin:
                continue
            if not page:
                self._reading = False
                await self._bell.wait()
                continue
            self._page_size.learn([each.event for each in page])
            for stored in page:
                self._deal(stored)
            desk.read = page[-1].position
            for strand in self._strands:
                strand.woken.set()
            if desk.end <= desk.read and len(page) > 1:
                desk.end = (await store.end()).position
            desk.end = max(desk.end, desk.read)
            while self._full and not self._stopping:
                desk.room.clear()
                await desk.room.wait()

    @property
    def _full(self) -> bool:
        desk = self._desk
        return desk.pending_events >= self._pending_max or desk.pending_bytes >= PENDING_BYTES_MAX

    def _deal(self, stored: Stored) -> None:
        event = stored.event
        handler = self._desk.handler(stored)
        aggregate_id = event.aggregate_id
        if handler is None:
            if event.type != REDRIVEN or event.topic not in self._dead_letters:
                return
            settled = self._desk.settled(stored)
            if settled is None:
                return
            aggregate_id = settled.aggregate_id
        lane = self._desk.lanes.get(lane_of(aggregate_id))
        # A twin says what was said before.
        if lane is None or stored.position <= lane.read or stored.twin:
            return
        lane.read = stored.position
        self._strand(lane).add(Item(stored, lane, handler))

    def _strand(self, lane: Lane) -> Strand:
        return self._strands[lane.number % len(self._strands)]

    # --- how it is ---------------------------------------------------------------------------------------------------

    @property
    def tally(self) -> Tally:
        """What it has done."""
        return self._desk.tally

    @property
    def read(self) -> int:
        """Up to where the log was taken."""
        return self._desk.read

    @property
    def lanes(self) -> int:
        """How many lanes this worker has."""
        return len(self._desk.lanes)

    @property
    def pending(self) -> int:
        """How many events were taken from the log, and are not handled yet."""
        return self._desk.pending_events

    @property
    def parked(self) -> int:
        """How many aggregates wait for another attempt."""
        return sum(len(lane.parked) for lane in self._desk.lanes.values())

    @property
    def open_circuits(self) -> list[str]:
        """The handlers whose dependency counts as down."""
        return [name for name, circuit in self._desk.circuits.items() if circuit.open]

    @property
    def stuck_s(self) -> float:
        """For how long a call is under way that should have ended by its handler's timeout; 0 if none is."""
        longest = [each.timeout_s for each in self._handlers]
        limit_s = max((each for each in longest if each is not None), default=0.0) if None not in longest else 0.0
        since = [each.calling_since for each in self._strands if each.calling_since is not None]
        over_s = time.perf_counter() - min(since) - limit_s if since and limit_s else 0.0
        return max(over_s, 0.0)

    @property
    def due_ms(self) -> int | None:
        """When the next attempt at an event that waits is due; None if none waits."""
        # While what its handler depends on is down nothing is tried, not before the next look at it.
        away = {name: each.until_ms for name, each in self._desk.circuits.items() if each.open}
        waiting = (each for lane in self._desk.lanes.values() for each in lane.parked.values())
        return min((max(each.due_ms, away.get(each.handler, 0)) for each in waiting), default=None)

    @property
    def paused_until_ms(self) -> int | None:
        """When a handler is called again whose dependency is down; None if none is."""
        return min((each.until_ms for each in self._desk.circuits.values() if each.open), default=None)

    @property
    def idle(self) -> bool:
        """Whether the log is read to its end, and everything in it was handled or waits for another attempt."""
        return not self._reading and all(strand.idle for strand in self._strands)
