"""Nodes and stores as the benchmarks use them: opened, filled, synced."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench import drafts
from bench.measure import Skipped
from synckit_streams import SyncNode
from synckit_streams.errors import MissingDependency
from synckit_streams.model.event import Event
from synckit_streams.model.exchange import Arrival, Place
from synckit_streams.ports.store import Opening
from synckit_streams.stores.sqlite import SqliteStore
from synckit_streams.testing.brokers import NatsServer


def node(
    name: str,
    directory: Path,
    *connectors: str,
    packing: str = "event",
    topic: str = drafts.TOPIC,
    store: str = "sqlite",
) -> SyncNode:
    """A node with a store of its own, as a user would write it: a SQLite file, or a RocksDB folder."""
    url = f"{store}:///{directory / name}.db"
    return SyncNode(name, store=url, connectors=connectors, topics=[topic], packing=packing)


async def fill(target: SyncNode, events: int, topic: str = drafts.TOPIC) -> float:
    """Append so many events, a thousand a call; gives the events a second. Making the drafts is not counted."""
    seconds = 0.0
    for batch in drafts.calls(events, topic=topic):
        started = time.perf_counter()
        await target.append_many(batch)
        seconds += time.perf_counter() - started
    return events / seconds


async def held_by(target: SyncNode, topic: str = drafts.TOPIC) -> list[tuple[Event, bytes]]:
    """Every event of a node with its hash, in the order in which it was written."""
    store, found = target.store, list[tuple[Event, bytes]]()
    summary = await store.summary(topic)
    for origin, intervals in summary.seen.ranges.items():
        for first, last in intervals:
            while first <= last:
                page = await store.events(topic, origin, (first, last), limit=drafts.CALL_EVENTS)
                found += page
                first = page[-1][0].seq + 1
    return found


async def insert_rate(events: Sequence[tuple[Event, bytes]], directory: Path) -> float:
    """Events a second that a bare store takes in, a thousand a commit, each with the place where it was read."""
    store = SqliteStore(f"sqlite:///{directory / 'bare'}.db")
    await store.open(Opening(node="b", topics=tuple({event.topic for event, _ in events}), dice=os.urandom))
    batches = [
        [
            Arrival(event, hash, Place("reader", start + at))
            for at, (event, hash) in enumerate(events[start : start + drafts.CALL_EVENTS], 1)
        ]
        for start in range(0, len(events), drafts.CALL_EVENTS)
    ]
    started = time.perf_counter()
    stored = 0
    for batch in batches:
        stored += len((await store.append(received=batch, now_ms=time.time_ns() // 1_000_000)).stored)
    seconds = time.perf_counter() - started
    await store.close()
    assert stored == len(events), f"{stored} of {len(events)} stored"
    return len(events) / seconds


@contextmanager
def nats(directory: Path) -> Iterator[str]:
    """A real nats-server with its data in a directory; gives its URL.

    Raises:
        Skipped: there is none on this machine.
    """
    try:
        server = NatsServer(directory / "nats")
    except MissingDependency as error:
        raise Skipped(str(error)) from error
    with server:
        yield server.url
