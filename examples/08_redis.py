"""Two nodes over Redis Streams, live: what one writes is at the other's a moment later; any Redis client can look.

Run it: python examples/08_redis.py [redis://host:6379]
Without a URL it starts a server of its own, from `pip install 'synckit-streams[embedded]'`.
"""

import asyncio
import sys
from urllib.parse import unquote

from redis.asyncio import Redis

from synckit_streams import Draft, SyncNode
from synckit_streams.testing import RedisServer


async def somebody_else(url: str) -> None:
    """Plain redis-py: an entry has a field for each CloudEvents attribute, and the payload under `data`."""
    async with Redis.from_url(url) as client:
        for _, fields in await client.xrange("sk:{stock}"):
            subject = unquote(fields[b"ce-subject"].decode())
            print(f"  {fields[b'ce-type'].decode()} {subject} {fields[b'data'].decode()}")


async def main(url: str) -> None:
    async with (
        SyncNode("shop", store="memory:", connectors=[url], topics=["stock"]) as shop,
        SyncNode("depot", store="memory:", connectors=[url], topics=["stock"]) as depot,
    ):
        await shop.start_auto_sync()
        await depot.start_auto_sync()
        await shop.append(Draft("stock", "stock.counted", "A-7", {"pieces": 12}))
        while True:
            if events := await depot.aggregate("stock", "A-7"):
                break
            await asyncio.sleep(0.01)
        print("depot has", events[0].data)
        print("somebody else reads:")
        await somebody_else(url)


if len(sys.argv) > 1:
    asyncio.run(main(sys.argv[1]))
else:
    with RedisServer() as server:
        asyncio.run(main(server.url))
