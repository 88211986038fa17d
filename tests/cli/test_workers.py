"""The parts of `synckit run` that need no processes: the wire between them, what is watched, and a service run here."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp
import pytest

from synckit_streams.cli.workers.here import Where, run_here
from synckit_streams.cli.workers.lifetime import Deadline
from synckit_streams.cli.workers.watching import Sources
from synckit_streams.cli.workers.wire import FRAME_BYTES_MAX, Ask, Frame, Ready, Told, Wire
from synckit_streams.errors import FrameMalformed
from synckit_streams.observe.exposition import Family, Sample
from synckit_streams.ports.operation import Check, Hooked, Standing
from tests.cli.services import Steady


async def test_what_is_said_over_the_wire_arrives_whole() -> None:
    """Also what is much larger than a socket's buffer; and the end is heard."""
    here, there = [await Wire.over(each) for each in socket.socketpair()]
    metrics = [
        Family(f"m_{n}", "x" * 1000, "counter", "", [Sample(f"m_{n}_total", {"a": "b"}, n)]) for n in range(2000)
    ]
    frames: list[Frame] = [
        Ready(),
        Ask(1, "metrics"),
        Told(1, checks=[Check("store", False, True, "no room")], metrics=metrics),
    ]

    async def say() -> None:
        for each in frames:
            await here.send(each)
        here.close()

    saying = asyncio.create_task(say())
    assert [await there.receive() for _ in frames] == frames
    assert await there.receive() is None
    await saying
    await there.send(Ready())  # nobody hears it, and nobody is hurt
    there.close()


@pytest.mark.parametrize(
    "raw", [b"\x00\x00\x00\x03abc", (FRAME_BYTES_MAX + 1).to_bytes(4, "big")], ids=["no frame", "too large"]
)
async def test_something_else_on_the_wire_is_an_error(raw: bytes) -> None:
    ours, theirs = socket.socketpair()
    wire = await Wire.over(ours)
    with theirs:
        theirs.sendall(raw)
        with pytest.raises(FrameMalformed):
            await wire.receive()
    wire.close()


async def test_what_is_written_made_or_removed_is_noticed_and_an_environment_is_not(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    written, removed = tmp_path / "shop" / "app.py", tmp_path / "old.py"
    for each in (written, removed):
        each.write_text("1")
    environment = tmp_path / "env"
    environment.mkdir()
    (environment / "pyvenv.cfg").touch()
    sources = Sources([tmp_path])
    (environment / "lib.py").write_text("2")
    (tmp_path / "notes.txt").write_text("2")
    written.write_text("22")
    removed.unlink()
    made = tmp_path / "new.py"
    made.write_text("3")
    assert set(await sources.changed()) == {written, removed, made}


class Mill(Steady):
    """A service with one pipeline and one webhook; see `Pipelines` and `Hooks`."""

    def __init__(self) -> None:
        super().__init__("mill")
        self.kept: list[bytes] = []
        self.hooks = {"in": self.keep}

    async def keep(self, headers: Mapping[str, str], body: bytes) -> Hooked:
        self.kept.append(body)
        return Hooked(204)

    def standings(self) -> Sequence[Standing]:
        return [Standing("mill", "running", "file:///a", "memory://b")]

    async def pause(self, name: str) -> None: ...
    async def resume(self, name: str) -> None: ...
    async def restart(self, name: str) -> None: ...


async def test_a_service_here_shows_its_pipelines_takes_webhooks_and_hears_its_signals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """SIGHUP is whatever its command makes of it, and SIGTERM ends it."""
    monkeypatch.chdir(tmp_path)
    hung_up, deadline = asyncio.Event(), Deadline(5)
    mill = Mill()
    with caplog.at_level(logging.INFO):
        running = asyncio.create_task(
            run_here(
                mill,
                drain_s=5,
                where=Where("127.0.0.1", 0),
                deadline=deadline,
                hang_up=hung_up.set,
            )
        )
        async with asyncio.timeout(20):
            while "is ready" not in caplog.text:  # noqa: ASYNC110 - a log sets no event
                await asyncio.sleep(0.01)
    found = re.search(r"at (http://\S+)/metrics", caplog.text)
    assert found
    async with asyncio.timeout(20), aiohttp.ClientSession(found[1]) as client:
        async with client.get("/connectors") as response:
            assert await response.json() == ["mill"]
        async with client.post("/hooks/in", data=b"{}") as response:
            assert (response.status, mill.kept) == (204, [b"{}"])
        signal.raise_signal(signal.SIGHUP)
        await hung_up.wait()
        assert not running.done()
        signal.raise_signal(signal.SIGTERM)
        assert await running == 0
    deadline.lift()
    assert "stopped with 5 s" in (tmp_path / "journal").read_text()
