"""A store as sets and loops: slow, short, and independent of the ledger. The contract compares real stores with it.

It knows the rules of the protocol and nothing else: an event is ready when its causes are here; a key with two contents
goes to the least hash, and the other content to a key of its own. There is no cache, no index and no increment: what
can be computed anew is.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from synckit_streams.model.clock import Key, VersionVector
from synckit_streams.model.codec import DIGEST_MODULUS, event_hash
from synckit_streams.model.event import Event
from synckit_streams.model.seen import Seen


class StoreModel:
    """What a store holds.

    Args:
        topics: The topics that its node replicates.
        held_max: How many events may be held.
    """

    def __init__(self, topics: tuple[str, ...], held_max: int) -> None:
        self.topics = topics
        self.held_max = held_max
        self.events: dict[Key, Event] = {}
        self.held: list[Event] = []
        self.voids: set[Key] = set()

    def is_ready(self, event: Event) -> bool:
        """Whether all its causes are here, void, or of no concern to this node."""
        causes = {Key(event.topic, origin, seq) for origin, seq in event.context.items()}
        causes |= {key for key in event.after if key.topic in self.topics}
        if event.prev:
            causes.add(Key(event.topic, event.origin, event.prev))
        return all(cause in self.events or cause in self.voids for cause in causes)

    def receive(self, event: Event) -> None:
        """One arrival."""
        here = self.events.get(event.key)
        if here == event or event in self.held:
            return
        if self.is_ready(event):
            self._put(event)
            self.settle()
        elif len(self.held) < self.held_max:
            self.held.append(event)

    def declare_void(self, key: Key) -> None:
        """A key that nobody holds any more."""
        if key not in self.events:
            self.voids.add(key)
            self.settle()

    def settle(self) -> None:
        """Release whatever can be released."""
        while ready := [event for event in self.held if self.is_ready(event)]:
            self.held.remove(ready[0])
            self._put(ready[0])

    def _put(self, event: Event) -> None:
        here = self.events.get(event.key)
        if here is None or here == event:
            self.events[event.key] = event
            return
        least, other = sorted((here, event), key=event_hash)
        self.events[event.key] = least
        origin = f"{other.origin}~{event_hash(other).hex()[:8]}"
        self._put(msgspec.structs.replace(other, origin=origin, seq=1, prev=0))

    # --- what can be asked -------------------------------------------------------------------------------------------

    def seen(self, topic: str) -> Seen:
        """Which events of a topic are here."""
        return Seen.of(key.dot for key in self.events if key.topic == topic)

    def sums(self, topic: str) -> dict[str, int]:
        """The sum of the hashes, per origin."""
        return sums(event for event in self.events.values() if event.topic == topic)

    def context(self, topic: str, aggregate_id: str) -> VersionVector:
        """The default context of the next local event on an aggregate."""
        found: dict[str, int] = {}
        for event in self.events.values():
            if (event.topic, event.aggregate_id) == (topic, aggregate_id):
                found[event.origin] = max(found.get(event.origin, 0), event.seq)
        return VersionVector(found)


def sums(events: Iterable[Event]) -> dict[str, int]:
    """The sum of the hashes of some events, per origin."""
    found: dict[str, int] = {}
    for event in events:
        found[event.origin] = (found.get(event.origin, 0) + int.from_bytes(event_hash(event), "big")) % DIGEST_MODULUS
    return found
