"""A reader misses nothing and gets nothing twice, whatever a server does meanwhile."""

from __future__ import annotations

import asyncio
import shutil
import statistics
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from synckit_streams.errors import (
    Timeout,
)
from synckit_streams.testing.brokers import NatsServer
from synckit_streams.testing.connector_contract import bodies, heard, read
from tests.connectors.nats.kit import (
    Proxy,
    administrator,
    delete_consumers,
    numbers,
    running,
    texts,
    until,
)


async def test_a_server_killed_while_receiving_loses_nothing(tmp_path: Path, topic: str) -> None:
    """kill -9 and a restart under a reader: it goes on where it stopped, each message once, in order."""
    with NatsServer(tmp_path, sync_always=True) as server:
        async with running(server.url) as connector, running(server.url) as writer:
            await writer.send(topic, numbers(1, 1000))
            got: list[int] = []
            async with connector.receive(topic, start={}, batch_max=20) as batches:
                async for batch in batches:
                    got.extend(each.position for each in batch)
                    if len(got) in (200, 600):
                        await asyncio.to_thread(server.kill)
                        await asyncio.to_thread(server.start)
                    if len(got) == 1000:
                        await writer.send(topic, numbers(1001, 1100))
                    if len(got) == 1100:
                        break
    assert got == list(range(1, 1101))


async def test_live_messages_come_within_milliseconds(nats_url: str, topic: str) -> None:
    """A reader that waits does not poll."""
    waits_s: list[float] = []
    now = asyncio.get_running_loop().time
    async with (
        running(nats_url) as connector,
        connector.receive(topic, start={}, batch_max=100) as batches,
    ):
        for _ in range(20):
            waiting = asyncio.ensure_future(anext(batches))
            started = now()
            await connector.send(topic, texts("x"))
            await waiting
            waits_s.append(now() - started)
    assert statistics.median(waits_s) < 0.05


async def test_a_consumer_that_is_gone_is_made_anew(nats_url: str, topic: str) -> None:
    """Deleted while a reader waits, or while it is slow: no message is lost or comes twice."""
    async with administrator(nats_url) as admin, running(nats_url, heartbeat_s=0.2) as connector:
        got: list[int] = []
        await connector.send(topic, numbers(1, 1000))
        async with connector.receive(topic, start={}, batch_max=5) as batches:
            while len(got) < 1000:
                got.extend(each.position for each in await anext(batches))
                if len(got) % 250 == 0:
                    await delete_consumers(admin, topic)
            waiting = asyncio.ensure_future(anext(batches))
            await asyncio.sleep(0)
            await delete_consumers(admin, topic)
            await connector.send(topic, numbers(1001, 1001))
            got.extend(each.position for each in await waiting)
    assert got == list(range(1, 1002))


async def test_a_half_open_connection_is_noticed(nats_server: NatsServer, topic: str) -> None:
    """It looks open and brings nothing: a reader misses heartbeats, a call its answer, and both take a new one."""
    async with (
        Proxy(nats_server.port) as proxy,
        running(proxy.url, heartbeat_s=0.1, timeout_s=0.5) as connector,
        running(nats_server.url) as other,
        connector.receive(topic, start={}, batch_max=5) as batches,
    ):
        await connector.send(topic, texts("a"))
        assert bodies(await anext(batches)) == [b"a"]
        waiting = asyncio.ensure_future(anext(batches))
        proxy.freeze()
        await other.send(topic, texts("b"))
        assert bodies(await waiting) == [b"b"]
        proxy.freeze()
        with pytest.raises(Timeout):
            await connector.bounds(topic)
        assert (await connector.bounds(topic))[0].end == 3


