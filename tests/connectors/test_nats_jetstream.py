"""The NATS connector keeps the contract on a real server, and what a server can do to it costs no message."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import json
import logging
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats
import nkeys  # type: ignore[import-untyped]
import pytest
from nats.js.api import StreamConfig

from synckit_connectors.nats_jetstream import NatsConnector
from synckit_streams.errors import (
    ConfigError,
    ConnectorError,
    Rejected,
    Timeout,
    TooLarge,
    Unauthorised,
    Unavailable,
)
from synckit_streams.ports.connector import Announced, Message
from synckit_streams.testing.brokers import NatsServer
from synckit_streams.testing.connector_contract import ConnectorContract, Factory, bodies, heard, read
from synckit_streams.testing.pytest_plugin import lacking

DEADLINE_S = 60.0


class TestContract(ConnectorContract):
    @pytest.fixture
    def connector_factory(self, nats_url: str) -> Factory:
        return lambda: NatsConnector(nats_url)


@pytest.fixture
def topic() -> str:
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever happens to the connection, nothing is logged above debug: being offline is normal."""
    caplog.set_level(logging.DEBUG)
    yield
    said = [each.getMessage() for each in caplog.get_records("call") if each.levelno > logging.DEBUG]
    # asyncio says so whenever a connection that nats-py encrypted is lost; only a change in nats-py could help.
    assert [each for each in said if "eof_received() has no effect when using ssl" not in each] == []


@asynccontextmanager
async def running(url: str, **options: object) -> AsyncIterator[NatsConnector]:
    connector = NatsConnector(url, **options)
    async with asyncio.timeout(DEADLINE_S):
        await connector.open()
        try:
            yield connector
        finally:
            await connector.close()


@asynccontextmanager
async def administrator(url: str) -> AsyncIterator[Any]:
    """Whoever runs the server, with nats-py's own JetStream."""
    connection = await nats.connect(url)
    try:
        yield connection.jetstream()
    finally:
        await connection.close()


def texts(*words: str) -> list[Message]:
    return [Message(uuid.uuid4().hex, "k", {}, word.encode()) for word in words]


def numbers(first: int, last: int) -> list[Message]:
    return [Message(f"{uuid.uuid4().hex}", f"k{number}", {}, b"%d" % number) for number in range(first, last + 1)]


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found = condition()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.005)


