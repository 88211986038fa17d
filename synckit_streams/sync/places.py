"""Where in a broker's log each event was last read: what decides whether a peer will still come across it.

Per origin, runs of consecutive numbers with their positions. Most runs are even (a frame of many events is one
position; one event a message is a constant step), so a million events cost a few kilobytes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence

from synckit_streams.model.seen import Interval, Intervals, Seen, union

RUN_EVENTS_MAX = 8192


class Run:
    """Events `first..last` of one origin, read in one partition at `positions`."""

    __slots__ = ("first", "high", "low", "partition", "positions")

    def __init__(self, first: int, positions: Sequence[int], partition: int) -> None:
        self.first = first
        self.positions = positions if isinstance(positions, range) else _compact(positions)
        self.partition = partition
        self.low = min(positions[0], positions[-1]) if isinstance(self.positions, range) else min(positions)
        self.high = max(positions[0], positions[-1]) if isinstance(self.positions, range) else max(positions)

    @property
    def last(self) -> int:
        return self.first + len(self.positions) - 1

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


class _Same(Sequence[int]):
    """One position, many times: a frame."""

    __slots__ = ("position", "times")

    def __init__(self, position: int, times: int) -> None:
        self.position = position
        self.times = times

    def __len__(self) -> int:
        return self.times

    def __getitem__(self, at: int | slice) -> int | _Same:  # type: ignore[override]
        if isinstance(at, slice):
            return _Same(self.position, len(range(*at.indices(self.times))))
        return self.position


def _compact(positions: Sequence[int]) -> Sequence[int]:
    first, length = positions[0], len(positions)
    if isinstance(positions, _Same) or positions[-1] == first == max(positions) == min(positions):
        return _Same(first, length)
    step = positions[1] - first
    if step > 0 and positions[-1] == first + step * (length - 1):
        even = range(first, first + step * length, step)
        if all(a == b for a, b in zip(even, positions, strict=True)):
            return even
    return array("q", positions)


class Places:
    """The runs of one link and topic."""

    def __init__(self) -> None:
        self._runs: dict[str, list[Run]] = {}

    def add(self, origin: str, first: int, positions: Sequence[int], partition: int) -> None:
        """A run that was just read; it takes the place of what was known of these events."""
        run = Run(first, positions, partition)
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

    def forget(self, partition: int) -> None:
        """The log of this partition was lost or put back."""
        for origin, runs in list(self._runs.items()):
            kept = [run for run in runs if run.partition != partition]
            if kept:
                self._runs[origin] = kept
            else:
                del self._runs[origin]

    def at_or_past(self, wanted: Seen, positions: Mapping[int, int]) -> Seen:
        """Which of these events lie in the log at or past a position, given per partition; absent is the beginning."""
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
                        max(first, run.first), min(last, run.last), positions.get(run.partition, 0)
                    )
            if covered:
                found[origin] = union(tuple(covered), ())
        return Seen(found)


def _join(earlier: Run, later: Run) -> Run | None:
    """Two neighbours as one run, if that is not larger than both."""
    if earlier.partition != later.partition:
        return None
    ours, theirs = earlier.positions, later.positions
    if isinstance(ours, _Same) and isinstance(theirs, _Same) and ours.position == theirs.position:
        return Run(earlier.first, _Same(ours.position, len(ours) + len(theirs)), earlier.partition)
    if len(ours) == 1 or isinstance(ours, range):
        step = theirs[0] - ours[-1]
        goes_on = len(theirs) == 1 or (isinstance(theirs, range) and theirs.step == step)
        if step > 0 and goes_on and (not isinstance(ours, range) or len(ours) == 1 or ours.step == step):
            return Run(earlier.first, range(ours[0], theirs[-1] + 1, step), earlier.partition)
    if isinstance(ours, _Same) and len(ours) > 64:
        return None  # a large frame is small as it is
    if len(ours) + len(theirs) <= RUN_EVENTS_MAX and len(theirs) <= 64:
        return Run(earlier.first, array("q", [*ours, *theirs]), earlier.partition)
    return None