async def test_calls_wait_for_a_server_that_comes_back(nats_server: NatsServer, topic: str) -> None:
    """Within `timeout_s` a restart is no error, for whoever calls meanwhile."""
    async with running(nats_server.url, timeout_s=20) as connector:
        await connector.send(topic, texts("a"))
        await asyncio.to_thread(nats_server.stop)
        calls: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(connector.bounds(topic)),
            asyncio.ensure_future(connector.send(topic, texts("b"))),
            asyncio.ensure_future(connector.announce(topic, "n", b"x")),
            asyncio.ensure_future(read(connector, topic, 1)),
        ]
        await asyncio.wait(calls, timeout=1.0)
        assert not any(each.done() for each in calls)
        await asyncio.to_thread(nats_server.start)
        await asyncio.gather(*calls)


async def test_a_server_that_lost_its_store(nats_server: NatsServer, topic: str) -> None:
    """It comes back empty: everything is made anew where it is asked for, and the log is another one."""
    async with running(nats_server.url) as connector:
        await connector.send(topic, texts("a"))
        await connector.announce(topic, "n", b"x")
        before = (await connector.bounds(topic))[0].identity
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: connector.announce(topic, "m", b"y"),
            lambda: connector.send(topic, texts("b")),
            lambda: connector.peek(topic, 0, 1),
            lambda: heard(connector, topic),
        ]
        for call in calls:
            await asyncio.to_thread(nats_server.stop)
            shutil.rmtree(nats_server.store_dir)
            await asyncio.to_thread(nats_server.start)
            await call()
        assert (await connector.bounds(topic))[0].identity != before


async def test_a_control_stream_deleted_under_us(nats_server: NatsServer, topic: str) -> None:
    """The next digest makes it anew; peeking into a deleted topic finds nothing."""
    async with administrator(nats_server.url) as admin, running(nats_server.url) as connector:
        await connector.announce(topic, "n", b"x")
        await connector.send(topic, texts("a"))
        await admin.delete_stream("skd")
        await admin.delete_stream(f"sk-{topic}")
        await connector.announce(topic, "n", b"y")
        assert (await heard(connector, topic))["n"].body == b"y"
        assert await connector.peek(topic, 0, 1) is None


async def test_readers_leave_nothing_on_the_server(nats_url: str, topic: str) -> None:
    """Consumers are deleted when a reader ends, also with its connector."""
    async with administrator(nats_url) as admin:
        async with running(nats_url) as connector:
            await connector.send(topic, texts("a"))
            await read(connector, topic, 1)
            receiving = connector.receive(topic, start={}, batch_max=5)
            await receiving.__aenter__()
            assert len(await admin.consumers_info(f"sk-{topic}")) == 1
        await receiving.__aexit__(None, None, None)

        async def gone() -> bool:
            return not await admin.consumers_info(f"sk-{topic}")

        await until(gone)


async def test_a_message_larger_than_a_pull_arrives(tmp_path: Path, topic: str) -> None:
    """A server with a larger limit, lowered later: what lies in the log is read all the same."""
    size = 6 * 1024 * 1024
    with NatsServer(tmp_path, max_payload=size + 4096) as server:
        async with running(server.url) as connector:
            await connector.send(topic, texts("small", "x" * size, "end"))
        server.stop()
    with NatsServer(tmp_path, port=server.port) as server:
        async with running(server.url) as connector:
            assert [len(each) for each in bodies(await read(connector, topic, 3))] == [5, size, 3]


async def test_foreign_messages_are_delivered_as_they_are(nats_url: str, topic: str) -> None:
    """Whoever else may write to the subject: its message has no id, and the server's headers are not passed on."""
    async with administrator(nats_url) as admin, running(nats_url) as connector:
        await connector.bounds(topic)
        await admin.publish(f"sk.{topic}.x", b"bare")
        await admin.publish(f"sk.{topic}.x", b"", headers={"Nats-Expected-Stream": f"sk-{topic}", "a": "b"})
        got = [each.message for each in await read(connector, topic, 2)]
        assert [(each.id, each.body, dict(each.headers)) for each in got] == [("", b"bare", {}), ("", b"", {"a": "b"})]
        assert await connector.peek(topic, 0, 2) == got[1]
