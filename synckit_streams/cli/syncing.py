"""`synckit sync`: one meeting over the broker, or one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import typer
from rich.text import Text

from synckit_streams.cli.access import NodeName, OwnNode, StoreUrl, Writer, file_of, writing
from synckit_streams.cli.terminal import (
    JsonFlag,
    carry_out,
    complain,
    note,
    plain,
    plain_markup,
    plural,
    results,
    show_json,
    working,
)
from synckit_streams.errors import ConfigError, StoreMissing, SyncKitError
from synckit_streams.model.seen import Intervals, count
from synckit_streams.ports.telemetry import Detail, Link, Published, Received
from synckit_streams.runtime.ownership import reading
from synckit_streams.runtime.result import SyncResult
from synckit_streams.runtime.settings import check_bridge
from synckit_streams.runtime.visitor import Visitor

RANGES_SHOWN_MAX = 5


def sync(
    store: StoreUrl,
    connector: Annotated[
        list[str] | None,
        typer.Option(
            "--connector",
            metavar="URL",
            help="The broker, e.g. nats://127.0.0.1:4222; may be repeated: they are tried in this order.",
            show_default=False,
        ),
    ] = None,
    topic: Annotated[
        list[str] | None,
        typer.Option(
            "--topic", help="What to sync; may be repeated. Without: what the store holds.", show_default=False
        ),
    ] = None,
    bridge: Annotated[
        bool,
        typer.Option("--bridge", help="Meet over all the brokers at once, and pass on what came by one to the others."),
    ] = False,
    node: NodeName = None,
    group: Annotated[
        str,
        typer.Option("--group", metavar="NAME", help="Read as a member of this consumer group.", show_default=False),
    ] = "",
    watch: Annotated[bool, typer.Option("--watch", help="Stay in sync until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.1, help="With --watch: seconds between meetings.")
    ] = 30.0,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, help="Longest time without any progress, in s.")
    ] = 30.0,
    json: JsonFlag = False,
) -> None:
    """Meet the other nodes over a broker: send what they lack, and take what is missing here.

    It says whether the node is now complete, and if not, what is missing. With --watch events flow as they come, and
    being offline is waited for. While a node has the store open, that node syncs, over its own connector.

    [bold]Examples[/bold]

      $ synckit sync --store sqlite:///till.db --connector nats://127.0.0.1:4222
      $ synckit sync --store sqlite:///hub.db --connector kafka://k:9092 --connector redis://r --bridge --watch
      $ synckit sync --store sqlite:///new.db --node till-8 --connector nats://127.0.0.1:4222 --topic orders --watch
    """

    async def work() -> None:
        topics = topic or await _topics_of(store)
        if not await _is_open(store):
            if not connector:
                raise ConfigError("over which broker?", hint="--connector nats://127.0.0.1:4222")
            check_bridge(connector, group, bridge)
            if not topics:
                raise ConfigError("the store is empty: which topics?", hint="--topic NAME, once for each")
        observer = Ticker() if watch and not json else None
        async with writing(
            store,
            node=node,
            topics=topics,
            connectors=connector or [],
            bridge=bridge,
            group=group,
            observer=observer,
            quiet=json,
        ) as writer:
            if watch:
                await _watch(writer, interval, timeout_s=timeout, json=json)
            else:
                with working("meeting the others", quiet=json):
                    result = await writer.sync(timeout_s=timeout)
                _report(writer.node_id, result, json=json)

    carry_out(work, json=json)


async def _topics_of(store: str) -> Sequence[str]:
    if store.lower().startswith("memory:"):
        return ()
    try:
        async with reading(store) as opened:
            return await opened.topics()
    except StoreMissing:
        return ()


async def _is_open(store: str) -> bool:
    """Whether a node of another process has it, and lets us in."""
    path = file_of(store)
    visitor = await Visitor.knock(path) if path is not None else None
    if visitor is not None:
        await visitor.close()
    return visitor is not None


class Ticker:
    """Says what happens between two meetings, as it happens; see `Observer`."""

    def __init__(self) -> None:
        self._up: bool | None = None

    def operation(self, name: str, *, node: str) -> AbstractContextManager[str]:
        """Nothing is traced."""
        return nullcontext("")

    def observe(self, detail: Detail) -> None:
        """One thing that happened."""
        if isinstance(detail, Received) and detail.stored:
            results().print(f"[cyan]←[/cyan] {plural(detail.stored, 'event')} of {plain_markup(detail.topic)}")
        elif isinstance(detail, Published) and detail.events:
            results().print(f"[magenta]→[/magenta] {plural(detail.events, 'event')} of {plain_markup(detail.topic)}")
        elif isinstance(detail, Link) and detail.up != self._up:
            self._up = detail.up
            said = (
                f"[green]●[/green] connected to {plain_markup(detail.connector)}"
                if detail.up
                else "[red]○[/red] offline: "
            )
            results().print(said, end="" if detail.reason else "\n")
            if detail.reason:
                results().print(plain(detail.reason), markup=False)


async def _watch(writer: Writer, interval: float, *, timeout_s: float, json: bool) -> None:
    """Until it is interrupted."""
    note("In sync until Ctrl-C", quiet=json)
    last: bool | None = None

    def report(result: SyncResult) -> None:
        """For people, what came and went has been said already: say when being complete begins or ends."""
        nonlocal last
        if json or result.complete != last:
            _report(writer.node_id, result, json=json)
        last = result.complete

    if isinstance(writer, OwnNode):
        writer.node.subscribe(report)
        await writer.node.start_auto_sync(interval_s=interval, timeout_s=timeout_s)
        await asyncio.Event().wait()
    while True:
        try:
            report(await writer.sync(timeout_s=timeout_s))
        except SyncKitError as error:
            if not error.retryable:
                raise
            complain(error, json=json)
        await asyncio.sleep(interval)


def _report(node_id: str, result: SyncResult, *, json: bool) -> None:
    if json:
        show_json(as_object(node_id, result))
        return
    console = results()
    mark = "[green]✓[/green] in sync" if result.complete else "[yellow]●[/yellow] not complete yet"
    said = f"{mark}: {plain_markup(node_id)} sent [bold]{plural(result.events_pushed, 'event')}[/bold]"
    said += f", took [bold]{result.events_pulled:,}[/bold]"
    if result.conflicts_resolved:
        said += f", met [bold]{plural(result.conflicts_resolved, 'conflict')}[/bold]"
    console.print(f"{said} [dim]({result.duration_s:.2f} s)[/dim]")
    for reason in result.reasons:
        console.print(f"    {plain(reason)}", markup=False)
    for origin, ranges in list(result.missing.items())[:RANGES_SHOWN_MAX]:
        console.print(f"    missing of {plain(origin)}: {_ranges(ranges)}", markup=False)
    for error in result.errors:
        note(Text(f"    {plain(str(error))}", style="red"))


def _ranges(ranges: Intervals) -> str:
    shown = ", ".join(f"{first}–{last}" if first < last else f"{first}" for first, last in ranges[:RANGES_SHOWN_MAX])
    more = " …" if len(ranges) > RANGES_SHOWN_MAX else ""
    return f"{shown}{more} ({plural(count(ranges), 'event')})"


def as_object(node_id: str, result: SyncResult) -> Mapping[str, Any]:
    """A result, for JSON."""
    return {
        "node": node_id,
        "complete": result.complete,
        "events_pushed": result.events_pushed,
        "events_pulled": result.events_pulled,
        "conflicts_resolved": result.conflicts_resolved,
        "missing": result.missing_by_topic,
        "reasons": result.reasons,
        "errors": [str(error) for error in result.errors],
        "duration_s": round(result.duration_s, 3),
    }
