"""Groups of the Redis connector on real servers: what is Redis's own, beside the contract."""

from __future__ import annotations

import asyncio
import shutil
import sys
import textwrap
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from synckit_connectors import redis_line, redis_member
from synckit_connectors.redis_streams import RedisConnector
from synckit_streams.errors import ConfigError, ConnectorError, Rejected, Unavailable
from synckit_streams.ports.connector import Delivery, Member, Message, Progress
from synckit_streams.testing.brokers import RedisServer
from synckit_streams.testing.connector_contract import bodies, messages

DEADLINE_S = 30.0
GROUP = "workers"


@pytest.fixture
def topic() -> str:
    return f"groups-{uuid.uuid4().hex[:12]}"


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[RedisConnector]:
    """A connector, open for a while, under the deadline."""
    connector = RedisConnector(url, **options)
    async with asyncio.timeout(DEADLINE_S):
        await connector.open()
        try:
            yield connector
        finally:
            await connector.close()


@asynccontextmanager
async def joined(connector: RedisConnector, topic: str, batch_max: int = 50) -> AsyncIterator[Member]:
    async with connector.join(topic, group=GROUP, start={}, batch_max=batch_max) as member:
        yield member


async def take(member: Member, count: int) -> list[Delivery]:
    got: list[Delivery] = []
    while len(got) < count:
        got.extend(await anext(member))
    return got


async def work(member: Member, done: list[bytes], count: int) -> None:
    with suppress(StopAsyncIteration):
        while len(set(done)) < count:
            batch = await anext(member)
            done.extend(bodies(batch))
            await member.ack(batch)


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Wait for it; the test has a deadline."""
    while not await true():  # noqa: ASYNC110 - it comes true at the server, which tells nobody
        await asyncio.sleep(0.02)


async def calls(client: redis.asyncio.Redis, command: str) -> int:
    found: Any = await client.info("commandstats")
    return int(found.get(f"cmdstat_{command}", {"calls": 0})["calls"])


async def names(client: redis.asyncio.Redis, topic: str) -> set[bytes]:
    return {each["name"] for each in await client.xinfo_consumers(f"sk:{{{topic}}}", GROUP)}


# --- who dies, and what comes again --------------------------------------------------------------------------------

KILLED = textwrap.dedent("""
    import asyncio, sys
    from synckit_connectors.redis_streams import RedisConnector

    async def main(url, topic):
        connector = RedisConnector(url, ack_wait_s=1.0)
        await connector.open()
        async with connector.join(topic, group="workers", start={}, batch_max=50) as member:
            batch = await anext(member)
            await member.ack(batch[:5])
            print(len(batch), flush=True)
            await asyncio.Event().wait()

    asyncio.run(main(*sys.argv[1:]))
