"""Two nodes over Kafka, one of them a worker of a consumer group; and a plain consumer reads the same topic.

Run it: python examples/07_kafka.py [kafka://host:9092]
Without a URL it starts a broker of its own, which needs Java and Kafka's jars (`make kafka`).
"""

import asyncio
import sys
from urllib.parse import unquote

from aiokafka import AIOKafkaConsumer

from synckit_streams import Draft, SyncNode
from synckit_streams.testing import KafkaServer


async def somebody_else(url: str) -> None:
    """Plain aiokafka: a record is a CloudEvent in Kafka's binary mode, its key is the aggregate's id."""
    consumer = AIOKafkaConsumer(
        "sk-orders", bootstrap_servers=url.removeprefix("kafka://"), auto_offset_reset="earliest"
    )
    await consumer.start()
    read = 0
    while read < 3:
        for records in (await consumer.getmany(timeout_ms=1000)).values():
            for record in records:
                headers = {name: value.decode() for name, value in record.headers}
                print(f"  {headers['ce_type']} {unquote(headers['ce_subject'])} {record.value.decode()}")
                read += 1
    await consumer.stop()


async def main(url: str) -> None:
    async with (
        SyncNode("shop", store="memory:", connectors=[url], topics=["orders"]) as shop,
        SyncNode("billing", store="memory:", connectors=[url], topics=["orders"], group="billing") as billing,
    ):
        for number in range(3):
            await shop.append(Draft("orders", "order.placed", f"o-{number}", {"total": number}))
        await shop.sync()
        took = await billing.sync()
        print(f"billing took {took.events_pulled}, complete: {took.complete}")
        print("somebody else reads:")
        await somebody_else(url)


if len(sys.argv) > 1:
    asyncio.run(main(sys.argv[1]))
else:
    with KafkaServer() as server:
        asyncio.run(main(server.url))
