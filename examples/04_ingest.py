"""JSON of a producer that has never heard of us becomes events, each once, and goes on to the other nodes.

Run it: python examples/04_ingest.py
Here the broker is in memory; kafka://, nats:// and redis:// are read in the same way.
"""

import asyncio
import json
import logging

from synckit_connectors.memory import MemoryConnector
from synckit_streams import Ingest, SyncNode
from synckit_streams.ports.connector import Message

BROKER = "memory://example-ingest"
ORDERS = Ingest(
    connector=BROKER,
    source="shop.orders",  # the broker's own name
    topic="orders",
    type="/kind",  # JSON pointers into each message
    aggregate_id="/order/id",
)


async def produce(connector: MemoryConnector, *messages: object) -> None:
    """What somebody else does, in another language, with another client."""
    bodies = [json.dumps(message).encode() for message in messages]
    await connector.send("shop.orders", [Message("", "", {}, body) for body in bodies])


async def main() -> None:
    logging.getLogger("synckit_streams").setLevel(logging.ERROR)  # what is set aside is a warning; here we print it
    shop = MemoryConnector(BROKER)
    await shop.open()
    await produce(
        shop,
        {"kind": "order.placed", "order": {"id": "o-1"}, "total": 5},
        {"kind": "order.placed", "order": {"id": "o-2"}, "total": 7},
        {"kind": "order.placed", "total": 9},  # an order without an id
    )
    async with (
        SyncNode("hub", store="memory:", connectors=[BROKER], topics=["orders"]) as hub,
        SyncNode("till", store="memory:", connectors=[BROKER], topics=["orders"]) as till,
    ):
        done = await hub.ingest(ORDERS, idle_s=0.5)
        print(f"{done.read} read, {done.written} written, {done.set_aside} set aside")
        for aside in await hub.store.quarantine(after=0, limit=10):
            print("why:", aside.reason.rpartition(": ")[2])
        again = await hub.ingest(ORDERS, idle_s=0.5)
        print(f"once more: {again.read} read")
        await hub.sync()
        await till.sync()
        async for stored in till.log("orders"):
            print(f"  {stored.event.aggregate_id} {stored.event.data['total']}")
    await shop.close()


asyncio.run(main())
