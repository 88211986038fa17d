"""What is Kafka's own about groups: rebalances, positions that know no holes, static members, and brokers that go."""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.protocol.group import LeaveGroupRequest

from synckit_connectors.kafka import KafkaConnector
from synckit_connectors.kafka_wire import group_of, tap_of
from synckit_streams.errors import ConfigError, Rejected, Unavailable
from synckit_streams.ports.connector import BATCHES_HELD_MAX, Delivery, Member, Message
from synckit_streams.testing.connector_contract import bodies, message, messages
from synckit_streams.testing.kafka_server import KafkaServer

DEADLINE_S = 60.0
GROUP = "workers"
MEMBER = Path(__file__).with_name("kafka_member.py")


@pytest.fixture
def topic() -> str:
    """A topic that nobody had before."""
    return f"t-{uuid.uuid4().hex[:12]}"


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[KafkaConnector]:
    connector = KafkaConnector(url, **options)
    async with asyncio.timeout(DEADLINE_S):
        await connector.open()
        try:
            yield connector
        finally:
            await connector.close()


@asynccontextmanager
async def joined(url: str, topic: str, batch_max: int = 50, **options: Any) -> AsyncIterator[Member]:
    """A member with a connector of its own, as in another process."""
    async with (
        opened(url, **options) as connector,
        connector.join(topic, group=GROUP, start={}, batch_max=batch_max) as member,
    ):
        yield member


@asynccontextmanager
async def administering(url: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=url.removeprefix("kafka://"))
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def committed(url: str, topic: str) -> dict[int, int]:
    """The group's position as Kafka has it, by a client that knows nothing of us."""
    async with administering(url) as admin:
        found = await admin.list_consumer_group_offsets(f"sk-{topic}.{GROUP}")
        return {where.partition: there.offset for where, there in found.items()}


async def generation(url: str, topic: str) -> tuple[str, set[str]]:
    """In which state the group is, and who is in it."""
    async with administering(url) as admin:
        (described,) = await admin.describe_consumer_groups([f"sk-{topic}.{GROUP}"])
        ((_, _, state, _, _, members, *_),) = described.groups
        return state, {member_id for member_id, *_ in members}


async def take(member: Member, count: int) -> list[Delivery]:
    got: list[Delivery] = []
    while len(got) < count:
        got.extend(await anext(member))
    return got


async def work(member: Member, done: list[bytes]) -> None:
    """Until the member leaves."""
    async for batch in member:
        done.extend(bodies(batch))
        await member.ack(batch)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Until it holds; the test's own deadline ends the waiting."""
    while not await condition():  # noqa: ASYNC110 - asked of a broker
        await asyncio.sleep(0.02)


async def until_all(done: Sequence[bytes], sent: Sequence[Message]) -> None:
    async def all_done() -> bool:
        return len(set(done)) >= len(sent)

    await until(all_done)


async def until_settled(connector: KafkaConnector, topic: str) -> None:
    async def settled() -> bool:
        return not (await connector.progress(topic, group=GROUP)).lag

    await until(settled)


async def is_stable(url: str, topic: str, *, members: int) -> bool:
    state, there = await generation(url, topic)
    return state == "Stable" and len(there) == members


async def is_empty(connector: KafkaConnector, topic: str) -> bool:
    return (await connector.bounds(topic))[0].end == 1


