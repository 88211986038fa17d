"""Where events were read, as rows of a store: one for a run that goes on, however many commits it takes.

A reader that commits event by event would leave a row each time, and every join would read them all. So a run that
continues the last one of its origin is written into the same row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import msgspec

from synckit_streams.model.exchange import PlaceRun
from synckit_streams.sync.places import Positions, Same, even_parts, join

UNEVEN_MAX = 512
"""Positions in a row that has to name each; the row is written anew when it grows."""
PLACES_REACH = 1_000
"""Where processes share a store, a row that so many others have followed does not grow any more: whoever reads what is
new reads so many again."""
LAST_MAX = 10_000
"""Origins whose last row is remembered."""

RunRow: TypeAlias = tuple[int, str, str, str, int, bytes]
"""Number of the row, reader, topic, origin, the first `seq`, and the positions."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[int]).decode


class RunRows:
    """The last row of each run, as the one who writes them knows it.

    Args:
        last: The last number that a row has.
        reach: Rows that are further behind the last one do not grow any more; None for any.
    """

    def __init__(self, last: int, *, reach: int | None = None) -> None:
        self._row = last
        self._reach = reach
        self._last: dict[tuple[str, str, str], tuple[int, int, Positions]] = {}
        """By reader, topic and origin: the last row, its first number, and its positions."""

    def forget(self, readers: Iterable[str]) -> None:
        """The rows of these readers are gone."""
        gone = set(readers)
        self._last = {key: last for key, last in self._last.items() if key[0] not in gone}

    def add(self, runs: Iterable[PlaceRun]) -> list[RunRow]:
        """What to write for some more runs: new rows, and those that have grown."""
        rows: dict[int, RunRow] = {}
        for reader, topic, origin, first, positions in runs:
            key = (reader, topic, origin)
            for part in even_parts(positions):
                row, start, whole = self._last.get(key, (0, 0, part))
                grows = row and (self._reach is None or row > self._row - self._reach)
                joined = join(whole, part, uneven_max=UNEVEN_MAX) if grows and start + len(whole) == first else None
                if joined is None:
                    self._row += 1
                    row, start, joined = self._row, first, part
                self._last[key] = (row, start, joined)
                rows[row] = (row, reader, topic, origin, start, _pack(joined))
                first += len(part)
        if len(self._last) > LAST_MAX:
            self._last.clear()
        return list(rows.values())


def _pack(positions: Positions) -> bytes:
    """Even ones as `[start, step, how many]`, uneven ones as `[-1, …]`."""
    if isinstance(positions, Same):
        return _encode((positions.position, 0, positions.times))
    if isinstance(positions, range):
        return _encode((positions.start, positions.step, len(positions)))
    return _encode([-1, *positions])


def run_of(row: Sequence[object]) -> PlaceRun:
    """A row, without its number, as a run."""
    reader, topic, origin, first, raw = row
    packed = _decode(raw)  # type: ignore[arg-type]
    positions: Sequence[int]
    if packed[0] == -1:
        positions = packed[1:]
    else:
        start, step, times = packed
        positions = range(start, start + step * times, step) if step else Same(start, times)
    return PlaceRun(reader, topic, origin, first, positions)  # type: ignore[arg-type]
