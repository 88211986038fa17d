"""What one writes by hand with the raw clients, at their best documented settings: publishing, and a consuming loop.

The loop does what it must to be as safe as a node's: it takes each id once, commits durably, and acknowledges then, one
acknowledgement a batch where the broker has that.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from synckit_streams.ports.connector import Message

BATCH = 1_000
WINDOW = 1_000

Fact = tuple[str, str, str, bytes]
"""Id, type, subject and payload of one event."""


class Table:
    """Where the rows go: each id once, each batch durable."""

    def __init__(self, directory: Path) -> None:
        self._connection = sqlite3.connect(directory / "hand.db", isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(
            "CREATE TABLE events (position INTEGER PRIMARY KEY, id TEXT UNIQUE, type TEXT, subject TEXT, data BLOB)"
        )
        self.count = 0

    def insert(self, facts: Iterable[Fact]) -> None:
        """One transaction."""
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        found = self._connection.executemany("INSERT OR IGNORE INTO events VALUES (NULL, ?, ?, ?, ?)", facts)
        execute("COMMIT")
        self.count += found.rowcount

    def close(self) -> None:
        self._connection.close()


def address(url: str) -> str:
    return urlsplit(url).netloc


# --- Kafka -----------------------------------------------------------------------------------------------------------


async def send_kafka(url: str, topic: str, messages: Sequence[Message]) -> float:
    """aiokafka `send`, as fast as it takes them, idempotent and acknowledged by all."""
    from aiokafka import AIOKafkaProducer
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    admin = AIOKafkaAdminClient(bootstrap_servers=address(url))
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    await admin.close()
    producer = AIOKafkaProducer(
        bootstrap_servers=address(url), acks="all", enable_idempotence=True, max_batch_size=256 * 1024
    )
    await producer.start()
    try:
        records = [
            (message.body, message.partition_key.encode(), [(n, v.encode()) for n, v in message.headers.items()])
            for message in messages
        ]
        body, key, headers = records[0]
        await producer.send_and_wait(topic, body, key=key, headers=headers)
        started = time.perf_counter()
        for at in range(1, len(records), BATCH):
            sent = [
                await producer.send(topic, body, key=key, headers=headers)
                for body, key, headers in records[at : at + BATCH]
            ]
            await asyncio.gather(*sent)
        return time.perf_counter() - started
    finally:
        await producer.stop()


def fact_of_kafka(record: Any) -> Fact:
    headers = {name: value.decode() for name, value in record.headers}
    return headers["ce_id"], headers["ce_type"], headers["ce_subject"], record.value


async def read_kafka(url: str, topic: str, count: int, directory: Path) -> float:
    """aiokafka `getmany` in a group; one commit a batch."""
    from aiokafka import AIOKafkaConsumer

    table = Table(directory)
    started = time.perf_counter()
    consumer = AIOKafkaConsumer(
        f"sk-{topic}",
        bootstrap_servers=address(url),
        group_id=uuid.uuid4().hex,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        while table.count < count:
            found = await consumer.getmany(timeout_ms=1000, max_records=BATCH)
            table.insert(fact_of_kafka(record) for records in found.values() for record in records)
            await consumer.commit()
        return time.perf_counter() - started
    finally:
        await consumer.stop()
        table.close()


# --- JetStream -------------------------------------------------------------------------------------------------------


async def send_nats(url: str, topic: str, messages: Sequence[Message]) -> float:
    """nats-py `publish_async` with a window of acknowledgements."""
    import nats

    client = await nats.connect(address(url))
    try:
        jetstream = client.jetstream(publish_async_max_pending=WINDOW)
        await jetstream.add_stream(name=topic, subjects=[f"{topic}.*"])
        sent = [{"Nats-Msg-Id": message.id, **message.headers} for message in messages]
        await jetstream.publish(f"{topic}.x", messages[0].body, headers=sent[0])
        started = time.perf_counter()
        for at in range(1, len(messages), WINDOW):
            window = [
                await jetstream.publish_async(f"{topic}.x", message.body, headers=headers)
                for message, headers in zip(messages[at : at + WINDOW], sent[at : at + WINDOW], strict=True)
            ]
            await asyncio.gather(*window)
        return time.perf_counter() - started
    finally:
        await client.close()


def fact_of_nats(message: Any) -> Fact:
    headers = message.headers
    return headers["ce-id"], headers["ce-type"], headers["ce-subject"], message.data


async def read_nats(url: str, topic: str, count: int, directory: Path) -> float:
    """nats-py `fetch` from a durable; an acknowledgement for each message."""
    import nats

    table = Table(directory)
    started = time.perf_counter()
    client = await nats.connect(address(url))
    try:
        jetstream = client.jetstream()
        group = await jetstream.pull_subscribe("", durable=uuid.uuid4().hex, stream=f"sk-{topic}")
        while table.count < count:
            found = await group.fetch(min(BATCH, count - table.count), timeout=5)
            table.insert(map(fact_of_nats, found))
            for message in found:
                await message.ack()
        await client.flush()
        return time.perf_counter() - started
    finally:
        await client.close()
        table.close()


# --- Redis -----------------------------------------------------------------------------------------------------------


async def send_redis(url: str, topic: str, messages: Sequence[Message]) -> float:
    """redis-py pipelines of XADD."""
    from redis.asyncio import Redis

    client = Redis.from_url(url, protocol=2)
    try:
        entries: list[dict[Any, Any]] = [
            {"id": message.id, **message.headers, "data": message.body} for message in messages
        ]
        await client.xadd(topic, entries[0])
        started = time.perf_counter()
        for at in range(1, len(entries), BATCH):
            async with client.pipeline(transaction=False) as pipe:
                for entry in entries[at : at + BATCH]:
                    pipe.xadd(topic, entry)
                await pipe.execute()
        return time.perf_counter() - started
    finally:
        await client.aclose()


def fact_of_redis(entry: Any) -> Fact:
    fields = entry[1]
    return fields[b"ce-id"].decode(), fields[b"ce-type"].decode(), fields[b"ce-subject"].decode(), fields[b"data"]


async def read_redis(url: str, topic: str, count: int, directory: Path) -> float:
    """redis-py XREADGROUP; one XACK a batch."""
    from redis.asyncio import Redis

    table = Table(directory)
    started = time.perf_counter()
    client: Any = Redis.from_url(url, protocol=2)
    stream, group = f"sk:{{{topic}}}", uuid.uuid4().hex
    try:
        await client.xgroup_create(stream, group, id="0")
        while table.count < count:
            ((_, entries),) = await client.xreadgroup(group, "hand", {stream: ">"}, count=BATCH, block=1000)
            table.insert(map(fact_of_redis, entries))
            await client.xack(stream, group, *[id for id, _ in entries])
        return time.perf_counter() - started
    finally:
        await client.aclose()
        table.close()


SENDERS: dict[str, Callable[[str, str, Sequence[Message]], Awaitable[float]]] = {
    "kafka": send_kafka,
    "nats": send_nats,
    "redis": send_redis,
}
"""By broker: publish all but the first message; gives the seconds."""
READERS: dict[str, Callable[[str, str, int, Path], Awaitable[float]]] = {
    "kafka": read_kafka,
    "nats": read_nats,
    "redis": read_redis,
}
"""By broker: take so many messages of one of our topics; gives the seconds."""
