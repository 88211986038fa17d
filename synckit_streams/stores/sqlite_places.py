"""Where events were read, in SQLite: the table `places`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from synckit_streams.model.exchange import PlaceRun
from synckit_streams.stores.place_rows import RunRows

SELECT_RUNS = "SELECT reader, topic, origin, first, positions FROM places WHERE reader = ? ORDER BY run"
SELECT_ALL_RUNS = "SELECT reader, topic, origin, first, positions FROM places ORDER BY reader, run"


class PlaceRows:
    """The table `places`, as one connection writes it. Thrown away when a transaction fails.

    Args:
        writer: The connection.
    """

    def __init__(self, writer: sqlite3.Connection) -> None:
        self._writer = writer
        (last,) = writer.execute("SELECT coalesce(max(run), 0) FROM places").fetchone()
        self._rows = RunRows(last)

    def forget(self, readers: Iterable[str]) -> None:
        """The logs of these readers were lost or put back."""
        gone = set(readers)
        self._writer.executemany("DELETE FROM places WHERE reader = ?", [(reader,) for reader in gone])
        self._rows.forget(gone)

    def add(self, runs: Iterable[PlaceRun]) -> None:
        """These were read just now."""
        self._writer.executemany("INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?, ?, ?)", self._rows.add(runs))
