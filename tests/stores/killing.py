"""Writers that are killed, and what the store that they wrote must hold then."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from synckit_streams.ports.store import EventStore
from synckit_streams.testing.store_contract import audit
from tests.stores.processes import child, end, line


async def kill_writers(place: object, opened: Callable[[], AbstractAsyncContextManager[EventStore]], seed: int) -> None:
    """Kill -9 of a process that writes a store, and an audit of what it leaves; three in a row for seed 0.

    Args:
        place: What the process is told to open.
        opened: Opens the same for the audit, as the node `writer`.
        seed: Of the moment.
    """
    dice = random.Random(seed)
    acknowledged: set[str] = set()
    origins: set[str] = set()
    for life in range(1 if seed else 3):
        process = child("asyncio.run(write_for_ever(sys.argv[1], int(sys.argv[2])))", place, life)
        try:
            for _ in range(dice.randint(1, 60)):
                acknowledged.update(json.loads(line(process)))
            until = time.monotonic() + dice.random() * 0.01
            while time.monotonic() < until:
                pass
            os.kill(process.pid, signal.SIGKILL)
            assert process.stdout is not None
            for rest in process.stdout:  # what it had still acknowledged
                if rest.endswith("\n"):
                    acknowledged.update(json.loads(rest))
        finally:
            end(process)
        async with opened() as store:
            log = await audit(store)
            ids = {each.event.id for each in log}
            assert acknowledged <= ids, f"seed {seed}: {len(acknowledged - ids)} acknowledged events are lost"
            calls = Counter(each.event.data["call"] for each in log if each.event.type == "pair")
            assert set(calls.values()) <= {2}, f"seed {seed}: half a call"
            offset = await store.offset("link")
            blocks = sum(call.startswith(f"{life}/0/") for call in calls)
            done = await store.offset(f"blocks {life}")
            assert blocks == (done.position if done is not None else 0), f"seed {seed}: events without their effect"
            received = [each.event.seq for each in log if each.event.origin == f"peer@{life}"]
            assert not received or (offset is not None and offset.position == len(received)), f"seed {seed}"
            assert received == list(range(1, len(received) + 1))
            born = {each.event.origin for each in log if each.event.origin.startswith("writer@")} - origins
            assert len(born) <= 1
            origins |= born
