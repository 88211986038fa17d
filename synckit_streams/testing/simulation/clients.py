"""What the users of the nodes do: write, read and write what follows from it, try again, and write nonsense."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar

import msgspec

from synckit_streams.errors import SyncKitError
from synckit_streams.model.clock import Key, VersionVector
from synckit_streams.model.codec import node_of
from synckit_streams.model.event import Draft, Stored
from synckit_streams.runtime.node import SyncNode
from synckit_streams.testing.simulation.book import Book, Fact
from synckit_streams.testing.simulation.machine import Machine

T = TypeVar("T")

UNDECODABLE = b"\xff\xfenot JSON"
TYPES = ("placed", "changed", "closed")

Wanted = list[tuple[Draft, Fact]]
"""One call of `append_many`: all of it is written, or nothing."""


class Client:
    """The users of one machine.

    Args:
        machine: Whose.
        book: Keeps what they wrote.
        dice: Their own.
        aggregates: Of how many things they write.
        nonsense: How often a payload is not JSON.
        in_doubt: What somebody tried to write, and does not know whether it was written. All users share it: some try
            again, on the same node or on another.
    """

    def __init__(
        self, machine: Machine, book: Book, dice: Random, aggregates: int, nonsense: float, in_doubt: list[Wanted]
    ) -> None:
        self._machine = machine
        self._book = book
        self._dice = dice
        self._aggregates = aggregates
        self._nonsense = nonsense
        self._shown: list[tuple[str, str, VersionVector, frozenset[Key]]] = []
        self._in_doubt = in_doubt
        self._count = 0

    async def go_on(self, pause_s: float, until_s: float) -> None:
        """Write now and then, until a time."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._dice.expovariate(1 / pause_s))
            if loop.time() >= until_s:
                return
            if self._machine.up:
                await self.act()

    async def act(self) -> None:
        """One thing that a user does."""
        draw = self._dice.random()
        if draw < 0.12:
            await self._look()
        elif draw < 0.24 and self._shown:
            topic, aggregate_id, context, read = self._shown.pop(self._dice.randrange(len(self._shown)))
            await self._write([self._draft(topic, aggregate_id, context=context, read=read)])
        elif draw < 0.36:
            await self._follow()
        elif draw < 0.44:
            await self._write([self._draft() for _ in range(self._dice.randint(2, 6))])
        elif draw < 0.54 and (again := self._somebodys_doubt()):
            await self._write(again)
        else:
            await self._write([self._draft()])

    def _somebodys_doubt(self) -> Wanted:
        """What is to be tried again here: this machine's own, and now and then another one's."""
        machine = self._machine
        for wanted in self._in_doubt:
            writers = wanted[0][1].writers
            elsewhere = machine.name not in writers
            # Not on a clone: of two machines with one name, one could not tell which wrote what.
            if elsewhere and (self._dice.random() < 0.5 or machine.node_id in {name.rstrip("ab") for name in writers}):
                continue
            if wanted[0][0].topic not in machine.setup.topics:
                continue
            self._in_doubt.remove(wanted)
            return wanted
        return []

    async def _look(self) -> None:
        """Read an aggregate; what follows from it is written later."""
        topic, aggregate_id = self._somewhere()

        async def read(node: SyncNode) -> tuple[VersionVector, frozenset[Key]]:
            resolution = await node.resolve(topic, aggregate_id)
            events = await node.store.aggregate(topic, aggregate_id)
            return resolution.context, frozenset(event.key for event in events)

        shown = await self._try(read)
        if shown is not None:
            self._shown.append((topic, aggregate_id, *shown))

    async def _follow(self) -> None:
        """Write something that must come after an event that this node has."""
        log = await self._try(self._log)
        if log:
            cause = self._dice.choice(log[-20:]).event.key
            await self._write([self._draft(after=(cause,))])

    @staticmethod
    async def _log(node: SyncNode) -> list[Stored]:
        return [stored async for stored in node.log()]

    def _somewhere(self) -> tuple[str, str]:
        return self._dice.choice(self._machine.setup.topics), f"a{self._dice.randrange(self._aggregates)}"

    def _draft(
        self,
        topic: str = "",
        aggregate_id: str = "",
        *,
        context: VersionVector | None = None,
        read: frozenset[Key] | None = None,
        after: tuple[Key, ...] = (),
    ) -> tuple[Draft, Fact]:
        if not topic:
            topic, aggregate_id = self._somewhere()
        self._count += 1
        id = f"{self._machine.name}-{self._count}"
        qty = self._dice.randint(1, 9)
        data: Any = {"qty": qty, "tags": [id[-1:]], "by": id}
        if self._dice.random() < self._nonsense:
            data, qty = UNDECODABLE, 0
        type = self._dice.choice(TYPES)
        draft = Draft(topic, type, aggregate_id, data, id=id, context=context, after=after)
        payload = data if isinstance(data, bytes) else msgspec.json.encode(data)
        return draft, Fact(id, topic, aggregate_id, type, payload, qty, after, read)

    async def _write(self, wanted: Wanted) -> None:
        machine, book = self._machine, self._book
        for _, fact in wanted:
            book.facts[fact.id] = fact
            fact.writers.add(machine.name)
        book.batches[tuple(fact.id for _, fact in wanted)] = None
        said = ", ".join(f"{fact.id} to {fact.aggregate_id}" for _, fact in wanted)
        machine.setup.note(machine.name, f"writes {said}")
        try:
            stored = await machine.run(lambda node: self._append(node, wanted))
        except SyncKitError as error:
            machine.setup.note(machine.name, f"is told: {error.message}")
            stored = None
        if stored is None and all(draft.context is None and not draft.after for draft, _ in wanted):
            self._in_doubt.append(wanted)

    async def _append(self, node: SyncNode, wanted: Wanted) -> list[Stored]:
        stored = await node.append_many([draft for draft, _ in wanted])
        machine = self._machine
        for (_, fact), each in zip(wanted, stored, strict=True):
            fact.acknowledged = True
            machine.acknowledged.add(fact.id)
            if node_of(each.event.origin) == machine.node_id:  # it may have been written elsewhere, and be here already
                machine.origins.add(each.event.origin)
        return stored

    async def _try(self, work: Callable[[SyncNode], Coroutine[Any, Any, T]]) -> T | None:
        try:
            return await self._machine.run(work)
        except SyncKitError:
            return None
