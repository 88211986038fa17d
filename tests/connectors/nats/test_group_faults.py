"""A group loses nothing when members, connections or servers do; and every call ends."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from synckit_connectors.nats_jetstream import NatsConnector
from synckit_streams.errors import ConnectorError, Timeout, Unavailable
from synckit_streams.ports.connector import Connector, Member, Progress
from synckit_streams.testing.brokers import NatsServer
from synckit_streams.testing.connector_contract import bodies
from tests.connectors.nats.kit import Proxy, administrator, numbers, running, texts, until

PROGRAM = Path(__file__).parent / "member.py"


def joined(connector: Connector, topic: str, *, batch_max: int = 20) -> Any:
    return connector.join(topic, group="g", start={}, batch_max=batch_max)


async def work(member: Member, done: list[bytes], until_done: int) -> None:
    with suppress(StopAsyncIteration):
        while len(set(done)) < until_done:
            batch = await anext(member)
            done.extend(bodies(batch))
            await member.ack(batch)


async def settled(connector: Connector, topic: str) -> None:
    async def nothing_is_left() -> bool:
        return not (await connector.progress(topic, group="g")).lag

    await until(nothing_is_left)


async def test_members_killed_in_mid_batch(nats_server: NatsServer, tmp_path: Path, topic: str) -> None:
    """kill -9 of processes at work, again and again: what they had comes to others after `ack_wait_s`."""
    files = [tmp_path / str(number) for number in range(3)]

    def done() -> set[bytes]:
        return {line for file in files if file.exists() for line in file.read_bytes().split()}

    async def started(file: Path) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(sys.executable, PROGRAM, nats_server.url, topic, file)

    async with running(nats_server.url, ack_wait_s=1.0) as connector:
        await connector.send(topic, numbers(1, 2000))
        members = [await started(file) for file in files]
        try:
            for kill in range(1, 5):
                await until(lambda kill=kill: len(done()) >= 400 * kill)  # type: ignore[misc]
                members[kill % 3].kill()
                await members[kill % 3].wait()
                members[kill % 3] = await started(files[kill % 3])
            await until(lambda: len(done()) == 2000)
            await settled(connector, topic)
        finally:
            for each in members:
                each.kill()
                await each.wait()
    assert done() == {b"%d" % number for number in range(1, 2001)}


async def test_a_server_killed_in_mid_batch(tmp_path: Path, topic: str) -> None:
    """kill -9 and restarts while three members work: each message is done, and at the end acknowledged."""
    done: list[bytes] = []
    with NatsServer(tmp_path, sync_always=True) as server:
        async with (
            running(server.url, ack_wait_s=1.0, timeout_s=20) as connector,
            running(server.url, ack_wait_s=1.0, timeout_s=20) as other,
        ):
            await connector.send(topic, numbers(1, 3000))
            async with (
                joined(connector, topic) as a,
                joined(connector, topic) as b,
                joined(other, topic) as c,
            ):
                working = [asyncio.ensure_future(work(each, done, 3000)) for each in (a, b, c)]
                for count in (500, 1200, 2000):
                    await until(lambda count=count: len(set(done)) >= count or any(each.done() for each in working))  # type: ignore[misc]
                    await asyncio.to_thread(server.kill)
                    await asyncio.to_thread(server.start)
                await until(lambda: any(each.done() for each in working))
                await asyncio.wait(working, timeout=0.1)
                for each in working:
                    each.cancel()
                await asyncio.gather(*working, return_exceptions=True)
                async with joined(other, topic) as last:
                    finishing = asyncio.ensure_future(work(last, done, 3001))
                    await settled(connector, topic)
                    finishing.cancel()
                    await asyncio.wait([finishing])
    assert set(done) == {b"%d" % number for number in range(1, 3001)}


async def test_only_what_was_not_on_disk_comes_again(tmp_path: Path, topic: str) -> None:
    """The server is killed after `ack` returned, and after it wrote how the group stands: so it stands afterwards."""
    with NatsServer(tmp_path, sync_always=True) as server:

        def written() -> float:
            there = [each.stat() for each in server.store_dir.rglob("obs/**/*.dat")]
            # The server empties a file before it writes it anew, and forgets the group if it is killed in between.
            return max(each.st_mtime_ns for each in there) if all(each.st_size for each in there) else 0

        async with running(server.url, timeout_s=20) as connector:
            await connector.send(topic, numbers(1, 400))
            async with joined(connector, topic, batch_max=100) as member:
                await member.ack(await anext(member))
                before = written()
                held = await anext(member)  # something new to write
                await until(lambda: written() > before)
                await asyncio.to_thread(server.kill)
                await asyncio.to_thread(server.start)
                assert (await connector.progress(topic, group="g")).acknowledged == {0: 100}
                await member.ack(held)
                assert (await connector.progress(topic, group="g")).acknowledged == {0: 200}


async def test_a_delivery_that_the_server_has_forgotten(nats_server: NatsServer, topic: str) -> None:
    """Killed before it wrote that it delivered: it would not answer to the acknowledgement. The messages come again."""
    now = asyncio.get_running_loop().time
    async with (
        running(nats_server.url, timeout_s=20, ack_wait_s=1.0) as connector,
        joined(connector, topic) as member,
    ):
        forgotten, sent = False, 0
        while not forgotten:
            await connector.send(topic, numbers(sent + 1, sent + 20))
            sent += 20
            batch = await anext(member)
            await asyncio.to_thread(nats_server.kill)
            await asyncio.to_thread(nats_server.start)
            async with administrator(nats_server.url) as admin:
                info = await admin.consumer_info(f"sk-{topic}", "skg-g")
            forgotten = info.delivered.stream_seq < batch[-1].position
            started = now()
            await member.ack(batch)
            assert now() - started < 3
        done: set[int] = set()
        while (await connector.progress(topic, group="g")).lag:
            batch = await anext(member)
            done |= {each.position for each in batch}
            await member.ack(batch)
        assert sent in done


async def test_members_come_and_go_every_second(nats_url: str, topic: str) -> None:
    """Three of them, while 3,000 messages flow; each leaves in mid-batch. Nobody waits for what they had."""
    done: list[bytes] = []
    now = asyncio.get_running_loop().time
    async with running(nats_url) as writer:

        async def write() -> None:
            for at in range(0, 3000, 10):
                await writer.send(topic, numbers(at + 1, at + 10))
                await asyncio.sleep(0.01)  # as producers do

        async def come_and_go(stay_s: float) -> None:
            async with running(nats_url) as connector:
                while len(set(done)) < 3000:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(stay_s), joined(connector, topic) as member:
                            await work(member, done, 3000)
                    stay_s = 1.0

        started = now()
        await asyncio.gather(write(), *(come_and_go(stay_s) for stay_s in (0.3, 0.6, 1.0)))
        assert now() - started < 25  # less than `ack_wait_s`
        async with running(nats_url) as connector, joined(connector, topic) as member:
            working = asyncio.ensure_future(work(member, done, 3001))
            await settled(connector, topic)
            working.cancel()
            await asyncio.wait([working])
    assert set(done) == {b"%d" % number for number in range(1, 3001)}


async def test_an_acknowledgement_after_a_reconnect_counts(nats_server: NatsServer, topic: str) -> None:
    """The connection is lost within a batch: what was taken before is acknowledged over the next one, at once."""
    done: set[int] = set()
    async with Proxy(nats_server.port) as proxy, running(proxy.url, ack_wait_s=2.0) as connector:
        await connector.send(topic, numbers(1, 100))
        async with joined(connector, topic) as member:
            while len(done) < 100:
                batch = await anext(member)
                proxy.cut()
                await member.ack(batch)
                done.update(int(each) for each in bodies(batch))
                # What was under way when the connection was cut comes after the others.
                whole = next(number for number in count() if number + 1 not in done)
                assert (await connector.progress(topic, group="g")).acknowledged == {0: whole}
            await settled(connector, topic)


async def test_an_acknowledgement_that_nobody_answers(nats_server: NatsServer, topic: str) -> None:
    """Told, and cut off before the answer; or a connection that carries nothing any more: it is told again."""
    async with Proxy(nats_server.port) as proxy, running(proxy.url, timeout_s=2) as connector:
        await connector.send(topic, numbers(1, 40))
        async with joined(connector, topic) as member:
            first, second = await anext(member), await anext(member)
            proxy.hold()
            acknowledging = asyncio.ensure_future(member.ack(first))
            async with running(nats_server.url) as other:

                async def acknowledged() -> bool:
                    return (await other.progress(topic, group="g")).acknowledged == {0: 20}

                await until(acknowledged)
                assert not acknowledging.done()
                proxy.cut()
                proxy.release()
                await acknowledging
            proxy.freeze()
            await member.ack(second)
            assert await connector.progress(topic, group="g") == Progress({0: 40}, 0, 0)


async def test_a_member_on_a_half_open_connection(nats_server: NatsServer, topic: str) -> None:
    """It waits, and nothing comes, not even heartbeats: it takes another connection, and goes on."""
    async with (
        Proxy(nats_server.port) as proxy,
        running(proxy.url, heartbeat_s=0.1, timeout_s=2, ack_wait_s=0.5) as connector,
        running(nats_server.url) as other,
        joined(connector, topic) as member,
    ):
        await connector.send(topic, texts("a"))
        await member.ack(await anext(member))
        waiting = asyncio.ensure_future(anext(member))
        proxy.freeze()
        await other.send(topic, texts("b"))
        batch = await waiting
        assert bodies(batch) == [b"b"]
        await member.ack(batch)
        await settled(other, topic)


async def test_a_server_restarted_under_a_waiting_member(nats_server: NatsServer, topic: str) -> None:
    """It goes on by itself."""
    async with running(nats_server.url, timeout_s=20) as connector, joined(connector, topic) as member:
        waiting = asyncio.ensure_future(anext(member))
        for body in ("a", "b"):
            await asyncio.to_thread(nats_server.restart)
            await connector.send(topic, texts(body))
            batch = await waiting
            assert bodies(batch) == [body.encode()]
            await member.ack(batch)
            waiting = asyncio.ensure_future(anext(member))
        waiting.cancel()
        await asyncio.wait([waiting])


async def test_every_call_of_a_member_ends(nats_server: NatsServer, topic: str) -> None:
    """The server is frozen: what is asked of it fails, and may be tried again. So does leaving, in silence."""
    now = asyncio.get_running_loop().time
    before = asyncio.all_tasks()
    connector = NatsConnector(nats_server.url, timeout_s=0.5, heartbeat_s=0.1)
    await connector.open()
    await connector.send(topic, numbers(1, 100))
    async with joined(connector, topic) as member:
        batch = await anext(member)
        with nats_server.frozen():
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: member.ack(batch),
                lambda: member.nack(batch),
                lambda: member.term(batch),
                lambda: member.extend(batch),
                lambda: connector.progress(topic, group="g"),
                lambda: connector.find(topic, at_ms=0),
            ]
            for call in calls:
                started = now()
                with pytest.raises((Timeout, Unavailable)) as error:
                    await call()
                assert error.value.retryable
                assert now() - started < 5
        await member.ack(batch)
        assert (await connector.progress(topic, group="g")).acknowledged == {0: 20}
        await anext(member)
    async with joined(connector, topic) as member:
        await anext(member)
        with nats_server.frozen():
            started = now()
            await connector.close()
            assert now() - started < 3
    await until(lambda: asyncio.all_tasks() == before)


async def test_whatever_is_cancelled_the_next_call_works(nats_server: NatsServer, topic: str) -> None:
    """Each verb is given up after some turns of the loop, and called again: nothing is lost, and nothing is stuck."""
    async with running(nats_server.url) as connector, joined(connector, topic) as member:
        for patience in range(25):
            await connector.send(topic, numbers(1, 20))
            batch = await anext(member)
            for verb in (member.extend, member.ack):
                telling = asyncio.ensure_future(verb(batch))
                for _ in range(patience):
                    await asyncio.sleep(0)
                telling.cancel()
                with suppress(asyncio.CancelledError):
                    await telling
                await verb(batch)
            while (await connector.progress(topic, group="g")).lag:
                await member.ack(await anext(member))


async def test_leaving_after_the_end(nats_server: NatsServer, topic: str) -> None:
    """The connector was closed before: the context ends well, and its verbs say that it is closed."""
    connector = NatsConnector(nats_server.url)
    await connector.open()
    await connector.send(topic, numbers(1, 5))
    async with joined(connector, topic) as member:
        batch = await anext(member)
        await connector.close()
        with pytest.raises(StopAsyncIteration):
            await anext(member)
        with suppress(ConnectorError):
            await member.ack(batch)
