"""Reading the log from its beginning to its end, in pages of a thousand."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from bench import drafts
from bench.append import eventsourcing_recorder, stored_events
from bench.measure import Case, Row, Scale, compare, timed
from bench.nodes import fill, node


def cases() -> list[Case]:
    """The row about reading."""
    return [Case("read-log", "node.log as Event objects, against select_notifications", against_eventsourcing)]


def against_eventsourcing(scale: Scale, directory: Path) -> Row:
    """Both give objects; neither decodes the payload."""
    filled = directory / "filled"
    filled.mkdir()

    async def prepare() -> None:
        async with node("a", filled) as target:
            await fill(target, scale.events)

    asyncio.run(prepare())
    recorder = eventsourcing_recorder(filled)
    ready = stored_events(scale.events)
    for start in range(0, scale.events, drafts.CALL_EVENTS):
        recorder.insert_events(ready[start : start + drafts.CALL_EVENTS])
    del ready

    async def ours() -> float:
        async with node("a", filled) as target:
            started = time.perf_counter()
            count = 0
            async for stored in target.log(drafts.TOPIC):
                count += stored.event.seq > 0
            seconds = time.perf_counter() - started
        assert count == scale.events
        return count / seconds

    def other() -> float:
        count, start = 0, 1
        with timed() as watch:
            while page := recorder.select_notifications(start, drafts.CALL_EVENTS):
                for notification in page:
                    count += notification.originator_version > 0
                start = page[-1].id + 1
        assert count == scale.events
        return count / watch.seconds

    row = compare(
        "read-log",
        lambda place: asyncio.run(ours()),
        lambda place: other(),
        wanted=2.0,
        unit="events/s",
        scale=scale,
        directory=directory,
    )
    recorder.datastore.close()
    return row
