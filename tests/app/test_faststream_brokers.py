"""FastStream on real brokers: what it does with failures, and what becomes of that under our inbox, and in an App.

Each of the faults of FastStream 0.7.8 that `docs/how-to/faststream.md` names stands here three times, where it can: as
FastStream has it, so that we notice when it is mended; under the inbox; and in an App.
"""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import nats
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from faststream import AckPolicy, FastStream
from faststream import TestApp as TestFastStream
from faststream.kafka import KafkaBroker
from faststream.nats import JStream, NatsBroker, PullSub
from faststream.redis import RedisBroker, StreamSub
from nats.js.api import ConsumerConfig
from redis.asyncio import Redis

from synckit_streams import App, Draft, Event, Retry, SyncNode
from synckit_streams.app.faststream import EventCodec, Inbox
from synckit_streams.runtime.driver import World
from synckit_streams.runtime.inbox import ALIVE_S
from synckit_streams.testing import TestApp

MEMBER = Path(__file__).with_name("faststream_member.py")
DEADLINE_S = 60.0
KINDS = ["nats", "redis", "kafka"]


@pytest.fixture
def topic() -> str:
    """A topic that nobody had before."""
    return f"t{uuid.uuid4().hex[:12]}"


async def until(condition: Callable[[], bool | Awaitable[bool]], *, deadline_s: float = DEADLINE_S) -> None:
    """Wait for it, with a deadline."""
    async with asyncio.timeout(deadline_s):
        while True:
            found = condition()
            if await found if not isinstance(found, bool) else found:
                return
            await asyncio.sleep(0.02)


async def publish(kind: str, url: str, topic: str, *bodies: bytes) -> None:
    """Somebody who knows nothing of us, and little of FastStream."""
    if kind == "kafka":
        servers = url.removeprefix("kafka://")
        admin = AIOKafkaAdminClient(bootstrap_servers=servers)
        await admin.start()
        await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
        await admin.close()
        async with AIOKafkaProducer(bootstrap_servers=servers) as producer:
            for body in bodies:
                await producer.send_and_wait(topic, body)
    elif kind == "nats":
        client = await nats.connect(url)
        stream = client.jetstream()
        await stream.add_stream(name=topic, subjects=[topic])
        for body in bodies:
            await stream.publish(topic, body)
        await client.close()
    else:
        async with Redis.from_url(url) as server:
            await server.xgroup_create(topic, "billing", id="0", mkstream=True)
            for body in bodies:
                await server.xadd(topic, {"__data__": body})


# ------------------------------------------------------------------------------------------------------------- kill -9


