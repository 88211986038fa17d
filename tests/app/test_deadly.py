"""An event that kills its process is counted by whoever comes next, and given up in the end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from synckit_streams import Draft, SyncNode

DEADLY = Path(__file__).parent / "deadly.py"
EVENTS = 120


@pytest.mark.parametrize(("batch", "deaths"), [(0, 4), (40, 6)], ids=["one by one", "in batches"])
async def test_an_event_that_kills_its_process_is_given_up(tmp_path: Path, batch: int, deaths: int) -> None:
    """It dies three times at least, or as often as there are attempts, and once more to find which of a batch it was.
    All others are handled once, and what comes behind it of its aggregate after it."""
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    async with SyncNode("shop", store=url) as node:
        await node.append_many([Draft("orders", "placed", f"o-{n % 10}", {"n": n}) for n in range(EVENTS)])
    statuses: list[int] = []
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    while 0 not in statuses:
        assert len(statuses) < 20, "it dies for ever"
        process = await asyncio.create_subprocess_exec(sys.executable, DEADLY, url, str(batch), env=environment)
        statuses.append(await asyncio.wait_for(process.wait(), 60))
    assert statuses == [-signal.SIGKILL] * deaths + [0]
    async with SyncNode("shop", store=url) as node:
        (letter,) = [each.event async for each in node.log("shop.dlq")]
        async with node.store.transaction() as tx:
            rows = await tx.execute("SELECT id, n FROM seen ORDER BY rowid")
    assert letter.data["error"] == "Killed: it killed its process"
    assert letter.data["event"]["data"] == {"n": 50}
    assert sorted(n for _, n in rows) == [n for n in range(EVENTS) if n != 50]
    for number in range(10):
        of_one = [n for id, n in rows if id == f"o-{number}"]
        assert of_one == sorted(of_one)
    assert not [*tmp_path.glob("synckit-*/*")], "something is left of those who died"
