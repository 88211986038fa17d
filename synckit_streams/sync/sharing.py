"""Processes that share a store share its origin, and what any of them writes is in the summary of all. Whoever writes
sends; the others would send it once more.

So what a process has not written itself is left to the others. As long as it learns, from the places in the store, that
they read back what they have sent, they are at work. When nothing comes for a while one of them may have died, and
whoever draws the shortest wait takes over.
"""

from __future__ import annotations

from collections.abc import Iterable

from synckit_streams.model.event import Stored
from synckit_streams.model.seen import Seen
from synckit_streams.sync import protocol
from synckit_streams.sync.channel import Channel

OTHERS_MS = 2_000
"""For how long what another process has written is left to it, since it was last seen to send anything."""


class Sharing:
    """See the module's text."""

    def __init__(self) -> None:
        self._ours: dict[str, Seen] = {}
        """Per topic, what this process has written or taken over, and was not read back when it was looked at last."""

    def wrote(self, appended: Iterable[Stored]) -> None:
        """This process has written these."""
        found: dict[str, list[tuple[str, int]]] = {}
        for stored in appended:
            found.setdefault(stored.event.topic, []).append((stored.event.origin, stored.event.seq))
        for topic, dots in found.items():
            self._add(topic, Seen.of(dots))

    def _add(self, topic: str, events: Seen) -> None:
        self._ours[topic] = self._ours.get(topic, Seen()).union(events)

    def find_unsent(self, channel: Channel, due: Seen) -> None:
        """See `Channel.find_unsent`; what others have written is left to them."""
        before, channel.others = channel.others, Seen()
        channel.find_unsent(due)
        ours = self._ours.get(channel.topic, Seen())
        self._ours[channel.topic] = ours.minus(channel.places.at_or_past(ours, {}))
        channel.leave_to_others(ours, before)

    def take_over(self, channel: Channel, given: protocol.Tick, spread_ms: int) -> None:
        """Send what is left to others, if they have sent nothing for long."""
        if not channel.others:
            return
        if channel.others_ms is None:
            channel.others_ms = given.now_ms + OTHERS_MS + int(given.dice * spread_ms)
        elif given.now_ms >= channel.others_ms:
            self._add(channel.topic, channel.others)
            channel.take_over()

    def left_to_others(self, channel: Channel, events: Seen) -> Seen:
        """Of events of our own origin, what another process has written and nobody has read back."""
        theirs = events.minus(self._ours.get(channel.topic, Seen()))
        return theirs.minus(channel.places.at_or_past(theirs, {}))