""")


async def test_a_member_that_is_killed_loses_nothing(redis_server: RedisServer, topic: str) -> None:
    """With `kill -9` in the middle of a batch: what it had goes to others, and its name goes away."""
    async with (
        opened(redis_server.url, ack_wait_s=1.0) as connector,
        redis.asyncio.Redis.from_url(redis_server.url) as client,
    ):
        sent = messages(120)
        await connector.send(topic, sent)
        member = await asyncio.create_subprocess_exec(
            sys.executable, "-c", KILLED, redis_server.url, topic, stdout=asyncio.subprocess.PIPE
        )
        assert member.stdout is not None
        taken = int(await member.stdout.readline())
        assert taken > 5
        (dead,) = await names(client, topic)
        member.kill()
        await member.wait()
        async with joined(connector, topic) as survivor:
            got: list[Delivery] = []
            while len(got) < 115:
                batch = await anext(survivor)
                got += batch
                await survivor.ack(batch)
            assert sorted(bodies(got)) == sorted(each.body for each in sent[5:])
            assert {each.attempt for each in got} == {1, 2}
            assert sum(each.attempt == 2 for each in got) == taken - 5
            waiting = asyncio.ensure_future(anext(survivor))

            async def gone() -> bool:
                return dead not in await names(client, topic)

            await until(gone)
            waiting.cancel()
            assert (await connector.progress(topic, group=GROUP)) == Progress({0: 120}, 0, 0)


async def test_rebalances_every_second_lose_nothing(redis_server: RedisServer, topic: str) -> None:
    """Three members, each of whom leaves in the middle of its work again and again, while 3,000 messages flow."""
    sent, done = messages(3000), list[bytes]()
    finished = asyncio.Event()

    async def worker(connector: RedisConnector, turn: int) -> None:
        while not finished.is_set():
            async with joined(connector, topic, batch_max=20) as member:
                working = asyncio.ensure_future(work(member, done, len(sent)))
                await asyncio.wait([working], timeout=1.0 + turn / 3)
                if working.done():
                    finished.set()
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)

    async with (
        opened(redis_server.url) as writer,
        opened(redis_server.url) as first,
        opened(redis_server.url) as second,
    ):
        workers = [asyncio.ensure_future(worker(each, turn)) for turn, each in enumerate((first, first, second))]
        for at in range(0, len(sent), 10):
            await writer.send(topic, sent[at : at + 10])
            await asyncio.sleep(0.015)  # so that it takes some seconds
        await finished.wait()
        await asyncio.gather(*workers)
        async with joined(first, topic) as last:
            while (await first.progress(topic, group=GROUP)).lag:
                await last.ack(await anext(last))
        async with redis.asyncio.Redis.from_url(redis_server.url) as client:
            assert await names(client, topic) <= {redis_member.NOBODY}
    assert sorted(set(done)) == sorted(each.body for each in sent)
    assert len(done) - len(sent) < 500


async def test_a_server_that_is_killed_in_mid_batch_comes_back(redis_server: RedisServer, topic: str) -> None:
    """The member goes on, also with acknowledging what it had before; nothing is lost."""
    redis_server.appendfsync = "always"
    await asyncio.to_thread(redis_server.restart)
    sent, done = messages(400), list[bytes]()
    async with opened(redis_server.url) as connector:
        await connector.send(topic, sent)
        async with joined(connector, topic, batch_max=30) as member:
            held = await anext(member)
            for _ in range(2):
                waiting = asyncio.ensure_future(anext(member))
                await asyncio.to_thread(redis_server.kill)
                acknowledging = asyncio.ensure_future(member.ack(held))
                await asyncio.to_thread(redis_server.start)
                await acknowledging
                done += bodies(held)
                held = await waiting
            done += bodies(held)
            await member.ack(held)
            while (await connector.progress(topic, group=GROUP)).lag:
                batch = await anext(member)
                done += bodies(batch)
                await member.ack(batch)
    assert set(done) == {each.body for each in sent}


@pytest.mark.parametrize(("grown", "taken"), [(0, 0), (5, 5), (9, 0)], ids=["shorter", "as-long-again", "written-past"])
async def test_a_server_that_lost_its_last_second_is_noticed(
    redis_server: RedisServer, topic: str, tmp_path: Path, grown: int, taken: int
) -> None:
    """What was read is not there any more, or is something else: nothing hangs, and nothing goes on as if."""
    async with opened(redis_server.url) as connector:
        await connector.send(topic, messages(3))
        async with joined(connector, topic) as member:
            await member.ack(await take(member, 3))
            await asyncio.to_thread(redis_server.stop)
            shutil.copytree(redis_server.store_dir, tmp_path / "earlier")
            await asyncio.to_thread(redis_server.start)
            await connector.send(topic, messages(5))
            lost = await take(member, 5)
            await asyncio.to_thread(redis_server.stop)
            shutil.rmtree(redis_server.store_dir)
            shutil.copytree(tmp_path / "earlier", redis_server.store_dir)
            await asyncio.to_thread(redis_server.start)
            async with opened(redis_server.url) as other, joined(other, topic) as another:
                if grown:
                    await other.send(topic, [Message("", "k", {}, b"else")] * grown)
                    assert len(await take(another, taken)) == taken
                with pytest.raises(Unavailable, match="put back"):
                    await anext(member)
                # They are other messages now: those are not acknowledged by who never had them.
                await member.ack(lost)
                await member.nack(lost)
                await member.extend(lost)
                assert (await other.progress(topic, group=GROUP)).pending == taken


@pytest.mark.parametrize("what", ["deleted", "anew", "flushed", "group"])
async def test_a_member_is_told_when_its_log_is_another_one(redis_url: str, topic: str, what: str) -> None:
    """Whether it waits for messages or reads at the time."""
    key = f"sk:{{{topic}}}"
    for waits in (True, False):
        async with opened(redis_url) as connector, redis.asyncio.Redis.from_url(redis_url) as client:
            await connector.send(topic, messages(5))
            async with joined(connector, topic) as member:
                held = await take(member, 5)
                waiting = asyncio.ensure_future(anext(member)) if waits else None
                while waits and not (await client.info("clients"))["blocked_clients"]:
                    pass
                if what == "deleted":
                    await client.delete(key)
                elif what == "anew":
                    await client.delete(key)
                    await connector.send(topic, messages(9))
                elif what == "flushed":
                    await client.delete(key, f"{key}:id")
                else:
                    await client.xgroup_destroy(key, GROUP)
                with pytest.raises(Unavailable):
                    await (waiting or anext(member))
                for verb in (member.ack, member.nack, member.term, member.extend):
                    await verb(held)
            await client.delete(key, f"{key}:id")


async def test_what_another_log_has_is_not_acknowledged(redis_url: str, topic: str) -> None:
    """The same places, another stream: whoever worked on the old one says nothing about the new one."""
    async with opened(redis_url) as connector, redis.asyncio.Redis.from_url(redis_url) as client:
        await connector.send(topic, messages(5))
        async with joined(connector, topic) as late:
            old = await take(late, 5)
            await client.delete(f"sk:{{{topic}}}")
            await connector.send(topic, messages(5))
            async with joined(connector, topic) as member:
                new = await take(member, 5)
                for verb in (late.ack, late.term, late.nack, late.extend):
                    await verb(old)
                assert (await connector.progress(topic, group=GROUP)) == Progress({0: 0}, 0, 5)
                await member.ack(new)
                assert (await connector.progress(topic, group=GROUP)) == Progress({0: 5}, 0, 0)


@pytest.mark.parametrize("new", [True, False], ids=["new", "given-back"])
async def test_a_member_does_not_go_on_in_another_log(
    redis_url: str, topic: str, monkeypatch: pytest.MonkeyPatch, new: bool
) -> None:
    """Made anew, with a group of the same name, all between two reads; whatever it would read there first."""
    monkeypatch.setattr(redis_member, "POLL_S", 20.0 if new else 0.001)
    async with opened(redis_url) as connector, redis.asyncio.Redis.from_url(redis_url) as client:
        await connector.send(topic, messages(5))
        async with joined(connector, topic) as member:
            await member.ack(await take(member, 5))
            await client.delete(f"sk:{{{topic}}}")
            await connector.send(topic, messages(9))
            async with joined(connector, topic) as other:
                if not new:
                    await take(other, 9)
            with pytest.raises(Unavailable, match="made anew"):
                await anext(member)


async def test_what_was_moved_stays_with_who_has_it(redis_url: str, topic: str) -> None:
    """Who took too long says nothing about it any more: the other one keeps it."""
    async with opened(redis_url, ack_wait_s=0.3) as connector, opened(redis_url, ack_wait_s=20) as other:
        await connector.send(topic, messages(3))
        async with joined(other, topic) as slow, joined(connector, topic) as quick:
            had = await take(slow, 3)
            got = await take(quick, 3)
            assert [each.attempt for each in got] == [2, 2, 2]
            for verb in (slow.ack, slow.term, slow.nack, slow.extend):
                await verb(had)
            assert (await connector.progress(topic, group=GROUP)).pending == 3
            await quick.ack(got)
            assert not (await connector.progress(topic, group=GROUP)).lag


async def test_what_was_trimmed_is_not_waited_for(redis_url: str, topic: str) -> None:
    """It is pending, and nobody can have it: it is acknowledged away."""
    async with opened(redis_url, ack_wait_s=0.3) as connector, redis.asyncio.Redis.from_url(redis_url) as client:
        await connector.send(topic, messages(6))
        async with joined(connector, topic) as member:
            await take(member, 6)
        await client.xtrim(f"sk:{{{topic}}}", minid="0-5", approximate=False)
        async with joined(connector, topic) as member:
            again = await take(member, 2)
            assert [each.position for each in again] == [5, 6]
            await member.ack(again)
            assert (await connector.progress(topic, group=GROUP)) == Progress({0: 6}, 0, 0)


# --- giving back -----------------------------------------------------------------------------------------------------


async def test_a_delay_is_longer_than_the_wait(redis_url: str, topic: str) -> None:
    """What is given back for later is held by whoever gave it back, whoever else would claim it meanwhile."""
    async with opened(redis_url, ack_wait_s=0.3) as connector:
        await connector.send(topic, messages(2))
        loop = asyncio.get_running_loop()
        async with joined(connector, topic) as member, joined(connector, topic) as other:
            got = await take(member, 2)
            started = loop.time()
            await member.nack(got, delay_s=1.5)
            (again, _) = await take(other, 2)
            assert 1.45 < loop.time() - started < 3.0
            assert again.attempt == 2


async def test_a_delay_ends_when_its_member_leaves(redis_url: str, topic: str) -> None:
    async with opened(redis_url) as connector, joined(connector, topic) as other:
        async with joined(connector, topic) as member:
            await connector.send(topic, messages(1))
            waiting = [asyncio.ensure_future(anext(each)) for each in (member, other)]
            done, (left,) = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if waiting[0] not in done:  # the other one was quicker
                await other.nack(waiting[1].result())
                await waiting[0]
                left = asyncio.ensure_future(anext(other))
            await member.nack(waiting[0].result(), delay_s=3600)
        assert len(await left) == 1


async def test_poison_does_not_keep_the_others_away(redis_url: str, topic: str) -> None:
    """What is given back at once, over and over, takes turns with what is new."""
    async with opened(redis_url) as connector:
        await connector.send(topic, messages(30))
        done, poison = list[bytes](), 0
        async with joined(connector, topic, batch_max=1) as member:
            while len(done) < 29:
                (one,) = await anext(member)
                if one.position == 1:
                    poison += 1
                    await member.nack([one])
                else:
                    done += bodies([one])
                    await member.ack([one])
        assert poison >= 29


async def test_who_leaves_does_not_wait_for_messages(
    redis_url: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits at the server is told to come to an end, and its name is gone."""
    monkeypatch.setattr(redis_member, "POLL_S", 20.0)
    async with opened(redis_url) as connector, redis.asyncio.Redis.from_url(redis_url) as client:
        loop = asyncio.get_running_loop()
        async with joined(connector, topic) as member:
            waiting = asyncio.ensure_future(anext(member))
            while not (await client.info("clients"))["blocked_clients"]:
                pass
            started = loop.time()
        assert loop.time() - started < 1.0
        with pytest.raises(StopAsyncIteration):
            await waiting
        assert await names(client, topic) == set()


