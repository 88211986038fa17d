"""Groups: what the server keeps of them, who gets what, and what an acknowledgement is worth."""

from __future__ import annotations

import asyncio
import functools
import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from nats.js.api import ConsumerConfig, StreamConfig

from synckit_connectors.nats_names import group_name
from synckit_streams.errors import Rejected, Unavailable
from synckit_streams.ports.connector import Connector, Delivery, Member, Progress
from synckit_streams.testing.brokers import NatsServer
from synckit_streams.testing.connector_contract import bodies
from tests.connectors.nats.kit import administrator, numbers, put_back, running, texts, until

CONSUMER = "skg-g"
IDLE_S = 0.3
"""Whoever gets nothing for so long gets nothing."""


async def take(member: Member, count: int) -> list[Delivery]:
    got: list[Delivery] = []
    while len(got) < count:
        got.extend(await anext(member))
    return got


async def whatever_comes(member: Member) -> list[Delivery]:
    """Until nothing comes any more."""
    got: list[Delivery] = []
    while True:
        waiting = asyncio.ensure_future(anext(member))
        await asyncio.wait([waiting], timeout=IDLE_S)
        if not waiting.done():
            waiting.cancel()
            await asyncio.wait([waiting])
            return got
        got.extend(waiting.result())


def positions(deliveries: Sequence[Delivery]) -> list[int]:
    return [each.position for each in deliveries]


def joined(connector: Connector, topic: str, *, batch_max: int = 50, start: int = 0) -> Any:
    return connector.join(topic, group="g", start={0: start}, batch_max=batch_max)


# ------------------------------------------------------------------------------------------- what is kept on the server


async def test_the_group_is_a_durable_consumer(nats_url: str, topic: str) -> None:
    """Explicit acknowledgements, no bound for all members together, nothing that gives a message up; and it stays."""
    async with administrator(nats_url) as admin:
        async with running(f"{nats_url}?ack_wait_s=7.5") as connector, joined(connector, topic):
            pass
        (info,) = await admin.consumers_info(f"sk-{topic}")
        config = info.config
        assert (info.name, config.durable_name, config.ack_policy, config.ack_wait) == (
            CONSUMER,
            CONSUMER,
            "explicit",
            7.5,
        )
        assert (config.max_deliver, config.max_ack_pending, config.inactive_threshold) == (-1, -1, None)


def test_two_groups_never_share_a_consumer() -> None:
    """Whatever they are called: in letters that a name may have, in others, or like the hash of another one."""
    groups = ["a", "A", "h-a", "a.b", "a*b", "ü", "", " ", "x" * 64, "x" * 65, "x" * 66]
    groups += [group_name(each, foreign=foreign) for each in groups for foreign in (False, True)]
    groups += [each.partition("-")[2] for each in groups] + [f"h{each}" for each in groups]
    names = {group_name(each, foreign=foreign) for each in set(groups) for foreign in (False, True)}
    assert len(names) == 2 * len(set(groups))
    assert all(len(each) < 80 and each.isascii() and not set(each) & set(". *>/\\") for each in names)


async def test_a_consumer_that_is_there_is_taken_as_it_is(nats_url: str, topic: str) -> None:
    """Somebody made it beforehand, with limits of his own: the members keep to them."""
    async with administrator(nats_url) as admin, running(nats_url) as connector:
        await connector.send(topic, numbers(1, 100))
        config = ConsumerConfig(
            durable_name=CONSUMER,
            ack_wait=0.4,
            max_ack_pending=30,
            max_waiting=3,
            ack_policy="explicit",  # type: ignore[arg-type]
        )
        asked = {**config.as_dict(), "max_batch": 7, "max_expires": 1_000_000_000}
        body = json.dumps({"stream_name": f"sk-{topic}", "config": asked}).encode()
        answer = await admin._nc.request(f"$JS.API.CONSUMER.CREATE.sk-{topic}.{CONSUMER}", body)
        assert "error" not in json.loads(answer.data)
        async with joined(connector, topic, start=50, batch_max=20) as member:
            done: set[int] = set()
            while len(done) < 100:
                batch = await anext(member)
                done |= set(positions(batch))
                await member.ack(batch)
            assert done == set(range(1, 101))
        (info,) = await admin.consumers_info(f"sk-{topic}")
        assert (info.config.ack_wait, info.config.max_ack_pending) == (0.4, 30)


