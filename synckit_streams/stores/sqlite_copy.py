"""A copy of a store's file, as it is at one moment, also while its node writes."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from synckit_streams.stores.sqlite_schema import translate

PAGES_TOGETHER = 2_000


def copy_file(source: Path, target: Path, advance: Callable[[int, int], None]) -> None:
    """All that is in it, read models included, into a file that is not there yet; it is on the disk when this returns.

    Args:
        source: The store's file.
        target: The new one, without anything beside it.
        advance: Called with how many pages are copied, and how many there are.

    Raises:
        StoreError: one of them cannot be read, or written.
    """
    try:
        with closing(_reading(source)) as old, closing(sqlite3.connect(target, isolation_level=None)) as new:
            # One moment: a reading transaction sees nothing of what is written after its first look.
            old.execute("BEGIN")
            old.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            old.backup(
                new, pages=PAGES_TOGETHER, progress=lambda _, remaining, total: advance(total - remaining, total)
            )
            new.execute("PRAGMA journal_mode=DELETE")  # so that nothing has to lie beside it to be read
    except sqlite3.Error as error:
        raise translate(error, target) from error
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _reading(path: Path) -> sqlite3.Connection:
    quoted = str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")
    connection = sqlite3.connect(f"file:{quoted}?mode=ro", uri=True, isolation_level=None)
    try:
        connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        # A folder that cannot be written: nobody writes the file either.
        return sqlite3.connect(f"file:{quoted}?mode=ro&immutable=1", uri=True, isolation_level=None)
    return connection
