"""A log that is another one is noticed, and streams are made and kept as they have to be."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from nats.js.api import StreamConfig

from synckit_streams.errors import (
    Rejected,
    Unavailable,
)
from synckit_streams.ports.connector import Announced
from synckit_streams.testing.brokers import NatsServer
from synckit_streams.testing.connector_contract import bodies, heard, read
from tests.connectors.nats.kit import (
    administrator,
    numbers,
    running,
    texts,
)


async def test_a_deleted_stream_is_noticed(nats_url: str, topic: str) -> None:
    """Under a reader, and by its identity; what is sent afterwards goes to a new one."""
    async with administrator(nats_url) as admin, running(nats_url, heartbeat_s=0.2) as connector:
        await connector.send(topic, texts("a"))
        before = (await connector.bounds(topic))[0]
        async with connector.receive(topic, start={0: 1}, batch_max=5) as batches:
            waiting = asyncio.ensure_future(anext(batches))
            await asyncio.sleep(0)
            await admin.delete_stream(f"sk-{topic}")
            with pytest.raises(Unavailable, match="deleted"):
                await waiting
        await connector.send(topic, texts("b"))
        after = (await connector.bounds(topic))[0]
        assert after.identity != before.identity
        assert (after.first, after.end) == (1, 2)


async def test_a_stream_deleted_and_made_anew_is_noticed(nats_url: str, topic: str) -> None:
    """A reader does not go on in the new one as if it were the old."""
    async with administrator(nats_url) as admin, running(nats_url, heartbeat_s=0.2) as connector:
        await connector.send(topic, numbers(1, 100))
        async with connector.receive(topic, start={0: 1}, batch_max=5) as batches:
            await anext(batches)
            await admin.delete_stream(f"sk-{topic}")
            await connector.send(topic, numbers(1, 200))
            with pytest.raises(Unavailable, match="made anew"):
                async for _ in batches:
                    pass


@pytest.mark.parametrize("written_past", [0, 150])
async def test_a_store_that_was_put_back_is_noticed(tmp_path: Path, topic: str, written_past: int) -> None:
    """100 of 200 acknowledged messages gone, with the same identity: by the end below us, or by the fingerprint."""
    with NatsServer(tmp_path / "server", sync_always=True) as server:
        async with running(server.url) as connector, running(server.url) as reader:
            await connector.send(topic, numbers(1, 100))
            await asyncio.to_thread(server.stop)
            shutil.copytree(server.store_dir, tmp_path / "copy")
            await asyncio.to_thread(server.start)
            await connector.send(topic, numbers(101, 200))
            before = (await connector.bounds(topic))[0]
            last = await connector.peek(topic, 0, 200)
            async with reader.receive(topic, start={}, batch_max=500) as batches:
                got = 0
                while got < 200:
                    got += len(await anext(batches))
                await asyncio.to_thread(server.stop)
                shutil.rmtree(server.store_dir)
                shutil.copytree(tmp_path / "copy", server.store_dir)
                await asyncio.to_thread(server.start)
                await connector.send(topic, numbers(301, 300 + written_past))
                after = (await connector.bounds(topic))[0]
                assert after.identity == before.identity
                assert after.end == 101 + written_past
                with pytest.raises(Unavailable, match="put back"):
                    await anext(batches)
            assert await connector.peek(topic, 0, 200) != last


async def test_retention_removes_the_oldest(nats_url: str, topic: str) -> None:
    """max_bytes is the stream's: the log begins later then, and positions stay."""
    async with running(f"{nats_url}?max_bytes=20000") as connector:
        await connector.send(topic, texts(*["x" * 1000] * 40))
        bounds = (await connector.bounds(topic))[0]
        assert bounds.end == 41
        assert bounds.first > 20
        assert (await read(connector, topic, 1))[0].position == bounds.first
        assert await connector.peek(topic, 0, 1) is None


