"""aiokafka beside confluent-kafka, and our connector beside both, on one Apache Kafka.

    .venv/bin/python -m bench.kafka_clients [--messages 100000] [--rounds 3] [--only aiokafka]

Messages of 200 bytes with a key, acks=all and idempotence; each side writes to, and reads from, a topic of its own with
one partition, by turns. A rate is the median of the rounds, in messages a second; the processor's time of this process
stands beside it, since the broker has one of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from synckit_connectors.kafka import KafkaConnector
from synckit_streams.ports.connector import Message
from synckit_streams.testing.kafka_server import KafkaServer

BODY = b'{"n":"' + b"x" * 192 + b'"}'
KEYS = [f"order-{number}" for number in range(1000)]
HEADERS = {
    "ce-specversion": "1.0",
    "ce-type": "order.placed",
    "ce-source": "/synckit/orders/till-7@3f2a9c1e",
    "ce-id": "0190d3a4-7c1b-7c1b-8c1b-0190d3a47c1b",
}
FRAME_EVENTS = 500
CALL_MESSAGES = 1000


class Figure(NamedTuple):
    """One side, one direction."""

    rate: float
    cpu_us: float


class Watch:
    """Time and processor time of so many messages."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def of(self, count: int) -> Figure:
        return Figure(count / (time.perf_counter() - self._wall), 1e6 * (time.process_time() - self._cpu) / count)


async def aiokafka_send(servers: str, topic: str, count: int) -> Figure:
    from aiokafka import AIOKafkaProducer

    producer = AIOKafkaProducer(
        bootstrap_servers=servers, acks="all", enable_idempotence=True, max_batch_size=256 * 1024
    )
    await producer.start()
    headers = [(name, value.encode()) for name, value in HEADERS.items()]
    await producer.send_and_wait(topic, b"first")
    watch = Watch()
    for at in range(0, count, CALL_MESSAGES):
        sent = [
            await producer.send(topic, BODY, key=KEYS[number % 1000].encode(), headers=headers)
            for number in range(at, min(at + CALL_MESSAGES, count))
        ]
        await asyncio.gather(*sent)
    figure = watch.of(count)
    await producer.stop()
    return figure


async def aiokafka_read(servers: str, topic: str, count: int) -> Figure:
    from aiokafka import AIOKafkaConsumer

    consumer = AIOKafkaConsumer(topic, bootstrap_servers=servers, auto_offset_reset="earliest")
    await consumer.start()
    watch, got = Watch(), 0
    while got < count:
        for records in (await consumer.getmany(timeout_ms=1000, max_records=CALL_MESSAGES)).values():
            got += len(records)
    figure = watch.of(count)
    await consumer.stop()
    return figure


async def confluent_send(servers: str, topic: str, count: int) -> Figure:
    return await asyncio.to_thread(_confluent_send, servers, topic, count)


def _confluent_send(servers: str, topic: str, count: int) -> Figure:
    client: Any = importlib.import_module("confluent_kafka")
    acknowledged = 0

    def delivered(error: object, _: object) -> None:
        nonlocal acknowledged
        assert error is None
        acknowledged += 1

    producer = client.Producer(
        {
            "bootstrap.servers": servers,
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": 5,
            "partitioner": "murmur2_random",
        }
    )
    headers = [(name, value.encode()) for name, value in HEADERS.items()]
    producer.produce(topic, b"first", on_delivery=delivered)
    producer.flush()
    watch = Watch()
    for at in range(0, count, CALL_MESSAGES):
        wanted = acknowledged + min(CALL_MESSAGES, count - at)
        for number in range(at, min(at + CALL_MESSAGES, count)):
            producer.produce(topic, BODY, KEYS[number % 1000].encode(), headers=headers, on_delivery=delivered)
            if number % 100 == 0:
                producer.poll(0)
        while acknowledged < wanted:
            producer.poll(0.01)
    return watch.of(count)


async def confluent_read(servers: str, topic: str, count: int) -> Figure:
    return await asyncio.to_thread(_confluent_read, servers, topic, count)


