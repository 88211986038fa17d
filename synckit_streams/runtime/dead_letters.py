"""The dead letters of a store: what was given up, and what became of it, as its log says.

A dead letter is an event, and so is what puts it back or purges it; which letters are open is a fold over them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from synckit_streams.model.event import Draft, Offset, Stored
from synckit_streams.ports.store import EventStore
from synckit_streams.runtime.policy import DEAD_LETTER, PURGED, REDRIVEN, DeadLetter, Settled

_T = TypeVar("_T")

PAGE_EVENTS = 1_000


class Letter(NamedTuple):
    """A dead letter that is open.

    Args:
        stored: The event that it is.
        said: What it says.
    """

    stored: Stored
    said: DeadLetter

    @property
    def id(self) -> str:
        """What it is named by."""
        return self.stored.event.id

    def _settled(self, type: str) -> Draft:
        event = self.said.event
        settled = Settled(
            letter=self.id,
            group=self.said.group,
            node=self.said.node,
            position=self.said.position,
            topic=event["topic"],
            aggregate_id=event["aggregate_id"],
        )
        letter = self.stored.event
        # The id makes it once: who asks twice at the same time is not obeyed twice.
        return Draft(letter.topic, type, letter.aggregate_id, settled, id=f"{type}/{self.id}", after=(letter.key,))

    def redriven(self) -> Draft:
        """What puts it back: its event is tried again, with all its attempts before it."""
        return self._settled(REDRIVEN)

    def purged(self) -> Draft:
        """What says that nobody wants it any more."""
        return self._settled(PURGED)


async def dead_letter_topics(store: EventStore) -> list[str]:
    """The topics that begin with a dead letter."""
    found: list[str] = []
    for topic in await store.topics():
        first = await store.log(topic, after=None, limit=1)
        if first and first[0].event.type in (DEAD_LETTER, REDRIVEN, PURGED):
            found.append(topic)
    return found


async def open_letters(store: EventStore, topics: Sequence[str] = (), *, group: str = "") -> list[Letter]:
    """The dead letters that were neither put back nor purged, oldest first.

    Args:
        store: Open.
        topics: Of these dead-letter topics; empty for all.
        group: Of this handler group; "" for all.
    """
    letters: dict[str, Letter] = {}
    for topic in topics or await dead_letter_topics(store):
        async for stored in _log(store, topic):
            event = stored.event
            if event.type == DEAD_LETTER:
                said = _decoded(stored, DeadLetter)
                if said is not None and group in ("", said.group):
                    letters[event.id] = Letter(stored, said)
            elif event.type in (REDRIVEN, PURGED):
                settled = _decoded(stored, Settled)
                if settled is not None:
                    letters.pop(settled.letter, None)
    return sorted(letters.values(), key=lambda each: each.stored.position)


async def _log(store: EventStore, topic: str) -> AsyncIterator[Stored]:
    after: Offset | None = None
    while page := await store.log(topic, after=after, limit=PAGE_EVENTS):
        for stored in page:
            if not stored.twin:
                yield stored
        after = page[-1].offset


def _decoded(stored: Stored, kind: type[_T]) -> _T | None:
    """What an event says; None if somebody else wrote something else there."""
    try:
        return msgspec.json.decode(stored.event.payload, type=kind)
    except msgspec.MsgspecError:
        return None