@pytest.mark.parametrize(
    "settings",
    [
        {"ack_policy": "none"},
        {"ack_policy": "all"},
        {"ack_policy": "explicit", "deliver_subject": "x.y"},
        {"ack_policy": "explicit", "headers_only": True},
        {"ack_policy": "explicit", "filter_subject": "sk.*.X"},
    ],
)
async def test_a_consumer_that_no_group_can_share_is_refused(
    nats_url: str, topic: str, settings: dict[str, Any]
) -> None:
    """It would lose messages, or acknowledge those of others; it says what it is, and stays as it is."""
    async with administrator(nats_url) as admin, running(nats_url) as connector:
        await connector.send(topic, texts("a"))
        await admin.add_consumer(f"sk-{topic}", ConsumerConfig(durable_name=CONSUMER, **settings))
        with pytest.raises(Rejected, match=CONSUMER) as error:
            async with joined(connector, topic):
                pass
        assert error.value.hint
        assert len(await admin.consumers_info(f"sk-{topic}")) == 1


# -------------------------------------------------------------------------------------------------------- who gets what


async def test_a_slow_member_does_not_hold_up_the_others(nats_url: str, topic: str) -> None:
    """It keeps what it may hold, and no more; everything else goes to whoever works."""
    async with running(nats_url) as connector:
        await connector.send(topic, numbers(1, 5000))
        async with joined(connector, topic, batch_max=500) as slow, joined(connector, topic, batch_max=500) as quick:
            kept = await whatever_comes(slow)
            assert len(kept) == 2000
            done: list[int] = []
            while len(done) < 3000:
                batch = await anext(quick)
                done += positions(batch)
                await quick.ack(batch)
            assert sorted(done + positions(kept)) == list(range(1, 5001))
            assert await connector.progress(topic, group="g") == Progress({0: 0}, 0, 2000)


async def test_the_acknowledgement_is_there_when_ack_returns(nats_url: str, topic: str) -> None:
    """All of a batch, whoever asks the server; and only those, not what others hold before and behind it."""
    async with (
        administrator(nats_url) as admin,
        running(nats_url) as connector,
        joined(connector, topic, batch_max=200) as a,
        joined(connector, topic, batch_max=200) as b,
    ):
        for number in range(1, 21):
            await connector.send(topic, numbers(1, 400))
            first, second = await asyncio.gather(take(a, 1), take(b, 1))
            first += await whatever_comes(a) if len(first) < 200 else []
            await a.ack(first)
            info = await admin.consumer_info(f"sk-{topic}", CONSUMER)
            assert info.num_ack_pending == info.delivered.stream_seq - 400 * (number - 1) - len(first)
            await b.ack(second)
            await _finish(connector, topic, a, b)


async def _finish(connector: Connector, topic: str, *members: Member) -> None:
    while (await connector.progress(topic, group="g")).lag:
        for each in members:
            await each.ack(await whatever_comes(each))


async def test_a_member_leaves_nothing_behind(nats_url: str, topic: str) -> None:
    """Also what was on its way to it when it left is with the others at once, not when its time is over."""
    async with running(nats_url) as connector, running(nats_url) as writer:
        done: set[int] = set()
        for moment in range(40):
            waiting_member = joined(connector, topic, batch_max=20)
            async with waiting_member as member:
                waiting = asyncio.ensure_future(anext(member))
                sending = [asyncio.ensure_future(writer.send(topic, texts("x"))) for _ in range(20)]
                for _ in range(moment):
                    await asyncio.sleep(0)
                waiting.cancel()
            await asyncio.gather(waiting, *sending, return_exceptions=True)
        async with asyncio.timeout(10), joined(connector, topic, batch_max=1000) as member:
            while len(done) < 800:
                batch = await anext(member)
                done |= set(positions(batch))
                await member.ack(batch)
        assert (await connector.progress(topic, group="g")).lag == 0


async def test_what_waits_in_a_member_keeps_its_time(nats_url: str, topic: str) -> None:
    """What was read ahead of a slow worker has the whole time when it is handed out: nobody else gets it meanwhile."""
    async with running(nats_url, ack_wait_s=1.0) as connector:
        await connector.send(topic, numbers(1, 40))
        async with joined(connector, topic, batch_max=20) as member:
            batches = [await anext(member)]
            async with joined(connector, topic, batch_max=20) as other:
                waiting = asyncio.ensure_future(anext(other))
                for _ in range(2):
                    await asyncio.wait([waiting], timeout=0.75)  # at work
                    await member.ack(batches[-1])
                    if len(batches) == 1:
                        batches.append(await anext(member))
                assert not waiting.done()
                waiting.cancel()
                await asyncio.wait([waiting])
            assert [each.attempt for batch in batches for each in batch] == [1] * 40
            assert (await connector.progress(topic, group="g")).lag == 0


