"""What a real server does only rarely."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from pathlib import Path

import pytest

from synckit_streams.errors import (
    ConnectorError,
    Rejected,
    Timeout,
    Unauthorised,
)
from synckit_streams.testing.brokers import NatsServer
from synckit_streams.testing.connector_contract import read
from tests.connectors.nats.kit import (
    free_port,
    numbers,
    running,
    texts,
)
from tests.connectors.nats.scripted import ScriptedServer, jetstream


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


async def test_a_question_that_is_not_answered_is_asked_again() -> None:
    """A cluster that chooses its leader is silent: whoever asks does not wait for his whole time-out."""
    asked = 0

    def script(server: ScriptedServer, subject: str, reply: str) -> None:
        nonlocal asked
        asked += subject == "$JS.API.STREAM.INFO.sk-t"
        if asked != 1:
            jetstream(server, subject, reply)

    async with ScriptedServer(script) as server, running(server.url, timeout_s=5) as connector:
        async with asyncio.timeout(2.5):
            assert (await connector.bounds("t"))[0].end == 10
        assert asked == 2
        assert server.published.count("$JS.API.INFO") == 1  # over the same connection


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