async def test_names_do_not_pile_up(redis_url: str, topic: str) -> None:
    """Of those who come and go, also with something in their hands, and of those who died long ago."""
    key = f"sk:{{{topic}}}"
    async with opened(redis_url, ack_wait_s=0.2) as connector, redis.asyncio.Redis.from_url(redis_url) as client:
        await connector.send(topic, messages(100))
        for _ in range(20):
            async with joined(connector, topic, batch_max=5) as member:
                await anext(member)
        assert await names(client, topic) == {redis_member.NOBODY}
        for number in range(20):
            await client.xgroup_createconsumer(key, GROUP, f"dead-{number}")
        async with joined(connector, topic) as member:

            async def gone() -> bool:
                await member.ack(await anext(member))
                await connector.send(topic, messages(1))
                return len(await names(client, topic)) <= 2

            await until(gone)


# --- what it costs ---------------------------------------------------------------------------------------------------


async def test_what_a_dead_member_had_is_claimed_in_few_commands(redis_server: RedisServer, topic: str) -> None:
    """At least a hundred at a time, in ascending order, with how often they were delivered."""
    key = f"sk:{{{topic}}}"
    async with (
        opened(redis_server.url, ack_wait_s=0.2) as connector,
        redis.asyncio.Redis.from_url(redis_server.url) as client,
    ):
        await connector.send(topic, messages(1500))
        async with joined(connector, topic):
            pass
        for _ in range(3):
            await client.xreadgroup(GROUP, "dead", {key: ">"}, count=500)
        await client.xclaim(key, GROUP, "dead", 0, ["0-7"], retrycount=41, justid=True)

        async def idle() -> bool:
            found: Any = await client.xpending_range(key, GROUP, "-", "+", 1500, idle=200)
            return len(found) == 1500

        await until(idle)
        before = await calls(client, "xautoclaim")
        async with joined(connector, topic, batch_max=20) as member:
            got: list[Delivery] = []
            while len(got) < 1500:
                batch = await anext(member)
                assert len(batch) <= 20
                got += batch
                await member.ack(batch)
        claims = await calls(client, "xautoclaim") - before
        assert [each.position for each in got] == list(range(1, 1501))
        assert [each.attempt for each in got if each.attempt != 2] == [42]
        assert claims < 25
        assert await calls(client, "xpending") < 75 + 50  # one for each acknowledgement


