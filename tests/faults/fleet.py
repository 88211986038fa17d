"""Several nodes that write while a test breaks what is between them, and what must be true afterwards."""

from __future__ import annotations

import asyncio
import inspect
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from synckit_streams import Batch, ConnectorError, Draft, SyncNode
from synckit_streams.ports.store import Transaction
from synckit_streams.ports.telemetry import Received
from tests.acceptance.kit import Recorder, eventually

AGGREGATES = 7
BATCH_MAX = 20
PAUSE_S = 0.02
"""How long a writer waits at most between two batches at first."""
SLOWER_EVENTS = 1_000
"""After so many it waits twice as long, and so on: what a test that takes long leaves is not much more to settle."""
PATIENCE_S = 3.0
"""Of a connector. A silent server is noticed after some multiple of it, so the default would only take longer."""
MEETING_S = 5.0
HEALING_S = 90.0
"""For nodes to agree once nothing is broken any more. The longest wait of auto-sync is not in it: they are asked."""


class Tally:
    """A read model that counts how often each fact took effect."""

    name = "tally"
    types: Sequence[str] = ()
    resolved = False

    def __init__(self, topic: str) -> None:
        self.topics: Sequence[str] = (topic,)

    async def reset(self, tx: Transaction) -> None:
        """See `Projection`."""
        await tx.execute("CREATE TABLE IF NOT EXISTS tally (id TEXT PRIMARY KEY, times INTEGER)")
        await tx.execute("DELETE FROM tally")

    async def apply(self, batch: Batch, tx: Transaction) -> None:
        """See `Projection`."""
        for stored in batch.stored:
            await tx.execute(
                "INSERT INTO tally VALUES (?, 1) ON CONFLICT (id) DO UPDATE SET times = times + 1", (stored.event.id,)
            )


class Fleet:
    """Nodes on SQLite that write and sync on and on. Used as `async with Fleet(...) as fleet`.

    All but the last keep in sync by themselves; the last one asks for a sync again and again. Every second sends packed
    frames. `settle` ends the writing, and judges.

    Args:
        folder: For their stores.
        topic: What they share.
        urls: Where each of them meets the others.
        seed: Decides what is written, and when.
        group: The first one reads as a member of it.
    """

    def __init__(self, folder: Path, topic: str, urls: Sequence[str], seed: int, *, group: str = "") -> None:
        print(f"seed {seed}")  # noqa: T201 - what to play again
        self.dice = random.Random(seed)
        self.topic = topic
        self.recorder = Recorder()
        self.acknowledged: set[str] = set()
        """The ids of what an append has returned for."""
        self.nodes = [
            SyncNode(
                f"till-{number}",
                store=f"sqlite:///{folder}/{topic}-till-{number}.db",
                connectors=[f"{url}?timeout_s={PATIENCE_S:g}"],
                topics=[topic],
                projections=[Tally(topic)],
                packing="batch" if number % 2 else "event",
                group="" if number else group,
                observer=self.recorder,
            )
            for number, url in enumerate(urls)
        ]
        self._stack = AsyncExitStack()
        self._written = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        for node in self.nodes:
            await self._stack.enter_async_context(node)
        for node in self.nodes[:-1]:
            await node.start_auto_sync(interval_s=1.0, timeout_s=MEETING_S)
        self._tasks = [asyncio.create_task(self._write(node, random.Random(self.dice.random()))) for node in self.nodes]
        self._tasks.append(asyncio.create_task(self._meet_often(self.nodes[-1])))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    async def until(self, condition: Callable[[], Any], *, what: str, seconds: float = 60.0) -> None:
        """Wait for it; a writer that failed is told at once."""

        async def looked() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()
            found = condition()
            return bool(await found if inspect.isawaitable(found) else found)

        await eventually(looked, seconds=seconds, what=what)

    async def flow(self) -> None:
        """Wait until the nodes have received some more: a batch is under way somewhere."""
        end = self._received() + self.dice.randrange(10, 300)
        await self.until(lambda: self._received() >= end, what="messages received")

    async def write_on(self) -> None:
        """Wait until some more was written, whatever is broken."""
        end = len(self.acknowledged) + self.dice.randrange(1, 300)
        await self.until(lambda: len(self.acknowledged) >= end, what="events written")

    def _received(self) -> int:
        return sum(received.messages for received in self.recorder.of(Received))

    async def settle(self) -> None:
        """Nothing is broken any more: they agree in time, and nothing was lost or took effect twice."""
        self._written.set()
        await asyncio.gather(*self._tasks)
        for node in self.nodes[:-1]:
            await node.stop_auto_sync()
        deadline = time.monotonic() + HEALING_S
        reasons: list[str] = []
        while not await self._agree(reasons):
            assert time.monotonic() < deadline, f"not complete within {HEALING_S:g} s: {reasons}"
        counts = {node.node_id: await self._counts(node) for node in self.nodes}
        for name, (logged, tallied) in counts.items():
            lost = self.acknowledged - logged.keys()
            assert not lost, f"{name} lost {len(lost)} of {len(self.acknowledged)}: {sorted(lost)[:5]}"
            doubled = sorted(id for id, times in (logged | tallied).items() if times > 1)
            assert not doubled, f"{name} doubled {len(doubled)}: {doubled[:5]}"
            assert tallied == logged, f"{name}: the read model shows {len(tallied)} of {len(logged)}"
        assert len({frozenset(logged) for logged, _ in counts.values()}) == 1
        assert self.acknowledged

    async def _agree(self, reasons: list[str]) -> bool:
        """One round of meetings."""
        reasons.clear()
        for node in self.nodes:
            try:
                result = await node.sync(timeout_s=MEETING_S)
            except ConnectorError as away:  # a broker that was started a moment ago
                reasons.append(f"{node.node_id}: {away}")
                await asyncio.sleep(0.05)
            else:
                reasons.extend(f"{node.node_id}: {reason}" for reason in result.reasons)
        return not reasons and len({await node.digest(self.topic) for node in self.nodes}) == 1

    async def _counts(self, node: SyncNode) -> tuple[Counter[str], Counter[str]]:
        """How often each id is in the log, and in the read model."""
        logged = Counter([stored.event.id async for stored in node.log(self.topic, twins=True)])
        async with node.store.transaction() as tx:
            tallied = Counter(dict(await tx.execute("SELECT id, times FROM tally")))
        return logged, tallied

    async def _write(self, node: SyncNode, dice: random.Random) -> None:
        number = 0
        while not self._written.is_set():
            drafts = [
                Draft(
                    self.topic,
                    "order.changed",
                    f"o-{dice.randrange(AGGREGATES)}",
                    {"n": at, "note": "x" * dice.randrange(200)},
                    id=f"{node.node_id}-{at}",
                )
                for at in range(number, number + dice.randint(1, BATCH_MAX))
            ]
            await node.append_many(drafts)
            self.acknowledged.update(draft.id or "" for draft in drafts)
            number += len(drafts)
            await asyncio.sleep(dice.random() * PAUSE_S * (1 + number / SLOWER_EVENTS))

    async def _meet_often(self, node: SyncNode) -> None:
        while not self._written.is_set():
            try:
                await node.sync(timeout_s=MEETING_S)
            except ConnectorError:
                await asyncio.sleep(0.05)
