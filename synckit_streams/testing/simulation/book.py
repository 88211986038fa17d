"""What the simulation knows by itself: who wrote what, and what each client had read when it wrote.

Nothing here asks the shipped code what it believes. A write's *reads* are the events of the aggregate that stood before
it in its own writer's log (or those that the client was shown, when it passed a context on). Whoever read an event has
it in his past; that decides which events are heads, and what must come before what.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from synckit_streams.model.clock import Key
from synckit_streams.model.event import Event
from synckit_streams.testing.simulation.disk import Disk


@dataclass
class Fact:
    """One thing that a client wanted to write.

    Args:
        id: Of the event.
        topic: See `Draft`.
        aggregate_id: See `Draft`.
        type: See `Draft`.
        payload: The bytes that it must have in every log.
        qty: What it adds, for the totals.
        after: What it must come after.
        read: What the client was shown; None when it left that to the store.
        writers: On which machines it was tried.
        acknowledged: Whether the client was told that it is durable.
    """

    id: str
    topic: str
    aggregate_id: str
    type: str
    payload: bytes
    qty: int
    after: tuple[Key, ...]
    read: frozenset[Key] | None
    writers: set[str] = field(default_factory=set)
    acknowledged: bool = False


class Book:
    """See the module's text."""

    def __init__(self) -> None:
        self.facts: dict[str, Fact] = {}
        self.reads: dict[Key, frozenset[Key]] = {}
        """Per event: the events of its aggregate that its client had read."""
        self.ids: dict[Key, str] = {}
        """Of every event that was ever on a disk."""
        self.before: dict[Key, frozenset[Key]] = {}
        """Per event: what must stand before it in every log."""
        self.batches: dict[tuple[str, ...], None] = {}
        """Ids that were written together: all of them, or none."""
        self.torn: list[str] = []
        """Batches of which a disk held a part."""
        self.writes = 0
        """Events that were numbered somewhere."""

    def learn(self, disk: Disk, machine: str, origins: Iterable[str]) -> None:
        """Look at what was added to a disk since the last look, before anything happens to it."""
        mine = frozenset(origins)
        written: set[str] = set()
        for position, event in disk.rows(disk.learned):
            disk.learned = position
            history = disk.histories.setdefault((event.topic, event.aggregate_id), [])
            fact = self.facts.get(event.id)
            key = event.key
            self.ids.setdefault(key, event.id)
            if key not in self.reads and fact is not None and machine in fact.writers and event.origin in mine:
                self._write(key, fact, history)
                written.add(event.id)
            history.append(key)
        if written:
            self.torn += [
                f"{', '.join(sorted(written.intersection(batch)))} of {len(batch)} on {machine}"
                for batch in self.batches
                if len(batch) > 1 and 0 < len(written.intersection(batch)) < len(batch)
            ]

    def _write(self, key: Key, fact: Fact, history: list[Key]) -> None:
        self.writes += 1
        read = frozenset(history) if fact.read is None else fact.read
        previous = [each for each in history if each.origin == key.origin]
        self.reads[key] = read
        self.before[key] = read.union(fact.after, previous[-1:])

    def heads(self, events: Iterable[Event]) -> set[str]:
        """By brute force, the ids of the facts of an aggregate that nobody has overwritten.

        A fact that was written on two nodes is one fact: whoever knew one copy of it knew it, and what each of its
        writers knew. It stands unless somebody knew it whom its own writers did not know.
        """
        events = list(events)
        number = {id: at for at, id in enumerate(dict.fromkeys(event.id for event in events))}
        knows = [0] * len(number)  # sets of facts, as bits
        for event in events:
            for key in self.reads.get(event.key, ()):
                if (at := number.get(self.ids.get(key, ""))) is not None:
                    knows[number[event.id]] |= 1 << at
        _close(knows)
        return {
            id
            for id, at in number.items()
            if not any(known >> at & 1 and not knows[at] >> other & 1 for other, known in enumerate(knows))
        }

    def totals(self, ids: Iterable[str]) -> int:
        """What these facts add up to, each once."""
        return sum(self.facts[id].qty for id in set(ids) if id in self.facts)


def _close(knows: list[int]) -> None:
    """Whoever knows a fact knows what was known where it was written (Warshall, 1962)."""
    for middle in range(len(knows)):
        bit, more = 1 << middle, knows[middle]
        for at, known in enumerate(knows):
            if known & bit:
                knows[at] = known | more


def same_content(fact: Fact, event: Event) -> bool:
    """Whether an event in a log is the one that was written."""
    written = (fact.topic, fact.type, fact.aggregate_id, fact.payload)
    return (event.topic, event.type, event.aggregate_id, event.payload) == written
