"""What the other processes of the tests of stores do."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from synckit_streams.errors import StoreError
from synckit_streams.model.codec import event_hash
from synckit_streams.model.event import Draft, Event, Offset
from synckit_streams.model.exchange import AppendResult, Arrival, Place
from synckit_streams.ports.store import EventStore, Opening
from synckit_streams.runtime.registry import store_for
from synckit_streams.stores.postgres import PostgresStore
from synckit_streams.stores.redis import RedisStore
from synckit_streams.stores.rocksdb import RocksDbStore
from synckit_streams.stores.sqlite import SqliteStore

# Not from the contract: these processes start often, and need neither pytest nor hypothesis.
NOW_MS = 1_700_000_000_000
DRAFT = Draft("orders", "order.changed", "o-1", {})


def opening(node: str) -> Opening:
    """An opening with its own dice."""
    return Opening(node=node, topics=("orders",), dice=os.urandom)


def say(what: str) -> None:
    """One line, at once."""
    sys.stdout.write(what + "\n")
    sys.stdout.flush()


def store_at(path: str, **options: Any) -> SqliteStore | PostgresStore | RocksDbStore | RedisStore:
    """The store in a file, in a folder, in a database, or on a server."""
    if path.startswith("redis:"):
        return RedisStore(path, **options)
    if path.startswith("postgres"):
        return PostgresStore(path, **options)
    if path.startswith("rocksdb:"):
        return RocksDbStore(path, **options)
    return SqliteStore(f"sqlite:///{quote(path)}", **options)


async def hold(path: str, **options: Any) -> None:
    """Open the store, and append one more event for each line that is read."""
    store = store_at(path, **options)
    await store.open(opening("holder"))
    await store.append([DRAFT], now_ms=NOW_MS)
    say("open")
    while await asyncio.to_thread(sys.stdin.readline):
        try:
            await store.append([DRAFT], now_ms=NOW_MS)
            say("wrote")
        except StoreError as error:
            say(type(error).__name__)


async def look(path: str) -> None:
    """Read it, then try to write it."""
    store = store_at(path, read_only=True)
    await store.open(opening("reader"))
    say(f"{len(await store.log(after=None, limit=100))} events")
    await store.close()
    try:
        await store_at(path).open(opening("writer"))
    except StoreError as error:
        say(f"{type(error).__name__}: {error.hint}")


def lock(path: str) -> None:
    """Keep a write transaction open."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    say("locked")
    sys.stdin.readline()


async def append_in_block(store: EventStore, drafts: list[Draft], name: str, position: int) -> AppendResult:
    """With an offset and a note that say that it was done."""
    async with store.transaction() as tx:
        await tx.append(drafts, now_ms=NOW_MS)
        await tx.set_offset(name, Offset(store.id, position))
        await tx.note_applied("blocks", [("orders", drafts[0].id or name, b"done")])
    assert tx.appended is not None
    return tx.appended


async def write_for_ever(path: str, life: int) -> None:
    """Several callers at once, drafts in pairs and received events with their offset; say the ids that are certain."""
    store = store_at(path)
    await store.open(opening("writer"))
    peer = f"peer@{life}"

    async def pairs(caller: int) -> None:
        for number in range(1_000_000):
            call = f"{life}/{caller}/{number}"
            drafts = [Draft("orders", "pair", f"o-{number % 9}", {"call": call}) for _ in range(2)]
            if caller:
                result = await store.append(drafts, now_ms=NOW_MS)
            else:
                result = await append_in_block(store, drafts, f"blocks {life}", number + 1)
            say(json.dumps([each.event.id for each in result.appended]))

    async def link() -> None:
        for first in range(1, 1_000_000, 3):
            events = [
                Event(f"{peer}/{seq}", "orders", "x", f"p-{seq}", b"1", b"", peer, seq, 0, b"", b"", NOW_MS << 16)
                for seq in range(first, first + 3)
            ]
            received = [Arrival(each, event_hash(each), Place("link", each.seq)) for each in events]
            await store.append(received=received, offsets={"link": Offset("log", first + 2)}, now_ms=NOW_MS)
            say(json.dumps([each.id for each in events]))

    await asyncio.gather(link(), *(pairs(caller) for caller in range(3)))