async def test_one_xack_a_batch(redis_server: RedisServer, topic: str) -> None:
    async with opened(redis_server.url) as connector, redis.asyncio.Redis.from_url(redis_server.url) as client:
        await connector.send(topic, messages(2000))
        batches = count = 0
        async with joined(connector, topic, batch_max=500) as member:
            while count < 2000:
                batch = await anext(member)
                await member.ack(batch)
                batches, count = batches + 1, count + len(batch)
        assert await calls(client, "xack") == batches
        assert await calls(client, "xreadgroup") <= batches + 1
        assert batches <= 8


async def test_a_storm_of_cancellations_leaks_nothing(redis_server: RedisServer, topic: str) -> None:
    """Whoever is cancelled, wherever he waits: no connection stays, and no message with nobody."""
    tasks = asyncio.all_tasks()
    async with redis.asyncio.Redis.from_url(redis_server.url) as client:
        before = (await client.info("clients"))["connected_clients"]
        async with opened(redis_server.url) as connector:
            await connector.send(topic, messages(300))

            async def visit() -> None:
                async with joined(connector, topic, batch_max=7) as member:
                    batch = await anext(member)
                    await member.extend(batch)
                    await member.nack(batch[:1])
                    await member.nack(batch[1:2], delay_s=60)
                    await member.ack(batch[2:])
                    await anext(member)

            for patience in range(150):
                visiting = [asyncio.ensure_future(visit()) for _ in range(2)]
                for _ in range(patience):
                    await asyncio.sleep(0)
                for each in visiting:
                    each.cancel()
                    await asyncio.sleep(0)
                    each.cancel()
                await asyncio.gather(*visiting, return_exceptions=True)
            async with joined(connector, topic) as member:
                while (await connector.progress(topic, group=GROUP)).lag:
                    await member.ack(await anext(member))

            async def alone() -> bool:
                return (await client.info("clients"))["connected_clients"] <= before + redis_line.CONNECTIONS_MAX

            await until(alone)

            async def nameless() -> bool:  # who was cancelled while he left leaves nevertheless
                return await names(client, topic) <= {redis_member.NOBODY}

            await until(nameless)

        async def away() -> bool:
            return (await client.info("clients"))["connected_clients"] == before

        async with asyncio.timeout(DEADLINE_S):
            await until(away)
    assert asyncio.all_tasks() == tasks