async def stopped(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# --- rebalances ------------------------------------------------------------------------------------------------------


async def test_who_hands_over_finishes_first(kafka_url: str, topic: str) -> None:
    """What was in hand when somebody came is acknowledged and comes to nobody again; nothing new is handed out."""
    async with opened(kafka_url) as sender, joined(kafka_url, topic, batch_max=10) as first:
        await sender.send(topic, messages(100))
        hand = list(await anext(first))
        async with joined(kafka_url, topic, batch_max=100) as second:
            waiting = asyncio.ensure_future(anext(second))
            more = asyncio.ensure_future(anext(first))
            # From here on the rebalance waits for us alone; what was handed out before is ours to finish, too.
            while not (await asyncio.wait([more], timeout=2.5))[1]:
                hand += more.result()
                more = asyncio.ensure_future(anext(first))
            assert not waiting.done()
            await first.ack(hand)
            got = list(hand)
            while len(got) < 100:
                (ready, *_), _ = await asyncio.wait([waiting, more], return_when=asyncio.FIRST_COMPLETED)
                got += ready.result()
                member = second if ready is waiting else first
                await member.ack(ready.result())
                if ready is waiting:
                    waiting = asyncio.ensure_future(anext(second))
                else:
                    more = asyncio.ensure_future(anext(first))
            await stopped(waiting, more)
    assert Counter(bodies(got)).most_common(1)[0][1] == 1


async def test_who_does_not_finish_in_time_gives_it_up(kafka_url: str, topic: str) -> None:
    """Others get it; what he says afterwards is passed over in silence, and moves nothing."""
    async with opened(kafka_url) as sender, joined(kafka_url, topic, handover_s=0.3) as slow:
        await sender.send(topic, messages(5))
        hand = await take(slow, 5)
        async with AsyncExitStack() as others:
            asked: dict[asyncio.Task[list[Delivery]], Member] = {}
            while True:  # until the one partition goes to any of the others
                other = await others.enter_async_context(joined(kafka_url, topic))
                asked[asyncio.create_task(take(other, 5))] = other
                again = asyncio.ensure_future(take(slow, 5))
                await asyncio.wait([again, *asked], return_when=asyncio.FIRST_COMPLETED)
                if not again.done():
                    break
                hand = again.result()
            got = next(task for task in asked if task.done())
            for verb in (slow.ack, slow.nack, slow.term, slow.extend):
                await verb(hand)
            assert await committed(kafka_url, topic) == {0: 0}
            await asked[got].ack(got.result())
            assert await committed(kafka_url, topic) == {0: 5}
            await stopped(again, *(task for task in asked if task is not got))


@pytest.mark.parametrize("seconds", [12])
async def test_a_rebalance_every_second(kafka_url: str, topic: str, seconds: int) -> None:
    """3,000 messages flow through three members of whom one always goes or comes: all are done, and none twice.

    Whoever leaves here has acknowledged what he had, and whoever stays is waited for: so nothing needs to come again.
    """
    sent = messages(3000, keys=100)
    done: list[bytes] = []
    async with opened(kafka_url, partitions=3) as sender:

        async def write() -> None:
            for at in range(0, len(sent), 50):
                await sender.send(topic, sent[at : at + 50])
                await asyncio.sleep(seconds / (len(sent) / 50))

        async def come_and_go() -> None:
            while True:
                async with joined(kafka_url, topic, 20, partitions=3) as member:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(1 + random.random()):
                            await work_wholly(member)

        async def work_wholly(member: Member) -> None:
            while True:
                batch = await anext(member)
                # Not to be interrupted between the effect and the acknowledgement: that would be another test.
                await asyncio.shield(finish(member, batch))

        finishing: set[asyncio.Task[None]] = set()

        def finish(member: Member, batch: Sequence[Delivery]) -> asyncio.Task[None]:
            done.extend(bodies(batch))
            task = asyncio.ensure_future(member.ack(batch))
            finishing.add(task)
            return task

        writing = asyncio.ensure_future(write())
        workers = [asyncio.ensure_future(come_and_go()) for _ in range(3)]
        await until_all(done, sent)
        await writing
        await stopped(*workers)
        await asyncio.gather(*finishing, return_exceptions=True)
        positions = await committed(kafka_url, topic)
        # Whoever is asked last may have to do once more what was in the hands of whom we have just stopped.
        async with joined(kafka_url, topic, partitions=3) as member:
            working = asyncio.ensure_future(work(member, done))
            await until_settled(sender, topic)
            await stopped(working)
    assert set(done) == {each.body for each in sent}
    twice = sum(count - 1 for count in Counter(done).values())
    assert twice <= 3 * BATCHES_HELD_MAX * 20, f"{twice} of {len(sent)} came twice; {positions}"


async def test_a_member_that_was_thrown_out_comes_back(kafka_url: str, topic: str, caplog: Any) -> None:
    """A commit that fails in a rebalance blocks nothing (FastStream issue 1414; aiokafka issue 847)."""
    caplog.set_level(logging.CRITICAL, "aiokafka")
    async with opened(kafka_url) as sender, joined(kafka_url, topic, batch_max=10) as member:
        await sender.send(topic, messages(30))
        done: list[bytes] = []
        for _ in range(3):
            batch = await anext(member)
            _, (member_id,) = await generation(kafka_url, topic)
            async with administering(kafka_url) as admin:
                node = await admin.find_coordinator(f"sk-{topic}.{GROUP}")
                await admin._send_request(LeaveGroupRequest(f"sk-{topic}.{GROUP}", member_id), node)
            await member.ack(batch)  # in silence, and in vain
            assert (await committed(kafka_url, topic))[0] == len(set(done))
            again = await take(member, 10)
            assert bodies(again)[:10] == bodies(batch)
            await member.ack(again)
            done += bodies(again)
        assert len(set(done)) == 30


async def test_more_members_than_partitions(kafka_url: str, topic: str) -> None:
    """The one that has none waits, and takes over when the other leaves: also what that one had in hand."""
    async with opened(kafka_url) as sender:
        await sender.send(topic, messages(5))
        async with joined(kafka_url, topic) as one, joined(kafka_url, topic) as other:
            first, second = asyncio.ensure_future(take(one, 5)), asyncio.ensure_future(take(other, 5))
            await asyncio.wait([first, second], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)
            assert first.done() != second.done()
            has, waits = (one, second) if first.done() else (other, first)
            await has.__class__.end(has)  # type: ignore[attr-defined]
            assert len(await waits) == 5


async def test_who_leaves_in_the_middle_of_a_rebalance_is_not_waited_for(kafka_url: str, topic: str) -> None:
    """Kafka answers a join when everybody has joined: whoever goes before that has to be told off on another way."""
    async with opened(kafka_url) as sender, joined(kafka_url, topic, handover_s=30, session_s=30) as steady:
        await sender.send(topic, messages(5))
        hand = await take(steady, 5)
        for _ in range(3):
            async with joined(kafka_url, topic):
                await asyncio.sleep(0.3)  # its join is under way, and waits for the one who has something in hand
        await steady.ack(hand)
        await sender.send(topic, [message(body=b"next")])
        started = time.monotonic()
        assert bodies(await anext(steady)) == [b"next"]
        assert time.monotonic() - started < 10


# --- the position ----------------------------------------------------------------------------------------------------


async def test_a_hole_is_never_committed_over(kafka_url: str, topic: str) -> None:
    """By whatever is acknowledged behind it, and also when the member leaves."""
    async with opened(kafka_url) as sender:
        await sender.send(topic, messages(20))
        async with joined(kafka_url, topic) as member:
            got = await take(member, 20)
            await member.ack(got[5:])
            assert await committed(kafka_url, topic) == {0: 0}
            await member.ack(got[:3])
            assert await committed(kafka_url, topic) == {0: 3}
            await member.ack(got[4:5])
            assert await committed(kafka_url, topic) == {0: 3}
        assert await committed(kafka_url, topic) == {0: 3}
        async with joined(kafka_url, topic) as member:
            again = await take(member, 17)
            assert bodies(again) == bodies(got)[3:]
            await member.ack(again)
            assert await committed(kafka_url, topic) == {0: 20}


async def test_an_acknowledged_batch_is_one_commit(kafka_url: str, topic: str, caplog: Any) -> None:
    """However many messages are in it; and what waits for a hole is none at all."""
    caplog.set_level(logging.DEBUG, "aiokafka.consumer.group_coordinator")
    async with opened(kafka_url) as sender:
        await sender.send(topic, messages(1000))
        async with joined(kafka_url, topic, batch_max=100) as member:
            hole, *rest = await anext(member)
            for each in rest:
                await member.ack([each])
            assert commits(caplog) == 1  # where it begins
            await member.ack([hole])
            for _ in range(9):
                batch = await anext(member)
                await asyncio.gather(*(member.ack([each]) for each in batch))
            # Those who acknowledge at once share one, but for the first, who does not know of the others.
            assert commits(caplog) <= 2 + 9 * 2
        assert await committed(kafka_url, topic) == {0: 1000}


def commits(caplog: Any) -> int:
    return sum("Sending offset-commit" in record.message for record in caplog.records)


async def test_a_new_group_has_one_beginning(kafka_url: str, topic: str) -> None:
    """Also when several members join at once with a start: whoever gets a partition first says where it begins."""
    async with opened(kafka_url, partitions=3) as sender:
        await sender.send(topic, messages(90, keys=50))
        bounds = await sender.bounds(topic)
        start = {number: each.end - 1 - min(10, each.end - 1) for number, each in bounds.items()}
        done: list[bytes] = []

        async def one() -> None:
            async with (
                opened(kafka_url, partitions=3) as connector,
                connector.join(topic, group=GROUP, start=start, batch_max=7) as member,
            ):
                await work(member, done)

        workers = [asyncio.ensure_future(one()) for _ in range(3)]
        await until_settled(sender, topic)
        await stopped(*workers)
        assert len(set(done)) == sum(each.end - 1 - start[number] for number, each in bounds.items())


async def test_what_retention_took_is_passed_over_and_told(kafka_url: str, topic: str, caplog: Any) -> None:
    """A position below the log's first message (Quix issue 1114: it hung in silence)."""
    async with opened(kafka_url) as sender:
        await sender.send(topic, messages(20))
        async with joined(kafka_url, topic) as member:
            await member.ack((await take(member, 20))[:5])
        async with administering(kafka_url) as admin:
            await admin.delete_records({TopicPartition(f"sk-{topic}", 0): RecordsToDelete(before_offset=12)})
        async with joined(kafka_url, topic) as member:
            got = await take(member, 8)
            assert [each.position for each in got] == list(range(13, 21))
            await member.ack(got)
    assert "retention took" in caplog.text


@pytest.mark.parametrize("count", [3, 40])
async def test_a_topic_made_anew_is_read_from_its_beginning(
    kafka_url: str, topic: str, count: int, caplog: Any
) -> None:
    """Also when it has grown past the group's position: there is a note of what lay there."""
    async with opened(kafka_url) as sender:
        await sender.send(topic, messages(20))
        async with joined(kafka_url, topic) as member:
            await member.ack(await take(member, 20))
        async with administering(kafka_url) as admin:
            await admin.delete_topics([f"sk-{topic}"])
        await until(lambda: is_empty(sender, topic))
        await sender.send(topic, [message(body=b"new %d" % number) for number in range(count)])

        async def forgotten() -> bool:
            return not await committed(kafka_url, topic)

        # Kafka forgets a group's position with the topic; a cluster whose directory was put back does not.
        await until(forgotten)
        consumer = AIOKafkaConsumer(
            bootstrap_servers=kafka_url.removeprefix("kafka://"),
            group_id=f"sk-{topic}.{GROUP}",
            enable_auto_commit=False,
        )
        await consumer.start()
        consumer.assign([TopicPartition(f"sk-{topic}", 0)])
        await consumer.commit({TopicPartition(f"sk-{topic}", 0): (20, "last 1234.abcd")})
        await consumer.stop()
        async with joined(kafka_url, topic) as member:
            got = await take(member, count)
            assert bodies(got) == [b"new %d" % number for number in range(count)]
            await member.ack(got)
        assert await committed(kafka_url, topic) == {0: count}
    assert "put back or made anew" in caplog.text


async def test_a_member_is_told_that_its_log_was_made_anew(kafka_url: str, topic: str) -> None:
    """As a reader is: positions mean other messages now."""
    async with opened(kafka_url) as sender, joined(kafka_url, topic) as member:
        await sender.send(topic, messages(5))
        await member.ack(await take(member, 5))
        async with administering(kafka_url) as admin:
            await admin.delete_topics([f"sk-{topic}"])
        with pytest.raises(Unavailable, match="put back"):
            await anext(member)
    async with opened(kafka_url) as sender, joined(kafka_url, topic) as member:
        await sender.send(topic, [message(body=b"new")])
        assert bodies(await anext(member)) == [b"new"]


# --- members ---------------------------------------------------------------------------------------------------------


async def test_a_member_that_is_killed_loses_nothing(kafka_url: str, topic: str) -> None:
    """In mid-batch, with kill -9: what it had and did not acknowledge goes to the others after its session."""
    sent = messages(40)
    async with opened(kafka_url) as sender:
        await sender.send(topic, sent)
        child = await asyncio.create_subprocess_exec(
            sys.executable, MEMBER, f"{kafka_url}?session_s=6", topic, stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        held: list[bytes] = []
        while (line := (await child.stdout.readline()).strip()) != b"held":
            assert line, "the member ended before it had something"
            held.append(line)
        child.kill()
        await child.wait()
        done = held[: len(held) // 2]
        async with joined(kafka_url, topic) as member:
            working = asyncio.ensure_future(work(member, done))
            await until_all(done, sent)
            await stopped(working)
    assert Counter(done) == Counter(each.body for each in sent)


async def test_a_static_member_that_restarts_finds_its_partitions_again(kafka_url: str, topic: str) -> None:
    """Within its session nothing is rebalanced: the other goes on with what it has in hand."""
    options = {"partitions": 2, "session_s": 30.0}
    async with (
        opened(kafka_url, partitions=2) as sender,
        joined(kafka_url, topic, batch_max=5, member="other", **options) as other,
    ):
        async with joined(kafka_url, topic, batch_max=5, member="restarts", **options) as member:
            theirs, ours = asyncio.ensure_future(anext(other)), asyncio.ensure_future(anext(member))
            # Nothing is there to be had before the group has settled, and then each has a partition.
            await until(lambda: is_stable(kafka_url, topic, members=2))
            await sender.send(topic, messages(200, keys=50))
            await asyncio.wait([theirs, ours])
            mine = {each.partition for each in ours.result()}
            assert mine.isdisjoint(each.partition for each in theirs.result())
        assert await is_stable(kafka_url, topic, members=2)
        async with joined(kafka_url, topic, batch_max=5, member="restarts", **options) as member:
            again = await anext(member)
            assert {each.partition for each in again} == mine
            await member.ack(again)
            # Nobody took anything from the other: what it has counts.
            before = await committed(kafka_url, topic)
            await other.ack(theirs.result())
            number = theirs.result()[0].partition
            assert (await committed(kafka_url, topic))[number] == theirs.result()[-1].position > before.get(number, 0)


async def test_one_static_name_serves_several_members_of_a_connector(kafka_url: str, topic: str) -> None:
    """They would throw each other out, with the same name."""
    async with opened(kafka_url, partitions=2, member="w") as connector:
        await connector.send(topic, messages(60, keys=30))
        async with (
            connector.join(topic, group=GROUP, start={}, batch_max=50) as one,
            connector.join(topic, group=GROUP, start={}, batch_max=50) as two,
        ):
            done: list[bytes] = []
            workers = [asyncio.ensure_future(work(each, done)) for each in (one, two)]
            await until_all(done, messages(60))
            await stopped(*workers)
            assert {each.instance for each in connector._members} == {"w", "w-2"}


async def test_who_is_slow_but_says_so_stays_and_who_is_silent_goes(kafka_url: str, topic: str) -> None:
    """A caller that neither takes, acknowledges nor extends counts as dead after `idle_s`: others get his messages."""
    async with opened(kafka_url) as sender, joined(kafka_url, topic, idle_s=2, ack_wait_s=1.5) as slow:
        await sender.send(topic, messages(3))
        hand = await take(slow, 3)
        until_s = time.monotonic() + 6
        while time.monotonic() < until_s:
            await slow.extend(hand)
            await asyncio.sleep(0.2)
        _, members = await generation(kafka_url, topic)
        async with joined(kafka_url, topic) as other:
            got = await take(other, 3)  # he says nothing any more
            assert bodies(got) == bodies(hand)
            await other.ack(got)
        assert len(members) == 1
        # He is back when he asks for more.
        await sender.send(topic, [message(body=b"next")])
        assert bodies(await anext(slow)) == [b"next"]


async def test_what_is_put_off_holds_up_nobody_until_there_is_too_much(kafka_url: str, topic: str) -> None:
    """Others go on, as many as four batches; then it waits, however much there is."""
    async with opened(kafka_url) as sender, joined(kafka_url, topic, batch_max=5) as member:
        await sender.send(topic, messages(100))
        for _ in range(BATCHES_HELD_MAX):
            await member.nack(await take(member, 5), delay_s=2.0)
        started = time.monotonic()
        again = await take(member, 20)
        assert time.monotonic() - started > 1.5
        assert {each.attempt for each in again} == {2}
        assert [each.position for each in again] == list(range(1, 21))
        await member.ack(again)
        assert await committed(kafka_url, topic) == {0: 20}


# --- brokers ---------------------------------------------------------------------------------------------------------


async def test_a_broker_that_is_killed_in_mid_batch(kafka_server: KafkaServer) -> None:
    """It comes back, and so does the group: nothing is lost, whatever was acknowledged meanwhile."""
    url, sent = kafka_server.url, messages(400)
    done: list[bytes] = []
    async with (
        opened(url, timeout_s=30) as sender,
        joined(url, "orders", batch_max=20, timeout_s=30) as one,
        joined(url, "orders", batch_max=20, timeout_s=30) as two,
    ):
        await sender.send("orders", sent[:200])
        workers = [asyncio.ensure_future(work(each, done)) for each in (one, two)]
        await until_all(done, sent[:40])
        await asyncio.to_thread(kafka_server.kill)
        sending = asyncio.ensure_future(sender.send("orders", sent[200:]))
        await asyncio.to_thread(kafka_server.start)
        await sending
        await until_all(done, sent)
        await until_settled(sender, "orders")
        await stopped(*workers)
    twice = sum(count - 1 for count in Counter(done).values())
    assert twice <= 2 * BATCHES_HELD_MAX * 20


async def test_a_frozen_broker_keeps_nobody(kafka_server: KafkaServer) -> None:
    """Every call comes to an end, and after closing nothing is left running."""
    url, before = kafka_server.url, asyncio.all_tasks()
    connector = KafkaConnector(url, timeout_s=1)
    await connector.open()
    await connector.send("orders", messages(2))
    async with (
        asyncio.timeout(DEADLINE_S),
        connector.join("orders", group=GROUP, start={}, batch_max=1) as member,
    ):
        got = await anext(member)
        other = await anext(member)
        with kafka_server.frozen():
            for call in (
                member.ack(got),
                connector.progress("orders", group=GROUP),
                connector.find("orders", at_ms=0),
                anext(member),
            ):
                with pytest.raises(Unavailable):
                    await call
            await member.nack(other)
            with pytest.raises(Unavailable):
                async with connector.join("orders", group="others", start={}, batch_max=1):
                    pass
            await connector.close()
    assert asyncio.all_tasks() == before


# --- names and foreign topics ----------------------------------------------------------------------------------------


def test_no_two_groups_share_a_kafka_group() -> None:
    """Whatever they and their topics are called; and the name is readable where Kafka's tools can take it."""
    assert group_of("orders", "workers") == "sk-orders.workers"
    assert tap_of("raw.orders", "workers") == "sk-tap/raw.orders/workers"
    texts = ["a", "a.b", "b", "b.a", "a~b", "a/b", "", " ", "ü", "x" * 201, "x" * 202, "tap", "h-a"]
    ids = [group_of(topic, group) for topic in texts for group in texts]
    ids += [tap_of(source, group) for source in ("a", "a.b", "b", "orders") for group in texts]
    assert len(set(ids)) == len(ids)
    assert all(id.isascii() and id.startswith("sk") and len(id) < 500 for id in ids)


async def test_a_foreign_message_comes_as_it_is(kafka_url: str) -> None:
    """Key and headers where they are text; a body that is not there is empty; and what was taken back never comes."""
    brokers, source = kafka_url.removeprefix("kafka://"), f"raw.{'long' * 30}.{uuid.uuid4().hex[:8]}"
    async with administering(kafka_url) as admin:
        await admin.create_topics([NewTopic(source, 2, 1)])
    producer = AIOKafkaProducer(bootstrap_servers=brokers, transactional_id=uuid.uuid4().hex)
    await producer.start()
    async with producer.transaction():
        await producer.send(source, b"1", key="Kü".encode(), headers=[("a", b"x"), ("b", b"\xff")], partition=0)
        await producer.send(source, None, key=b"\xff", partition=1)
    await producer.begin_transaction()
    await producer.send_and_wait(source, b"never", partition=0)
    await producer.abort_transaction()
    await producer.stop()
    async with opened(kafka_url) as connector:
        async with connector.tap(source, group=GROUP, batch_max=10) as member:
            got = {each.partition: each.message for each in await take(member, 2)}
        async with connector.tap(source, group="others", batch_max=10) as member:
            deliveries = await take(member, 2)
            assert not await member.settled()
            await member.ack(deliveries)
            assert await member.settled()  # though behind them lies the end of a transaction
            ids = {each.message.id for each in deliveries}
    assert (got[0].body, got[0].partition_key, got[0].headers) == (b"1", "Kü", {"a": "x"})
    assert (got[1].body, got[1].partition_key, got[1].headers) == (b"", "", {})
    assert ids == {each.id for each in got.values()}
    assert all(len(each) < 200 and each.isascii() for each in ids)


async def test_what_is_not_there_is_not_made_by_tapping_it(kafka_server: KafkaServer) -> None:
    """Also where the brokers make a topic for whoever asks."""
    kafka_server.settings = {"auto.create.topics.enable": "true"}
    await asyncio.to_thread(kafka_server.restart)
    async with opened(kafka_server.url) as connector:
        for source in ("nowhere", "not a name", "x" * 300):
            with pytest.raises(Rejected, match="no topic") as refused:
                async with connector.tap(source, group=GROUP, batch_max=1):
                    pass
            assert "never made" in refused.value.hint
        async with administering(kafka_server.url) as admin:
            assert "nowhere" not in await admin.list_topics()


@pytest.mark.parametrize(
    "query",
    [
        "ack_wait_s=0",
        "handover_s=-1",
        "handover_s=inf",
        "session_s=1",
        "heartbeat_s=0",
        "idle_s=0",
        "member=a%20b",
        "session_s=inf",
    ],
)
def test_a_wrong_option_of_groups_is_an_error_where_the_connector_is_made(query: str) -> None:
    with pytest.raises(ConfigError):
        KafkaConnector(f"kafka://h?{query}")
