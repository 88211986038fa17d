"""What came by one link a moment ago, and goes out by the others: at hand, so that it need not be read from the disk.

It is durable by then; this is a copy, in two halves of which the older one is given up when the newer one is full. What
is not found here the store has.
"""

from __future__ import annotations

from collections.abc import Sequence

from synckit_streams.model.event import Event, Stored
from synckit_streams.model.exchange import Arrival
from synckit_streams.model.seen import Interval

RECENT_BYTES_MAX = 32 * 1024 * 1024
EVENT_BYTES = 1_000
"""What an event takes beside its payload, roughly."""

Half = dict[tuple[str, str], dict[int, tuple[Event, bytes]]]


class Recent:
    """Events with their hashes, by topic and origin.

    Args:
        bytes_max: How much of them is kept.
    """

    def __init__(self, bytes_max: int = RECENT_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._newer: Half = {}
        self._older: Half = {}
        self._bytes = 0

    def clear(self) -> None:
        """A key may stand for another event now."""
        self._newer, self._older, self._bytes = {}, {}, 0

    def add(self, arrivals: Sequence[Arrival], stored: Sequence[Stored]) -> None:
        """These arrived, and those of them are in the log."""
        if not stored:
            return
        hashes = {id(arrival.event): arrival.hash for arrival in arrivals}
        for each in stored:
            event = each.event
            hash = hashes.get(id(event))
            if hash is not None:
                self._newer.setdefault((event.topic, event.origin), {})[event.seq] = (event, hash)
                self._bytes += len(event.payload) + EVENT_BYTES
        if self._bytes > self._bytes_max // 2:
            self._newer, self._older, self._bytes = {}, self._newer, 0

    def page(self, topic: str, origin: str, interval: Interval, *, limit: int) -> list[tuple[Event, bytes]]:
        """The first events of an interval, up to the first that is not at hand."""
        newer, older = (half.get((topic, origin), {}) for half in (self._newer, self._older))
        found: list[tuple[Event, bytes]] = []
        for seq in range(interval[0], min(interval[1], interval[0] + limit - 1) + 1):
            here = newer.get(seq) or older.get(seq)
            if here is None:
                break
            found.append(here)
        return found
