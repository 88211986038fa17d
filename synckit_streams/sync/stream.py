"""All events of one origin in one topic: which numbers are here, and the sum of their hashes.

A `Seen` is a snapshot of many of these; this is the one that grows, in place and in the append transaction.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from synckit_streams.model.clock import COUNTER_MAX
from synckit_streams.model.codec import DIGEST_MODULUS
from synckit_streams.model.seen import Interval, Intervals


class Stream:
    """See the module's text.

    Args:
        ranges: Which numbers are here: disjoint, ascending, never adjacent.
        total: The sum of the hashes of the events, modulo 2^256.
        at_packed: The greatest hybrid time among the events.
    """

    __slots__ = ("at_packed", "ranges", "total")

    def __init__(self, ranges: Iterable[Interval] = (), total: int = 0, at_packed: int = 0) -> None:
        self.ranges: list[Interval] = list(ranges)
        self.total = total
        self.at_packed = at_packed

    @property
    def last(self) -> int:
        """The greatest number here; 0 if none is."""
        return self.ranges[-1][1] if self.ranges else 0

    @property
    def intervals(self) -> Intervals:
        """A snapshot of `ranges`."""
        return tuple(self.ranges)

    def __contains__(self, seq: int) -> bool:
        ranges = self.ranges
        if not ranges or seq > ranges[-1][1]:
            return False
        if seq >= ranges[-1][0]:  # the common case: few gaps, and those long ago
            return True
        at = bisect_right(ranges, (seq, COUNTER_MAX)) - 1
        return at >= 0 and ranges[at][1] >= seq

    def add(self, seq: int, hash: bytes) -> None:
        """One more event; it must not be here yet."""
        ranges = self.ranges
        if ranges and seq == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], seq)
        elif not ranges or seq > ranges[-1][1]:
            ranges.append((seq, seq))
        else:
            at = bisect_right(ranges, (seq, COUNTER_MAX))
            first = last = seq
            start = stop = at
            if at and ranges[at - 1][1] == seq - 1:
                start, first = at - 1, ranges[at - 1][0]
            if at < len(ranges) and ranges[at][0] == seq + 1:
                stop, last = at + 1, ranges[at][1]
            ranges[start:stop] = [(first, last)]
        self.total = (self.total + int.from_bytes(hash, "big")) % DIGEST_MODULUS

    def extend(self, hashes: Sequence[bytes]) -> None:
        """The next events: they get the numbers after `last`."""
        if not hashes:
            return
        first = self.last + 1
        last = first + len(hashes) - 1
        if self.ranges:
            self.ranges[-1] = (self.ranges[-1][0], last)
        else:
            self.ranges.append((first, last))
        from_bytes = int.from_bytes
        self.total = (self.total + sum([from_bytes(hash, "big") for hash in hashes])) % DIGEST_MODULUS

    def replace(self, old: bytes, new: bytes) -> None:
        """Another event stands under one of the numbers: the sum changes by what the two hashes differ."""
        self.total = (self.total + int.from_bytes(new, "big") - int.from_bytes(old, "big")) % DIGEST_MODULUS
