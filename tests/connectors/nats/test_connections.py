"""Servers that are away, silent, half there, or back again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from synckit_connectors.nats_jetstream import NatsConnector
from synckit_streams.errors import (
    ConnectorError,
    Timeout,
    Unavailable,
)
from synckit_streams.testing.brokers import NatsServer
from synckit_streams.testing.connector_contract import bodies, read
from tests.connectors.nats.kit import (
    Proxy,
    free_port,
    numbers,
    running,
    texts,
    until,
)


async def test_nobody_there(topic: str) -> None:
    """A refused connection is Unavailable, at once; nothing is left of the attempt, and it may be made again."""
    before = asyncio.all_tasks()
    connector = NatsConnector(f"nats://user:geheim@127.0.0.1:{free_port()},127.0.0.1:{free_port()}")
    for _ in range(2):
        started = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable) as error:
            await connector.open()
        assert asyncio.get_running_loop().time() - started < 1.0
        assert error.value.retryable
        assert "geheim" not in str(error.value)
        assert "user" not in str(error.value)
    with pytest.raises(ConnectorError):
        await connector.bounds(topic)
    assert asyncio.all_tasks() == before


async def test_somebody_there_who_says_nothing() -> None:
    """A port that accepts and is silent is Unavailable within 3 s."""

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as listener:
        connector = NatsConnector(f"nats://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        started = asyncio.get_running_loop().time()
        with pytest.raises(Unavailable):
            await connector.open()
        assert asyncio.get_running_loop().time() - started < 3.0


async def test_the_second_server_is_taken(nats_server: NatsServer, topic: str) -> None:
    """One of the URL's servers is enough."""
    async with running(f"nats://127.0.0.1:{free_port()},127.0.0.1:{nats_server.port}") as connector:
        await connector.send(topic, texts("a"))


async def test_a_server_that_stays_away(nats_server: NatsServer, topic: str) -> None:
    """Calls and iterators end with Unavailable after `timeout_s`; when it is back, the same connector works."""
    async with running(nats_server.url, timeout_s=0.7) as connector:
        await connector.send(topic, texts("a"))
        async with (
            connector.receive(topic, start={0: 1}, batch_max=5) as batches,
            connector.listen(topic) as announcements,
        ):
            await anext(announcements)
            calls: list[asyncio.Future[Any]] = [asyncio.ensure_future(anext(each)) for each in (batches, announcements)]
            await asyncio.sleep(0)
            await asyncio.to_thread(nats_server.stop)
            calls += [
                asyncio.ensure_future(connector.send(topic, texts("b"))),
                asyncio.ensure_future(connector.bounds(topic)),
            ]
            started = asyncio.get_running_loop().time()
            for each in calls:
                with pytest.raises(Unavailable):
                    await each
            assert asyncio.get_running_loop().time() - started < 5.0
        with pytest.raises(Unavailable):
            await connector.peek(topic, 0, 1)
        await asyncio.to_thread(nats_server.start)
        await connector.send(topic, texts("c"))
        assert bodies(await read(connector, topic, 2))[0] == b"a"


async def test_opening_an_open_connector_looks_for_the_server(nats_server: NatsServer, topic: str) -> None:
    """It is not patient: whether somebody is there is known at once, also while a call waits for the connection."""
    now = asyncio.get_running_loop().time
    async with running(nats_server.url) as connector:
        await connector.open()
        await connector.send(topic, texts("a"))
        await asyncio.to_thread(nats_server.stop)
        started = now()
        with pytest.raises(Unavailable):
            await connector.open()
        assert now() - started < 1.5
        waiting = asyncio.ensure_future(connector.bounds(topic))
        await asyncio.sleep(0)
        started = now()
        with pytest.raises(Unavailable):
            await connector.open()
        assert now() - started < 3.5
        await asyncio.to_thread(nats_server.start)
        await connector.open()
        assert (await waiting)[0].end == 2


async def test_opening_over_a_half_open_connection(nats_server: NatsServer, topic: str) -> None:
    """A connection that looks open and brings nothing is replaced, and the readers go on."""
    async with (
        Proxy(nats_server.port) as proxy,
        running(proxy.url) as connector,
        connector.receive(topic, start={}, batch_max=5) as batches,
    ):
        waiting = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0)
        proxy.freeze()
        await connector.open()
        await connector.send(topic, texts("a"))
        assert bodies(await waiting) == [b"a"]


async def test_closing_while_the_server_is_away(nats_server: NatsServer, topic: str) -> None:
    """`close` neither raises nor waits for it."""
    before = asyncio.all_tasks()
    connector = NatsConnector(nats_server.url)
    await connector.open()
    await connector.send(topic, texts("a"))
    await asyncio.to_thread(nats_server.kill)
    sending = asyncio.ensure_future(connector.send(topic, numbers(1, 1000)))
    await asyncio.sleep(0.05)
    started = asyncio.get_running_loop().time()
    await connector.close()
    assert asyncio.get_running_loop().time() - started < 1.0
    with pytest.raises(ConnectorError):
        await sending
    await until(lambda: asyncio.all_tasks() == before)


async def test_a_frozen_server_is_a_timeout(nats_server: NatsServer, topic: str) -> None:
    """A server that is stopped in its tracks: the call ends, and works again when the server does."""
    async with running(nats_server.url, timeout_s=0.5) as connector:
        await connector.send(topic, texts("a"))
        with nats_server.frozen():
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: connector.bounds(topic),
                lambda: connector.send(topic, texts("b")),
            ]
            for call in calls:
                with pytest.raises((Timeout, Unavailable)) as error:
                    await call()
                assert error.value.retryable
        await connector.send(topic, texts("c"))
        assert (await read(connector, topic, 2))[0].message.body == b"a"