class Proxy:
    """A way to the server that can be closed to what the server says, and cut."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._answering = asyncio.Event()
        self._answering.set()
        self._frozen: set[asyncio.Task[None]] = set()
        self.url = ""

    async def __aenter__(self) -> Proxy:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._listener.wait_closed()

    def hold(self) -> None:
        """What the server says waits here."""
        self._answering.clear()

    def freeze(self) -> None:
        """The connections that are open now carry nothing any more, and are not closed; new ones are well."""
        self._frozen |= self._tasks

    def release(self) -> None:
        """And goes on."""
        self._answering.set()

    def cut(self) -> None:
        """Lose every connection, with what is on the way."""
        for task in self._tasks:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await asyncio.gather(
                    self._pump(reader, server_writer, task, held=False),
                    self._pump(server_reader, writer, task, held=True),
                )
        finally:
            self._tasks.discard(task)
            for each in (server_writer, writer):
                each.close()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, task: asyncio.Task[None], *, held: bool
    ) -> None:
        while data := await reader.read(65536):
            if task in self._frozen:
                continue
            if held:
                await self._answering.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError


# ------------------------------------------------------------------------------------------------------------- sending


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


# ----------------------------------------------------------------------------------------------------------- receiving


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


async def delete_consumers(admin: Any, topic: str) -> None:
    for each in await admin.consumers_info(f"sk-{topic}"):
        await admin.delete_consumer(f"sk-{topic}", each.name)


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


# -------------------------------------------------------------------------------------------------- the log is another


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


# ------------------------------------------------------------------------------------------------------------- digests


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


# -------------------------------------------------------------------------------------------------------- connections


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


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
    assert nats_server.pid is not None
    async with running(nats_server.url, timeout_s=0.5) as connector:
        await connector.send(topic, texts("a"))
        os.kill(nats_server.pid, signal.SIGSTOP)
        try:
            await until(lambda: Path(f"/proc/{nats_server.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: connector.bounds(topic),
                lambda: connector.send(topic, texts("b")),
            ]
            for call in calls:
                with pytest.raises((Timeout, Unavailable)) as error:
                    await call()
                assert error.value.retryable
        finally:
            os.kill(nats_server.pid, signal.SIGCONT)
        await connector.send(topic, texts("c"))
        assert (await read(connector, topic, 2))[0].message.body == b"a"


@contextlib.contextmanager
def configured(directory: Path, config: str) -> Iterator[NatsServer]:
    with NatsServer(directory, config=config) as server:
        yield server


def base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class Keys:
    """An NKey, and the JWTs that it signs. Source: https://docs.nats.io (security, JWT, decentralized)."""

    def __init__(self, prefix: int) -> None:
        self.key = nkeys.from_seed(nkeys.encode_seed(os.urandom(32), prefix))
        self.public = self.key.public_key.decode()

    def grant(self, to: Keys, kind: str, **claims: object) -> str:
        """What `to` may do, signed by this one."""
        body = {"jti": uuid.uuid4().hex, "iat": int(time.time()), "iss": self.public, "sub": to.public, "name": kind}
        body["nats"] = {"type": kind, "version": 2, **claims}
        parts = [json.dumps(each).encode() for each in ({"typ": "JWT", "alg": "ed25519-nkey"}, body)]
        signed = ".".join(map(base64url, parts))
        return f"{signed}.{base64url(self.key.sign(signed.encode()))}"


async def test_a_credentials_file(tmp_path: Path, topic: str) -> None:
    """A user of an account, by JWT and NKey; without it there is no way in."""
    operator, account, system, user = (
        Keys(prefix)
        for prefix in (
            nkeys.PREFIX_BYTE_OPERATOR,
            nkeys.PREFIX_BYTE_ACCOUNT,
            nkeys.PREFIX_BYTE_ACCOUNT,
            nkeys.PREFIX_BYTE_USER,
        )
    )
    plain = {**dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1), "wildcards": True}
    streams = dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), -1)
    config = (
        f"operator: {operator.grant(operator, 'operator', system_account=system.public)}\n"
        f"resolver: MEMORY\nsystem_account: {system.public}\nresolver_preload: {{\n"
        f"{account.public}: {operator.grant(account, 'account', limits=plain | streams)}\n"
        f"{system.public}: {operator.grant(system, 'account', limits=plain)}\n}}"
    )
    creds = tmp_path / "user.creds"
    creds.write_text(
        f"-----BEGIN NATS USER JWT-----\n{account.grant(user, 'user', subs=-1, data=-1, payload=-1)}\n"
        f"------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n{user.key.seed.decode()}\n"
        "------END USER NKEY SEED------\n"
    )
    with configured(tmp_path / "server", config) as server:
        async with running(f"{server.url}?creds={creds}") as connector:
            await connector.send(topic, texts("a"))
        with pytest.raises(Unauthorised):
            async with running(server.url):
                pass


LEAST = """
authorization { users: [ { user: "node", password: "x", permissions: {
  subscribe: ["_INBOX.>"]
  publish: [ "sk.>", "skh.>", "skd.>", "$JS.API.INFO", "$JS.API.STREAM.INFO.*", "$JS.API.STREAM.MSG.GET.*",
    "$JS.API.CONSUMER.CREATE.>", "$JS.API.CONSUMER.DELETE.>", "$JS.API.CONSUMER.MSG.NEXT.>" ]
} } ] }
"""

USERS = """
authorization { users: [
  { user: "tom@shop", password: "p:a/s?s w%" }
  { user: "poor", password: "x", permissions: { publish: ["$JS.API.>"], subscribe: ["_INBOX.>"] } }
  { user: "boxed", password: "x", permissions: { publish: [">"], subscribe: ["MINE.>"] } }
] }
"""


