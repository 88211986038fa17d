"""Carries the replica's effects out. The clock and the dice enter here, and nowhere else.

`give` hands an input to the replica and carries out what it asks for: `Persist` at once, against the store; what
belongs to a link goes into that link's outbox; alarms go to the log and to the observer.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from types import TracebackType
from typing import NamedTuple, Protocol

import msgspec

from synckit_streams.errors import (
    CauseUnknown,
    ClockSkew,
    IdReused,
    Invalid,
    LeaseLost,
    StoreClosed,
    SyncKitError,
    TooLarge,
)
from synckit_streams.model.clock import HybridTime
from synckit_streams.model.codec import TRACEPARENT_BYTES_MAX
from synckit_streams.model.event import Draft, Event
from synckit_streams.model.exchange import AppendResult, Raised
from synckit_streams.model.seen import Interval
from synckit_streams.ports.store import EventStore, Lease, Opening, Transaction
from synckit_streams.ports.telemetry import Alarmed, Appended, Detail, Observer
from synckit_streams.runtime.recent import Recent
from synckit_streams.runtime.settings import Settings
from synckit_streams.sync import protocol
from synckit_streams.sync.replica import Replica

logger = logging.getLogger("synckit_streams")

EVIDENCE_CHARS_MAX = 1_000
"""Of an alarm's evidence, so much is kept."""

NOTHING_WRITTEN = (IdReused, CauseUnknown, Invalid, TooLarge, StoreClosed)
"""What an append raises before it begins to write."""


