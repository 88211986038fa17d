"""`synckit migrate`: everything that one store holds, into a store of another kind."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from synckit_streams.cli.access import check_closed
from synckit_streams.cli.terminal import JsonFlag, carry_out, plain_markup, plural, progress, results, show_json
from synckit_streams.runtime.moving import Move, move
from synckit_streams.runtime.ownership import shown

SourceUrl = Annotated[str, typer.Argument(metavar="FROM_URL", help="The store to move, e.g. sqlite:///till.db")]
TargetUrl = Annotated[str, typer.Argument(metavar="TO_URL", help="A new store, e.g. postgresql://user@host/shop")]


def migrate(
    source: SourceUrl,
    target: TargetUrl,
    carry: Annotated[
        list[str] | None,
        typer.Option(
            "--carry",
            metavar="CONSUMER",
            help="A projection that goes on where it stood, e.g. 'projection|mail'; may be repeated.",
            show_default=False,
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Move a store: events, what is held, quarantine, voids, alarms, and where every reader stands.

    The old store is only read; its node must be closed. The new one is empty, or has what an earlier run had moved
    before it was interrupted, and then it goes on. At the end both are compared, digest by digest. Any node id may open
    the new store: it writes under a new incarnation, and what the old node had not sent yet is sent.

    A projection's read model stays in the old database, so it is built anew in the new one. One whose effect lies
    elsewhere (it sends mail, it fills a search index) goes on where it stood with --carry.

    [bold]Examples[/bold]

      $ synckit migrate sqlite:///till.db postgresql://shop@db/shop
      $ synckit migrate postgresql://shop@db/shop sqlite:///till.db --carry 'projection|mail' --json
    """

    async def work() -> None:
        await check_closed(source)
        with progress("moving", None, quiet=json) as bar:
            done = await move(source, target, carry=carry or (), advance=bar.of)
        if json:
            show_json(done)
        else:
            _print(results(), done, shown(target))

    carry_out(work, json=json)


def _print(console: Console, done: Move, target: str) -> None:
    resumed = f", the first {done.resumed:,} in an earlier run" if done.resumed else ""
    console.print(
        f"[green]✓[/green] moved [bold]{plural(done.events, 'event')}[/bold]{resumed}, and compared", soft_wrap=True
    )
    beside = [
        plural(done.held, "held event"),
        plural(done.quarantined, "arrival") + " in quarantine",
        plural(done.voids, "void"),
        plural(done.offsets, "offset"),
        plural(done.notes, "note"),
        plural(done.alarms, "alarm"),
    ]
    console.print(f"    {', '.join(beside)}", highlight=False)
    for topic, digest in done.digests.items():
        console.print(f"    {plain_markup(topic)} [cyan]{digest[:12]}…[/cyan]")
    for name in done.rebuilt:
        console.print(
            f"[yellow]![/yellow] the projection {plain_markup(name)} is built anew when its node opens the new store"
        )
    for name in done.consumers:
        console.print(
            f"[yellow]![/yellow] {plain_markup(name)} goes on where it stood; what it keeps in the old database stays"
        )
    node = plain_markup(done.nodes[-1])
    console.print(
        f"Now open {plain_markup(target)} with the node [bold]{node}[/bold], and the old store no more", soft_wrap=True
    )
