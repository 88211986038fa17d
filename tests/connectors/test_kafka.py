"""The Kafka connector against a real Apache Kafka: the contract, and what is Kafka's own."""

from __future__ import annotations

import asyncio
import importlib
import logging
import shutil
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from synckit_connectors.kafka import KafkaConnector
from synckit_streams.errors import ConfigError, Rejected, SyncKitError, Unauthorised, Unavailable
from synckit_streams.ports.connector import Announced, Message
from synckit_streams.testing.connector_contract import (
    ConnectorContract,
    Factory,
    Foreign,
    OwnBroker,
    bodies,
    heard,
    messages,
    read,
)
from synckit_streams.testing.kafka_server import KafkaServer
from tests.own_broker import ServerBroker

T = TypeVar("T")

DEADLINE_S = 60.0
LOGINS = {
    "listener.security.protocol.map": "PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
    "inter.broker.listener.name": "PLAINTEXT",
    "sasl.enabled.mechanisms": "PLAIN",
    "sasl.mechanism.inter.broker.protocol": "PLAIN",
    "listener.name.plaintext.plain.sasl.jaas.config": (
        "org.apache.kafka.common.security.plain.PlainLoginModule required "
        'username="broker" password="b" user_broker="b" user_till="a word";'
    ),
}
"""The users `broker` and `till`, each with a password."""


class TestKafkaConnector(ConnectorContract):
    """The contract, on a real broker."""

    ahead_bytes_max = 32 * 1024 * 1024  # what is fetched of a partition at a time is 1 MiB, however small the messages

    @pytest.fixture(params=[1, 3], ids=["one-partition", "three-partitions"])
    def connector_factory(self, kafka_url: str, request: pytest.FixtureRequest) -> Factory:
        return lambda: KafkaConnector(kafka_url, partitions=request.param)

    @pytest.fixture(params=[1, 3], ids=["one-partition", "three-partitions"])
    def impatient_connector_factory(self, kafka_url: str, request: pytest.FixtureRequest) -> Factory:
        return lambda: KafkaConnector(kafka_url, partitions=request.param, ack_wait_s=self.ack_wait_s)

    @pytest.fixture
    def foreign(self, kafka_url: str) -> Foreign:
        return lambda source, bodies: write(kafka_url, source, bodies)

    @pytest.fixture
    def own_broker(self, kafka_server: KafkaServer) -> OwnBroker:
        return ServerBroker(kafka_server)


async def write(kafka_url: str, source: str, bodies: Sequence[bytes]) -> None:
    """To a topic of somebody else's, with two partitions."""
    brokers = kafka_url.removeprefix("kafka://")
    admin = AIOKafkaAdminClient(bootstrap_servers=brokers)
    await admin.start()
    await admin.create_topics([NewTopic(source, 2, 1)])
    await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=brokers)
    await producer.start()
    for number, body in enumerate(bodies):
        await producer.send_and_wait(source, body, partition=number % 2)
    await producer.stop()


@pytest.fixture
def topic() -> str:
    """A topic that nobody had before."""
    return f"t-{uuid.uuid4().hex[:12]}"


async def test_any_client_can_read_a_record(kafka_url: str, topic: str) -> None:
    """The aggregate id as the key, the headers by CloudEvents' own binding for Kafka, and the data as the value."""
    connector = KafkaConnector(kafka_url)
    await connector.open()
    event = {
        "ce-specversion": "1.0",
        "ce-type": "order.placed",
        "ce-subject": "caf%C3%A9%20%2525",
        "ce-datacontenttype": "application/json",
    }
    sent = Message("m-1", "o-1", event, b'{"n":1}')
    await connector.send(topic, [sent])
    assert (await read(connector, topic, 1))[0].message == sent
    await connector.close()
    consumer = AIOKafkaConsumer(
        f"sk-{topic}", bootstrap_servers=kafka_url.removeprefix("kafka://"), auto_offset_reset="earliest"
    )
    await consumer.start()
    async with asyncio.timeout(DEADLINE_S):
        record = await consumer.getone()
    await consumer.stop()
    assert (record.key, record.value) == (b"o-1", b'{"n":1}')
    assert dict(record.headers) == {
        "sk-id": b"m-1",
        "ce_specversion": b"1.0",
        "ce_type": b"order.placed",
        "ce_subject": "café %25".encode(),
        "content-type": b"application/json",
    }


