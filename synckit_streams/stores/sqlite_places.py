"""Where events were read, as rows: one for a run that goes on, however many commits it takes.

A reader that commits event by event would leave a row each time, and every join would read them all. So a run that
continues the last one of its origin is written into the same row.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

import msgspec

from synckit_streams.model.exchange import PlaceRun
from synckit_streams.sync.places import Positions, Same, even_parts, join

UNEVEN_MAX = 512
"""Positions in a row that has to name each; the row is written anew when it grows."""
LAST_MAX = 10_000
"""Origins whose last row is remembered."""

SELECT_RUNS = "SELECT reader, topic, origin, first, positions FROM places WHERE reader = ? ORDER BY run"

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[int]).decode


class PlaceRows:
    """The table `places`, as one connection writes it. Thrown away when a transaction fails.

    Args:
        writer: The connection.
    """

    def __init__(self, writer: sqlite3.Connection) -> None:
        self._writer = writer
        (self._row,) = writer.execute("SELECT coalesce(max(run), 0) FROM places").fetchone()
        self._last: dict[tuple[str, str, str], tuple[int, int, Positions]] = {}
        """By reader, topic and origin: the last row, its first number, and its positions."""

    def forget(self, readers: Iterable[str]) -> None:
        """The logs of these readers were lost or put back."""
        gone = set(readers)
        self._writer.executemany("DELETE FROM places WHERE reader = ?", [(reader,) for reader in gone])
        self._last = {key: last for key, last in self._last.items() if key[0] not in gone}

    def add(self, runs: Iterable[PlaceRun]) -> None:
        """These were read just now."""
        rows: dict[int, tuple[int, str, str, str, int, bytes]] = {}
        for reader, topic, origin, first, positions in runs:
            key = (reader, topic, origin)
            for part in even_parts(positions):
                row, start, whole = self._last.get(key, (0, 0, part))
                joined = join(whole, part, uneven_max=UNEVEN_MAX) if row and start + len(whole) == first else None
                if joined is None:
                    self._row += 1
                    row, start, joined = self._row, first, part
                self._last[key] = (row, start, joined)
                rows[row] = (row, reader, topic, origin, start, _pack(joined))
                first += len(part)
        self._writer.executemany("INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?, ?, ?)", rows.values())
        if len(self._last) > LAST_MAX:
            self._last.clear()


def _pack(positions: Positions) -> bytes:
    """Even ones as `[start, step, how many]`, uneven ones as `[-1, …]`."""
    if isinstance(positions, Same):
        return _encode((positions.position, 0, positions.times))
    if isinstance(positions, range):
        return _encode((positions.start, positions.step, len(positions)))
    return _encode([-1, *positions])


def run_of(row: tuple[str, str, str, int, bytes]) -> PlaceRun:
    """A row of `SELECT_RUNS` as a run."""
    reader, topic, origin, first, raw = row
    packed = _decode(raw)
    positions: Sequence[int]
    if packed[0] == -1:
        positions = packed[1:]
    else:
        start, step, times = packed
        positions = range(start, start + step * times, step) if step else Same(start, times)
    return PlaceRun(reader, topic, origin, first, positions)