def bills(folder: Path) -> Counter[int]:
    """How often each message was billed, by anybody's SQLite."""
    if not (folder / "billing.db").exists():
        return Counter()
    with closing(sqlite3.connect(f"file:{folder}/billing.db?mode=ro", uri=True)) as db:
        try:
            return Counter(n for (n,) in db.execute("SELECT n FROM bills"))
        except sqlite3.OperationalError:  # the table comes with the first message
            return Counter()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_service_that_is_killed_under_load_does_everything_once(
    kind: str, request: pytest.FixtureRequest, topic: str, tmp_path: Path
) -> None:
    url = request.getfixturevalue(f"{kind}_url")
    count = 150
    await publish(kind, url, topic, *(b"%d" % n for n in range(count)))
    for goal in (count // 4, count // 2, count):
        with (tmp_path / "log.txt").open("ab") as log:
            member = await asyncio.create_subprocess_exec(
                sys.executable, MEMBER, kind, url, topic, tmp_path, stdout=log, stderr=log
            )
        try:

            def far_enough(goal: int = goal, member: asyncio.subprocess.Process = member) -> bool:
                return len(bills(tmp_path)) >= goal or member.returncode is not None

            await until(far_enough)
            assert member.returncode is None, (tmp_path / "log.txt").read_text()[-3000:]
        finally:
            member.send_signal(signal.SIGKILL)
            await member.wait()
    assert bills(tmp_path) == Counter(range(count))
    async with SyncNode("billing", store=f"sqlite:///{tmp_path}/billing.db") as node:
        invoices = [stored.event.data["n"] async for stored in node.log("invoices")]
        assert sorted(invoices) == list(range(count))
        assert not [stored async for stored in node.log("billing.dlq")]


def reader(kind: str, url: str, topic: str, batch: bool) -> tuple[Any, Any]:
    """A broker of FastStream's, and a subscriber to what a node of ours sends."""
    codec = EventCodec(events=True)
    if kind == "kafka":
        broker: Any = KafkaBroker(url.removeprefix("kafka://"), codec=codec, ack_policy=AckPolicy.NACK_ON_ERROR)
        how = {"group_id": "billing", "auto_offset_reset": "earliest", "batch": batch}
        return broker, broker.subscriber(f"sk-{topic}", **how)
    if kind == "nats":
        broker = NatsBroker(url, codec=codec)
        stream, pull = JStream(f"sk-{topic}", declare=False), PullSub(20, timeout=0.2, batch=batch)
        return broker, broker.subscriber(f"sk.{topic}.*", stream=stream, durable="billing", pull_sub=pull)
    broker = RedisBroker(url, codec=codec)
    group: Any = {"group": "billing", "consumer": "one", "last_id": ">", "polling_interval": 20, "batch": batch}
    return broker, broker.subscriber(stream=StreamSub(f"sk:{{{topic}}}", **group))


@pytest.mark.parametrize("batch", [False, True], ids=["one", "batch"])
@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_node_of_ours_sends_comes_in_as_the_event_that_it_is(
    kind: str, batch: bool, request: pytest.FixtureRequest, topic: str
) -> None:
    """With its key, context and metadata, and known by them: what the node sends once more is not handled once more."""
    url = request.getfixturevalue(f"{kind}_url")
    async with SyncNode("till", store="memory:", connectors=[url], topics=[topic]) as till:
        texts = ("o-1", "o 2 %", "ö-3")
        drafts = [Draft(topic, "order.placed", id, {"n": n, "ü": "ß"}, {"by": id}) for n, id in enumerate(texts)]
        sent = [stored.event for stored in await till.append_many([*drafts, drafts[0]])]
        await till.sync()
    if kind == "redis":
        async with Redis.from_url(url) as server:
            await server.xgroup_create(f"sk:{{{topic}}}", "billing", id="0")
    seen: list[Event] = []
    broker, subscriber = reader(kind, url, topic, batch)
    if batch:

        @subscriber
        async def take(events: list[Event]) -> list[Draft]:
            seen.extend(events)
            return [Draft("invoices", "invoice.written", each.aggregate_id) for each in events]

    else:

        @subscriber
        async def take_one(event: Event) -> Draft:
            seen.append(event)
            return Draft("invoices", "invoice.written", event.aggregate_id)

    node = SyncNode("billing", store="memory:")
    async with TestFastStream(FastStream(broker, lifespan=Inbox(node, broker).lifespan)):

        async def written() -> bool:
            return len([stored async for stored in node.log("invoices")]) >= len(sent)

        await until(written)
    assert sorted(seen, key=lambda event: event.seq) == sent


@pytest.mark.parametrize("codec", [None, EventCodec()], ids=["faststreams codec", "ours"])
@pytest.mark.parametrize("kind", KINDS)
async def test_one_bad_message_of_a_batch_is_found_and_the_others_are_done_once(
    kind: str, codec: EventCodec | None, request: pytest.FixtureRequest, topic: str
) -> None:
    """Whoever decodes: the halves of a batch are batches like any other."""
    url = request.getfixturevalue(f"{kind}_url")
    await publish(kind, url, topic, *(b"%d" % n for n in range(10)))
    how: dict[str, Any] = {"codec": codec}
    if kind == "kafka":
        broker: Any = KafkaBroker(url.removeprefix("kafka://"), ack_policy=AckPolicy.NACK_ON_ERROR, **how)
        subscriber = broker.subscriber(topic, group_id="billing", auto_offset_reset="earliest", batch=True)
    elif kind == "nats":
        broker = NatsBroker(url, **how)
        pull = PullSub(10, timeout=0.2, batch=True)
        subscriber = broker.subscriber(topic, stream=JStream(topic, declare=False), durable="billing", pull_sub=pull)
    else:
        broker = RedisBroker(url, **how)
        subscriber = broker.subscriber(stream=StreamSub(topic, group="billing", consumer="one", batch=True))

    @subscriber
    async def bill(numbers: list[int]) -> list[Draft]:
        if 5 in numbers:
            raise RuntimeError("no")
        return [Draft("invoices", "invoice.written", f"o-{n}", n) for n in numbers]

    node = SyncNode("billing", store="memory:")
    inbox = Inbox(node, broker, retry=Retry(max_attempts=2, base_ms=1))
    async with TestFastStream(FastStream(broker, lifespan=inbox.lifespan)):

        async def written() -> bool:
            return len([stored async for stored in node.log()]) >= 10

        await until(written)
        assert sorted([stored.event.data async for stored in node.log("invoices")]) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
        (letter,) = [stored.event async for stored in node.log("billing.dlq")]
    assert letter.data["event"]["data"] == 5


async def test_jetstream_delivers_nothing_again_that_waits_for_its_next_attempt(nats_url: str, topic: str) -> None:
    """The wait is longer than the server's own, which is told that somebody is at work on it."""
    await publish("nats", nats_url, topic, b"7")
    broker = NatsBroker(nats_url, codec=EventCodec())
    calls = 0
    config = ConsumerConfig(ack_wait=ALIVE_S + 0.5)

    @broker.subscriber(topic, stream=JStream(topic, declare=False), queue="billing", config=config)
    async def bill(n: int) -> Draft:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("the first time it fails")
        return Draft("invoices", "invoice.written", "o-7")

    node = SyncNode("billing", store="memory:", world=World(dice=lambda: 0.999))
    retry = Retry(base_ms=int((ALIVE_S + 2) * 1000))
    async with TestFastStream(FastStream(broker, lifespan=Inbox(node, broker, retry=retry).lifespan)):

        async def written() -> bool:
            return bool([stored async for stored in node.log("invoices")])

        await until(written)
        client = await nats.connect(nats_url)
        (consumer,) = await client.jetstream().consumers_info(topic)
        await client.close()
    assert calls == 2
    assert consumer.delivered is not None
    assert consumer.delivered.consumer_seq == 1


# --------------------------------------------------------------------------------- the faults, and what becomes of them


async def app_handles_all(url: str, topic: str, bad: str) -> None:
    """In an App, on this broker: a failing event is tried as often as was said, and nothing starves or is lost."""
    app = App("billing", store="memory:")
    calls: Counter[str] = Counter()

    @app.handler(topic, dead_letter="billing.dlq", retry=Retry(max_attempts=4))
    async def bill(event: Event) -> Draft:
        calls[event.aggregate_id] += 1
        if event.aggregate_id == bad or calls[event.aggregate_id] < 2:
            raise RuntimeError("no")
        return Draft("invoices", "invoice.written", event.aggregate_id)

    async with TestApp(app, connector=url) as t:
        await t.publish(*(Draft(topic, "order.placed", f"o-{n}") for n in range(20)))
        await t.drain()
        assert {each.aggregate_id for each in t.published("invoices")} == {f"o-{n}" for n in range(20)} - {bad}
        assert len(t.published("billing.dlq")) == 1
    assert calls == Counter({f"o-{n}": 4 if f"o-{n}" == bad else 2 for n in range(20)})


@pytest.mark.parametrize("kind", KINDS)
async def test_in_an_app_no_failed_event_is_lost_and_none_starves(
    kind: str, request: pytest.FixtureRequest, topic: str
) -> None:
    await app_handles_all(request.getfixturevalue(f"{kind}_url"), topic, "o-3")


def failing(service: Any, calls: Counter[int], bad: int) -> Any:
    async def bill(n: int) -> None:
        calls[n] += 1
        if n == bad or (n == 1 and calls[1] == 1):
            raise RuntimeError("no")

    return service(bill)


async def test_kafkas_default_policy_loses_a_failed_message_and_is_refused(kafka_url: str, topic: str) -> None:
    """FastStream goes on behind it, also after a restart. The inbox does not start with it (see test_faststream)."""
    await publish("kafka", kafka_url, topic, b"0", b"1", b"2")
    calls: Counter[int] = Counter()
    for _ in range(2):
        broker = KafkaBroker(kafka_url.removeprefix("kafka://"))
        failing(broker.subscriber(topic, group_id="billing", auto_offset_reset="earliest"), calls, bad=-1)
        async with broker:
            await broker.start()
            await until(lambda: calls[2] >= 1)
            await committed(broker, topic, 3)
    assert calls == Counter({0: 1, 1: 1, 2: 1})


async def committed(broker: Any, topic: str, position: int) -> None:
    """Wait until the group stands behind the last message."""
    consumer = broker.subscribers[0].consumer

    async def behind() -> bool:
        return bool(await consumer.committed(TopicPartition(topic, 0)) == position)

    await until(behind)


@pytest.mark.parametrize("inbox", [False, True], ids=["alone", "inbox"])
async def test_kafkas_refusal_spins_and_starves_others_but_not_under_the_inbox(
    kafka_url: str, topic: str, inbox: bool
) -> None:
    await publish("kafka", kafka_url, topic, b"0", b"1", b"2", b"3", b"4")
    calls: Counter[int] = Counter()
    broker = KafkaBroker(
        kafka_url.removeprefix("kafka://"), codec=EventCodec(), ack_policy=AckPolicy.NACK_ON_ERROR, logger=None
    )
    failing(broker.subscriber(topic, group_id="billing", auto_offset_reset="earliest"), calls, bad=2)
    node = SyncNode("billing", store="memory:")
    lifespan = Inbox(node, broker, retry=Retry(max_attempts=3, base_ms=1)).lifespan if inbox else None
    async with TestFastStream(FastStream(broker, logger=None, lifespan=lifespan)):
        if not inbox:
            await until(lambda: calls[2] >= 100)
            assert calls == Counter({0: 1, 1: 2, 2: calls[2]})
            return
        await until(lambda: calls[4] >= 1)
        assert calls == Counter({0: 1, 1: 2, 2: 3, 3: 1, 4: 1})
        assert len([stored async for stored in node.log("billing.dlq")]) == 1


@pytest.mark.parametrize("inbox", [False, True], ids=["alone", "inbox"])
async def test_what_faststream_cannot_read_is_lost_but_not_under_the_inbox(
    kafka_url: str, topic: str, inbox: bool
) -> None:
    """A header that is no UTF-8 is enough. Alone, nobody is ever told of it but the log."""
    await publish("kafka", kafka_url, topic)
    async with AIOKafkaProducer(bootstrap_servers=kafka_url.removeprefix("kafka://")) as producer:
        await producer.send_and_wait(topic, b"0", headers=[("name", b"\xff")])
        await producer.send_and_wait(topic, b"1")
    calls: Counter[int] = Counter()
    broker = KafkaBroker(kafka_url.removeprefix("kafka://"), codec=EventCodec(), ack_policy=AckPolicy.NACK_ON_ERROR)
    failing(broker.subscriber(topic, group_id="billing", auto_offset_reset="earliest"), calls, bad=-1)
    node = SyncNode("billing", store="memory:")
    lifespan = Inbox(node, broker, retry=Retry(max_attempts=3, base_ms=1)).lifespan if inbox else None
    async with TestFastStream(FastStream(broker, lifespan=lifespan)):
        await until(lambda: calls[1] >= 2)
        if not inbox:
            await committed(broker, topic, 2)
            assert calls == Counter({1: 2})
            return
        (letter,) = [stored.event async for stored in node.log("billing.dlq")]
    assert "UnicodeDecodeError" in letter.data["error"]
    assert letter.data["event"]["data"] == 0
    assert calls == Counter({1: 2})


async def test_a_node_sets_aside_what_it_cannot_read_and_takes_what_follows(kafka_url: str, topic: str) -> None:
    servers = kafka_url.removeprefix("kafka://")
    async with (
        SyncNode("till", store="memory:", connectors=[kafka_url], topics=[topic]) as till,
        SyncNode("billing", store="memory:", connectors=[kafka_url], topics=[topic]) as node,
        AIOKafkaProducer(bootstrap_servers=servers) as producer,
    ):
        await till.sync()  # makes the topic
        await producer.send_and_wait(f"sk-{topic}", b"0", headers=[("ce_id", b"\xff")])
        await till.append(Draft(topic, "order.placed", "o-1"))
        await till.sync()
        await node.sync()
        assert [stored.event.aggregate_id async for stored in node.log(topic)] == ["o-1"]
        assert len(await node.store.quarantine(after=0, limit=9)) == 1


@pytest.mark.parametrize("inbox", [False, True], ids=["alone", "inbox"])
async def test_a_refusal_on_redis_strands_the_entry_even_over_a_restart_but_not_under_the_inbox(
    redis_url: str, topic: str, inbox: bool
) -> None:
    await publish("redis", redis_url, topic, b"0", b"1", b"2")
    calls: Counter[int] = Counter()
    nodes = [SyncNode("billing", store="memory:") for _ in range(2)]
    for number, node in enumerate(nodes):
        broker = RedisBroker(redis_url, codec=EventCodec(), ack_policy=AckPolicy.NACK_ON_ERROR)
        stream = StreamSub(topic, group="billing", consumer="one", polling_interval=20)
        failing(broker.subscriber(stream=stream), calls, bad=-1)
        lifespan = Inbox(node, broker, retry=Retry(base_ms=1)).lifespan if inbox else None
        async with (
            TestFastStream(FastStream(broker, logger=None, lifespan=lifespan)),
            Redis.from_url(redis_url) as client,
        ):
            await until(lambda: calls[2] >= 1)
            if number:
                # It reads on: what comes now is handled, and what was refused is not.
                await client.xadd(topic, {"__data__": b"3"})
                await until(lambda: calls[3] >= 1)

            async def pending(client: Any = client) -> int:
                return int((await client.xpending(topic, "billing"))["pending"])

            async def settled(pending: Any = pending) -> bool:
                return await pending() == (0 if inbox else 1)

            await until(settled)
    assert calls == Counter({0: 1, 1: 2 if inbox else 1, 2: 1, 3: 1})


async def test_an_app_keeps_the_order_that_a_pull_batch_on_nats_does_not(nats_url: str, topic: str) -> None:
    """FastStream calls the handler of a fetched batch for all of it at once; so it does under the inbox."""
    count = 200

    async def work(n: int, seen: list[int]) -> None:
        for _ in range(n * 7919 % 13):
            await asyncio.sleep(0)  # as long as it takes: some take longer than others
        seen.append(n)

    await publish("nats", nats_url, topic, *(b"%d" % n for n in range(count)))
    disordered: list[int] = []
    broker = NatsBroker(nats_url, logger=None)

    @broker.subscriber(
        topic, stream=JStream(topic, declare=False), durable="billing", pull_sub=PullSub(100, timeout=0.2)
    )
    async def bill(n: int) -> None:
        await work(n, disordered)

    async with broker:
        await broker.start()
        await until(lambda: len(disordered) >= count)

    ordered: list[int] = []
    app = App("billing", store="memory:")

    @app.handler("orders", concurrency=8)
    async def handle(event: Event) -> None:
        await work(event.data, ordered)

    async with TestApp(app, connector=nats_url) as t:
        await t.publish(*(Draft("orders", "order.placed", "o-1", n) for n in range(count)))
        await t.drain()
    assert ordered == list(range(count))
    assert sorted(disordered) == ordered
    assert disordered != ordered
