"""`synckit status`: what a store holds, how far its readers are, and whether anything needs somebody's attention."""

from __future__ import annotations

from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from synckit_streams.cli.access import ConnectorUrl, StoreUrl
from synckit_streams.cli.holdings import BrokerStatus, Status, gather
from synckit_streams.cli.terminal import JsonFlag, carry_out, plain_markup, plural, results, show_json
from synckit_streams.runtime.ownership import reading


def status(
    store: StoreUrl,
    connector: ConnectorUrl = None,
    group: Annotated[
        str,
        typer.Option("--group", metavar="NAME", help="With --connector: how far this group is.", show_default=False),
    ] = "",
    json: JsonFlag = False,
) -> None:
    """Show what a store holds: events, conflicts, what is held back or missing, digests, and where its readers stand.

    The store is only read, also while a node writes to it. With --connector the broker is asked as well: how much of it
    has not been read here, and what the other nodes last said they hold.

    [bold]Examples[/bold]

      $ synckit status --store sqlite:///till.db
      $ synckit status --store sqlite:///till.db --connector nats://127.0.0.1:4222 --json
      $ synckit status --store sqlite:///hub.db --connector kafka://127.0.0.1:9092 --group billing
    """

    async def work() -> None:
        async with reading(store) as opened:
            found = await gather(opened, store, connector, group=group, quiet=json)
        if json:
            show_json(found)
        else:
            _print(results(), found)

    carry_out(work, json=json)


def _print(console: Console, found: Status) -> None:
    running = f", open in process {found.running}" if found.running else ""
    node, origin = plain_markup(found.node) or "no node yet", plain_markup(found.origin) or "-"
    console.print(f"[bold]{node}[/bold]  [dim]writes as[/dim] {origin}")
    size = f", {found.size_bytes / 1e6:,.1f} MB" if found.size_bytes else ""
    console.print(f"[dim]{plain_markup(found.where)}{size}{running}[/dim]", soft_wrap=True)
    if not found.topics:
        console.print("\nThe store is empty.")
    else:
        console.print(_topics(found))
    for name, topic in found.topics.items():
        if topic.conflicts:
            more = ", …" if topic.conflicts > len(topic.conflicting) else ""
            named = plain_markup(", ".join(topic.conflicting) + more)
            console.print(f"[yellow]{plural(topic.conflicts, 'conflict')}[/yellow] in {plain_markup(name)}: {named}")
        if topic.held:
            console.print(f"[yellow]{plural(topic.held, 'event')}[/yellow] of {plain_markup(name)} waiting for a cause")
    if found.quarantined:
        console.print(f"[yellow]{plural(found.quarantined, 'arrival')}[/yellow] in quarantine")
    for alarm in found.alarms:
        often = f", {alarm.times:,} times since {alarm.first}" if alarm.times > 1 else ""
        console.print(
            f"[yellow]{plain_markup(alarm.kind)}[/yellow] on {plain_markup(alarm.topic)}, {alarm.last}{often}: "
            f"{plain_markup(alarm.evidence)}"
        )
    if found.offsets:
        console.print(_offsets(found))
    if found.broker is not None:
        _print_broker(console, found.broker)


def _topics(found: Status) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("topic")
    for name in ("events", "aggregates", "conflicts", "held", "refused", "missing"):
        table.add_column(name, justify="right")
    table.add_column("digest")
    for name, topic in found.topics.items():
        attention = [topic.conflicts, topic.held, topic.refused, topic.gaps]
        table.add_row(
            plain_markup(name),
            f"{topic.events:,}",
            f"{topic.aggregates:,}",
            *(f"[yellow]{number:,}[/yellow]" if number else "[dim]0[/dim]" for number in attention),
            f"[cyan]{topic.digest[:12]}…[/cyan]",
        )
    return table


def _offsets(found: Status) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("reader", overflow="fold")
    table.add_column("stands at", justify="right")
    for reader, position in found.offsets.items():
        table.add_row(plain_markup(reader), f"{position:,}")
    return table


def _print_broker(console: Console, broker: BrokerStatus) -> None:
    if not broker.reachable:
        console.print(f"[red]○ {plain_markup(broker.connector)}[/red] {plain_markup(broker.error)}")
        return
    console.print(f"[green]● {plain_markup(broker.connector)}[/green]")
    for topic, behind in broker.behind.items():
        read = f"{plural(behind, 'message')} not read yet" if behind else "read to its end"
        console.print(f"  {plain_markup(topic)}: {read}")
        if (group := broker.groups.get(topic)) is not None:
            console.print(
                f"    the group has {group.waiting:,} waiting, {group.pending:,} delivered and not acknowledged"
            )
        for peer in broker.peers.get(topic, ()):
            same = "[green]holds the same[/green]" if peer.equal else ""
            if not same:
                same = f"[yellow]lacks {peer.lacks:,} of ours, {peer.ahead:,} of its are not here[/yellow]"
            console.print(f"    {plain_markup(peer.node)}, {peer.age_s:.0f} s ago: {same}")