@pytest.mark.filterwarnings("error::ResourceWarning")
async def test_a_frozen_server_holds_up_nobody(
    redis_server: RedisServer, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes connections and says nothing: the verbs, the reader and leaving all come to an end."""
    monkeypatch.setattr(redis_line, "ANSWER_S", 1.0)
    async with opened(redis_server.url, timeout_s=0.5) as connector:
        await connector.send(topic, messages(60))
        loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            async with joined(connector, topic, batch_max=20) as member:
                held = await anext(member)
                stack.enter_context(redis_server.frozen())
                for call in (member.ack(held), member.extend(held), member.nack(held), anext(member)):
                    with pytest.raises(ConnectorError):
                        await call
                started = loop.time()
            assert loop.time() - started < redis_member.LEAVE_S + 1
        async with joined(connector, topic) as member:
            assert len(await take(member, 40)) >= 40


@pytest.mark.parametrize("wait", ["0", "-1", "inf", "nan", "43201", "soon"])
def test_a_wrong_wait_is_refused(wait: str) -> None:
    with pytest.raises(ConfigError):
        RedisConnector(f"redis://127.0.0.1:1?ack_wait_s={wait}")


# --- somebody else's -------------------------------------------------------------------------------------------------


async def test_what_of_an_entry_is_what(redis_url: str, topic: str) -> None:
    """One field is the body; so is the one that is called like one; else all of them are."""
    entries: list[tuple[dict[Any, Any], bytes, dict[str, str]]] = [
        ({"x": b"\xff\x00"}, b"\xff\x00", {}),
        ({"data": "d", "body": "b", "type": "t", b"\xff": "x", "y": b"\xff"}, b"d", {"body": "b", "type": "t"}),
        ({"payload": "p", "value": "v"}, b"p", {"value": "v"}),
        ({"a": "1", "b": "ü", "c": b"\xff"}, '{"a": "1", "b": "ü", "c": "/w=="}'.encode(), {}),
    ]
    source = f"raw/{topic} ü"
    async with opened(redis_url) as connector, redis.asyncio.Redis.from_url(redis_url) as client:
        ids: list[Any] = [await client.xadd(source, fields) for fields, _, _ in entries]
        async with connector.tap(source, group=GROUP, batch_max=10) as member:
            got = await take(member, len(entries))
            assert [(each.message.body, each.message.headers) for each in got] == [each[1:] for each in entries]
            for each, id in zip(got, ids, strict=True):
                server, name, at = each.message.id.split("/")
                assert len(server) == 32
                assert name.startswith("raw%2Fgroups-")
                assert at == id.decode()
                time, _, number = id.decode().partition("-")
                assert each.position == int(time) * 2**20 + int(number)
            await member.ack(got)
            assert (await client.xpending(source, GROUP))["pending"] == 0
        assert await client.keys(f"*{topic}*") == [source.encode()]


async def test_a_tap_begins_at_a_time(redis_url: str, topic: str) -> None:
    """Ids are times by the server's clock; a group that is there already goes on where it was."""
    async with opened(redis_url) as connector, redis.asyncio.Redis.from_url(redis_url) as client:
        for time in (1000, 2000, 3000):
            for number in (0, 1):
                await client.xadd(topic, {"at": f"{time}-{number}"}, id=f"{time}-{number}")
        for at_ms, first in (
            (None, b"1000-0"),
            (0, b"1000-0"),
            (1001, b"2000-0"),
            (2000, b"2000-0"),
            (3000, b"3000-0"),
        ):
            async with connector.tap(topic, group=f"{at_ms}", batch_max=10, at_ms=at_ms) as member:
                got = await anext(member)
                assert bodies(got)[0] == first
                await member.ack(got[:1])
        async with connector.tap(topic, group="2000", batch_max=10, at_ms=0) as member:
            assert bodies(await anext(member))[0] == b"2000-1"


async def test_a_source_that_is_none_is_rejected(redis_url: str, topic: str) -> None:
    """Not there, no stream, a topic of ours, or with ids that are no times; it is never made."""
    async with opened(redis_url) as connector, redis.asyncio.Redis.from_url(redis_url) as client:
        await client.set(f"text-{topic}", "x")
        await connector.send(topic, messages(1))
        for source in (f"none-{topic}", f"text-{topic}", f"sk:{{{topic}}}"):
            with pytest.raises(Rejected) as refused:
                async with connector.tap(source, group=GROUP, batch_max=1):
                    pass
            assert refused.value.hint
        assert not await client.exists(f"none-{topic}")
        await client.xadd(f"far-{topic}", {"a": "b"}, id=f"{2**63}-0")
        async with connector.tap(f"far-{topic}", group=GROUP, batch_max=1) as member:
            with pytest.raises(Rejected, match="no time"):
                await anext(member)


async def test_a_source_that_is_deleted_is_unavailable(redis_url: str, topic: str) -> None:
    """Also while somebody waits; when it is there again it is another one, for which the group begins anew."""
    async with opened(redis_url) as connector, redis.asyncio.Redis.from_url(redis_url) as client:
        await client.xadd(topic, {"a": "1"})
        async with connector.tap(topic, group=GROUP, batch_max=10) as member:
            await member.ack(await anext(member))
            waiting = asyncio.ensure_future(anext(member))
            await client.delete(topic)
            with pytest.raises(Unavailable):
                await waiting
        await client.xadd(topic, {"a": "2"})
        async with connector.tap(topic, group=GROUP, batch_max=10) as member:
            assert bodies(await anext(member)) == [b"2"]
