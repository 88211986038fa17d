"""What must not grow with the log: the work for one missing event, and the memory for a million."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench import drafts
from bench.measure import Case, Row, Scale
from bench.nodes import fill, nats, node
from synckit_connectors.memory import MemoryConnector
from synckit_streams import Draft, SyncNode

TIMES_ALLOWED = 2.0
"""How many times as much one missing event may cost on a log that is a hundred times as long."""
GROWTH_MIB_ALLOWED = 64.0
SYNCS = 15
MIB = 1024 * 1024


def cases() -> list[Case]:
    """The rows about cost."""
    return [
        Case(
            "one-missing-event", "one event on a log of 1,000,000, at most twice that of 10,000", open_nodes, long=True
        ),
        Case("one-missing-event-opened", "the same, with nodes that are opened for it", opened_nodes, long=True),
        Case("sync-memory-growth", "memory that 1,000,000 events need on their way, at most 64 MiB", growth, long=True),
    ]


# --- one missing event -----------------------------------------------------------------------------------------------


def open_nodes(scale: Scale, directory: Path) -> Row:
    """Two nodes that have met before: one event is written, both sync."""
    return asyncio.run(one_missing("one-missing-event", scale, directory, reopen=False))


def opened_nodes(scale: Scale, directory: Path) -> Row:
    """Two nodes that start, sync one event, and stop: what was read where comes from the disk."""
    return asyncio.run(one_missing("one-missing-event-opened", scale, directory, reopen=True))


async def one_missing(name: str, scale: Scale, directory: Path, *, reopen: bool) -> Row:
    """Both logs in turn, in one process."""
    pairs = [await pair(directory / size, events) for size, events in sizes(scale).items()]
    seconds: list[list[float]] = [[], []]
    for _ in range(SYNCS):
        for at, each in enumerate(pairs):
            seconds[at].append(await (each.opened_sync() if reopen else each.sync()))
    for each in pairs:
        await each.close()
    short, long = (median(found) * 1000 for found in seconds)
    allowed = TIMES_ALLOWED * short
    return Row(name, long, allowed, allowed / long, 1.0, "ms")


def sizes(scale: Scale) -> dict[str, int]:
    """The short log and the long one."""
    return {"short": max(scale.events // 10, 10), "long": scale.events * 10}


class Pair:
    """Two nodes that hold the same long log."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.url = f"memory://{uuid.uuid4().hex}"
        self._anchor = MemoryConnector(self.url)  # the log is there while somebody is on it
        self.nodes: Sequence[SyncNode] = ()
        self._written = 0

    async def open(self) -> None:
        self.nodes = [node(name, self.directory, self.url, packing="batch") for name in ("a", "b")]
        for each in self.nodes:
            await each.open()

    async def close(self) -> None:
        for each in self.nodes:
            await each.close()

    def _draft(self) -> Draft:
        self._written += 1
        return Draft(drafts.TOPIC, "order.placed", f"late-{self._written}", drafts.payload(self._written))

    async def sync(self) -> float:
        a, b = self.nodes
        await a.append(self._draft())
        started = time.perf_counter()
        await a.sync()
        result = await b.sync()
        seconds = time.perf_counter() - started
        assert (result.events_pulled, result.complete) == (1, True), result
        return seconds

    async def opened_sync(self) -> float:
        await self.nodes[0].append(self._draft())
        await self.close()
        started = time.perf_counter()
        await self.open()
        for each in self.nodes:
            result = await each.sync()
        seconds = time.perf_counter() - started
        assert (result.events_pulled, result.complete) == (1, True), result
        return seconds


async def pair(directory: Path, events: int) -> Pair:
    """Two nodes with so many events, in sync."""
    await asyncio.to_thread(directory.mkdir)
    made = Pair(directory)
    await made.open()
    await fill(made.nodes[0], events)
    await made.nodes[0].sync()
    result = await made.nodes[1].sync()
    assert result.events_pulled == events, result
    await made.nodes[0].sync()
    return made


# --- memory ----------------------------------------------------------------------------------------------------------


def growth(scale: Scale, directory: Path) -> Row:
    """A process that publishes them, then one that takes them: the larger growth of the two counts."""
    events = sizes(scale)["long"]
    with nats(directory) as url:
        found = [
            worker("fill", directory / "a.db", url, events),
            worker("sync", directory / "a.db", url, events),
            worker("sync", directory / "b.db", url, events),
        ]
    grown = max(found[1:])
    return Row("sync-memory-growth", grown, GROWTH_MIB_ALLOWED, GROWTH_MIB_ALLOWED / grown, 1.0, "MiB")


def worker(job: str, database: Path, url: str, events: int) -> float:
    """Run a job in a process of its own; gives by how many MiB its memory grew."""
    command = [sys.executable, "-m", "bench.cost", job, str(database), url, str(events)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    return float(json.loads(done.stdout)["grown"]) / MIB


def status(field: str) -> int:
    """One field of this process's status (Linux), in bytes: VmRSS is the memory now, VmHWM the most there ever was."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise KeyError(field)


async def job(name: str, database: Path, url: str, events: int) -> None:
    """What a worker does."""
    async with node(database.stem, database.parent, url, packing="batch") as target:
        before = status("VmRSS")
        if name == "fill":
            await fill(target, events)
        else:
            result = await target.sync(timeout_s=120)
            assert result.events_pushed + result.events_pulled == events, result
            assert result.complete, result
        print(json.dumps({"grown": max(status("VmHWM") - before, 1)}))


if __name__ == "__main__":
    asyncio.run(job(sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
