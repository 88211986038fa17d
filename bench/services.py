"""FastStream services that insert what a hand-written loop inserts: a batch subscriber for each broker."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bench.raw import BATCH, Table, address, fact_of_kafka, fact_of_nats, fact_of_redis


async def run(broker: Any, done: asyncio.Event, table: Table, started: float) -> float:
    """Until everything is there; gives the seconds."""
    try:
        await broker.start()
        async with asyncio.timeout(300):
            await done.wait()
        return time.perf_counter() - started
    finally:
        await broker.stop()
        table.close()


async def kafka(url: str, topic: str, count: int, directory: Path) -> float:
    """FastStream on aiokafka."""
    from faststream import AckPolicy
    from faststream.kafka import KafkaBroker, KafkaMessage

    table, done, started = Table(directory), asyncio.Event(), time.perf_counter()
    broker = KafkaBroker(address(url), logger=None)

    @broker.subscriber(
        f"sk-{topic}",
        group_id=uuid.uuid4().hex,
        batch=True,
        max_records=BATCH,
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    async def take(body: list[Any], msg: KafkaMessage) -> None:
        table.insert(map(fact_of_kafka, msg.raw_message))
        if table.count >= count:
            done.set()

    return await run(broker, done, table, started)


async def nats(url: str, topic: str, count: int, directory: Path) -> float:
    """FastStream on nats-py, with a pull subscription."""
    from faststream import AckPolicy
    from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub

    table, done, started = Table(directory), asyncio.Event(), time.perf_counter()
    broker = NatsBroker(f"nats://{address(url)}", logger=None)

    @broker.subscriber(
        f"sk.{topic}.*",
        stream=JStream(f"sk-{topic}", declare=False),
        durable=uuid.uuid4().hex,
        pull_sub=PullSub(batch_size=BATCH, batch=True, timeout=1.0),
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    async def take(body: list[Any], msg: NatsMessage) -> None:
        raw: Any = msg.raw_message
        table.insert(map(fact_of_nats, raw))
        if table.count >= count:
            done.set()

    return await run(broker, done, table, started)


async def redis(url: str, topic: str, count: int, directory: Path) -> float:
    """FastStream on redis-py, with a group of a stream."""
    from faststream import AckPolicy
    from faststream.redis import RedisBroker, StreamSub
    from faststream.redis.annotations import RedisBatchStreamMessage
    from redis.asyncio import Redis

    table, done, started = Table(directory), asyncio.Event(), time.perf_counter()
    stream, group = f"sk:{{{topic}}}", uuid.uuid4().hex
    async with Redis.from_url(url) as client:
        await client.xgroup_create(stream, group, id="0")
    broker = RedisBroker(url, logger=None)

    @broker.subscriber(
        stream=StreamSub(stream, group=group, consumer="service", batch=True, max_records=BATCH),
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )
    async def take(body: list[Any], msg: RedisBatchStreamMessage) -> None:
        table.insert([fact_of_redis((None, fields)) for fields in msg.raw_message["data"]])
        if table.count >= count:
            done.set()

    return await run(broker, done, table, started)


SERVICES: dict[str, Callable[[str, str, int, Path], Awaitable[float]]] = {"kafka": kafka, "nats": nats, "redis": redis}
"""By broker: take so many messages of one of our topics; gives the seconds."""
