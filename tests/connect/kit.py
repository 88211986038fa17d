"""Pipelines in a folder of the test's own, run in this process or as a process of their own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from synckit_streams import Event, SyncNode
from synckit_streams.connect.runner import Runner
from synckit_streams.errors import StoreMissing
from synckit_streams.ports.operation import Standing
from synckit_streams.runtime.ownership import open_reader

SOON_S = 30.0


def declare(folder: Path, *pipelines: Mapping[str, Any], file: str = "pipelines.yaml") -> Path:
    """A file of pipelines."""
    path = folder / file
    path.write_text(yaml.safe_dump({"pipelines": list(map(dict, pipelines))}, sort_keys=False))
    return path


def from_file(name: str = "in", **more: Any) -> dict[str, Any]:
    """A pipeline from `orders.jsonl` to the topic orders of `shop.db`."""
    return {
        "name": name,
        "source": {"kind": "file", "path": "orders.jsonl", "type": "/kind", "aggregate_id": "/order"},
        "sink": {"kind": "store", "store": "sqlite:///shop.db", "topic": "orders"},
        **more,
    }


def order(number: int, **more: Any) -> dict[str, Any]:
    """An order of some producer."""
    return {"kind": "order.placed", "order": f"o-{number % 7}", "n": number, **more}


def write_lines(path: Path, values: Sequence[Any], *, mode: str = "a") -> None:
    """JSON Lines."""
    with path.open(mode) as file:
        file.writelines(json.dumps(value) + "\n" for value in values)


async def move_once(*files: Path, environment: Mapping[str, str] | None = None) -> list[Standing]:
    """Move what is there."""
    runner = Runner(files, once=True, environment=environment)
    await runner.start()
    try:
        await runner.wait()
        return list(runner.standings())
    finally:
        await runner.stop()


@asynccontextmanager
async def moving(*files: Path, environment: Mapping[str, str] | None = None) -> AsyncIterator[Runner]:
    """Pipelines that run during the block."""
    runner = Runner(files, environment=environment)
    await runner.start()
    try:
        yield runner
    finally:
        await runner.stop()


async def until(is_so: Callable[[], bool | Awaitable[bool]], *, within_s: float = SOON_S) -> None:
    """Wait for something to come true."""
    async with asyncio.timeout(within_s):
        while True:
            answer = is_so()
            if answer if isinstance(answer, bool) else await answer:
                return
            await asyncio.sleep(0.02)


async def events_of(url: str, topic: str | None = None) -> list[Event]:
    """Every event of a store, in commit order; none if there is no store yet. Also while somebody has it open."""
    if url.startswith("sqlite:") and not Path(url.removeprefix("sqlite:///")).exists():
        return []
    try:
        store = await open_reader(url)
    except StoreMissing:  # its node is about to make it
        return []
    try:
        found: list[Event] = []
        after = None
        while page := await store.log(topic, after=after, limit=1000):
            found += [each.event for each in page]
            after = page[-1].offset
        return found
    finally:
        await store.close()


def numbers(events: Sequence[Event]) -> list[int]:
    """The numbers of orders."""
    return [event.data["n"] for event in events]


def letters(path: Path) -> list[dict[str, Any]]:
    """The data of a file of dead letters."""
    return [json.loads(line)["data"] for line in path.read_text().splitlines()] if path.exists() else []


async def taken_from(connector: str, topic: str, expected: int, folder: Path) -> list[Event]:
    """What a new node takes from a broker, when it has so many events or more."""
    async with SyncNode(
        "taker", store=f"sqlite:///{folder / 'taker.db'}", connectors=[connector], topics=[topic]
    ) as node:
        async with asyncio.timeout(SOON_S):
            while True:
                await node.sync()
                found = [each.event async for each in node.log(topic)]
                if len(found) >= expected:
                    return found
                await asyncio.sleep(0.05)


def start_runner(*arguments: object, folder: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """`synckit connect` as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "synckit_streams.cli", "connect", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end_runner(process: subprocess.Popen[str], sign: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
    """End it; gives its status and what it said."""
    process.send_signal(sign)
    try:
        said, _ = process.communicate(timeout=SOON_S)
    finally:
        process.kill()
    return process.returncode, said


def assert_each_once(found: Sequence[int], wanted: Sequence[int]) -> None:
    """Nothing is lost, and nothing is there twice."""
    counted = Counter(found)
    assert not (set(wanted) - set(counted)), f"lost: {sorted(set(wanted) - set(counted))[:10]}"
    assert set(counted.values()) == {1}, f"doubled: {[each for each, times in counted.items() if times > 1][:10]}"
    assert set(counted) == set(wanted)