async def test_credentials(tmp_path: Path, topic: str) -> None:
    """A percent-encoded user and password are taken; wrong or missing ones are Unauthorised, and never shown."""
    with configured(tmp_path, USERS) as server:
        host = f"127.0.0.1:{server.port}"
        async with running(f"nats://tom%40shop:p%3Aa%2Fs%3Fs%20w%25@{host}") as connector:
            await connector.send(topic, texts("a"))
        for userinfo in ("tom%40shop:geheim@", "", "geheim@"):
            with pytest.raises(Unauthorised) as error:
                async with running(f"nats://{userinfo}{host}"):
                    pass
            assert "geheim" not in str(error.value)


async def test_a_token(tmp_path: Path, topic: str) -> None:
    """In the URL's place for the user, or as an option."""
    with configured(tmp_path, 'authorization { token: "s3cret/" }') as server:
        host = f"127.0.0.1:{server.port}"
        for url, options in ((f"nats://s3cret%2F@{host}", {}), (f"nats://{host}", {"token": "s3cret/"})):
            async with running(url, **options) as connector:
                await connector.send(topic, texts("a"))
        with pytest.raises(Unauthorised):
            async with running(f"nats://{host}", token="wrong"):
                pass


async def test_what_is_not_permitted(tmp_path: Path, topic: str) -> None:
    """A user who may not publish, or not hear answers, is told so at once, not by a time-out."""
    with configured(tmp_path, USERS) as server:
        host = f"127.0.0.1:{server.port}"
        async with running(f"nats://poor:x@{host}") as connector:
            with pytest.raises(Unauthorised, match="permissions violation"):
                await connector.send(topic, texts("a"))
        with pytest.raises(Unauthorised, match="permissions violation"):
            async with running(f"nats://boxed:x@{host}"):
                pass
        async with running(f"nats://boxed:x@{host}?inbox_prefix=MINE") as connector:
            await connector.send(topic, texts("a"))
            assert bodies(await read(connector, topic, 1)) == [b"a"]


async def test_the_least_permissions(tmp_path: Path, topic: str) -> None:
    """What docs/how-to/nats.md lists is enough, once the streams are there."""
    with NatsServer(tmp_path) as server:
        async with running(server.url) as connector:
            await connector.bounds(topic)
            await connector.announce(topic, "n", b"x")
        server.stop()
        server.config = LEAST
        server.start()
        async with running(f"nats://node:x@127.0.0.1:{server.port}") as connector:
            await connector.send(topic, texts("a"))
            await connector.announce(topic, "m", b"y")
            assert sorted(await heard(connector, topic)) == ["m", "n"]
            assert bodies(await read(connector, topic, 1)) == [b"a"]
            assert await connector.peek(topic, 0, 1) is not None