async def test_one_key_has_one_partition_on_every_client(kafka_url: str, topic: str) -> None:
    """By murmur2, as Kafka's own producer: whoever else writes there keeps the order of an aggregate."""
    connector = KafkaConnector(kafka_url, partitions=3)
    await connector.open()
    # Of Kafka's own Utils.murmur2: 21 -> -973932308, foobar -> -790332482, …; the partition is it & 0x7fffffff % 3.
    known = {"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536}
    await connector.send(topic, [Message(key, key, {}, b"") for key in known])
    where = {each.message.id: each.partition for each in await read(connector, topic, 3)}
    assert where == {key: (hash_ & 0x7FFFFFFF) % 3 for key, hash_ in known.items()}
    await connector.close()


async def test_a_topic_that_was_deleted_or_is_shorter_is_told(kafka_url: str, topic: str) -> None:
    """A reader would wait for ever where its place is no more."""
    connector = KafkaConnector(kafka_url)
    await connector.open()
    await connector.send(topic, messages(5))
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_url.removeprefix("kafka://"))
    await admin.start()
    async with connector.receive(topic, start={}, batch_max=10) as batches:
        assert len(await anext(batches)) == 5
        await admin.delete_topics([f"sk-{topic}"])
        with pytest.raises(Unavailable, match="put back"):
            async with asyncio.timeout(DEADLINE_S):
                await anext(batches)
    await admin.close()
    assert [(each.first, each.end) for each in (await connector.bounds(topic)).values()] == [(1, 1)]
    await connector.close()


async def test_digests_that_were_deleted_are_kept_anew(kafka_url: str, topic: str) -> None:
    """While somebody listens, and for whoever comes later."""
    connector = KafkaConnector(kafka_url, timeout_s=2)
    await connector.open()
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_url.removeprefix("kafka://"))
    await admin.start()
    async with asyncio.timeout(DEADLINE_S), connector.listen(topic) as announcements:
        await connector.announce(topic, "a", b"1")
        assert [(await anext(announcements)).node for _ in range(2)] == ["", "a"]
        await admin.delete_topics([f"skd-{topic}"])
        with suppress(Unavailable):  # it was there a moment ago
            await connector.announce(topic, "b", b"1")
        await connector.announce(topic, "b", b"2")
        while (await anext(announcements))[:2] != ("b", b"2"):
            pass
        found = await heard(connector, topic)
        assert found["b"].body == b"2"
    await admin.close()
    await connector.close()


async def test_what_is_made_does_not_depend_on_anybodys_clock(kafka_url: str, topic: str) -> None:
    """The broker refuses a time that is an hour ahead, unless it sets the time itself; and digests get compacted."""
    connector = KafkaConnector(kafka_url)
    await connector.open()
    await connector.send(topic, messages(1))
    await connector.announce(topic, "a", b"1")
    producer = AIOKafkaProducer(bootstrap_servers=kafka_url.removeprefix("kafka://"))
    await producer.start()
    tomorrow = int(time.time() + 86_400) * 1000
    await producer.send_and_wait(f"sk-{topic}", b"x", timestamp_ms=tomorrow)
    await producer.stop()
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_url.removeprefix("kafka://"))
    await admin.start()
    (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, f"skd-{topic}")])
    configs = {name: value for name, value, *_ in answer.resources[0][4]}
    assert (configs["cleanup.policy"], configs["segment.ms"]) == ("compact", "600000")
    await admin.close()
    await connector.close()


async def granted(work: Callable[[], Awaitable[T]], refusal: type[SyncKitError] = Unauthorised) -> T:
    """What is done as soon as it is no longer refused: a right that was given, and a server that was started, are known
    to a broker a moment later."""
    until = asyncio.get_running_loop().time() + DEADLINE_S
    while True:
        try:
            return await work()
        except refusal:
            if asyncio.get_running_loop().time() > until:
                raise
        await asyncio.sleep(0.05)