async def write_some(path: str, name: str, times: int) -> None:
    """Two callers at once, `times` commits each, on aggregates that the other processes write as well."""
    store = store_at(path)
    await store.open(opening("writer"))
    say("open")
    await asyncio.to_thread(sys.stdin.readline)

    async def write(caller: int) -> None:
        for number in range(times):
            draft = Draft("orders", "x", f"o-{number % 3}", [name, caller, number])
            result = await store.append([draft], now_ms=NOW_MS)
            say(json.dumps([[each.position, each.event.origin, each.event.seq] for each in result.appended]))

    await asyncio.gather(write(0), write(1))
    summary = await store.summary("orders")
    say(json.dumps({origin: str(total) for origin, total in summary.sums.items()}))
    await asyncio.to_thread(sys.stdin.readline)
    await store.close()


async def commit_late(url: str, consumer: str, idle_timeout_s: float) -> None:
    """Take a lease and commit under it when told to; it may be somebody else's by then."""
    store = PostgresStore(url, idle_timeout_s=idle_timeout_s)
    await store.open(opening("writer"))
    leases = await store.lease(["lane-1"], "late", ttl_s=0.05)
    try:
        async with store.transaction(leases) as tx:
            await tx.offset(consumer)
            await tx.set_offset(consumer, Offset(store.id, 1))
            await tx.append([DRAFT], now_ms=NOW_MS)
            say("in the middle")
            await asyncio.to_thread(sys.stdin.readline)
        say("committed")
    except StoreError as error:
        say(type(error).__name__)
    await store.close()


def is_block(caller: int, number: int) -> bool:
    """Whether a call of `write_calls` is a transaction of the caller's own."""
    return (caller + number) % 2 == 1


async def write_calls(url: str, parts: int, calls: list[tuple[int, int]]) -> None:
    """Callers who each begin with one call, named by a life and a number, and then go on with calls of this life; each
    call is asked for until it is acknowledged, and said."""
    store = store_for(url)
    await store.open(opening("writer"))
    this_life = max(life for life, _ in calls)

    async def write(caller: int, life: int, number: int) -> None:
        while True:
            ids = [f"{life}/{caller}/{number}/{part}" for part in range(parts)]
            drafts = [Draft("orders", "x", f"o-{number % 9}", {}, id=id) for id in ids]
            try:
                if is_block(caller, number):
                    await append_in_block(store, drafts, f"caller {caller}", number)
                else:
                    await store.append(drafts, now_ms=NOW_MS)
            except StoreError as error:
                if not error.retryable:
                    raise
                await asyncio.sleep(0.02)
                continue
            say(f"{life} {caller} {number}")
            life, number = (life, number + 1) if life == this_life else (this_life, 0)

    # The last one of the list only says which life this is.
    await asyncio.gather(*(write(caller, *call) for caller, call in enumerate(calls[:-1])))


def memory_mib(field: str) -> float:
    """VmRSS is the memory of this process now, VmHWM the most there ever was (Linux)."""
    status = Path("/proc/self/status").read_text()
    return next(int(each.split()[1]) for each in status.splitlines() if each.startswith(field)) / 1024


async def tell(store: EventStore, events: int, before_mib: float) -> None:
    """Say how many, what the summary is, and how the memory grew."""
    summary = await store.summary("orders")
    ((_, ranges),) = summary.seen.ranges.items()
    grown = memory_mib("VmHWM") - before_mib
    say(json.dumps({"events": events, "ranges": ranges, "grown_mib": round(grown, 1)}))
    await store.close()


async def write_many(url: str, events: int) -> None:
    """A thousand a call, ten to an aggregate."""
    store = store_for(url)
    await store.open(opening("writer"))
    before_mib, written = memory_mib("VmRSS"), 0
    while written < events:
        drafts = [
            Draft("orders", "x", f"o-{at % (events // 10)}", {"at": at}) for at in range(written, written + 1_000)
        ]
        written += len((await store.append(drafts, now_ms=NOW_MS)).appended)
    await tell(store, written, before_mib)


async def read_many(url: str, events: int) -> None:
    """Page by page, each position once."""
    store = store_for(url)
    await store.open(opening("writer"))
    before_mib, seen = memory_mib("VmRSS"), 0
    after: Offset | None = None
    while page := await store.log(after=after, limit=1_000):
        for each in page:
            assert each.event.data == {"at": each.event.seq - 1}
        seen, after = seen + len(page), page[-1].offset
    await tell(store, seen, before_mib)
