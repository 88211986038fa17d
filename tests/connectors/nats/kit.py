"""A connector for a while, whoever runs the server, and what stands between the two."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import nats

from synckit_connectors.nats_jetstream import NatsConnector
from synckit_streams.ports.connector import Message
from synckit_streams.testing.brokers import NatsServer

DEADLINE_S = 60.0


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


async def delete_consumers(admin: Any, topic: str) -> None:
    for each in await admin.consumers_info(f"sk-{topic}"):
        await admin.delete_consumer(f"sk-{topic}", each.name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def configured(directory: Path, config: str) -> Iterator[NatsServer]:
    with NatsServer(directory, config=config) as server:
        yield server


@asynccontextmanager
async def put_back(server: NatsServer, copy: Path) -> AsyncIterator[None]:
    """What happens meanwhile is gone afterwards: the server has the store again that it had before."""
    await asyncio.to_thread(server.stop)
    shutil.copytree(server.store_dir, copy)
    await asyncio.to_thread(server.start)
    yield
    await asyncio.to_thread(server.stop)
    shutil.rmtree(server.store_dir)
    shutil.copytree(copy, server.store_dir)
    await asyncio.to_thread(server.start)