async def test_who_may_not_make_topics_uses_those_that_are_there(kafka_server: KafkaServer) -> None:
    """With the rights that the guide names, and no others."""
    kafka_server.settings = LOGINS | {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:broker;User:ANONYMOUS",
    }
    await asyncio.to_thread(kafka_server.restart)
    place = kafka_server.url.removeprefix("kafka://")
    kafka_admin: Any = importlib.import_module("confluent_kafka.admin")
    boss: Any = kafka_admin.AdminClient(
        {
            "bootstrap.servers": place,
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": "broker",
            "sasl.password": "b",
        }
    )
    topics = boss.create_topics([kafka_admin.NewTopic(name, 1, 1) for name in ("sk-orders", "skd-orders")])
    rights = boss.create_acls(
        [
            kafka_admin.AclBinding(
                kafka_admin.ResourceType.TOPIC,
                "sk",
                kafka_admin.ResourcePatternType.PREFIXED,
                "User:till",
                "*",
                operation,
                kafka_admin.AclPermissionType.ALLOW,
            )
            for operation in (
                kafka_admin.AclOperation.DESCRIBE,
                kafka_admin.AclOperation.READ,
                kafka_admin.AclOperation.WRITE,
            )
        ]
    )
    for done in (*topics.values(), *rights.values()):
        await asyncio.to_thread(done.result)
    connector = KafkaConnector(f"kafka://till:a%20word@{place}")
    await connector.open()
    await granted(lambda: connector.send("orders", messages(2)))
    assert len(await read(connector, "orders", 2)) == 2
    await connector.announce("orders", "a", b"1")
    assert (await heard(connector, "orders"))["a"].body == b"1"
    with pytest.raises(Unauthorised):
        await connector.bounds("others")
    with pytest.raises(Unauthorised):
        async with connector.join("orders", group="workers", start={}, batch_max=10) as member:
            await anext(member)
    groups = boss.create_acls(
        [
            kafka_admin.AclBinding(
                kafka_admin.ResourceType.GROUP,
                "sk",
                kafka_admin.ResourcePatternType.PREFIXED,
                "User:till",
                "*",
                kafka_admin.AclOperation.READ,
                kafka_admin.AclPermissionType.ALLOW,
            )
        ]
    )
    for done in groups.values():
        await asyncio.to_thread(done.result)

    async def work() -> None:
        async with connector.join("orders", group="workers", start={}, batch_max=10) as member:
            await member.ack(await anext(member))

    await granted(work)
    assert (await connector.progress("orders", group="workers")).lag == 0
    await connector.close()


async def test_more_partitions_than_there_are_is_a_clear_error(kafka_url: str, topic: str) -> None:
    """A topic keeps the partitions that it was made with; every node has to say the same."""
    one, three = KafkaConnector(kafka_url), KafkaConnector(kafka_url, partitions=3)
    await one.open()
    await three.open()
    await one.send(topic, messages(1))
    for call in (three.bounds(topic), three.send(topic, messages(1))):
        with pytest.raises(Rejected, match="1 partition") as refused:
            await call
        assert "partitions=1" in refused.value.hint
    await one.close()
    await three.close()


async def test_a_broker_that_is_killed_and_comes_back_is_read_on(kafka_server: KafkaServer) -> None:
    """Readers and listeners that wait, and a send in between, go on by themselves."""
    connector = KafkaConnector(kafka_server.url, timeout_s=30)
    await connector.open()
    await connector.send("orders", messages(3))
    await connector.announce("orders", "a", b"1")
    async with (
        asyncio.timeout(DEADLINE_S),
        connector.receive("orders", start={}, batch_max=10) as batches,
        connector.listen("orders") as announcements,
    ):
        assert len(await anext(batches)) == 3
        assert [(await anext(announcements)).node for _ in range(2)] == ["a", ""]
        reading, listening = asyncio.ensure_future(anext(batches)), asyncio.ensure_future(anext(announcements))
        await asyncio.sleep(0)
        await asyncio.to_thread(kafka_server.kill)
        sending = asyncio.ensure_future(connector.send("orders", [Message("m", "k", {}, b"after")]))
        await asyncio.sleep(0)
        await asyncio.to_thread(kafka_server.start)
        assert await sending == {0: 4}
        assert bodies(await reading) == [b"after"]
        await connector.announce("orders", "a", b"2")
        while (heard := await listening) != Announced("a", b"2", 0.0):
            assert heard.node in ("", "a")
            listening = asyncio.ensure_future(anext(announcements))
    await connector.close()


async def test_a_broker_that_stays_away_is_unavailable_and_costs_little(
    kafka_server: KafkaServer, caplog: pytest.LogCaptureFixture
) -> None:
    """After `timeout_s` for whoever was at work, within 3 s for whoever opens; and no attempt follows at once."""
    caplog.set_level(logging.WARNING, "aiokafka")
    before = asyncio.all_tasks()
    connector = KafkaConnector(kafka_server.url, timeout_s=1)
    await granted(connector.open, Unavailable)
    await connector.send("orders", messages(1))
    async with (
        connector.receive("orders", start={0: 1}, batch_max=10) as batches,
        connector.listen("orders") as announcements,
    ):
        assert (await anext(announcements)).node == ""
        reading, listening = asyncio.ensure_future(anext(batches)), asyncio.ensure_future(anext(announcements))
        await asyncio.sleep(0)
        await asyncio.to_thread(kafka_server.kill)
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(Unavailable):
                await connector.send("orders", messages(1))
            for waiting in (reading, listening):
                with pytest.raises(Unavailable):
                    await waiting
            started = asyncio.get_running_loop().time()
            with pytest.raises(Unavailable):
                await connector.open()
            assert asyncio.get_running_loop().time() - started < 3.5
            await connector.close()
    assert asyncio.all_tasks() == before
    assert len(caplog.records) < 2000  # it was 6,000 a second