def _boot_s() -> float:
    """Seconds that go on while the machine sleeps, so that waking up does not look like a leap of the clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class World(NamedTuple):
    """Time and chance; a simulation brings its own."""

    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    mono_ms: Callable[[], int] = lambda: int(_boot_s() * 1000)
    dice: Callable[[], float] = random.SystemRandom().random
    entropy: Callable[[int], bytes] = os.urandom


class Outbox(Protocol):
    """Where a link takes its work from."""

    def post(self, effect: protocol.Publish | protocol.Announce | protocol.Look) -> None:
        """Do this, soon."""

    async def learn(self, topic: str) -> None:
        """See where other processes, which share the store, have read what."""


class Driver:
    """One replica, one store, and the world.

    Args:
        settings: Of the node.
        store: Made, not yet open.
        observer: Told of everything.
        world: Time and chance.
    """

    def __init__(self, settings: Settings, store: EventStore, observer: Observer, world: World) -> None:
        self.settings = settings
        self.store = store
        self.world = world
        self.links: dict[str, Outbox] = {}
        self.replica: Replica
        self.watchers: list[asyncio.Event] = []
        """Set whenever the replica was given something."""
        self.wrote: Callable[[], None] = lambda: None
        self.widened: Callable[[], None] = lambda: None
        self._observer = observer
        self._last_write: tuple[int, int] | None = None
        self._blamed: set[type[Exception]] = set()
        self._passes_on = settings.bridge and not settings.push_only and not settings.pull_only
        self._recent = Recent()
        self._catching_up: set[asyncio.Task[None]] = set()
        self._raised: dict[tuple[str, str], Raised] = {}
        """Alarms that are not on the disk yet."""
        self._noting: asyncio.Task[None] | None = None
        self._times_lost = self._times_found = 0
        """How often the replica lost track of the disk, and up to which of them it was told since."""

    async def open(self) -> None:
        """Open the store and boot the replica."""
        settings = self.settings
        # What is only sent delays nothing: what others write there never comes.
        taken = tuple(topic for topic in settings.topics if topic not in settings.outlets)
        opening = Opening(node=settings.node, topics=taken, held_max=settings.held_max, dice=self.world.entropy)
        await self.store.open(opening)
        try:
            await self.reboot()
        except BaseException:
            await self.close()
            raise

    async def reboot(self) -> None:
        """Throw the replica away and start a new one from what is on the disk.

        Raises:
            StoreError: the store cannot say what is there. `on_track` asks again.
        """
        settings = self.settings
        self.replica = Replica(
            settings.node,
            settings.topics,
            resolver=settings.resolver,
            lease_ms=int(settings.lease_s * 1000),
            spread_ms=settings.spread_ms,
            takes=not settings.push_only,
            outlets=settings.outlets,
            formerly=self.store.nodes,
            links=tuple(self.links) if settings.bridge else (),
            passes_on=self._passes_on,
            shared=self.store.features.shared,
        )
        self._times_lost += 1
        await self._catch_up()
        self.tick(hurry=False)

    async def give(self, given: protocol.Input, *, traceparent: str = "") -> AppendResult | None:
        """Hand the replica an input and carry out what it asks for; gives what the last `Persist` did.

        Raises:
            StoreError: a `Persist` failed. Whoever gave something received must reboot the replica.
        """
        return await self._carry_out(self.replica.step(given), traceparent)

    async def _carry_out(self, work: list[protocol.Effect], traceparent: str = "") -> AppendResult | None:
        result: AppendResult | None = None
        while work:
            effect = work.pop(0)
            if isinstance(effect, protocol.Persist):
                result = await self._persist(effect, traceparent)
                work += self.replica.step(protocol.Persisted(result, effect.cause))
            else:
                self._carry(effect)
        self._tell()
        return result

    def _tell(self) -> None:
        for watcher in self.watchers:
            watcher.set()

    async def _persist(self, effect: protocol.Persist, traceparent: str = "") -> AppendResult:
        try:
            result = await self.store.append(
                effect.drafts,
                effect.received,
                now_ms=self.world.wall_ms(),
                echoes=effect.echoes,
                offsets=effect.offsets,
                voids=effect.voids,
                forget=effect.forget,
                traceparent=traceparent,
            )
        except NOTHING_WRITTEN:
            raise
        except (asyncio.CancelledError, Exception):
            # Whether a commit that failed, or that nobody waited for, is on the disk is for the disk to say.
            self._lose_track(effect)
            raise
        if result.reused:
            self._recent.clear()
        elif self._passes_on:
            self._recent.add(effect.received, result.stored)
        return result

    async def events(self, topic: str, origin: str, interval: Interval, *, limit: int) -> Sequence[tuple[Event, bytes]]:
        """The first events of an interval, with their hashes: at hand, or from the store."""
        found = self._recent.page(topic, origin, interval, limit=limit)
        return found or await self.store.events(topic, origin, interval, limit=limit)

    def _lose_track(self, effect: protocol.Persist | None) -> None:
        """The caller was cancelled while the store was writing, or the commit failed halfway: nobody told the replica.

        The replica is told what the disk holds, as soon as the store can say.
        """
        self._times_lost += 1
        self._recent.clear()
        if effect is not None and isinstance(effect.cause, protocol.Received):
            self.replica.step(protocol.Forgot(effect.cause.link, effect.cause.topic))

        async def catch_up() -> None:
            try:
                await self._catch_up()
            except SyncKitError as error:  # a store that is closed or failing; the next meeting asks it again
                logger.debug("%s: %s", self.settings.node, error)

        task = asyncio.create_task(catch_up())
        self._catching_up.add(task)
        task.add_done_callback(self._catching_up.discard)

    async def _catch_up(self) -> None:
        lost = self._times_lost
        for topic in self.settings.topics:
            # Each as soon as it is known: while the next one is read, an append may tell more of this one.
            summary = await self.store.summary(topic)
            for link in list(self.links.values()):
                await link.learn(topic)  # behind the summary: what it has, and was read back, must not look unsent
            await self.give(protocol.Opened({topic: summary}))
        self._times_found = max(lost, self._times_found)

    async def widen(self, topics: Iterable[str]) -> None:
        """Send what is written here of more topics, and take nothing of them from others. It begins with the next
        meeting, which is asked for if somebody is live.

        Raises:
            StoreError: the store cannot say what it holds of them.
        """
        settings = self.settings
        outlets = tuple(topic for topic in topics if topic not in settings.topics)
        if not outlets or not settings.topics:  # a node that names no topic takes any
            return
        self.settings = msgspec.structs.replace(
            settings, topics=(*settings.topics, *outlets), outlets=(*settings.outlets, *outlets)
        )
        self.replica.widen(outlets)
        await self.give(protocol.Opened({topic: await self.store.summary(topic) for topic in outlets}))
        self.widened()

    async def on_track(self) -> None:
        """Return when the replica knows everything that the disk holds: whoever calls a node complete must know it.

        Raises:
            StoreError: the store cannot say.
        """
        await self._caught_up()
        if self._times_found < self._times_lost or self.store.features.shared:  # another process may have written
            await self._catch_up()

    async def _caught_up(self) -> None:
        # Whoever is cancelled here stops waiting; what he waited for goes on.
        while self._catching_up:
            await asyncio.wait(self._catching_up)

    def _carry(self, effect: protocol.Publish | protocol.Announce | protocol.Look | protocol.Alarm) -> None:
        if isinstance(effect, protocol.Alarm):
            logger.warning("%s: %s on %r: %s", self.settings.node, effect.kind, effect.topic, effect.evidence)
            self.observe(
                Alarmed(node=self.settings.node, kind=effect.kind, topic=effect.topic, evidence=effect.evidence)
            )
            self._note(effect)
        else:
            self.links[effect.link].post(effect)

    def _note(self, alarm: protocol.Alarm) -> None:
        """Keep an alarm beside the log, for whoever looks in later; nothing waits for that."""
        where = (str(alarm.kind), alarm.topic)
        times = self._raised[where].times if where in self._raised else 0
        self._raised[where] = Raised(*where, alarm.evidence[:EVIDENCE_CHARS_MAX], times + 1)
        if self._noting is None or self._noting.done():
            self._noting = asyncio.create_task(self._note_all())

    async def _note_all(self) -> None:
        while self._raised:
            raised, self._raised = self._raised, {}
            try:
                await self.store.append(now_ms=self.world.wall_ms(), alarms=tuple(raised.values()))
            except SyncKitError as error:  # said and counted it was all the same
                logger.debug("%s: an alarm could not be kept: %s", self.settings.node, error)

    def tick(self, *, hurry: bool) -> Sequence[protocol.Persist]:
        """Let time pass; what must be persisted for it is given back, for whoever can wait."""
        left: list[protocol.Persist] = []
        for effect in self.replica.step(protocol.Tick(self.world.mono_ms(), self.world.dice(), hurry)):
            if isinstance(effect, protocol.Persist):
                left.append(effect)
            else:
                self._carry(effect)
        return left

    async def pass_time(self, *, hurry: bool) -> None:
        """`tick`, and whatever it asks for."""
        for effect in self.tick(hurry=hurry):
            result = await self._persist(effect)
            for more in self.replica.step(protocol.Persisted(result, None)):
                if not isinstance(more, protocol.Persist):
                    self._carry(more)
            self._tell()

    async def write(self, drafts: Sequence[Draft], *, traceparent: str) -> AppendResult:
        """Append local events, durably.

        Raises:
            ClockSkew: the wall clock leapt ahead since the last write.
            IdReused, Invalid, TooLarge, CauseUnknown: about the drafts.
            StoreError: nothing was written.
        """
        started = time.perf_counter()
        self._check_clock()
        result = await self.give(protocol.Write(drafts), traceparent=traceparent)
        assert result is not None
        topics = tuple({draft.topic for draft in drafts})
        duration = time.perf_counter() - started
        self.observe(Appended(node=self.settings.node, topics=topics, events=result.fresh, duration_s=duration))
        self.wrote()
        return result

    @asynccontextmanager
    async def transaction(self, leases: Sequence[Lease] = ()) -> AsyncIterator[Transaction]:
        """A transaction of the store's; events that are written in it (`write_in`) become known when it is committed.

        Raises:
            LeaseLost: see `EventStore.transaction`.
            IdReused, CauseUnknown: about the drafts; nothing of the block was written.
            StoreError: see `EventStore.append`.
        """
        block_ended = committed = False
        try:
            async with self.store.transaction(leases) as tx:
                yield tx
                block_ended = True
            committed = True
            result = tx.appended
            if result is None:
                return
            await self.widen({stored.event.topic for stored in result.appended})
            await self._carry_out(self.replica.step(protocol.Persisted(result, None)))
        except (asyncio.CancelledError, Exception) as error:
            # What is on the disk, or may be, is to be sent also if nobody was left to say so.
            if committed or (block_ended and not isinstance(error, (*NOTHING_WRITTEN, LeaseLost))):
                self._lose_track(None)
            raise
        topics = tuple({stored.event.topic for stored in result.appended})
        self.observe(Appended(node=self.settings.node, topics=topics, events=result.fresh, duration_s=0.0))
        self.wrote()

    async def write_in(self, tx: Transaction, drafts: Sequence[Draft], *, traceparent: str = "") -> None:
        """Let local events be written with a transaction, which numbers them when it commits.

        Raises:
            ClockSkew, Invalid, TooLarge: about the drafts.
        """
        self._check_clock()
        await tx.append(drafts, now_ms=self.world.wall_ms(), traceparent=traceparent)

    def _check_clock(self) -> None:
        wall, mono = self.world.wall_ms(), self.world.mono_ms()
        if self._last_write is not None:
            leapt = (wall - self._last_write[0]) - (mono - self._last_write[1])
            if leapt > self.settings.clock_leap_ms_max:
                raise ClockSkew(
                    f"this machine's clock leapt {leapt // 1000} s ahead since the last write, "
                    f"to {HybridTime(wall, 0).wall_ms} ms"
                )
        self._last_write = (wall, mono)

    def observe(self, detail: Detail) -> None:
        """Tell the observer; what it raises is its own affair, and is logged."""
        try:
            self._observer.observe(detail)
        except Exception as error:  # noqa: BLE001 - logged, and never the node's affair
            self._blame(error)

    def operation(self, name: str) -> _Operation:
        """A traced operation; see `Observer.operation`."""
        return _Operation(self._observer, name, self.settings.node, self._blame)

    def _blame(self, error: Exception) -> None:
        """Log what the observer raised, once a kind: it may raise at every batch."""
        if type(error) not in self._blamed:
            self._blamed.add(type(error))
            logger.error("%s: an observer raised; this is logged once", self.settings.node, exc_info=error)

    async def close(self) -> None:
        """Close the store."""
        await self._caught_up()
        if self._noting is not None:
            await asyncio.wait([self._noting])
        await self.store.close()


class _Operation:
    """`Observer.operation`, which must not be able to break what it watches."""

    def __init__(self, observer: Observer, name: str, node: str, blame: Callable[[Exception], None]) -> None:
        self._observer = observer
        self._name = name
        self._node = node
        self._blame = blame
        self._context: AbstractContextManager[str] | None = None

    def __enter__(self) -> str:
        try:
            context = self._observer.operation(self._name, node=self._node)
            traceparent = context.__enter__()
            self._context = context
            # It becomes part of events: what a peer would refuse must not get in.
            if len(traceparent) > TRACEPARENT_BYTES_MAX or not traceparent.isascii() or "\0" in traceparent:
                raise ValueError(f"{traceparent!r:.80} is no trace context")
        except Exception as error:  # noqa: BLE001 - logged, and never the node's affair
            self._blame(error)
            return ""
        return traceparent

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._context is None:
            return
        try:
            self._context.__exit__(kind, error, trace)
        except Exception as raised:  # noqa: BLE001 - as above
            if raised is not error:
                self._blame(raised)


class Silence:
    """The observer of a node that nobody watches."""

    def operation(self, name: str, *, node: str) -> _Nothing:
        """See `Observer`."""
        return _nothing

    def observe(self, detail: Detail) -> None:
        """See `Observer`."""


class _Nothing:
    def __enter__(self) -> str:
        return ""

    def __exit__(self, *why: object) -> None:
        return None


_nothing = _Nothing()
