"""What an operator does to a topic's log at a real server, with the server's own tools."""

from __future__ import annotations

import nats
import redis.asyncio
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete

from synckit_streams.testing.brokers import NatsServer, RedisServer, Server


async def trim(server: Server, topic: str, first: int) -> None:
    """Remove every message of a topic before position `first`."""
    if isinstance(server, NatsServer):
        client = await nats.connect(server.url)
        await client.jetstream().purge_stream(f"sk-{topic}", seq=first)
        await client.close()
    elif isinstance(server, RedisServer):
        store = redis.asyncio.Redis.from_url(server.url)
        await store.xtrim(f"sk:{{{topic}}}", minid=f"0-{first}", approximate=False)
        await store.aclose()
    else:
        admin = AIOKafkaAdminClient(bootstrap_servers=server.url.removeprefix("kafka://"))
        await admin.start()
        await admin.delete_records({TopicPartition(f"sk-{topic}", 0): RecordsToDelete(first - 1)})
        await admin.close()


async def delete(server: Server, topic: str) -> None:
    """Delete a topic's log."""
    if isinstance(server, NatsServer):
        client = await nats.connect(server.url)
        await client.jetstream().delete_stream(f"sk-{topic}")
        await client.close()
    elif isinstance(server, RedisServer):
        store = redis.asyncio.Redis.from_url(server.url)
        await store.delete(f"sk:{{{topic}}}")
        await store.aclose()
    else:
        admin = AIOKafkaAdminClient(bootstrap_servers=server.url.removeprefix("kafka://"))
        await admin.start()
        await admin.delete_topics([f"sk-{topic}"])
        await admin.close()