async def test_a_broker_that_is_frozen_is_not_waited_for(kafka_server: KafkaServer) -> None:
    """Whoever sends, opens or waits comes to an end, and nothing is left behind."""
    before = asyncio.all_tasks()
    connector = KafkaConnector(kafka_server.url, timeout_s=1)
    await connector.open()
    await connector.send("orders", messages(1))
    async with (
        asyncio.timeout(DEADLINE_S),
        connector.receive("orders", start={0: 1}, batch_max=10) as batches,
        connector.listen("orders") as announcements,
    ):
        assert (await anext(announcements)).node == ""
        waiting: list[Any] = [asyncio.ensure_future(anext(batches)), asyncio.ensure_future(anext(announcements))]
        with kafka_server.frozen():
            waiting.append(asyncio.ensure_future(connector.send("orders", messages(1))))
            with pytest.raises(Unavailable):
                await connector.open()
            for each in waiting:
                with pytest.raises(Unavailable):
                    await each
            await connector.close()
    assert asyncio.all_tasks() == before


async def test_a_broker_that_was_put_back_is_told(kafka_server: KafkaServer, tmp_path: Path) -> None:
    """A reader that is past the end of a log that was put back."""
    connector = KafkaConnector(kafka_server.url, timeout_s=30)
    await connector.open()
    await connector.send("orders", messages(2))
    await asyncio.to_thread(kafka_server.stop)
    shutil.copytree(kafka_server.store_dir, tmp_path / "earlier")
    await asyncio.to_thread(kafka_server.start)
    await connector.send("orders", messages(2))
    async with connector.receive("orders", start={0: 2}, batch_max=10) as batches:
        assert len(await anext(batches)) == 2
        await asyncio.to_thread(kafka_server.stop)
        shutil.rmtree(kafka_server.store_dir)
        shutil.copytree(tmp_path / "earlier", kafka_server.store_dir)
        await asyncio.to_thread(kafka_server.start)
        with pytest.raises(Unavailable, match="put back"):
            async with asyncio.timeout(DEADLINE_S):
                await anext(batches)
    await connector.close()


async def test_a_password_that_is_wrong_is_said(kafka_server: KafkaServer) -> None:
    """SASL, by the user and password of the URL."""
    kafka_server.settings = LOGINS
    await asyncio.to_thread(kafka_server.restart)
    place = kafka_server.url.removeprefix("kafka://")
    with pytest.raises(Unauthorised) as refused:
        await KafkaConnector(f"kafka://till:wrong@{place}").open()
    assert refused.value.retryable
    connector = KafkaConnector(f"kafka://till:a%20word@{place}")
    await connector.open()
    await connector.send("orders", messages(2))
    assert len(await read(connector, "orders", 2)) == 2
    await connector.close()


@pytest.mark.parametrize(
    "url",
    [
        "kafka://",
        "kafka://h:x",
        "kafka://h,",
        "kafka://h/x",
        "kafka://h?nope=1",
        "kafka://h?partitions=0",
        "kafka://h?timeout_s=0",
        "kafka://h?retention_ms=-2",
        "kafka://h?replicas=1&min_insync=2",
        "kafka://h?sasl=GSSAPI",
        "kafka://h?tls=true&tls_ca=/nowhere.pem",
        "kafka://user:secret?with@h",
        "kafka://user:se/secret@h:x",
        "kafka://secret:secret@user:secret@h:x",
    ],
)
async def test_a_wrong_url_is_an_error_where_the_connector_is_made(url: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        KafkaConnector(url.replace("://h", "://user:secret@h"))
    assert "secret" not in str(wrong.value)


async def test_a_password_is_in_no_text() -> None:
    connector = KafkaConnector("kafka://user:secret@host:1,other")
    assert str(connector.address) == "kafka://host:1,other:9092"
    assert "secret" not in f"{connector.__dict__!r}"
