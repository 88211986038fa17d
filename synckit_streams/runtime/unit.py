"""One commit of a handler group: what several events came to, their effects and their places, all or nothing.

Whoever fills a unit changes the lanes in memory as he goes. If its commit fails, what is in memory is thrown away and
read again from the store, as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress

from synckit_streams.model.event import Draft, Offset, Stored
from synckit_streams.ports.store import Transaction
from synckit_streams.runtime.driver import Driver
from synckit_streams.runtime.handling import Handler
from synckit_streams.runtime.lanes import Aggregate, Lane, Parked, encode_parked, lane_name

UNIT_EVENTS = 200
"""About so many events are committed at once, where a handler takes them singly."""


class Unit:
    """See the module's text.

    Args:
        driver: Of the node.
        group: Whose.
    """

    def __init__(self, driver: Driver, group: str) -> None:
        self.answers: list[tuple[str, Sequence[Draft]]] = []
        """What is written with it, by the trace context that it carries."""
        self.events = 0
        self.dead = 0
        self.last: tuple[Handler, Lane, Parked, Stored] | None = None
        """Of a unit of one event: which one it is, and what of it was tried before."""
        self._driver = driver
        self._group = group
        self._lanes: dict[int, Lane] = {}
        self._moved: dict[int, int] = {}
        self._noted: dict[tuple[int, Aggregate], Parked] = {}
        self._stack = AsyncExitStack()
        self._tx: Transaction | None = None

    def __bool__(self) -> bool:
        return bool(self._moved or self._noted or self.answers)

    @property
    def begun(self) -> bool:
        """Whether a handler has done something in the transaction: then nobody else does."""
        return self._tx is not None

    def concerns(self, lanes: Sequence[Lane]) -> None:
        """What is done next is done in these lanes."""
        self._lanes.update((lane.number, lane) for lane in lanes)

    def pass_by(self, lane: Lane, position: int) -> None:
        """The lane stands behind this position, once it is committed."""
        self.concerns([lane])
        self._moved[lane.number] = position

    def park(self, lane: Lane, aggregate: Aggregate, parked: Parked) -> None:
        """An aggregate waits, or with nothing left does not wait any more."""
        self.concerns([lane])
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


class Undone(Exception):
    """Leaves a transaction that is to be rolled back."""
