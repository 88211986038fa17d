"""What is acknowledged is stored, once, whatever a server does meanwhile."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

import pytest
from nats.js.api import StreamConfig

from synckit_streams.errors import (
    Rejected,
    Timeout,
    TooLarge,
)
from synckit_streams.ports.connector import Message
from synckit_streams.testing.brokers import NatsServer
from synckit_streams.testing.connector_contract import bodies, read
from tests.connectors.nats.kit import (
    Proxy,
    administrator,
    numbers,
    running,
    texts,
    until,
)


async def test_a_server_killed_while_sending_loses_nothing_acknowledged(tmp_path: Path, topic: str) -> None:
    """kill -9 and a restart in the middle of `send`: the call goes on, and every message is there, once."""
    acknowledged: list[Message] = []
    with NatsServer(tmp_path, sync_always=True) as server:
        async with running(server.url) as connector:

            async def write() -> None:
                for at in range(0, 3000, 50):
                    batch = numbers(at, at + 49)
                    await connector.send(topic, batch)
                    acknowledged.extend(batch)

            def reached(count: int) -> bool:
                return len(acknowledged) >= count or writing.done()

            writing = asyncio.ensure_future(write())
            for count in (300, 1100, 2000):
                await until(functools.partial(reached, count))
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
            await writing
            assert len(acknowledged) == 3000
            got = await read(connector, topic, 3000)
            assert (await connector.bounds(topic))[0].end == 3001
    assert sorted(each.message.id for each in got) == sorted(each.id for each in acknowledged)


async def test_a_lost_acknowledgement_is_no_duplicate(nats_server: NatsServer, topic: str) -> None:
    """Stored, but cut off before we heard: it is sent again under its id, and the answer 'duplicate' is well."""
    async with Proxy(nats_server.port) as proxy, running(proxy.url) as connector:
        before = (await connector.bounds(topic))[0].end
        proxy.hold()
        sending = asyncio.ensure_future(connector.send(topic, numbers(1, 100)))
        async with running(nats_server.url) as other:

            async def stored() -> bool:
                return (await other.bounds(topic))[0].end == before + 100

            await until(stored)
        proxy.cut()
        proxy.release()
        assert dict(await sending) == {0: 100}
        assert (await connector.bounds(topic))[0].end == 101


async def test_a_late_acknowledgement_is_no_duplicate(nats_server: NatsServer, topic: str) -> None:
    """An answer that takes longer than our patience: sent again, stored once."""
    async with Proxy(nats_server.port) as proxy, running(proxy.url, timeout_s=2) as connector:
        await connector.bounds(topic)
        proxy.hold()
        sending = asyncio.ensure_future(connector.send(topic, numbers(1, 100)))
        asyncio.get_running_loop().call_later(0.8, proxy.release)
        assert dict(await sending) == {0: 100}
        assert (await connector.bounds(topic))[0].end == 101


async def test_no_acknowledgement_at_all_is_a_timeout(nats_server: NatsServer, topic: str) -> None:
    """`send` ends within its time-out, says that it may be retried, and the connector is of use again."""
    async with Proxy(nats_server.port) as proxy, running(proxy.url, timeout_s=0.6) as connector:
        await connector.bounds(topic)
        proxy.hold()
        with pytest.raises(Timeout) as error:
            await connector.send(topic, numbers(1, 3))
        assert error.value.retryable
        proxy.release()
        await connector.send(topic, numbers(4, 6))
        assert (await connector.bounds(topic))[0].end == 7


async def test_a_repeated_publication_is_refused(nats_server: NatsServer, topic: str) -> None:
    """The server acknowledges it and does not store it: never success. The others of the call are stored."""
    again = texts("a")
    async with running(nats_server.url) as connector:
        await connector.send(topic, again)
        with pytest.raises(Rejected, match="duplicate"):
            await connector.send(topic, [*texts("b"), *again, *texts("c")])
        with pytest.raises(Rejected, match="duplicate"):
            await connector.send(topic, [*(twice := texts("d")), *twice])
        assert bodies(await read(connector, topic, 4)) == [b"a", b"b", b"c", b"d"]


@pytest.mark.parametrize("name", ["Nats-Rollup", "nats-msg-id", "NATS-TTL", "Bad Name", "Bad:Name", ""])
async def test_headers_that_the_server_obeys_are_refused(nats_url: str, topic: str, name: str) -> None:
    """A header of ours cannot empty a stream, or pretend to be an id."""
    async with running(nats_url) as connector:
        for _ in range(2):
            with pytest.raises(Rejected, match="header"):
                await connector.send(topic, [Message("1", "k", {"good": "1", name: "all"}, b"")])


async def test_one_id_in_two_topics(nats_url: str, topic: str) -> None:
    """Ids are apart per topic, since each has a stream of its own."""
    async with running(nats_url) as connector:
        message = texts("a")
        await connector.send(topic, message)
        await connector.send(f"{topic}2", message)
        assert bodies(await read(connector, f"{topic}2", 1)) == [b"a"]


async def test_a_message_above_the_servers_limit(tmp_path: Path, topic: str) -> None:
    """The limit is the server's own; what is above it is refused before it would end the connection."""
    with NatsServer(tmp_path, max_payload=8192) as server:
        async with running(server.url) as connector:
            assert 7000 < connector.features.bytes_max < 8192
            with pytest.raises(TooLarge, match="max_payload"):
                await connector.send(topic, texts("x" * 8192))
            with pytest.raises(TooLarge):
                await connector.announce(topic, "n", b"x" * 8192)
            await connector.send(topic, texts("x" * 7900))
            assert bodies(await read(connector, topic, 1)) == [b"x" * 7900]


async def test_a_message_above_the_streams_limit(nats_url: str, topic: str) -> None:
    """Somebody limited the stream: the server's answer is a clear error, and the rest of the call is stored."""
    async with administrator(nats_url) as admin, running(nats_url) as connector:
        await admin.add_stream(StreamConfig(name=f"sk-{topic}", subjects=[f"sk.{topic}.*"], max_msg_size=1000))
        with pytest.raises(TooLarge, match="max_msg_size"):
            await connector.send(topic, texts("a", "x" * 2000, "b"))
        assert bodies(await read(connector, topic, 2)) == [b"a", b"b"]


async def test_a_full_stream_refuses(nats_url: str, topic: str) -> None:
    """A stream that rejects what is above its limit makes `send` fail, with the server's words."""
    async with administrator(nats_url) as admin, running(nats_url) as connector:
        config = StreamConfig(name=f"sk-{topic}", subjects=[f"sk.{topic}.*"], max_msgs=2, discard="new")  # type: ignore[arg-type]
        await admin.add_stream(config)
        with pytest.raises(Rejected, match="maximum messages exceeded"):
            await connector.send(topic, texts("a", "b", "c"))
