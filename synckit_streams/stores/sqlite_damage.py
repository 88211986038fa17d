"""What is wrong in a file of ours, as far as only the file itself can tell: pages, columns, indexes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec

from synckit_streams.errors import StoreCorrupt
from synckit_streams.stores import sqlite_schema as schema
from synckit_streams.stores.aggregate_hash import AggregateHash
from synckit_streams.stores.event_id import id_hash

NAMED = 20
"""Of each kind, so many places are named."""

_UNLISTED = (
    "SELECT e.position FROM events e LEFT JOIN aggregates a ON a.aggregate = e.aggregate AND a.position = e.position "
    f"WHERE e.position <= {schema.INDEXED} AND a.position IS NULL LIMIT {NAMED}"
)
_STRAY = (
    "SELECT a.position FROM aggregates a LEFT JOIN events e USING (position) "
    f"WHERE e.aggregate IS NOT a.aggregate OR a.position > {schema.INDEXED} LIMIT {NAMED}"
)
_ROWS = (
    "SELECT e.position, s.topic, s.origin, e.seq, e.id, e.aggregate, e.at, e.body FROM events e "
    "LEFT JOIN streams s USING (stream) ORDER BY e.position"
)


def check_whole(connection: sqlite3.Connection, path: Path) -> None:
    """That a file without a log beside it has the size that it says; SQLite finds out only where it reads.

    Raises:
        StoreCorrupt: it is shorter.
    """
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    size = path.stat().st_size
    if size < pages * page_bytes:
        raise StoreCorrupt(f"{path} is cut off: {size} of {pages * page_bytes} bytes")


def damage(connection: sqlite3.Connection, aggregate_hash: AggregateHash) -> list[str]:
    """Everything, in words; empty if the file is sound."""
    try:
        said = [str(row[0]) for row in connection.execute(f"PRAGMA integrity_check({NAMED})")]
        if said != ["ok"]:
            return said
        return [
            *(f"position {row[0]} is not in the index by aggregate" for row in connection.execute(_UNLISTED)),
            *(f"the index by aggregate has {row[0]}, where no such event is" for row in connection.execute(_STRAY)),
            *_columns(connection, aggregate_hash),
        ]
    except sqlite3.Error as error:
        return [str(error)]


def _columns(connection: sqlite3.Connection, aggregate_hash: AggregateHash) -> Iterator[str]:
    """Where a column by which an event is found says something else than the event."""
    found = 0
    for position, topic, origin, seq, id, aggregate, at, body in connection.execute(_ROWS):
        try:
            event = schema.decode_event(body)
        except msgspec.MsgspecError as error:
            wrong = f"the event ({error})"
        else:
            columns = (
                ("stream", (topic, origin), (event.topic, event.origin)),
                ("seq", seq, event.seq),
                ("id", id, id_hash(event.id)),
                ("aggregate", aggregate, aggregate_hash((event.topic, event.aggregate_id))),
                ("at", at, event.at_packed),
            )
            wrong = ", ".join(name for name, said, true in columns if said != true)
        if wrong:
            yield f"position {position}: wrong {wrong}"
            found += 1
        if found == NAMED:
            return
