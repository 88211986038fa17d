"""Real brokers: our connectors beside the raw clients, and a node beside a loop that one would write by hand."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from bench import drafts
from bench.measure import Case, Row, Scale, Side, Skipped, compare
from bench.nodes import fill, held_by
from bench.raw import READERS, SENDERS
from bench.services import SERVICES
from synckit_streams import SyncNode
from synckit_streams.errors import MissingDependency
from synckit_streams.model.event import Event
from synckit_streams.model.exchange import Place
from synckit_streams.ports.connector import Connector, Message
from synckit_streams.runtime.envelope import arrivals, to_messages
from synckit_streams.runtime.registry import connector_for
from synckit_streams.testing.brokers import NatsServer, RedisServer, Server
from synckit_streams.testing.kafka_server import KafkaServer

MESSAGES_MAX = 50_000
"""An event a message is slow: so many say as much as more would."""
SEND_MESSAGES = 1_000
SERVERS: dict[str, Callable[[Path], Server]] = {"kafka": KafkaServer, "nats": NatsServer, "redis": RedisServer}


def cases() -> list[Case]:
    """The rows about brokers."""
    found: list[Case] = []
    for name in SERVERS:
        found += [
            Case(f"publish-{name}", f"one event a message to {name}, against the raw client", _publish(name)),
            Case(f"receive-{name}", f"a group of {name} into SQLite, against a loop written by hand", _receive(name)),
            Case(f"receive-{name}-faststream", "the same against a FastStream batch subscriber", _service(name)),
        ]
    return [*found, Case("frames-jetstream", "packed frames over JetStream, against an event a message", frames)]


@contextmanager
def server(name: str, directory: Path) -> Iterator[str]:
    """A real one with its data in a directory; gives its URL.

    Raises:
        Skipped: there is none on this machine.
    """
    try:
        made = SERVERS[name](directory / name)
    except MissingDependency as error:
        raise Skipped(str(error)) from error
    with made:
        yield made.url


async def written(events: int, topic: str = drafts.TOPIC) -> list[tuple[Event, bytes]]:
    """Events with their hashes, as a node wrote them."""
    async with SyncNode("writer", store="memory:", topics=[topic]) as writer:
        await fill(writer, events, topic)
        return await held_by(writer, topic)


def as_messages(events: Sequence[tuple[Event, bytes]], *, packing: str = "event") -> list[Message]:
    """What a node sends."""
    parcels = to_messages(events, packing=packing, round_id=os.urandom(6).hex(), bytes_max=1_000_000)
    return [parcel.message for parcel in parcels]


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Connector]:
    connector = connector_for(url)
    await connector.open()
    try:
        yield connector
    finally:
        await connector.close()


def new_topic() -> str:
    return f"orders-{uuid.uuid4().hex[:8]}"


async def send_all(connector: Connector, topic: str, messages: Sequence[Message]) -> None:
    for at in range(0, len(messages), SEND_MESSAGES):
        await connector.send(topic, messages[at : at + SEND_MESSAGES])


# --- publishing ------------------------------------------------------------------------------------------------------


def _publish(name: str) -> Callable[[Scale, Path], Row]:
    def run(scale: Scale, directory: Path) -> Row:
        """The same messages, with the same headers, acknowledged as durably."""
        count = min(scale.events, MESSAGES_MAX)
        events = asyncio.run(written(count))

        async def ours(url: str) -> float:
            messages = as_messages(events)
            async with opened(url) as connector:
                topic = new_topic()
                await connector.send(topic, messages[:1])  # makes it, and whatever a first call does
                started = time.perf_counter()
                await send_all(connector, topic, messages[1:])
                return (count - 1) / (time.perf_counter() - started)

        async def other(url: str) -> float:
            messages = as_messages(events)
            return (count - 1) / await SENDERS[name](url, new_topic(), messages)

        with server(name, directory) as url:
            return compare(
                f"publish-{name}",
                _side(ours, url),
                _side(other, url),
                wanted=0.7,
                unit="messages/s",
                scale=scale,
                directory=directory,
            )

    return run


def _side(work: Callable[[str], Awaitable[float]], url: str) -> Side:
    return lambda _: asyncio.run(work(url))  # type: ignore[arg-type]


# --- receiving -------------------------------------------------------------------------------------------------------


def _receive(name: str) -> Callable[[Scale, Path], Row]:
    return lambda scale, directory: _against(name, READERS[name], f"receive-{name}", 0.7, scale, directory)


def _service(name: str) -> Callable[[Scale, Path], Row]:
    return lambda scale, directory: _against(name, SERVICES[name], f"receive-{name}-faststream", 2.0, scale, directory)


def _against(
    name: str,
    reader: Callable[[str, str, int, Path], Awaitable[float]],
    row: str,
    wanted: float,
    scale: Scale,
    directory: Path,
) -> Row:
    """One event a message, through a group: taken once, durable in SQLite, then acknowledged."""
    count = min(scale.events, MESSAGES_MAX)

    async def ours(place: Path, url: str, topic: str) -> float:
        async with SyncNode(
            "b", store=f"sqlite:///{place / 'b'}.db", connectors=[url], topics=[topic], group=uuid.uuid4().hex
        ) as node:
            started = time.perf_counter()
            result = await node.sync()
            seconds = time.perf_counter() - started
            assert result.events_pulled == count, result
        return count / seconds

    async def prepare(url: str, topic: str) -> None:
        async with opened(url) as connector:
            await send_all(connector, topic, as_messages(await written(count, topic)))

    with server(name, directory) as url:
        topic = new_topic()
        asyncio.run(prepare(url, topic))
        return compare(
            row,
            lambda place: asyncio.run(ours(place, url, topic)),
            lambda place: count / asyncio.run(reader(url, topic, count, place)),  # type: ignore[arg-type]
            wanted=wanted,
            unit="messages/s",
            scale=scale,
            directory=directory,
        )


# --- packing ---------------------------------------------------------------------------------------------------------


def frames(scale: Scale, directory: Path) -> Row:
    """Events to messages, over the wire and back, decoded and their hashes checked; no store."""
    count = min(scale.events, MESSAGES_MAX)

    async def carry(url: str, packing: str) -> float:
        topic = new_topic()
        events = await written(count, topic)
        async with opened(url) as connector:
            await connector.bounds(topic)
            started = time.perf_counter()
            await send_all(connector, topic, as_messages(events, packing=packing))
            read = 0
            async with connector.receive(topic, start={}, batch_max=SEND_MESSAGES) as batches:
                while read < count:
                    for delivery in await anext(batches):
                        read += len(arrivals(delivery.message, topic, Place("r", delivery.position)))
            return count / (time.perf_counter() - started)

    with server("nats", directory) as url:
        return compare(
            "frames-jetstream",
            lambda _: asyncio.run(carry(url, "batch")),
            lambda _: asyncio.run(carry(url, "event")),
            wanted=10.0,
            unit="events/s",
            scale=scale,
            directory=directory,
        )