def _confluent_read(servers: str, topic: str, count: int) -> Figure:
    client: Any = importlib.import_module("confluent_kafka")
    consumer = client.Consumer(
        {"bootstrap.servers": servers, "group.id": f"bench-{topic}", "enable.auto.commit": False}
    )
    consumer.assign([client.TopicPartition(topic, 0, 0)])
    consumer.consume(1, 10)
    watch, got = Watch(), 1
    while got < count:
        for record in consumer.consume(CALL_MESSAGES, 1.0):
            assert record.error() is None
            record.key(), record.value(), record.headers()
            got += 1
    figure = watch.of(count)
    consumer.close()
    return figure


async def ours_send(servers: str, topic: str, count: int) -> Figure:
    connector = KafkaConnector(f"kafka://{servers}")
    await connector.open()
    await connector.send(topic, [Message("", "", {}, b"first")])
    watch = Watch()
    for at in range(0, count, CALL_MESSAGES):
        await connector.send(
            topic,
            [
                Message(f"m-{number}", KEYS[number % 1000], HEADERS, BODY)
                for number in range(at, min(at + CALL_MESSAGES, count))
            ],
        )
    figure = watch.of(count)
    await connector.close()
    return figure


async def ours_read(servers: str, topic: str, count: int) -> Figure:
    connector = KafkaConnector(f"kafka://{servers}")
    await connector.open()
    async with connector.receive(topic, start={}, batch_max=CALL_MESSAGES) as batches:
        watch, got = Watch(), 0
        while got < count:
            got += len(await anext(batches))
        figure = watch.of(count)
    await connector.close()
    return figure


async def group_read(servers: str, topic: str, count: int) -> Figure:
    connector = KafkaConnector(f"kafka://{servers}")
    await connector.open()
    async with connector.join(topic, group="bench", start={}, batch_max=CALL_MESSAGES) as member:
        got = len(batch := await anext(member))
        watch = Watch()
        await member.ack(batch)
        while got < count:
            batch = await anext(member)
            got += len(batch)
            await member.ack(batch)
        figure = watch.of(count)
    await connector.close()
    return figure


async def frames_send(servers: str, topic: str, count: int) -> Figure:
    """Packed: so many events in a message, as a node sends them with `packing="batch"`; the rate is that of events."""
    connector = KafkaConnector(f"kafka://{servers}")
    await connector.open()
    await connector.send(topic, [Message("", "", {}, b"first")])
    frame = BODY * FRAME_EVENTS
    watch = Watch()
    for at in range(0, count, FRAME_EVENTS * 2):
        await connector.send(topic, [Message(f"f-{at}-{number}", "k", {}, frame) for number in range(2)])
    figure = watch.of(count)
    await connector.close()
    return figure


Side = Callable[[str, str, int], Awaitable[Figure]]
SIDES: dict[str, tuple[Side, ...]] = {
    "aiokafka": (aiokafka_send, aiokafka_read),
    "confluent-kafka": (confluent_send, confluent_read),
    "ours": (ours_send, ours_read, group_read),
    "ours, packed": (frames_send,),
}


async def measure(servers: str, messages: int, rounds: int, only: str | None) -> None:
    found: dict[str, list[Figure]] = {}
    for turn in range(rounds):
        names = [name for name in SIDES if only in (None, name)]
        for name in names if turn % 2 == 0 else reversed(names):
            topic = f"bench-{name.replace(' ', '-').replace(',', '')}-{turn}"
            for side in SIDES[name]:
                # Ours has a prefix before a topic's name; the others write where ours would.
                figure = await side(
                    servers, topic if side in SIDES["ours"] + SIDES["ours, packed"] else f"sk-{topic}", messages
                )
                found.setdefault(side.__name__, []).append(figure)
    for name, figures in found.items():
        rates = [each.rate for each in figures]
        print(
            f"{name:16} {median(rates):>9,.0f}/s  ({min(rates):,.0f} to {max(rates):,.0f})"
            f"  {median(each.cpu_us for each in figures):6.1f} µs of processor a message"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=list(SIDES))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        server = KafkaServer(Path(directory), settings={"auto.create.topics.enable": "true", "num.partitions": "1"})
        server.start()
        try:
            asyncio.run(measure(server.url.removeprefix("kafka://"), given.messages, given.rounds, given.only))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
