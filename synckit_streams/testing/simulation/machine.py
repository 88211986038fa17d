"""One computer with a node on it: its disk, its clock, its way to the broker, and the process that runs just now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext
from random import Random
from typing import Any, TypeVar, cast

from synckit_streams.errors import SyncKitError
from synckit_streams.ports.projection import Projection
from synckit_streams.ports.store import EventStore
from synckit_streams.ports.telemetry import Alarmed, Appended, Detail, Link, Published, Received, Synced
from synckit_streams.runtime.driver import World
from synckit_streams.runtime.node import SyncNode
from synckit_streams.stores.ledger_store import LedgerStore
from synckit_streams.sync.conflict import ConflictResolver
from synckit_streams.testing.simulation.book import Book
from synckit_streams.testing.simulation.broker import Note, SimBroker, SimConnector
from synckit_streams.testing.simulation.disk import Dead, Disk
from synckit_streams.testing.simulation.loop import Life
from synckit_streams.testing.simulation.models import Effects, Totals
from synckit_streams.testing.simulation.weather import Net

T = TypeVar("T")

EPOCH_MS = 1_700_000_000_000
"""When every simulation begins, by clocks that are right."""


class Clock:
    """A wall clock that may be wrong.

    Args:
        step_ms: How coarse it is; a coarse one gives many events the same time.
    """

    def __init__(self, step_ms: int) -> None:
        self.step_ms = step_ms
        self.skew_ms = 0

    def wall_ms(self) -> int:
        """Milliseconds since 1970, as this machine has it."""
        now = EPOCH_MS + int(asyncio.get_running_loop().time() * 1000)
        return now // self.step_ms * self.step_ms + self.skew_ms


class Setup:
    """What the nodes of one simulation have in common."""

    def __init__(
        self,
        *,
        topics: Sequence[str],
        resolver: Callable[[], ConflictResolver],
        brokers: Sequence[SimBroker],
        book: Book,
        note: Note,
        auto_sync: bool,
        interval_s: float,
        lease_s: float,
        held_max: int,
        clock_leap_ms_max: int,
        packing: str,
    ) -> None:
        self.topics = tuple(topics)
        self.resolver = resolver
        self.brokers = tuple(brokers)
        self.book = book
        self.note = note
        self.auto_sync = auto_sync
        self.interval_s = interval_s
        self.lease_s = lease_s
        self.held_max = held_max
        self.clock_leap_ms_max = clock_leap_ms_max
        self.packing = packing


class Machine:
    """See the module's text.

    Args:
        name: Of the machine; two machines with one node id are clones.
        node_id: Of the node that it runs.
        disk: What it starts from.
        setup: Of the simulation.
        dice: Its own.
        clock: Its own.
        brokers: At which of the setup's brokers it is; at several it is a bridge.
    """

    def __init__(
        self, name: str, node_id: str, disk: Disk, setup: Setup, dice: Random, clock: Clock, brokers: Sequence[int]
    ) -> None:
        self.name = name
        self.node_id = node_id
        self.disk = disk
        self.setup = setup
        self.dice = dice
        self.clock = clock
        self.brokers = tuple(brokers)
        self.nets = [Net() for _ in brokers]
        """Its ways to them."""
        self.origins: set[str] = set()
        """Under which this machine has written."""
        self.acknowledged: set[str] = set()
        """Ids that a client was told are durable here, on the disk that is here now."""
        self.alarms: list[str] = []
        self.dead = False
        """Never started again."""
        self.inherited = ""
        """The origin that a machine cloned while it ran has in its memory; used once."""
        self._life: Life | None = None
        self._node: SyncNode | None = None
        self._store: LedgerStore | None = None
        self._lock = asyncio.Lock()
        self.use(disk)

    def use(self, disk: Disk) -> None:
        """Put this disk in."""
        self.disk = disk
        disk.alive = lambda: self.alive
        disk.crash = self.kill
        disk.commits = self._note_ledger
        disk.struck = lambda trouble: self.setup.note(self.name, trouble.value)

    @property
    def alive(self) -> bool:
        """Whether a process runs."""
        return self._life is not None and not self._life.over

    @property
    def up(self) -> bool:
        """Whether the process runs, and its node is open."""
        return self.alive and self._node is not None

    @property
    def node(self) -> SyncNode:
        """The node that runs; only while `up`."""
        assert self._node is not None
        return self._node

    @property
    def memory(self) -> tuple[str, bool]:
        """What a clone of the running machine would have: the origin, and whether anything was written under it."""
        if not self.up or self._store is None:
            return "", False
        return self._store._ledger.origin, bool(self._store._origin)

    @property
    def holds(self) -> bool:
        """Whether events wait for their causes here."""
        return self.up and self._store is not None and len(self._store._ledger.waiting) > 0

    # --- its lives ---------------------------------------------------------------------------------------------------

    async def start(self) -> bool:
        """Start the process, unless it runs; False if it could not open its disk."""
        async with self._lock:
            if self.up or self.dead:
                return self.up
            await self._bury()
            life = self._life = Life(self.name)
            opened = await _within(life, self._open(life))
            if not opened:
                await self._bury()
            return opened is True

    async def _open(self, life: Life) -> bool:
        setup, dice = self.setup, Random(self.dice.getrandbits(64))
        loop = asyncio.get_running_loop()
        started_s, boot_s = loop.time(), dice.uniform(0.0, 1e6)
        world = World(
            wall_ms=self.clock.wall_ms,
            mono_ms=lambda: int((loop.time() - started_s + boot_s) * 1000),
            dice=dice.random,
            entropy=dice.randbytes,
        )
        projections: list[Projection] = [Effects(), Totals()]
        try:
            self._store = self.disk.store()
            node = SyncNode(
                self.node_id,
                store=cast(EventStore, self._store),
                connectors=[
                    SimConnector(setup.brokers[number], net, life, dice)
                    for number, net in zip(self.brokers, self.nets, strict=True)
                ],
                bridge=len(self.brokers) > 1,
                topics=setup.topics,
                resolver=setup.resolver(),
                projections=projections,
                packing=setup.packing,
                observer=Watch(self),
                held_max=setup.held_max,
                clock_leap_ms_max=setup.clock_leap_ms_max,
                lease_s=setup.lease_s,
                world=world,
            )
            await node.open()
            if self.inherited:
                self._store._origin = self._store._ledger.origin = self.inherited
                self.inherited = ""
        except SyncKitError as error:
            self.setup.note(self.name, f"cannot open: {error.message}")
            life.over = True
            return False
        self._node = node
        self.setup.note(self.name, "is up")
        if setup.auto_sync:
            await node.start_auto_sync(interval_s=setup.interval_s, timeout_s=10.0)
        return True

    def kill(self) -> None:
        """kill -9, at once: nothing is closed, and nothing is left behind but what is on the disk."""
        if self._life is not None and not self._life.over:
            self._note_origin()
            self.setup.note(self.name, "dies")
            self._life.end()

    async def stop(self) -> None:
        """Close the node as a program does that ends."""
        async with self._lock:
            if not self.up:
                return
            assert self._life is not None
            life = self._life
            self._note_origin()
            try:
                await _within(life, self.node.close())
            except SyncKitError as error:
                self.setup.note(self.name, f"cannot close: {error.message}")
            finally:
                life.end()
            await self._bury()
            self.setup.note(self.name, "is down")

    async def bury(self) -> None:
        """Wait until nothing of a killed process is left, and learn what it left on its disk."""
        async with self._lock:
            if not self.alive:
                await self._bury()

    async def _bury(self) -> None:
        life, store = self._life, self._store
        self._life = self._node = self._store = None
        if life is not None:
            life.over = True
            await life.buried()
        if store is not None:
            self.disk.abandon(store)
            self.learn()

    def learn(self) -> None:
        """Let the book see what is new on the disk."""
        self._note_origin()
        self.setup.book.learn(self.disk, self.name, self.origins)

    def _note_origin(self) -> None:
        self._note_ledger()
        self.origins.add(self.disk.origin())
        self.origins.discard("")

    def _note_ledger(self) -> None:
        # Also when the commit fails: what is on the disk all the same was written here.
        if self._store is not None and (ledger := getattr(self._store, "_ledger", None)) is not None:
            self.origins.add(ledger.origin)

    async def run(self, work: Callable[[SyncNode], Coroutine[Any, Any, T]]) -> T | None:
        """Let the process do something with its node; None if it is down, or died over it.

        Raises:
            SyncKitError: what the work raised.
        """
        life, node = self._life, self._node
        # Between two things that a user does, the machine may have gone down: then nobody answers.
        if life is None or life.over or node is None:
            return None
        return await _within(life, work(node))

    # --- breakdowns --------------------------------------------------------------------------------------------------

    async def replace_disk(self, disk: Disk, acknowledged: set[str]) -> None:
        """Kill the process, and put another disk in: a backup."""
        self.kill()
        async with self._lock:
            self.kill()  # somebody may have started it again while we waited
            await self._bury()
            self.acknowledged = set(acknowledged)
            self.use(disk)


async def _within(life: Life, work: Coroutine[Any, Any, T]) -> T | None:
    """Do something within a process; None if the process died over it."""
    task = life.start(work)
    await asyncio.wait([task])
    if task.cancelled() or isinstance(task.exception(), Dead):
        return None
    return task.result()


class Watch:
    """The observer of one machine: alarms are kept, and everything goes into the timeline."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def operation(self, name: str, *, node: str) -> nullcontext[str]:
        """See `Observer`."""
        return nullcontext("")

    def observe(self, detail: Detail) -> None:
        """See `Observer`."""
        machine = self._machine
        text = ""
        if isinstance(detail, Alarmed):
            machine.alarms.append(detail.kind)
            text = f"ALARM {detail.kind}: {detail.evidence}"
        elif isinstance(detail, Appended):
            text = f"has appended {detail.events}"
        elif isinstance(detail, Published):
            text = f"has published {detail.events}" + (f", {detail.again} of them again" if detail.again else "")
        elif isinstance(detail, Received):
            text = (
                f"has read {detail.messages}: {detail.stored} stored, {detail.duplicates} known, {detail.held} held"
                f"{f', {detail.quarantined} set aside' if detail.quarantined else ''}"
            )
        elif isinstance(detail, Synced):
            text = f"synced: {'complete' if detail.complete else detail.error or 'not complete'}"
        elif isinstance(detail, Link):
            text = "is linked" if detail.up else f"lost its link: {detail.reason}"
        if text:
            machine.setup.note(machine.name, text)
