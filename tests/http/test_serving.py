"""Serving inside a loop that has other things to do."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from typing import Any

import aiohttp
import pytest

from synckit_streams import ConfigError
from synckit_streams.http.serving import serve


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "0.0.0.0"])
async def test_it_serves_while_the_block_runs_and_not_after(host: str) -> None:
    async with aiohttp.ClientSession() as session:
        async with serve(hello, host=host) as url:
            url = url.replace("0.0.0.0", "127.0.0.1")
            response = await session.get(url)
            assert await response.text() == "hello"
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get(url)


async def test_signals_stay_with_whoever_called() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    async with serve(hello):
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


async def test_a_port_that_is_taken_is_said_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is taken") as raised:
            async with serve(hello, port=port):
                pass
    assert "--port" in raised.value.hint


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70_000), ("no.such.host.invalid", 0), ("192.0.2.1", 0)])
async def test_an_address_that_cannot_be_had_is_said_in_words(host: str, port: int) -> None:
    with pytest.raises(ConfigError, match=host if port == 0 else str(port)):
        async with serve(hello, host=host, port=port):
            pass


async def test_it_ends_in_time_whatever_clients_do() -> None:
    """One never finishes its request, one is never answered."""
    asked = asyncio.Event()

    async def never(scope: Any, receive: Any, send: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with serve(never, end_s=0.2) as url:
        port = int(url.rpartition(":")[2])
        half = await asyncio.open_connection("127.0.0.1", port)
        half[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n")
        whole = await asyncio.open_connection("127.0.0.1", port)
        whole[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.gather(half[1].drain(), whole[1].drain(), asked.wait())
        began = time.monotonic()
    assert time.monotonic() - began < 5
    for _, writer in (half, whole):
        writer.close()