async def test_streams_are_made_as_the_options_say(nats_url: str, topic: str) -> None:
    """File storage that keeps everything by default; else what was asked for."""
    async with administrator(nats_url) as admin:
        async with running(nats_url) as connector:
            await connector.bounds(topic)
        made = (await admin.stream_info(f"sk-{topic}")).config
        assert (made.retention, made.storage, made.max_msgs, made.max_bytes, made.max_age) == (
            "limits",
            "file",
            -1,
            -1,
            0,
        )
        assert (made.num_replicas, made.duplicate_window, made.allow_direct) == (1, 120, True)
        options = "max_age_s=60&max_bytes=1000000&storage=memory&duplicate_window_s=30"
        async with running(f"{nats_url}?{options}") as connector:
            assert not connector.features.durable
            await connector.bounds(f"{topic}2")
        made = (await admin.stream_info(f"sk-{topic}2")).config
        assert (made.storage, made.max_bytes, made.max_age, made.duplicate_window) == ("memory", 1_000_000, 60, 30)
        async with running(nats_url, max_age_s=5.0) as connector:
            await connector.bounds(f"{topic}3")
        assert (await admin.stream_info(f"sk-{topic}3")).config.duplicate_window == 5


async def test_an_existing_stream_is_used_as_it_is(nats_url: str, topic: str) -> None:
    """Somebody made it before with other settings: they stay."""
    async with administrator(nats_url) as admin, running(nats_url) as connector:
        config = StreamConfig(name=f"sk-{topic}", subjects=[f"sk.{topic}.*"], max_msgs=2)
        await admin.add_stream(config)
        await connector.send(topic, texts("a", "b", "c"))
        assert bodies(await read(connector, topic, 2)) == [b"b", b"c"]
        assert (await admin.stream_info(f"sk-{topic}")).config.max_msgs == 2


async def test_a_stream_that_is_not_ours_is_refused(nats_url: str, topic: str) -> None:
    """The name is taken by a stream of other subjects, or the subjects by a stream of another name."""
    async with administrator(nats_url) as admin, running(nats_url) as connector:
        await admin.add_stream(StreamConfig(name=f"sk-{topic}", subjects=[f"foreign.{topic}"]))
        for call in (connector.bounds(topic), connector.send(topic, texts("a"))):
            with pytest.raises(Rejected, match="not one of ours") as error:
                await call
            assert error.value.hint
        await admin.add_stream(StreamConfig(name=f"foreign-{topic}", subjects=[f"sk.{topic}2.>"]))
        with pytest.raises(Rejected, match="overlap"):
            await connector.bounds(f"{topic}2")


async def test_what_the_server_cannot_do_is_a_clear_error(nats_url: str, topic: str) -> None:
    """Three replicas need three servers."""
    async with running(nats_url, replicas=3) as connector:
        with pytest.raises(Rejected, match="replicas"):
            await connector.bounds(topic)


async def test_two_make_the_stream_at_once(nats_url: str, topic: str) -> None:
    """With other settings even: one of them wins, and both use it."""
    async with running(nats_url) as first, running(nats_url, max_bytes=10_000_000) as second:
        both = await asyncio.gather(*(each.bounds(topic) for each in (first, second, first, second)))
        assert len({each[0].identity for each in both}) == 1


async def test_digests_survive_a_restart(nats_server: NatsServer, topic: str) -> None:
    """They are kept, and a listener goes on: it hears them again, and what was said meanwhile."""
    async with running(nats_server.url) as connector:
        await connector.announce(topic, "a", b"1")
        await connector.announce(topic, "b", b"1")
        async with connector.listen(topic) as announcements:
            assert [(await anext(announcements)).node for _ in range(3)] == ["a", "b", ""]
            waiting = asyncio.ensure_future(anext(announcements))
            await asyncio.to_thread(nats_server.restart)
            async with running(nats_server.url) as other:
                await other.announce(topic, "a", b"2")
                await other.announce(topic, "b", b"")
            told = {(await waiting)}
            while len({each.node for each in told if each.body in (b"2", b"")} - {""}) < 2:
                told.add(await anext(announcements))
        assert {(each.node, each.body) for each in told} >= {("a", b"2"), ("b", b"")}
        assert {node: each.body for node, each in (await heard(connector, topic)).items()} == {"a": b"2"}


async def test_one_message_a_node_is_kept(nats_server: NatsServer, topic: str) -> None:
    """The control stream does not grow with the number of announcements."""
    async with running(nats_server.url) as connector:
        for number in range(20):
            await connector.announce(topic, "a", b"%d" % number)
            await connector.announce(topic, "é", b"%d" % number)
        async with administrator(nats_server.url) as admin:
            assert (await admin.stream_info("skd")).state.messages == 2


async def test_the_marker_comes_at_once_when_nobody_announced(nats_url: str, topic: str) -> None:
    """A first listener does not wait for a time-out to know that there is nothing."""
    async with running(nats_url) as connector, connector.listen(topic) as announcements:
        assert await anext(announcements) == Announced("", b"", 0.0)
