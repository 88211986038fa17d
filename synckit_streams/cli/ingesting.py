"""`synckit ingest`: somebody else's JSON into a store."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from synckit_streams.cli.access import NodeName, OwnNode, StoreUrl, writing
from synckit_streams.cli.terminal import (
    JsonFlag,
    carry_out,
    note,
    plain,
    plain_markup,
    plural,
    results,
    show_json,
    working,
)
from synckit_streams.errors import StoreInUse
from synckit_streams.runtime.ingest import Ingest, Ingested

IDLE_S = 3.0


def ingest(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A Kafka topic, a JetStream or a Redis stream")],
    store: StoreUrl,
    connector: Annotated[
        str, typer.Option("--connector", metavar="URL", help="The broker, e.g. kafka://127.0.0.1:9092")
    ],
    topic: Annotated[str, typer.Option("--topic", help="Where to write the events")],
    type: Annotated[
        str, typer.Option("--type", metavar="NAME", help="The events' type, or a pointer such as /kind into the JSON")
    ],
    aggregate: Annotated[
        str,
        typer.Option("--aggregate", metavar="POINTER", help="What it is about, e.g. /order/id; without: the key"),
    ] = "",
    id: Annotated[
        str,
        typer.Option("--id", metavar="POINTER", help="The producer's own id, e.g. /id; without: where it lies"),
    ] = "",
    group: Annotated[
        str, typer.Option("--group", metavar="NAME", help="Whoever has the same name shares the work.")
    ] = "synckit",
    since: Annotated[
        datetime | None,
        typer.Option(
            "--since",
            formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"],
            help="A new group begins there; UTC",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until Ctrl-C, over every outage.")] = False,
    idle: Annotated[
        float,
        typer.Option(
            "--idle", min=0.1, help="Without --watch: end when nothing came for so many seconds, and nothing is left."
        ),
    ] = IDLE_S,
    node: NodeName = None,
    json: JsonFlag = False,
) -> None:
    """Write JSON of producers that know nothing of synckit into a store, each message once.

    The broker keeps the group's position, and a message is acknowledged when it is in the store. It may come again:
    its id says where it lies, so it is written once. What cannot become an event goes to the quarantine with the reason
    (`synckit status` counts it), and nothing waits behind it.

    [bold]Examples[/bold]

      $ synckit ingest shop.orders --connector kafka://127.0.0.1:9092 --store sqlite:///hub.db --topic orders --type order.placed --aggregate /order/id
      $ synckit ingest events --connector redis://127.0.0.1 --store sqlite:///hub.db --topic orders --type /kind --aggregate /order --id /id --watch
    """  # noqa: E501 - a command line is one line

    async def work() -> None:
        wanted = Ingest(
            connector=connector,
            source=source,
            topic=topic,
            type=type,
            aggregate_id=aggregate,
            id=id,
            group=group,
            since=since.replace(tzinfo=UTC) if since is not None else None,
        )
        wanted.check()
        async with writing(store, node=node, quiet=json) as writer:
            if not isinstance(writer, OwnNode):
                raise StoreInUse(
                    f"the node {writer.node_id!r} has the store open", hint="close it, or let it ingest: node.ingest()"
                )
            if watch:
                note("Ingesting until Ctrl-C", quiet=json)
            with working(f"ingesting {plain(source)}", quiet=json):
                done = await writer.node.ingest(wanted, idle_s=None if watch else idle)
        _report(done, source, json=json)

    carry_out(work, json=json)


def _report(done: Ingested, source: str, *, json: bool) -> None:
    if json:
        show_json(done._asdict())
        return
    said = f"[green]✓[/green] ingested [bold]{plural(done.written, 'event')}[/bold] from {plain_markup(source)}"
    if done.known:
        said += f", {done.known:,} {'was' if done.known == 1 else 'were'} there already"
    if done.set_aside:
        said += f", [yellow]set aside {done.set_aside:,}[/yellow] that cannot become events"
    results().print(said)
