"""A FastStream service with our inbox, as a process that a test kills: `KIND URL TOPIC FOLDER`.

Every message becomes a row and an event; every seventh fails at its first attempt.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from faststream import AckPolicy, FastStream
from faststream.kafka import KafkaBroker
from faststream.nats import JStream, NatsBroker, PullSub
from faststream.redis import RedisBroker, StreamSub
from nats.js.api import ConsumerConfig

from synckit_streams import Draft, Retry, SyncNode
from synckit_streams.app.faststream import EventCodec, Inbox, Tx

KIND, URL, TOPIC, FOLDER = sys.argv[1:]


def broker_of(kind: str, url: str) -> Any:
    """A broker of FastStream's."""
    if kind == "kafka":
        return KafkaBroker(url.removeprefix("kafka://"), codec=EventCodec(), ack_policy=AckPolicy.NACK_ON_ERROR)
    return {"nats": NatsBroker, "redis": RedisBroker}[kind](url, codec=EventCodec())


broker = broker_of(KIND, URL)
node = SyncNode("billing", store=f"sqlite:///{FOLDER}/billing.db")
inbox = Inbox(node, broker, retry=Retry(base_ms=1))
app = FastStream(broker, lifespan=inbox.lifespan)
failed: set[int] = set()


async def bill(n: int, tx: Tx) -> Draft:
    """Bill it."""
    await tx.execute("CREATE TABLE IF NOT EXISTS bills (n INT)")
    await tx.execute("INSERT INTO bills VALUES (?)", (n,))
    if n % 7 == 0 and n not in failed:
        failed.add(n)
        raise RuntimeError("the first time it fails")
    return Draft("invoices", "invoice.written", f"o-{n}", {"n": n})


def subscribe() -> None:
    """As one does on each broker, so that what a dead process had comes back soon."""
    if KIND == "kafka":
        # A static member's partitions are given to its successor at once.
        how: dict[str, Any] = {"auto_offset_reset": "earliest", "group_instance_id": "one"}
        broker.subscriber(TOPIC, group_id="billing", **how)(bill)
    elif KIND == "nats":
        again = ConsumerConfig(ack_wait=1)
        stream = JStream(TOPIC, subjects=[TOPIC])
        broker.subscriber(TOPIC, stream=stream, durable="billing", pull_sub=PullSub(20, timeout=0.2), config=again)(
            bill
        )
    else:
        for idle_ms in (None, 500):  # the second one takes over what a dead process had
            stream_sub = StreamSub(TOPIC, group="billing", consumer="one", polling_interval=20, min_idle_time=idle_ms)
            broker.subscriber(stream=stream_sub)(bill)


subscribe()

if __name__ == "__main__":
    asyncio.run(app.run())
