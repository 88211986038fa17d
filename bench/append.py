"""Writing: batches against the sqlite3 shell and eventsourcing, RocksDB against SQLite, many callers against one."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import msgspec
from eventsourcing.persistence import StoredEvent
from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteDatastore

from bench import drafts
from bench.measure import Case, Row, Scale, Skipped, compare, timed
from bench.nodes import fill, node

CALLERS = 100
BLOCK_BYTES = 4096


def cases() -> list[Case]:
    """The rows about writing."""
    return [
        Case("append-vs-sqlite3-shell", "append_many of dicts, against .import of the same rows", against_shell),
        Case("append-vs-eventsourcing", "append_many of dicts, against insert_events of bytes", against_eventsourcing),
        Case(
            "append-rocksdb", "append_many of dicts in a RocksDB store, against a SQLite store", rocksdb_against_sqlite
        ),
        Case("append-rocksdb-one-caller", "one append caller, RocksDB against SQLite", rocksdb_one_caller),
        Case("append-100-callers", "100 concurrent append callers, against one", many_callers),
        Case("append-one-caller", "one append caller, against 4 KiB write + fdatasync", one_caller),
    ]


def append_rate(directory: Path, events: int, store: str = "sqlite") -> float:
    """Events a second through the public API, a thousand a call, from dicts."""

    async def run() -> float:
        async with node("a", directory, store=store) as target:
            return await fill(target, events)

    return asyncio.run(run())


# --- the sqlite3 shell ------------------------------------------------------------------------------------------------


def against_shell(scale: Scale, directory: Path) -> Row:
    """The same rows into the same tables with the same indexes, by the C program that only does that."""
    shell = shutil.which("sqlite3")
    if shell is None:
        raise Skipped("there is no sqlite3 shell on this machine")
    source = directory / "source"
    source.mkdir()
    append_rate(source, scale.events)
    schema, imports = export(source / "a.db", directory)

    def other(place: Path) -> float:
        commands = [f".import {file} {table}" for table, file in imports.items()]
        # As our store has it: write-ahead log, every commit on the disk, the same cache. The import is one commit.
        settings = ["PRAGMA journal_mode=WAL;", "PRAGMA synchronous=FULL;", "PRAGMA cache_size=-16000;"]
        script = "\n".join([".bail on", *settings, *schema, ".mode ascii", *commands])
        with timed() as watch:
            subprocess.run([shell, place / "shell.db"], input=script, text=True, check=True, stdout=subprocess.DEVNULL)
        with sqlite3.connect(place / "shell.db") as connection:
            (count,) = connection.execute("SELECT count(*) FROM events").fetchone()
        connection.close()
        assert count == scale.events
        return scale.events / watch.seconds

    return compare(
        "append-vs-sqlite3-shell",
        lambda place: append_rate(place, scale.events),
        other,
        wanted=0.6,
        unit="events/s",
        scale=scale,
        directory=directory,
    )


def export(database: Path, directory: Path) -> tuple[list[str], dict[str, Path]]:
    """A database's schema, and a file for each table that the shell can import.

    The files are in the shell's ASCII mode, which needs no quoting. Bytes become text of the same length, since an
    import knows nothing else.
    """
    connection = sqlite3.connect(database)
    schema = [f"{sql};" for (sql,) in connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")]
    tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
    imports: dict[str, Path] = {}
    for table in tables:
        rows = connection.execute(f"SELECT * FROM {table}")
        path = directory / f"{table}.ascii"
        with path.open("w", newline="") as file:
            file.writelines("\x1f".join(map(as_text, row)) + "\x1e" for row in rows)
        if path.stat().st_size:
            imports[table] = path
    connection.close()
    return schema, imports


def as_text(value: Any) -> str:
    """A column as text of the same length."""
    if isinstance(value, bytes):
        return "".join(chr(byte) if 32 <= byte < 127 else chr(97 + byte % 26) for byte in value)
    return str(value)


# --- eventsourcing ---------------------------------------------------------------------------------------------------


def against_eventsourcing(scale: Scale, directory: Path) -> Row:
    """The Python reference for event stores. It is given ready bytes; our time includes the encoding of dicts."""
    ready = stored_events(scale.events)

    def other(place: Path) -> float:
        recorder = eventsourcing_recorder(place)
        with timed() as watch:
            for start in range(0, scale.events, drafts.CALL_EVENTS):
                recorder.insert_events(ready[start : start + drafts.CALL_EVENTS])
        recorder.datastore.close()
        return scale.events / watch.seconds

    return compare(
        "append-vs-eventsourcing",
        lambda place: append_rate(place, scale.events),
        other,
        wanted=1.2,
        unit="events/s",
        scale=scale,
        directory=directory,
    )


def eventsourcing_recorder(directory: Path) -> SQLiteApplicationRecorder:
    """Its recorder on a SQLite file, with its own defaults: write-ahead log, every commit on the disk."""
    recorder = SQLiteApplicationRecorder(SQLiteDatastore(str(directory / "eventsourcing.db")))
    recorder.create_table()
    return recorder


def stored_events(events: int) -> list[StoredEvent]:
    """The same events, ready for it: numbered per aggregate, the payload as bytes."""
    versions: dict[str, int] = {}
    found: list[StoredEvent] = []
    for number, aggregate in enumerate(drafts.aggregates(events)):
        versions[aggregate] = version = versions.get(aggregate, 0) + 1
        state = msgspec.json.encode(drafts.payload(number))
        found.append(StoredEvent(uuid5(NAMESPACE_OID, aggregate), version, "order.placed", state))
    return found


# --- RocksDB ----------------------------------------------------------------------------------------------------------


def rocksdb_against_sqlite(scale: Scale, directory: Path) -> Row:
    """The same calls on both stores, each call durable."""
    return compare(
        "append-rocksdb",
        lambda place: append_rate(place, scale.events, "rocksdb"),
        lambda place: append_rate(place, scale.events),
        wanted=1.5,
        unit="events/s",
        scale=scale,
        directory=directory,
    )


def rocksdb_one_caller(scale: Scale, directory: Path) -> Row:
    """One event a commit: what the disk takes for its word, and how much is written beside the event."""
    writes = max(scale.events // 50, 1)
    return compare(
        "append-rocksdb-one-caller",
        lambda place: callers_rate(place, 1, writes, "rocksdb"),
        lambda place: callers_rate(place, 1, writes),
        wanted=1.5,
        unit="events/s",
        scale=scale,
        directory=directory,
    )


# --- many callers ----------------------------------------------------------------------------------------------------


def many_callers(scale: Scale, directory: Path) -> Row:
    """Group commit: whoever comes while the disk is busy shares the next commit."""
    alone = max(scale.events // 50, 1)

    return compare(
        "append-100-callers",
        lambda place: callers_rate(place, CALLERS, max(scale.events // 5 // CALLERS, 1)),
        lambda place: callers_rate(place, 1, alone),
        wanted=12.0,
        unit="events/s",
        scale=scale,
        directory=directory,
    )


def callers_rate(directory: Path, callers: int, each: int, store: str = "sqlite") -> float:
    """Events a second of so many callers, each of whom awaits one `append` after the other."""
    batches = list(drafts.calls(callers * each, each))

    async def caller(target: Any, mine: Iterable[Any]) -> None:
        for draft in mine:
            await target.append(draft)

    async def run() -> float:
        async with node("a", directory, store=store) as target:
            await target.append(next(drafts.calls(1))[0])  # the first write after an open also draws the incarnation
            started = time.perf_counter()
            await asyncio.gather(*(caller(target, mine) for mine in batches))
            return callers * each / (time.perf_counter() - started)

    return asyncio.run(run())


def one_caller(scale: Scale, directory: Path) -> Row:
    """What a durable write costs at least: as many bytes as a page, and the disk's word that they are there."""
    writes = max(scale.events // 50, 1)

    def other(place: Path) -> float:
        block = os.urandom(BLOCK_BYTES)
        file = os.open(place / "growing", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        with timed() as watch:
            for _ in range(writes):
                os.write(file, block)
                os.fdatasync(file)
        os.close(file)
        return writes / watch.seconds

    return compare(
        "append-one-caller",
        lambda place: callers_rate(place, 1, writes),
        other,
        wanted=0.65,
        unit="events/s",
        scale=scale,
        directory=directory,
    )
