"""One commit of a handler group: what several events came to, their effects and their places, all or nothing.

Whoever fills a unit changes the lanes in memory as he goes. If its commit fails, what is in memory is thrown away and
read again from the store, as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, suppress

from synckit_streams.model.event import Draft, Offset, Stored
from synckit_streams.ports.store import Transaction
from synckit_streams.runtime.driver import Driver
from synckit_streams.runtime.handling import Handler
from synckit_streams.runtime.lanes import Aggregate, Lane, Parked, encode_parked, lane_name

SAVEPOINT = "synckit_call"
UNIT_EVENTS = 200
"""About so many events are committed at once, where a handler takes them singly."""


class Unit:
    """See the module's text.

    Args:
        driver: Of the node.
        group: Whose.
        lanes: Of the strand that fills it: it must still have them when it commits.
    """

    def __init__(self, driver: Driver, group: str, lanes: Iterable[Lane]) -> None:
        self.answers: list[tuple[str, Sequence[Draft]]] = []
        """What is written with it, by the trace context that it carries."""
        self.events = 0
        self.dead = 0
        self.last: tuple[Handler, Lane, Parked, Stored] | None = None
        """Of a unit of one event: which one it is, and what of it was tried before."""
        self._driver = driver
        self._group = group
        self._lanes = {lane.number: lane for lane in lanes}
        self._moved: dict[int, int] = {}
        self._noted: dict[tuple[int, Aggregate], Parked] = {}
        self._stack = AsyncExitStack()
        self._tx: Transaction | None = None

    def __bool__(self) -> bool:
        return bool(self._moved or self._noted or self.answers)

    @property
    def begun(self) -> bool:
        """Whether a handler has done something in the transaction."""
        return self._tx is not None

    def count(self, events: int) -> None:
        """So many more are in it."""
        self.events += events
        if self.events > events:
            self.last = None

    def pass_by(self, lane: Lane, position: int) -> None:
        """The lane stands behind this position, once it is committed."""
        self._moved[lane.number] = position

    def park(self, lane: Lane, aggregate: Aggregate, parked: Parked) -> None:
        """An aggregate waits, or with nothing left does not wait any more."""
        if parked:
            lane.parked[aggregate] = parked
        else:
            lane.parked.pop(aggregate, None)
        self._noted[lane.number, aggregate] = parked

    async def begin(self) -> Transaction:
        """The transaction that this unit commits in."""
        if self._tx is None:
            leases = [lane.lease for lane in self._lanes.values() if lane.lease is not None]
            self._tx = await self._stack.enter_async_context(self._driver.transaction(leases))
        return self._tx

    def part(self) -> Part:
        """What one call does in the transaction."""
        return Part(self, savepoints=self._driver.store.features.sql)

    async def roll_back(self) -> None:
        """Undo what was done in the transaction; what was not done in it is still to be committed."""
        if self._tx is None:
            return
        self._tx = None
        with suppress(Undone):
            await self._stack.__aexit__(Undone, Undone(), None)

    async def commit(self) -> None:
        """Everything, in one transaction.

        Raises:
            LeaseLost: somebody else has one of the lanes; nothing is written.
            StoreError: nothing is written, or nobody knows; the lanes have to be read anew.
        """
        if not self:
            return
        await self.begin()
        tx = self._tx
        assert tx is not None
        async with self._stack:
            log = self._driver.store.id
            offsets = {lane_name(self._group, number): Offset(log, at) for number, at in self._moved.items()}
            await tx.set_offsets(offsets)
            for number in {number for number, _ in self._noted}:
                states = [
                    (*aggregate, encode_parked(parked) if parked else b"")
                    for (lane, aggregate), parked in self._noted.items()
                    if lane == number
                ]
                await tx.note_applied(lane_name(self._group, number), states)
            for traceparent, drafts in self.answers:
                await self._driver.write_in(tx, drafts, traceparent=traceparent)
        for number, position in self._moved.items():
            self._lanes[number].position = position


class Part:
    """What one call of a handler does in its unit's transaction: it can be undone without what others did before.

    Args:
        unit: Whose transaction it is.
        savepoints: Whether the store has them.
    """

    def __init__(self, unit: Unit, *, savepoints: bool) -> None:
        self._unit = unit
        self._savepoints = savepoints
        self._alone = not unit.begun
        self._tx: Transaction | None = None

    @property
    def begun(self) -> bool:
        """Whether the call has done something in it."""
        return self._tx is not None

    async def begin(self) -> Transaction:
        """The transaction, with a savepoint before the first thing that the call does."""
        if self._tx is None:
            tx = await self._unit.begin()
            if not self._alone and self._savepoints:
                await tx.execute(f"SAVEPOINT {SAVEPOINT}")
            self._tx = tx
        return self._tx

    async def keep(self) -> None:
        """The call has succeeded."""
        if self._tx is not None and not self._alone and self._savepoints:
            await self._tx.execute(f"RELEASE SAVEPOINT {SAVEPOINT}")

    async def undo(self) -> None:
        """It has failed: nothing of it stays.

        Raises:
            StoreError: it cannot be undone by itself; the whole unit has to be done again.
        """
        if self._alone:  # what was done in the transaction was all its own
            await self._unit.roll_back()
        elif self._tx is not None and self._savepoints:
            await self._tx.execute(f"ROLLBACK TO SAVEPOINT {SAVEPOINT}")


class Undone(Exception):
    """Leaves a transaction that is to be rolled back."""
