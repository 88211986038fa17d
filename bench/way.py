"""From one node to the other, against what the other one's store takes in at all."""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path

from bench import drafts
from bench.measure import Case, Row, Scale, compare
from bench.nodes import fill, held_by, insert_rate, nats, node
from synckit_streams.model.event import Event


def cases() -> list[Case]:
    """The rows about the way from node to node."""
    return [
        Case("sync-memory", "A to B over memory://, an event a message, against B's bare insert", over_memory),
        Case("sync-memory-packed", "A to B over memory://, packed frames, against B's bare insert", over_memory_packed),
        Case("sync-jetstream-packed", "A to B over JetStream, packed frames, against B's bare insert", over_jetstream),
    ]


def over_memory(scale: Scale, directory: Path) -> Row:
    """One CloudEvent a message."""
    return against_insert("sync-memory", scale, directory, packing="event", wanted=0.5)


def over_memory_packed(scale: Scale, directory: Path) -> Row:
    """Many events a message."""
    return against_insert("sync-memory-packed", scale, directory, packing="batch", wanted=0.5)


def over_jetstream(scale: Scale, directory: Path) -> Row:
    """Many events a message, through a real server in a process of its own."""
    with nats(directory) as url:
        return against_insert("sync-jetstream-packed", scale, directory, packing="batch", wanted=0.35, url=url)


def against_insert(
    name: str, scale: Scale, directory: Path, *, packing: str, wanted: float, url: str | None = None
) -> Row:
    """A's `sync()` and then B's, together, against the insert of the same events into a bare store."""
    events: list[tuple[Event, bytes]] = []

    async def ours(place: Path) -> float:
        if url is None:
            connector, topic = f"memory://{uuid.uuid4().hex}", drafts.TOPIC
        else:
            connector, topic = url, f"{drafts.TOPIC}-{uuid.uuid4().hex[:8]}"
        async with node("a", place, connector, packing=packing, topic=topic) as a:
            await fill(a, scale.events, topic)
            async with node("b", place, connector, packing=packing, topic=topic) as b:
                started = time.perf_counter()
                sent = await a.sync()
                got = await b.sync()
                seconds = time.perf_counter() - started
                assert (sent.events_pushed, got.events_pulled) == (scale.events, scale.events), (sent, got)
                assert got.complete, got
                assert await a.digest(topic) == await b.digest(topic)
                if not events:
                    events.extend(await held_by(a, topic))
        return scale.events / seconds

    return compare(
        name,
        lambda place: asyncio.run(ours(place)),
        lambda place: asyncio.run(insert_rate(events, place)),
        wanted=wanted,
        unit="events/s",
        scale=scale,
        directory=directory,
    )
