"""`synckit log`: the last events of a store, and those that come."""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from synckit_streams.cli.access import StoreUrl
from synckit_streams.cli.terminal import JsonFlag, carry_out, plain, results, show_json
from synckit_streams.errors import PayloadUndecodable
from synckit_streams.model.event import Event, Offset, Stored
from synckit_streams.ports.store import EventStore
from synckit_streams.runtime.ownership import reading

POLL_S = 0.2
PAGE_EVENTS = 1_000


def log(
    store: StoreUrl,
    topic: Annotated[str | None, typer.Option("--topic", help="Only this one.", show_default=False)] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, help="How many of the last events; 0 is all.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as events come, until Ctrl-C.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show the last events of a store, in the order of its log; it is only read, also while a node writes to it.

    A line is the position in the log, the time of writing (UTC), topic, type, aggregate, who wrote it, and the data.
    With --json it is one object, with everything that the event says.

    [bold]Examples[/bold]

      $ synckit log --store sqlite:///till.db
      $ synckit log --store sqlite:///till.db --topic orders --limit 0 --json
      $ synckit log --store sqlite:///till.db --follow
    """

    async def work() -> None:
        console = results()
        async with reading(store) as opened:
            after = await _before_last(opened, topic, limit)
            while True:
                while page := await opened.log(topic, after=after, limit=PAGE_EVENTS):
                    for stored in page:
                        if json:
                            show_json(as_object(stored))
                        else:
                            _print(console, stored)
                    after = page[-1].offset
                if not follow:
                    return
                await asyncio.sleep(POLL_S)

    carry_out(work, json=json)


async def _before_last(store: EventStore, topic: str | None, count: int) -> Offset | None:
    """Where to begin so that the last so many events follow; None is the beginning."""
    end = await store.end()
    window = count
    while count:
        start = Offset(end.log, max(end.position - window, 0))
        if topic is None:
            return start
        # One more than is wanted: the last of those that are not.
        last: deque[Offset] = deque([start], maxlen=count + 1)
        after = start
        while page := await store.log(topic, after=after, limit=PAGE_EVENTS):
            last.extend(stored.offset for stored in page)
            after = page[-1].offset
        if len(last) > count or not start.position:
            return last[0]
        window *= 8
    return None


def as_object(stored: Stored) -> dict[str, Any]:
    """Everything that an event says, for JSON."""
    event = stored.event
    return {
        "position": stored.position,
        "topic": event.topic,
        "type": event.type,
        "aggregate_id": event.aggregate_id,
        "id": event.id,
        "origin": event.origin,
        "seq": event.seq,
        "at": moment(event).isoformat(timespec="milliseconds"),
        "context": dict(event.context),
        "data": _data(event),
        "metadata": event.metadata,
        "schema_version": event.schema_version,
        "twin": stored.twin,
    }


def moment(event: Event) -> datetime:
    """When it was written, by the writer's clock."""
    return datetime.fromtimestamp(min(event.at.wall_ms, 253_402_300_799_000) / 1000, UTC)


def _data(event: Event) -> Any:
    try:
        return event.data
    except PayloadUndecodable:
        return {"undecodable_base64": event.payload}


def _print(console: Console, stored: Stored) -> None:
    event = stored.event
    try:
        data = event.payload.decode()
    except UnicodeDecodeError:
        data = f"{len(event.payload)} bytes that are no text"
    line = Text.assemble(
        (f"{stored.position:>7} ", "dim"),
        (f"{moment(event):%Y-%m-%d %H:%M:%S}  ", "dim"),
        (f"{plain(event.topic)} ", "cyan"),
        (f"{plain(event.type)} ", "bold"),
        (f"{plain(event.aggregate_id)}  ", "green"),
        (f"{plain(event.origin)}:{event.seq}  ", "magenta"),
        ("twin  " if stored.twin else "", "yellow"),
        plain(data),
        no_wrap=True,
        overflow="ellipsis",
    )
    # In a terminal a line is a line; in a pipe nothing is cut off.
    console.print(line, soft_wrap=not console.is_terminal, crop=console.is_terminal)
