"""The fault proxy before a plain server: every fault is seen to strike open connections, and to end without a trace."""

from __future__ import annotations

import asyncio
import gc
import socket
import struct
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from synckit_streams.errors import ConfigError, ConnectorError
from synckit_streams.testing import FaultProxy

SOON_S = 10.0
"""For what comes at once, on a busy machine."""
QUIET_S = 0.15
"""For how long nothing comes, where nothing may."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo:
    """Says everything back, and notes what became of its connections."""

    def __init__(self) -> None:
        self.heard = b""
        self.ends: list[str] = []
        self.writers: list[asyncio.StreamWriter] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        try:
            while data := await reader.read(65536):
                self.heard += data
                writer.write(data)
                await writer.drain()
            self.ends.append("hung up")
        except ConnectionError:
            self.ends.append("reset")
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


def open_sockets() -> int:
    return len([each for each in Path("/proc/self/fd").iterdir() if each.is_symlink() and _is_socket(each)])


def _is_socket(path: Path) -> bool:
    with suppress(OSError):
        return str(path.readlink()).startswith("socket:")
    return False


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
async def server(echo: Echo) -> AsyncIterator[str]:
    """The URL of an echo server."""
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    yield f"echo://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    for writer in echo.writers:
        writer.transport.abort()


@pytest.fixture
async def proxy(server: str) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(server) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
async def nothing_stays(server: str) -> AsyncIterator[None]:
    """Behind every test: no task of a proxy's. The test's own clients are let go of."""
    yield
    for each in CLIENTS:
        each.transport.abort()
        with suppress(ConnectionError):
            await each.wait_closed()
    CLIENTS.clear()
    await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name() == "synckit-fault-proxy"])


CLIENTS: list[asyncio.StreamWriter] = []


async def dial(proxy: FaultProxy) -> Streams:
    async with asyncio.timeout(SOON_S):
        streams = await asyncio.open_connection("127.0.0.1", proxy.port)
    CLIENTS.append(streams[1])
    return streams


async def says(streams: Streams, data: bytes) -> bytes:
    """Say something, and wait until as much has come back."""
    reader, writer = streams
    writer.write(data)
    async with asyncio.timeout(SOON_S):
        await writer.drain()
        return await reader.readexactly(len(data))


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def silent(streams: Streams) -> bool:
    """Whether nothing comes, not even an end."""
    with suppress(TimeoutError):
        async with asyncio.timeout(QUIET_S):
            await streams[0].read(1)
        return False
    return True


async def test_what_is_said_arrives_whole_and_so_does_the_end(proxy: FaultProxy, echo: Echo) -> None:
    """Also more than all queues hold, and also after one side has said its last."""
    streams = await dial(proxy)
    data = bytes(range(256)) * 20_000
    talk = asyncio.create_task(streams[0].readexactly(len(data)))
    streams[1].write(data)
    streams[1].write_eof()
    async with asyncio.timeout(SOON_S):
        assert await talk == data
        assert await streams[0].read() == b""
    assert echo.heard == data
    assert echo.ends == ["hung up"]
    assert (proxy.bytes_up, proxy.bytes_down) == (len(data), len(data))
    await until(lambda: proxy.connections == 0)
    assert proxy.accepted == 1


async def test_cut_resets_both_sides_and_the_next_connection_is_carried(proxy: FaultProxy, echo: Echo) -> None:
    several = [await dial(proxy) for _ in range(3)]
    for streams in several:
        assert await says(streams, b"one") == b"one"
    assert proxy.cut() == 3
    for reader, _ in several:
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(SOON_S):
                await reader.read(1)
    await until(lambda: echo.ends == ["reset"] * 3)
    await until(lambda: proxy.connections == 0)
    assert await says(await dial(proxy), b"two") == b"two"
    assert proxy.accepted == 4


async def test_a_connection_that_was_just_accepted_can_be_cut(proxy: FaultProxy) -> None:
    """Before its task ran at all, and while it connects to the server."""
    for turns in range(6):
        reader, _ = await dial(proxy)
        for _ in range(turns):
            await asyncio.sleep(0)
        proxy.cut()
        with suppress(ConnectionError):
            async with asyncio.timeout(SOON_S):
                while proxy.connections or await reader.read(1):
                    proxy.cut()
                    await asyncio.sleep(0)
    assert await says(await dial(proxy), b"on") == b"on"


async def test_refuse_lets_nobody_in_and_keeps_who_is_there(proxy: FaultProxy) -> None:
    streams = await dial(proxy)
    assert await says(streams, b"one") == b"one"
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        await dial(proxy)
    assert await says(streams, b"two") == b"two"
    proxy.heal()
    assert await says(await dial(proxy), b"three") == b"three"
    assert await says(streams, b"four") == b"four"


@pytest.mark.parametrize("when", ["open", "new"])
async def test_frozen_nothing_is_carried_either_way_and_connections_stay(
    proxy: FaultProxy, echo: Echo, when: str
) -> None:
    """Whether they were open before or came then; afterwards everything arrives, in order."""
    streams = await dial(proxy) if when == "open" else None
    if streams:
        assert await says(streams, b"before") == b"before"
    proxy.freeze()
    streams = streams or await dial(proxy)
    if echo.writers:
        echo.writers[0].write(b"from the server")
    streams[1].write(b"from the client")
    assert await silent(streams)
    assert echo.heard in (b"", b"before")
    proxy.heal()
    wanted = b"from the server" * bool(echo.writers) + b"from the client"
    async with asyncio.timeout(SOON_S):
        assert await streams[0].readexactly(len(wanted)) == wanted


async def test_frozen_nobody_hears_that_the_other_one_is_gone(proxy: FaultProxy, echo: Echo) -> None:
    """Neither that a client hung up nor that a server reset the connection."""
    leaver, stayer = await dial(proxy), await dial(proxy)
    for streams in (leaver, stayer):
        assert await says(streams, b"hello") == b"hello"
    proxy.freeze()
    leaver[1].close()
    reset(echo.writers[1])
    await until(lambda: len(echo.ends) == 1)  # of the one that was reset here, at its own side
    assert await silent(stayer)
    assert len(echo.ends) == 1
    proxy.heal()
    with pytest.raises(ConnectionResetError):
        async with asyncio.timeout(SOON_S):
            await stayer[0].read(1)
    await until(lambda: len(echo.ends) == 2)


async def test_one_way_up_the_server_hears_and_is_not_heard(proxy: FaultProxy, echo: Echo) -> None:
    streams = await dial(proxy)
    assert await says(streams, b"one") == b"one"
    proxy.freeze("down")
    streams[1].write(b"two")
    await until(lambda: echo.heard == b"onetwo")
    assert await silent(streams)
    late = await dial(proxy)
    late[1].write(b"three")
    await until(lambda: echo.heard == b"onetwothree")
    proxy.heal()
    async with asyncio.timeout(SOON_S):
        assert await streams[0].readexactly(3) == b"two"
        assert await late[0].readexactly(5) == b"three"


async def test_one_way_down_the_client_hears_and_is_not_heard(proxy: FaultProxy, echo: Echo) -> None:
    streams = await dial(proxy)
    assert await says(streams, b"one") == b"one"
    proxy.freeze("up")
    echo.writers[0].write(b"news")
    async with asyncio.timeout(SOON_S):
        assert await streams[0].readexactly(4) == b"news"
    streams[1].write(b"two")
    assert await silent(streams)
    assert echo.heard == b"one"
    proxy.heal()
    await until(lambda: echo.heard == b"onetwo")


async def test_slow_delays_both_ways_also_what_is_open(proxy: FaultProxy) -> None:
    """There and back takes two delays and at most two jitters more than without."""
    streams = await dial(proxy)
    await says(streams, b"warm")
    proxy.slow(delay_ms=60, jitter_ms=40)
    took = []
    for _ in range(5):
        started = time.perf_counter()
        assert await says(streams, b"ping") == b"ping"
        took.append(time.perf_counter() - started)
    assert min(took) >= 0.119
    proxy.slow(delay_ms=60_000)
    streams[1].write(b"late")
    assert await silent(streams)
    proxy.heal()
    async with asyncio.timeout(SOON_S):
        assert await streams[0].readexactly(4) == b"late", "what waited for a delay does not wait for its end"


async def test_a_delay_is_no_bandwidth(proxy: FaultProxy) -> None:
    """Many pieces are under way at once, as on a long line, and stay in their order."""
    streams = await dial(proxy)
    proxy.slow(delay_ms=200, jitter_ms=50)
    started = time.perf_counter()
    for number in range(100):
        streams[1].write(b"%03d," % number)
        await asyncio.sleep(0)
    async with asyncio.timeout(SOON_S):
        said = await streams[0].readexactly(400)
    assert said == b"".join(b"%03d," % number for number in range(100))
    assert time.perf_counter() - started < 2


async def test_slow_bounds_the_bandwidth(proxy: FaultProxy) -> None:
    streams = await dial(proxy)
    proxy.slow(bytes_per_s=100_000)
    started = time.perf_counter()
    assert len(await says(streams, bytes(30_000))) == 30_000
    # The way back runs beside the way there.
    assert 0.28 <= time.perf_counter() - started < 3


async def test_memory_is_bounded_and_the_sender_waits(proxy: FaultProxy) -> None:
    """A sender of 64 MB to somebody who does not read, or cannot be reached, is not read either."""
    proxy.freeze("up")
    streams = await dial(proxy)
    streams[1].transport.set_write_buffer_limits(high=0)
    data = bytes(1 << 20)
    tracemalloc.start()
    try:
        with suppress(TimeoutError):
            for _ in range(64):
                streams[1].write(data)
                async with asyncio.timeout(0.5):
                    await streams[1].drain()
        assert streams[1].transport.get_write_buffer_size() > 0, "it took everything"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20  # of which up to 1 MiB is the sender's own, twice


async def test_a_server_that_is_down_resets_whoever_comes() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with FaultProxy(f"echo://127.0.0.1:{port}") as proxy:
        reader, _ = await dial(proxy)
        with pytest.raises(ConnectionResetError):
            async with asyncio.timeout(SOON_S):
                await reader.read(1)
        await until(lambda: proxy.connections == 0)


@pytest.mark.parametrize("fault", ["none", "freeze", "up", "down", "slow", "refuse"])
async def test_close_leaves_no_task_and_no_socket(server: str, echo: Echo, fault: str) -> None:
    """Under whatever fault, with connections in every state."""
    tasks, sockets = asyncio.all_tasks(), open_sockets()
    async with FaultProxy(server) as proxy:
        early = [await dial(proxy) for _ in range(3)]
        for streams in early:
            await says(streams, b"x")
        if fault == "freeze":
            proxy.freeze()
        elif fault == "slow":
            proxy.slow(delay_ms=60_000, bytes_per_s=1)
        elif fault == "refuse":
            proxy.refuse()
        elif fault in ("up", "down"):
            proxy.freeze("up" if fault == "up" else "down")
        late = [] if fault == "refuse" else [await dial(proxy) for _ in range(3)]
        early[0][1].write(b"y" * 100_000)
        early[1][1].close()
        await asyncio.sleep(0.02)
    # At once: whoever closes the event loop next leaves nothing behind.
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "synckit-fault-proxy"]
    await proxy.close()
    for _, writer in [*early, *late]:
        writer.transport.abort()
    for writer in echo.writers:
        writer.transport.abort()
    await until(lambda: asyncio.all_tasks() == tasks)
    del early, late
    gc.collect()
    await until(lambda: open_sockets() <= sockets)
    with pytest.raises(ConnectionRefusedError):
        await dial(proxy)


async def test_a_port_that_is_taken_is_an_error_if_it_was_chosen(proxy: FaultProxy, server: str) -> None:
    with pytest.raises(ConnectorError, match=str(proxy.port)):
        await FaultProxy(server, port=proxy.port).open()


async def test_a_port_that_was_taken_meanwhile_is_told(proxy: FaultProxy, server: str) -> None:
    proxy.refuse()
    async with FaultProxy(server, port=proxy.port):
        with pytest.raises(ConnectorError, match="taken"):
            proxy.heal()


@pytest.mark.parametrize("url", ["", "nats://h", "kafka://a:1,b:2", "nats://h:port", "127.0.0.1:4222"])
def test_a_url_that_names_no_single_server_is_an_error(url: str) -> None:
    with pytest.raises(ConfigError, match="one server"):
        FaultProxy(url)


@pytest.mark.parametrize("wrong", [{"delay_ms": -1}, {"jitter_ms": -0.1}, {"bytes_per_s": -1}])
async def test_a_negative_delay_is_an_error(proxy: FaultProxy, wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="0 or more"):
        proxy.slow(**wrong)


def test_its_url_keeps_what_the_servers_says_besides() -> None:
    proxy = FaultProxy("redis://user:p%40ss@localhost:6379/3?timeout_s=2", port=21_000)
    assert proxy.url == "redis://user:p%40ss@127.0.0.1:21000/3?timeout_s=2"
