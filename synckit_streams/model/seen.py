"""Which events a replica holds: per origin, closed intervals of sequence numbers. Its size grows with the writers.

`Seen` is a set of dots, kept as `{origin: ((first, last), …)}` with disjoint, non-adjacent, ascending intervals. The
part that starts at 1 is the contiguous mark; what lies beyond it is sparse. Immutable, so a snapshot costs nothing.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping

from synckit_streams.errors import Invalid
from synckit_streams.model.clock import COUNTER_MAX, Dot

Interval = tuple[int, int]
"""Closed: `(first, last)`, both included, from 1."""

Intervals = tuple[Interval, ...]


def add_interval(intervals: Intervals, first: int, last: int) -> Intervals:
    """The intervals with `first..last` added; joins what touches."""
    if not intervals:
        return ((first, last),)
    tail_first, tail_last = intervals[-1]
    if first == tail_last + 1:  # the common case: the next number of an origin
        return (*intervals[:-1], (tail_first, last))
    return union(intervals, ((first, last),))


def union(ours: Intervals, theirs: Intervals) -> Intervals:
    """What is in either."""
    merged: list[Interval] = []
    for first, last in sorted((*ours, *theirs)):
        if merged and first <= merged[-1][1] + 1:
            if last > merged[-1][1]:
                merged[-1] = (merged[-1][0], last)
        else:
            merged.append((first, last))
    return tuple(merged)


def minus(ours: Intervals, theirs: Intervals) -> Intervals:
    """What is in ours and not in theirs."""
    left: list[Interval] = []
    index = 0
    for first, last in ours:
        while index < len(theirs) and theirs[index][1] < first:
            index += 1
        scan, start = index, first
        while scan < len(theirs) and theirs[scan][0] <= last:
            if theirs[scan][0] > start:
                left.append((start, theirs[scan][0] - 1))
            start = theirs[scan][1] + 1
            scan += 1
        if start <= last:
            left.append((start, last))
    return tuple(left)


def contains(intervals: Intervals, seq: int) -> bool:
    """Whether one number is in the intervals."""
    at = bisect_right(intervals, (seq, COUNTER_MAX)) - 1
    return at >= 0 and intervals[at][1] >= seq


def count(intervals: Intervals) -> int:
    """How many numbers the intervals hold."""
    return sum(last - first + 1 for first, last in intervals)


class Seen:
    """A set of dots. See the module's text for its shape; `Seen()` is empty."""

    __slots__ = ("ranges",)

    def __init__(self, ranges: Mapping[str, Intervals] | None = None) -> None:
        self.ranges: Mapping[str, Intervals] = ranges or {}

    @classmethod
    def of(cls, dots: Iterable[tuple[str, int]]) -> Seen:
        """The set that holds just these dots.

        Raises:
            Invalid: a number outside [1, 2^63).
        """
        numbers: dict[str, list[Interval]] = {}
        run: str | None = None
        first = last = 0
        for origin, seq in dots:
            if seq == last + 1 and origin == run:  # the common case: they ascend
                last = seq
                continue
            if seq < 1:
                raise Invalid(f"number {seq} of {origin!r:.80} is outside [1, 2^63)")
            if run is not None:
                numbers.setdefault(run, []).append((first, last))
            run, first, last = origin, seq, seq
        if run is not None:
            numbers.setdefault(run, []).append((first, last))
        for origin, found in numbers.items():
            if (greatest := max(found, key=lambda each: each[1])[1]) > COUNTER_MAX:
                raise Invalid(f"number {greatest} of {origin!r:.80} is outside [1, 2^63)")
        return cls({origin: union(tuple(found), ()) for origin, found in numbers.items()})

    def __contains__(self, dot: object) -> bool:
        # A Key is no Dot: it begins with the topic, and would be looked up as an origin.
        return isinstance(dot, tuple) and len(dot) == 2 and contains(self.ranges.get(dot[0], ()), dot[1])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Seen) and self.ranges == other.ranges

    def __hash__(self) -> int:
        return hash(frozenset(self.ranges.items()))

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __len__(self) -> int:
        return sum(count(intervals) for intervals in self.ranges.values())

    def __iter__(self) -> Iterator[Dot]:
        for origin, intervals in self.ranges.items():
            for first, last in intervals:
                for seq in range(first, last + 1):
                    yield Dot(origin, seq)

    def __repr__(self) -> str:
        inside = ", ".join(
            f"{origin}: {' '.join(f'{first}..{last}' if first < last else str(first) for first, last in intervals)}"
            for origin, intervals in sorted(self.ranges.items())
        )
        return f"Seen({inside})"

    def mark(self, origin: str) -> int:
        """The contiguous mark: every event of the origin from 1 up to it is here; 0 if not even the first is."""
        intervals = self.ranges.get(origin, ())
        return intervals[0][1] if intervals and intervals[0][0] == 1 else 0

    def with_ranges(self, added: Mapping[str, Intervals]) -> Seen:
        """This set and more."""
        ranges = dict(self.ranges)
        for origin, intervals in added.items():
            if intervals:
                ranges[origin] = union(ranges.get(origin, ()), intervals)
        return Seen(ranges)

    def union(self, other: Seen) -> Seen:
        """What is in either."""
        return self.with_ranges(other.ranges)

    def minus(self, other: Seen) -> Seen:
        """What is here and not there."""
        left = {}
        for origin, intervals in self.ranges.items():
            theirs = other.ranges.get(origin, ())
            if intervals == theirs:  # the common case: two replicas that hold the same
                continue
            rest = minus(intervals, theirs) if theirs else intervals
            if rest:
                left[origin] = rest
        return Seen(left)

    def covers(self, other: Seen) -> bool:
        """Whether every event there is also here."""
        return not other.minus(self)

    def gaps(self) -> Seen:
        """What is missing below the highest number seen of each origin."""
        return Seen(
            {
                origin: rest
                for origin, intervals in self.ranges.items()
                if (rest := minus(((1, intervals[-1][1]),), intervals))
            }
        )

    def intervals_count(self) -> int:
        """How many intervals there are in all: the size of the summary."""
        return sum(len(intervals) for intervals in self.ranges.values())

    def rounded(self, intervals_max: int) -> Seen:
        """A subset with at most so many intervals, the first ones of each origin. It claims less, never more."""
        surplus = self.intervals_count() - intervals_max
        if surplus <= 0:
            return self
        ranges = dict(self.ranges)
        for origin in sorted(ranges, key=lambda name: -len(ranges[name])):
            cut = min(surplus, max(len(ranges[origin]) - 1, 0))
            ranges[origin] = ranges[origin][: len(ranges[origin]) - cut]
            surplus -= cut
            if not surplus:
                return Seen(ranges)
        return Seen(dict(sorted(ranges.items())[:intervals_max]))

    def head(self, limit: int) -> Seen:
        """The first `limit` dots in (origin, seq) order: one page of a longer list."""
        page: dict[str, Intervals] = {}
        for origin in sorted(self.ranges):
            taken: list[Interval] = []
            for first, last in self.ranges[origin]:
                if limit <= 0:
                    break
                last = min(last, first + limit - 1)
                taken.append((first, last))
                limit -= last - first + 1
            if taken:
                page[origin] = tuple(taken)
        return Seen(page)

    def to_wire(self) -> dict[str, list[int]]:
        """`{origin: [first, last, first, last, …]}`."""
        return {
            origin: [number for interval in intervals for number in interval]
            for origin, intervals in self.ranges.items()
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, list[int]]) -> Seen:
        """The reverse of `to_wire`.

        Raises:
            Invalid: intervals that overlap, touch, descend, or leave [1, 2^63); or not lists of integers at all.
        """
        ranges: dict[str, Intervals] = {}
        for origin, flat in wire.items():
            if not isinstance(flat, list) or not all(type(number) is int for number in flat):
                raise Invalid(f"the intervals of {origin!r:.80} are not a list of integers")
            intervals = tuple(zip(flat[::2], flat[1::2], strict=False))
            previous = -1  # so that the first may be 1
            for first, last in intervals:
                if not previous + 1 < first <= last <= COUNTER_MAX:
                    raise Invalid(f"the intervals of {origin!r} are not ascending and disjoint")
                previous = last
            if len(flat) % 2 or not intervals:
                raise Invalid(f"the intervals of {origin!r} are not pairs of numbers")
            ranges[origin] = intervals
        return cls(ranges)
