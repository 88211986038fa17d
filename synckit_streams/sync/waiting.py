"""The held events: each waits for one cause that is not here.

An event is filed under the *first* cause of it that is missing; when that comes, the next missing one is looked for.
So a cause that comes touches only those that wait for it, however many are held. Events are known by their hash here,
not by their key: a key that was used twice may be held with both contents.
"""

from __future__ import annotations

from collections.abc import Mapping

from synckit_streams.model.clock import Key
from synckit_streams.model.event import Event


class Waiting:
    """See the module's text."""

    def __init__(self) -> None:
        self._events: dict[bytes, Event] = {}
        self._by_cause: dict[Key, list[bytes]] = {}
        # What `of_topic` last said, until something changes.
        self._said: dict[str, tuple[tuple[Key, ...], tuple[Key, ...]]] = {}

    def __len__(self) -> int:
        return len(self._events)

    def events(self) -> Mapping[bytes, Event]:
        """All of them, by hash."""
        return self._events

    def __contains__(self, hash: bytes) -> bool:
        return hash in self._events

    def add(self, event: Event, hash: bytes, cause: Key) -> None:
        """Hold an event until a cause comes; also to file one that is held already under its next cause."""
        self._events[hash] = event
        self._by_cause.setdefault(cause, []).append(hash)
        self._said.clear()

    def waiters(self, cause: Key) -> list[tuple[bytes, Event]]:
        """Whoever waited for this cause. They stay held until `drop`; whoever is not dropped must be filed anew."""
        if not self._by_cause:
            return []
        hashes = self._by_cause.pop(cause, [])
        if hashes:
            self._said.clear()
        return [(hash, self._events[hash]) for hash in hashes]

    def drop(self, hash: bytes) -> None:
        """No longer held: its causes are here."""
        del self._events[hash]
        self._said.clear()

    def of_topic(self, topic: str) -> tuple[tuple[Key, ...], tuple[Key, ...]]:
        """The keys of the held events of a topic, and the keys that they wait for, each sorted and once."""
        found = self._said.get(topic)
        if found is None:
            held = {event.key for event in self._events.values() if event.topic == topic}
            wanted = {
                cause
                for cause, hashes in self._by_cause.items()
                if any(self._events[hash].topic == topic for hash in hashes)
            }
            found = self._said[topic] = (tuple(sorted(held)), tuple(sorted(wanted)))
        return found