async def test_long_work_is_extended(nats_url: str, topic: str) -> None:
    """Five times `ack_wait_s` over one batch, with another member waiting: it gets nothing of it."""
    async with running(nats_url, ack_wait_s=0.4) as connector:
        await connector.send(topic, numbers(1, 30))
        async with joined(connector, topic, batch_max=30) as working, joined(connector, topic, batch_max=30) as other:
            batch = await take(working, 30)
            waiting = asyncio.ensure_future(anext(other))
            for _ in range(20):
                await working.extend(batch)
                await asyncio.wait([waiting], timeout=0.1)
            assert not waiting.done()
            await working.ack(batch)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert (await connector.progress(topic, group="g")) == Progress({0: 30}, 0, 0)


async def test_what_was_taken_away_is_the_others_to_judge(nats_url: str, topic: str) -> None:
    """Too slow: another has it now. It is not given back or given up under his hands; that it is done counts."""
    now = asyncio.get_running_loop().time
    async with running(nats_url, ack_wait_s=0.5) as slow_one, running(nats_url) as connector:
        await connector.send(topic, numbers(1, 4))
        async with joined(slow_one, topic, batch_max=1) as slow, joined(connector, topic) as quick:
            late = await take(slow, 4)  # all that it may hold: it asks for nothing more
            over = now() + 0.55
            again = await take(quick, 4)
            await until(lambda: now() > over)  # by the clock of the slow one, too
            for verb in (slow.nack, slow.term, slow.extend):
                await verb(late)
                await quick.extend(again)
            assert await whatever_comes(quick) == []
            assert await connector.progress(topic, group="g") == Progress({0: 0}, 0, 4)
            await slow.ack(late[:1])
            assert (await connector.progress(topic, group="g")).pending == 3
            await quick.ack(again)
            assert await connector.progress(topic, group="g") == Progress({0: 4}, 0, 0)


async def test_a_member_that_never_acknowledges_gets_it_again(nats_url: str, topic: str) -> None:
    """It holds all it may; what it lost makes room, and it is asked for anew."""
    async with running(nats_url, ack_wait_s=0.5) as connector:
        await connector.send(topic, numbers(1, 6))
        async with joined(connector, topic, batch_max=1) as member, asyncio.timeout(10):
            assert positions(await take(member, 4)) == [1, 2, 3, 4]
            again: list[Delivery] = []
            while {1, 2, 3, 4} - set(positions(again)):
                again += await anext(member)
            assert all(each.attempt > 1 for each in again if each.position < 5)
            await member.ack(again)
            while 6 not in positions(again):
                again = await anext(member)
                await member.ack(again)


async def test_a_batch_ascends_also_where_something_comes_again(nats_url: str, topic: str) -> None:
    """What comes again behind later messages is in a batch of its own."""
    async with administrator(nats_url) as admin, running(nats_url) as connector:
        await connector.send(topic, numbers(1, 10))
        async with joined(connector, topic) as member:
            await member.nack(await take(member, 10), delay_s=0.2)
            await connector.send(topic, numbers(11, 20))

            async def came_again() -> bool:
                info = await admin.consumer_info(f"sk-{topic}", CONSUMER)
                return bool(info.num_redelivered == 10 and info.num_pending == 0)

            await until(came_again)
            batches = [await anext(member), await anext(member)]
            assert [positions(batch) for batch in batches] == [list(range(11, 21)), list(range(1, 11))]


async def test_the_server_keeps_a_delay(nats_url: str, topic: str) -> None:
    """Also when whoever gave it back is gone; the others do not wait for it."""
    now = asyncio.get_running_loop().time
    async with running(nats_url) as connector:
        await connector.send(topic, texts("a", "b"))
        async with running(nats_url) as leaving, joined(leaving, topic) as member:
            a, b = await take(member, 2)
            await member.ack([b])
            started = now()
            await member.nack([a], delay_s=1.5)
        await connector.send(topic, texts("c"))
        async with joined(connector, topic) as member:
            assert bodies(await anext(member)) == [b"c"]
            (again,) = await anext(member)
            assert (again.position, again.attempt) == (a.position, 2)
            assert 1.45 < now() - started < 5