async def test_a_password_changed_meanwhile(nats_server: NatsServer, tmp_path: Path, topic: str) -> None:
    """The server comes back and does not know us any more: Unauthorised, not a riddle."""
    async with running(nats_server.url, timeout_s=0.7) as connector:
        await connector.send(topic, texts("a"))
        nats_server.stop()
        nats_server.config = "authorization { user: a, password: b }"
        nats_server.start()
        with pytest.raises(Unauthorised):
            await connector.bounds(topic)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """ca.pem, and one certificate (cert.pem, key.pem) for 127.0.0.1 that is good for server and client."""
    openssl = shutil.which("openssl")
    if openssl is None:
        lacking("there is no openssl on this machine")
    assert openssl is not None
    names = tmp_path / "names"
    names.write_text("subjectAltName=IP:127.0.0.1")
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    for arguments in (
        ["req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test", "-days", "2"],
        ["req", *new_key, "-keyout", "key.pem", "-out", "request", "-subj", "/CN=localhost"],
        ["x509", "-req", "-in", "request", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "cert.pem"],
    ):
        if arguments[0] == "x509":
            arguments += ["-days", "2", "-extfile", str(names)]
        subprocess.run([openssl, *arguments], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


async def test_tls(certificates: Path, tmp_path: Path, topic: str) -> None:
    """The server's certificate is checked against `tls_ca`, and ours is shown."""
    files = {name: certificates / f"{name}.pem" for name in ("ca", "cert", "key")}
    tls = f'tls {{ cert_file: "{files["cert"]}", key_file: "{files["key"]}", ca_file: "{files["ca"]}", verify: true }}'
    with configured(tmp_path / "server", tls) as server:
        host = f"127.0.0.1:{server.port}"
        ours = f"tls_ca={files['ca']}&tls_cert={files['cert']}&tls_key={files['key']}"
        for scheme in ("tls", "nats"):
            async with running(f"{scheme}://{host}?{ours}") as connector:
                await connector.send(topic, texts("a"))
                await asyncio.to_thread(server.restart)
                await connector.send(topic, texts("b"))
        with pytest.raises(Unauthorised, match=r"(?i)certificate"):
            async with running(f"tls://{host}?tls_cert={files['cert']}&tls_key={files['key']}"):
                pass
        with pytest.raises(ConnectorError) as error:
            async with running(f"tls://{host}?tls_ca={files['ca']}"):
                pass
        assert error.value.retryable


@pytest.mark.parametrize("userinfo", ["", "tom:secret@", "token@"])
async def test_tls_is_insisted_on(nats_server: NatsServer, userinfo: str) -> None:
    """With tls://, a server without TLS gets no secret and no message."""
    heard_in_clear = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", nats_server.port)
        writer.write(await server_reader.readline())
        heard_in_clear.extend(await reader.read(4096))
        writer.close()
        server_writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as listener:
        with pytest.raises(ConnectorError):
            async with running(f"tls://{userinfo}127.0.0.1:{listener.sockets[0].getsockname()[1]}"):
                pass
    assert b"secret" not in heard_in_clear
    assert b"token@" not in heard_in_clear
    with pytest.raises(Unauthorised, match=r"(?i)encrypt|secure"):
        async with running(f"tls://{userinfo}127.0.0.1:{nats_server.port}"):
            pass


class ScriptedServer:
    """Speaks enough of the protocol to be connected to, and answers as the test says.

    Args:
        script: Called with the server, the subject and the reply subject of each publish.
        version: What it says it is.
        greeting: What it says to each connection, in turn; then "PONG".
    """

    def __init__(
        self,
        script: Callable[[ScriptedServer, str, str], None] = lambda server, subject, reply: None,
        *,
        version: str = "2.14.0",
        greetings: Sequence[str] = (),
    ) -> None:
        self._script = script
        self._info = {"server_id": "x", "version": version, "headers": True, "max_payload": 1048576, "proto": 1}
        self._greetings = list(greetings)
        self._subscriptions: dict[str, str] = {}
        self._writer: asyncio.StreamWriter | None = None
        self.published: list[str] = []
        """Subjects of publishes, in order."""
        self.url = ""

    async def __aenter__(self) -> ScriptedServer:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"nats://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.close()
        await self._listener.wait_closed()

    def say(self, inbox: str, body: object = b"", *, status: str = "", subject: str = "", reply: str = "") -> None:
        """A message for whoever listens at `inbox`: with this body (JSON unless bytes), or this status line."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        sid = next(
            sid for heard, sid in self._subscriptions.items() if inbox == heard or inbox.startswith(heard.rstrip("*"))
        )
        assert self._writer is not None
        head = f"NATS/1.0 {status}\r\n\r\n".encode() if status else b""
        if head:
            line = f"HMSG {subject or inbox} {sid} {reply} {len(head)} {len(head) + len(payload)}"
        else:
            line = f"MSG {subject or inbox} {sid} {reply} {len(payload)}"
        self._writer.write(line.encode() + b"\r\n" + head + payload + b"\r\n")

    def deliver(self, inbox: str, consumer: str, *, position: int, number: int, behind: int = 0) -> None:
        """Message `position` of a stream, `number` of a consumer."""
        reply = f"$JS.ACK.sk-t.{consumer}.1.{position}.{number}.{position}000.{behind}"
        self.say(inbox, b"%d" % position, subject="sk.t.x", reply=reply)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # the client may leave at any time
            await self._talk(reader, writer)
        writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._subscriptions.clear()
        writer.write(f"INFO {json.dumps(self._info)}\r\n".encode())
        while line := (await reader.readline()).decode().split():
            if line[0] == "PING":
                said = self._greetings.pop(0) if self._greetings else "PONG"
                if not said:
                    break
                writer.write(f"{said}\r\n".encode())
            elif line[0] == "SUB":
                self._subscriptions[line[1]] = line[-1]
            elif line[0] in ("PUB", "HPUB"):
                await reader.readexactly(int(line[-1]) + 2)
                has_reply = len(line) == (4 if line[0] == "PUB" else 5)
                self.published.append(line[1])
                self._script(self, line[1], line[2] if has_reply else "")


def jetstream(server: ScriptedServer, subject: str, reply: str) -> bool:
    """What every JetStream server answers; False if this is something else."""
    created = "2026-01-01T00:00:00.5Z"
    if subject == "$JS.API.INFO":
        server.say(reply, {})
    elif subject.startswith("$JS.API.STREAM.INFO."):
        server.say(reply, {"created": created, "config": {"subjects": ["sk.t.*"]}, "state": {"last_seq": 9}})
    elif subject.startswith("$JS.API.STREAM.MSG.GET."):
        server.say(reply, {"error": {"code": 404, "err_code": 10037, "description": "no message found"}})
    elif subject.startswith("$JS.API.CONSUMER.CREATE."):
        server.say(reply, {"created": created, "num_pending": 3})
    else:
        return False
    return True


async def test_one_message_is_not_taken_and_another_not_answered() -> None:
    """No acknowledgement is taken for success: what was under way when the call had to start over goes again."""
    count = 0
    answered: list[str] = []

    def script(server: ScriptedServer, subject: str, reply: str) -> None:
        nonlocal count
        if jetstream(server, subject, reply):
            return
        count += 1
        if count == 2:
            server.say(reply, status="503")
        elif count > 3 or count == 1:
            answered.append(subject)
            server.say(reply, {"stream": "sk-t", "seq": count})

    async with ScriptedServer(script) as server, running(server.url) as connector:
        sent = numbers(1, 3)
        assert dict(await connector.send("t", sent)) == {0: 5}
        assert len(set(answered)) == 3


async def test_an_answer_that_cannot_be_read() -> None:
    """A clear error, not a crash and not success."""

    def script(server: ScriptedServer, subject: str, reply: str) -> None:
        if not jetstream(server, subject, reply):
            server.say(reply, b"+OK whatever")

    async with ScriptedServer(script) as server, running(server.url) as connector:
        with pytest.raises(Rejected, match="cannot be read"):
            await connector.send("t", texts("a"))


async def test_a_skipped_message_is_fetched() -> None:
    """A hole in the consumer's own numbers: a new consumer begins behind the last message that came in order."""
    consumers: list[str] = []

    def script(server: ScriptedServer, subject: str, reply: str) -> None:
        if subject.startswith("$JS.API.CONSUMER.CREATE."):
            consumers.append(subject.split(".")[-1])
        if jetstream(server, subject, reply) or not subject.startswith("$JS.API.CONSUMER.MSG.NEXT."):
            return
        if len(consumers) == 1:
            server.deliver(reply, consumers[0], position=1, number=1, behind=2)
            server.deliver(reply, consumers[0], position=3, number=3)
            server.deliver(reply, "another", position=7, number=1)
        else:
            server.deliver(reply, consumers[0], position=8, number=2)
            server.deliver(reply, consumers[1], position=2, number=1, behind=1)
            server.deliver(reply, consumers[1], position=3, number=2)

    async with ScriptedServer(script) as server, running(server.url) as connector:
        assert [each.position for each in await read(connector, "t", 3)] == [1, 2, 3]
    assert len(consumers) == 2


@pytest.mark.parametrize("status", ["408 Request Timeout", "409 Message Size Exceeds MaxBytes", "409 Batch Completed"])
async def test_a_pull_that_is_over_is_followed_by_the_next(status: str) -> None:
    """No consumer is made anew for that, and no heartbeat waited for."""
    pulls = 0
    consumers: list[str] = []

    def script(server: ScriptedServer, subject: str, reply: str) -> None:
        nonlocal pulls
        if subject.startswith("$JS.API.CONSUMER.CREATE."):
            consumers.append(subject.split(".")[-1])
        if jetstream(server, subject, reply) or not subject.startswith("$JS.API.CONSUMER.MSG.NEXT."):
            return
        pulls += 1
        if pulls == 5:
            server.deliver(reply, consumers[0], position=1, number=1)
        else:
            server.say(reply, status=f"{status}\r\nNats-Pending-Messages: 64\r\nNats-Pending-Bytes: 0")

    async with ScriptedServer(script) as server, running(server.url) as connector, asyncio.timeout(3):
        assert len(await read(connector, "t", 1, batch_max=1)) == 1
    assert len(consumers) == 1


async def test_a_batch_does_not_wait_for_ever_to_be_full() -> None:
    """The server has more ready, and it does not come: what is there is handed out."""

    def script(server: ScriptedServer, subject: str, reply: str) -> None:
        if not jetstream(server, subject, reply) and ".MSG.NEXT." in subject:
            server.deliver(reply, subject.split(".")[-1], position=1, number=1, behind=99)

    async with ScriptedServer(script) as server, running(server.url) as connector, asyncio.timeout(3):
        assert len(await read(connector, "t", 1, batch_max=10)) == 1


async def test_heartbeats_keep_a_reader_waiting() -> None:
    """An idle server that says so is well: no consumer is made anew."""
    beats = 0

    def script(server: ScriptedServer, subject: str, reply: str) -> None:
        def beat() -> None:
            nonlocal beats
            beats += 1
            if beats == 8:
                server.deliver(reply, subject.split(".")[-1], position=1, number=1)
            else:
                server.say(reply, status="100 Idle Heartbeat")
                asyncio.get_running_loop().call_later(0.1, beat)

        if not jetstream(server, subject, reply) and ".MSG.NEXT." in subject:
            beat()

    async with ScriptedServer(script) as server, running(server.url, heartbeat_s=0.15) as connector:
        assert len(await read(connector, "t", 1)) == 1
        assert sum(each.startswith("$JS.API.CONSUMER.CREATE.") for each in server.published) == 1


async def test_a_consumer_that_is_dead_without_a_word() -> None:
    """The connection lives and the consumer does not: missing heartbeats tell, and only the consumer is made anew."""
    consumers: list[str] = []

    def script(server: ScriptedServer, subject: str, reply: str) -> None:
        if subject.startswith("$JS.API.CONSUMER.CREATE."):
            consumers.append(subject.split(".")[-1])
        if not jetstream(server, subject, reply) and ".MSG.NEXT." in subject and len(consumers) == 2:
            server.deliver(reply, consumers[1], position=1, number=1)

    async with ScriptedServer(script) as server, running(server.url, heartbeat_s=0.1) as connector:

        async def chat() -> None:
            while True:
                await connector.bounds("t")

        chatting = asyncio.ensure_future(chat())
        assert len(await read(connector, "t", 1)) == 1
        chatting.cancel()
        await asyncio.wait({chatting})
        assert server.published.count("$JS.API.INFO") == 1


async def test_one_server_refuses_and_another_is_away() -> None:
    """Not being let in is what is reported, in whatever order they are tried."""
    for _ in range(8):
        async with ScriptedServer(greetings=["-ERR 'Authorization Violation'"] * 9) as server:
            with pytest.raises(Unauthorised, match="Authorization"):
                async with running(f"{server.url},127.0.0.1:{free_port()}"):
                    pass


async def test_a_server_that_is_too_old() -> None:
    """It says which one it is, and which is needed."""
    async with ScriptedServer(version="2.9.10") as server:
        with pytest.raises(Rejected, match=r"nats-server 2\.9.*2\.10 or newer"):
            async with running(server.url):
                pass


async def test_a_server_that_never_answers() -> None:
    """A time-out of ours, not silence."""
    async with ScriptedServer() as server:
        with pytest.raises(Timeout):
            async with running(server.url, timeout_s=0.3):
                pass


async def test_a_server_without_jetstream(tmp_path: Path) -> None:
    """The hint says how to start it."""
    with NatsServer(tmp_path) as server:
        config = tmp_path / "bare.conf"
        port = free_port()
        config.write_text(f'listen: "127.0.0.1:{port}"\n')
        bare = subprocess.Popen([server.binary, "-c", config], stderr=subprocess.DEVNULL)
        try:
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                await asyncio.sleep(0.02)
            with pytest.raises(ConnectorError) as error:
                async with running(f"nats://127.0.0.1:{port}"):
                    pass
            assert "-js" in error.value.hint
        finally:
            bare.kill()
            bare.wait()


# --------------------------------------------------------------------------------------------------------- construction


@pytest.mark.parametrize(
    "url",
    [
        "nats:",
        "nats://",
        "http://127.0.0.1",
        "nats://127.0.0.1:0",
        "nats://127.0.0.1:99999",
        "nats://127.0.0.1:port",
        "nats://:4222",
        "nats://a,,b",
        "nats://a?replica=3",
        "nats://a?replicas=0",
        "nats://a?replicas=many",
        "nats://a?storage=tape",
        "nats://a?timeout_s=0",
        "nats://a?heartbeat_s=60",
        "nats://a?max_age_s=-1",
        "nats://a?max_age_s=nan",
        "nats://a?tls_ca=/does/not/exist",
        "nats://a?creds=/does/not/exist",
        f"nats://a?tls_ca={__file__}",
        f"nats://a?creds={json.__file__}",
    ],
)
def test_a_wrong_url_or_option_is_a_clear_error(url: str) -> None:
    """At construction, before anything happens."""
    with pytest.raises(ConfigError):
        NatsConnector(url)


def test_keywords_go_before_the_url() -> None:
    """One option, two ways to say it."""
    connector = NatsConnector("nats://h?replicas=3&timeout_s=2.5", replicas=1)
    assert (connector.options.replicas, connector.options.timeout_s) == (1, 2.5)
    with pytest.raises(ConfigError, match="replica"):
        NatsConnector("nats://h", replica=1)


def test_an_ipv6_address_and_a_default_port() -> None:
    """Hosts as people write them."""
    NatsConnector("nats://[::1]")
    NatsConnector("nats://[::1]:4222,example.org")


def test_without_nats_py() -> None:
    """The connector's file is imported without it; a connector is not made, and the error is the command."""
    program = (
        "import sys; sys.modules['nats'] = None\n"
        "from synckit_connectors.nats_jetstream import NatsConnector\n"
        "from synckit_streams.errors import MissingDependency\n"
        "try: NatsConnector('nats://127.0.0.1')\n"
        "except MissingDependency as error: print(error.hint)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert said.stdout.strip() == "pip install 'synckit-streams[nats]'"


def test_importing_the_connector_imports_no_client() -> None:
    """nats-py is only loaded by who makes a connector."""
    program = "import sys, synckit_connectors.nats_jetstream; print('nats' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert said.stdout.strip() == "False"


async def test_the_marker_comes_at_once_when_nobody_announced(nats_url: str, topic: str) -> None:
    """A first listener does not wait for a time-out to know that there is nothing."""
    async with running(nats_url) as connector, connector.listen(topic) as announcements:
        assert await anext(announcements) == Announced("", b"", 0.0)
