"""Producers that know nothing of us: plain clients, each with the broker's own names."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from synckit_connectors.memory import MemoryConnector
from synckit_streams.ports.connector import Message


async def produce(url: str, source: str, bodies: Sequence[bytes]) -> None:
    """Write bodies to a source of somebody else's; it is made if it is not there."""
    await {"memory": _memory, "kafka": _kafka, "nats": _nats, "redis": _redis}[urlsplit(url).scheme](
        url, source, bodies
    )


async def _memory(url: str, source: str, bodies: Sequence[bytes]) -> None:
    connector = MemoryConnector(url)
    await connector.open()
    await connector.send(source, [Message("", "k", {}, body) for body in bodies])
    await connector.close()


async def _kafka(url: str, source: str, bodies: Sequence[bytes]) -> None:
    from aiokafka import AIOKafkaProducer
    from aiokafka.admin import AIOKafkaAdminClient, NewTopic

    servers = url.removeprefix("kafka://")
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    await admin.create_topics([NewTopic(source, 3, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=servers)
    await producer.start()
    for number, body in enumerate(bodies):
        await producer.send(source, body, key=b"k", partition=number % 3)
    await producer.stop()


async def _nats(url: str, source: str, bodies: Sequence[bytes]) -> None:
    import nats

    client = await nats.connect(url)
    jetstream = client.jetstream()
    await jetstream.add_stream(name=source, subjects=[f"{source}.>"])
    for body in bodies:
        await jetstream.publish(f"{source}.new", body)
    await client.close()


async def _redis(url: str, source: str, bodies: Sequence[bytes]) -> None:
    from redis.asyncio import Redis

    async with Redis.from_url(url) as client:
        for body in bodies:
            await client.xadd(source, {"data": body})