async def test_what_the_server_gives_up_is_said_aloud(
    nats_url: str, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator's consumer has `max_deliver`: a warning names the message, once for the whole group."""
    async with administrator(nats_url) as admin, running(nats_url) as connector:
        await connector.send(topic, texts("good", "poison"))
        await admin.add_consumer(
            f"sk-{topic}",
            ConsumerConfig(durable_name=CONSUMER, ack_policy="explicit", ack_wait=0.2, max_deliver=2),  # type: ignore[arg-type]
        )
        async with joined(connector, topic) as member, joined(connector, topic) as other:

            def warnings() -> list[str]:
                return [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]

            async def work(each: Member) -> None:
                async for batch in each:
                    await each.ack([good for good in batch if good.message.body == b"good"])

            working = [asyncio.ensure_future(work(each)) for each in (member, other)]
            await until(lambda: bool(warnings()))
            for each in working:
                each.cancel()
            await asyncio.wait(working)
            (said,) = warnings()
            assert f"message 2 of stream sk-{topic} was delivered 2 times" in said
            poison = await connector.peek(topic, 0, 2)
            assert poison is not None
            assert poison.body == b"poison"
    caplog.clear()


# -------------------------------------------------------------------------------------- the group or the log is another


async def test_a_deleted_group_is_for_the_caller_to_judge(nats_url: str, topic: str) -> None:
    """Where it stood is lost with it. Iterator and acknowledgement say so; nothing begins anew by itself."""
    async with administrator(nats_url) as admin, running(nats_url, heartbeat_s=0.2, timeout_s=2) as connector:
        await connector.send(topic, numbers(1, 30))
        async with joined(connector, topic, batch_max=5) as member:
            held = await anext(member)
            await admin.delete_consumer(f"sk-{topic}", CONSUMER)
            with pytest.raises(Unavailable, match="was deleted"):
                await member.ack(held)
            with pytest.raises(Unavailable, match="was deleted"):
                await whatever_comes(member)
            async with joined(connector, topic, start=5, batch_max=5) as anew:
                assert positions(await anext(anew)) == [6, 7, 8, 9, 10]
                with pytest.raises(Unavailable, match="made anew"):
                    await whatever_comes(member)


async def test_a_stream_made_anew_under_a_group(nats_url: str, topic: str) -> None:
    """The group goes with it: who reads looks at the bounds, and joins again."""
    async with administrator(nats_url) as admin, running(nats_url, heartbeat_s=0.2, timeout_s=2) as connector:
        await connector.send(topic, numbers(1, 30))
        async with joined(connector, topic, batch_max=5) as member:
            held = await anext(member)
            await admin.delete_stream(f"sk-{topic}")
            with pytest.raises(Unavailable, match="was deleted"):
                await whatever_comes(member)
            await connector.send(topic, numbers(1, 30))
            with pytest.raises(Unavailable, match="made anew"):
                await member.ack(held)
        async with joined(connector, topic, batch_max=30) as member:
            assert positions(await take(member, 30)) == list(range(1, 31))


@pytest.mark.parametrize("written_past", [0, 150])
async def test_nobody_acknowledges_what_he_has_not_read(tmp_path: Path, topic: str, written_past: int) -> None:
    """The store is put back, and others write: at the places that a member holds are messages that nobody had."""
    with NatsServer(tmp_path / "server", sync_always=True) as server:
        async with running(server.url) as connector, running(server.url) as other:
            await connector.send(topic, numbers(1, 100))
            async with joined(connector, topic, batch_max=300) as member:
                await member.ack(await take(member, 100))
                async with put_back(server, tmp_path / "copy"):
                    await connector.send(topic, numbers(101, 200))
                    held = await take(member, 100)
                await other.send(topic, numbers(301, 300 + written_past))
                async with joined(other, topic, batch_max=300) as anew:
                    delivered = await whatever_comes(anew)
                    assert len(delivered) >= written_past
                    with pytest.raises(Unavailable, match="put back"):
                        await member.ack(held)
                    with pytest.raises(Unavailable, match="put back"):
                        await whatever_comes(member)
                    assert (await other.progress(topic, group="g")).pending == len(delivered)


# ------------------------------------------------------------------------------------------------------ somebody else's


async def test_a_foreign_stream(nats_url: str) -> None:
    """Its subject is the key, its headers are the producer's, and a place names the log: made anew, it is another."""
    source = f"raw_{uuid.uuid4().hex[:8]}"
    places: list[str] = []
    async with administrator(nats_url) as admin, running(nats_url) as connector:
        for _ in range(2):
            await admin.add_stream(StreamConfig(name=source, subjects=[f"{source}.>"]))
            await admin.publish(f"{source}.a.b", b"body", headers={"Nats-Msg-Id": "1", "X": "y"})
            async with connector.tap(source, group="g", batch_max=5) as member:
                (got,) = await anext(member)
                await member.ack([got])
            assert (got.message.partition_key, got.message.body) == (f"{source}.a.b", b"body")
            assert dict(got.message.headers) == {"Nats-Msg-Id": "1", "X": "y"}
            assert got.message.id.endswith("/1")
            places.append(got.message.id)
            await admin.delete_stream(source)
    assert len(set(places)) == 2


async def test_a_tap_and_a_member_are_two_groups(nats_url: str, topic: str) -> None:
    """Of one name, on a stream of ours."""
    async with running(nats_url) as connector:
        await connector.send(topic, texts("a"))
        async with joined(connector, topic) as member, connector.tap(f"sk-{topic}", group="g", batch_max=5) as tap:
            assert bodies(await anext(member)) == bodies(await anext(tap)) == [b"a"]


@pytest.mark.parametrize("source", ["", "a.b", "a b", "*", ">", "no-such-stream", "x\r\ny", "ü"])
async def test_a_source_that_is_not_there(nats_url: str, source: str) -> None:
    """Never made, whatever it is called."""
    async with administrator(nats_url) as admin, running(nats_url) as connector:
        before = {each.config.name for each in await admin.streams_info()}
        with pytest.raises(Rejected, match="no stream"):
            async with connector.tap(source, group="g", batch_max=5):
                pass
        assert {each.config.name for each in await admin.streams_info()} == before


async def test_a_work_queue_is_not_tapped(nats_url: str) -> None:
    """Reading there would delete what others wait for."""
    source = f"queue-{uuid.uuid4().hex[:8]}"
    async with administrator(nats_url) as admin, running(nats_url) as connector:
        await admin.add_stream(StreamConfig(name=source, subjects=[f"{source}.>"], retention="workqueue"))  # type: ignore[arg-type]
        with pytest.raises(Rejected, match="work queue"):
            async with connector.tap(source, group="g", batch_max=5):
                pass


# --------------------------------------------------------------------------------------------------- how far, and since


async def test_progress_of_a_group_that_begins_later(nats_url: str, topic: str) -> None:
    """What lies before its start counts as acknowledged; what retention removed is not waited for."""
    async with administrator(nats_url) as admin, running(nats_url) as connector:
        progress = functools.partial(connector.progress, topic, group="g")
        assert await progress() == Progress({}, 0, 0)
        await connector.send(topic, numbers(1, 20))
        assert await progress() == Progress({}, 20, 0)
        async with joined(connector, topic, start=5) as member:
            assert await progress() == Progress({0: 5}, 15, 0)
            got = await take(member, 15)
            assert await progress() == Progress({0: 5}, 0, 15)
            await member.ack(got[3:])
            assert await progress() == Progress({0: 5}, 0, 3)
            await member.ack(got[:3])
            assert await progress() == Progress({0: 20}, 0, 0)
        await connector.send(topic, numbers(21, 30))
        await admin.purge_stream(f"sk-{topic}")
        assert (await progress()).lag == 0


async def test_where_a_time_begins_in_a_log_with_holes(nats_url: str, topic: str) -> None:
    """Deleted messages, at the ends and between, an empty stream, the past and the future; by the server's times."""
    async with administrator(nats_url) as admin, running(nats_url) as connector:
        assert await connector.find(topic, at_ms=0) == {0: 0}
        assert await connector.find(topic, at_ms=2**50) == {0: 0}
        at_ms: dict[int, int] = {}
        for number in range(1, 31):
            await connector.send(topic, numbers(number, number))
            found = await admin.get_msg(f"sk-{topic}", number)
            at_ms[number] = int(found.time.timestamp() * 1000) if found.time else 0
            await asyncio.sleep(0.003)
        for number in (1, 2, 9, 10, 11, 12, 20, 29, 30):
            await admin.delete_msg(f"sk-{topic}", number)
            del at_ms[number]
        for at in sorted({*at_ms.values(), *(each + 1 for each in at_ms.values()), -5, 0, 2**45}):
            later = [number for number, came_ms in at_ms.items() if came_ms >= at]
            start = (await connector.find(topic, at_ms=at))[0]
            assert [number for number in at_ms if number > start] == later, at
        await admin.purge_stream(f"sk-{topic}")
        assert (await connector.find(topic, at_ms=0))[0] == 30
