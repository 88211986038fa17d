"""Where in a broker's log each event was last read: what decides whether a peer will still come across it.

Per origin, runs of consecutive numbers with their positions. Nearly all runs are even (a frame of many events is one
position; one event a message is a constant step), so a million events cost a few kilobytes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import count, groupby, repeat
from operator import sub
from typing import TypeAlias, overload

from synckit_streams.model.seen import Interval, Intervals, Seen, add_interval, union

RUN_EVENTS_MAX = 8192
"""Of a run whose positions are uneven; an even one has no limit."""
NOWHERE = range(1)
"""The position of an event that does not lie where it was thought to."""
UNEVEN_EVENTS = 64
"""An even run of more is not dissolved into an uneven one."""


class Same(Sequence[int]):
    """One position, many times: the events of a frame."""

    __slots__ = ("position", "times")

    def __init__(self, position: int, times: int) -> None:
        self.position = position
        self.times = times

    def __len__(self) -> int:
        return self.times

    def __iter__(self) -> Iterator[int]:
        return repeat(self.position, self.times)

    @overload
    def __getitem__(self, at: int) -> int: ...
    @overload
    def __getitem__(self, at: slice) -> Same: ...
    def __getitem__(self, at: int | slice) -> int | Same:
        if isinstance(at, slice):
            return Same(self.position, len(range(self.times)[at]))
        if not -self.times <= at < self.times:
            raise IndexError(at)
        return self.position


Positions: TypeAlias = "range | Same | array[int]"


def even_parts(positions: Sequence[int]) -> list[Positions]:
    """Positions as few even parts (a frame each, or a constant step), or in one piece if they are uneven."""
    if isinstance(positions, range | Same):
        return [positions]
    total = len(positions)
    if total == 1:
        return [range(positions[0], positions[0] + 1)]
    frames = [Same(position, len(list(each))) for position, each in groupby(positions)]
    if 4 * len(frames) <= total or len(frames) == 1:
        return [*frames]
    steps = [(start, len(list(each))) for start, each in groupby(map(sub, positions, count()))]
    if 4 * len(steps) <= total or len(steps) == 1:
        parts: list[Positions] = []
        behind = 0
        for start, length in steps:
            parts.append(range(start + behind, start + behind + length))
            behind += length
        return parts
    step = positions[1] - positions[0]
    if step > 1 and positions[-1] == positions[0] + step * (total - 1):
        even = range(positions[0], positions[-1] + 1, step)
        if all(map(int.__eq__, even, positions)):
            return [even]
    return [array("q", positions)]


def join(ours: Positions, theirs: Positions, *, uneven_max: int) -> Positions | None:
    """The positions of two neighbours in one piece: an even one, or an uneven one that is not too large."""
    if isinstance(ours, Same):
        if isinstance(theirs, Same) and ours.position == theirs.position:
            return Same(ours.position, ours.times + theirs.times)
    elif isinstance(ours, range) or len(ours) == 1:
        step = theirs[0] - ours[-1]
        goes_on = len(theirs) == 1 or (isinstance(theirs, range) and theirs.step == step)
        if step > 0 and goes_on and (len(ours) == 1 or (isinstance(ours, range) and ours.step == step)):
            return range(ours[0], theirs[-1] + 1, step)
    # A large even piece is small as it is.
    if len(theirs) > UNEVEN_EVENTS or (len(ours) > UNEVEN_EVENTS and not isinstance(ours, array)):
        return None
    return array("q", [*ours, *theirs]) if len(ours) + len(theirs) <= uneven_max else None


class Run:
    """Events `first..last` of one origin, read in one partition at `positions`."""

    __slots__ = ("first", "high", "last", "low", "partition", "positions")

    def __init__(self, first: int, positions: Positions, partition: int) -> None:
        self.first = first
        self.last = first + len(positions) - 1
        self.positions = positions
        self.partition = partition
        if isinstance(positions, Same):
            self.low = self.high = positions.position
        elif isinstance(positions, range):
            self.low, self.high = positions[0], positions[-1]
        else:
            self.low, self.high = min(positions), max(positions)

    def part(self, first: int, last: int) -> Run:
        """The run between two of its numbers."""
        return Run(first, self.positions[first - self.first : last - self.first + 1], self.partition)

    def at_or_past(self, first: int, last: int, position: int) -> list[Interval]:
        """Which of `first..last` were read at or past a position."""
        if self.high < position:
            return []
        if self.low >= position:
            return [(first, last)]
        found: list[Interval] = []
        for seq in range(first, last + 1):
            if self.positions[seq - self.first] >= position:
                if found and found[-1][1] == seq - 1:
                    found[-1] = (found[-1][0], seq)
                else:
                    found.append((seq, seq))
        return found


class Places:
    """The runs of one link and topic."""

    def __init__(self) -> None:
        self._runs: dict[str, list[Run]] = {}
        self._known: dict[str, Intervals] = {}
        """Which numbers the runs hold."""
        self._low: dict[int, int] = {}
        """Per partition, a position that no event lies below."""

    def add(self, origin: str, first: int, positions: Sequence[int], partition: int) -> None:
        """A run that was just read; it takes the place of what was known of these events."""
        self._known[origin] = add_interval(self._known.get(origin, ()), first, first + len(positions) - 1)
        if isinstance(positions, range | Same):
            self._add(origin, Run(first, positions, partition))
            return
        for part in even_parts(positions):
            self._add(origin, Run(first, part, partition))
            first += len(part)

    def _add(self, origin: str, run: Run) -> None:
        first, partition = run.first, run.partition
        self._low[partition] = min(run.low, self._low.get(partition, run.low))
        runs = self._runs.setdefault(origin, [])
        if not runs or runs[-1].last < first:
            if runs and runs[-1].last == first - 1 and (joined := _join(runs[-1], run)) is not None:
                runs[-1] = joined
            else:
                runs.append(run)
            return
        # Read again: cut what lies under the new run out of the older ones.
        start = bisect_left(runs, first, key=lambda each: each.last)
        stop = bisect_right(runs, run.last, key=lambda each: each.first)
        pieces: list[Run] = []
        for old in runs[start:stop]:
            if old.first < first:
                pieces.append(old.part(old.first, first - 1))
            if old.last > run.last:
                pieces.append(old.part(run.last + 1, old.last))
        pieces.append(run)
        runs[start:stop] = sorted(pieces, key=lambda each: each.first)

    def partition_of(self, origin: str, seq: int) -> int | None:
        """In which partition an event was read; None if in none."""
        for run in self._runs.get(origin, ()):
            if run.first <= seq <= run.last:
                return run.partition
        return None

    def highest(self) -> dict[int, tuple[int, str, int]]:
        """Per partition: the greatest position at which an event was read, and that event's origin and number."""
        found: dict[int, tuple[int, str, int]] = {}
        for origin, runs in self._runs.items():
            for run in runs:
                if run.high > found.get(run.partition, (0, "", 0))[0]:
                    found[run.partition] = (run.high, origin, run.first + run.positions.index(run.high))
        return found

    def forget(self, partition: int) -> None:
        """The log of this partition was lost or put back."""
        self._low.pop(partition, None)
        for origin, runs in list(self._runs.items()):
            kept = [run for run in runs if run.partition != partition]
            if kept:
                self._runs[origin] = kept
                self._known[origin] = union(tuple((run.first, run.last) for run in kept), ())
            else:
                del self._runs[origin], self._known[origin]

    def at_or_past(self, wanted: Seen, positions: Mapping[int, int]) -> Seen:
        """Which of these events lie in the log at or past a position, given per partition; absent is the beginning.

        Position 0 is before the first message: what was put there (`NOWHERE`) is not in the log.
        """
        if all(low >= positions.get(partition, 1) for partition, low in self._low.items()):
            # Nothing lies below: what is known is the answer, however many runs it is kept in.
            return wanted.minus(wanted.minus(Seen(self._known)))
        found: dict[str, Intervals] = {}
        for origin, intervals in wanted.ranges.items():
            runs = self._runs.get(origin)
            if not runs:
                continue
            covered: list[Interval] = []
            for first, last in intervals:
                for at in range(bisect_left(runs, first, key=lambda each: each.last), len(runs)):
                    run = runs[at]
                    if run.first > last:
                        break
                    covered += run.at_or_past(
                        max(first, run.first), min(last, run.last), positions.get(run.partition, 1)
                    )
            if covered:
                found[origin] = union(tuple(covered), ())
        return Seen(found)


def _join(earlier: Run, later: Run) -> Run | None:
    """Two neighbours as one run, if that is not larger than both."""
    if earlier.partition != later.partition:
        return None
    ours, theirs = earlier.positions, later.positions
    if isinstance(ours, array) and len(ours) > 1:
        if len(theirs) > UNEVEN_EVENTS or len(ours) + len(theirs) > RUN_EVENTS_MAX:
            return None
        ours.extend(theirs)  # in place: it may have thousands, and come one by one
        earlier.last = later.last
        earlier.low, earlier.high = min(earlier.low, later.low), max(earlier.high, later.high)
        return earlier
    joined = join(ours, theirs, uneven_max=RUN_EVENTS_MAX)
    return None if joined is None else Run(earlier.first, joined, earlier.partition)
