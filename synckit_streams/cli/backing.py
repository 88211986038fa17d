"""`synckit backup` and `synckit restore`: a store as one file, and a store of that file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synckit_streams.cli.access import StoreArgument
from synckit_streams.cli.terminal import JsonFlag, carry_out, plain_markup, plural, progress, results, show_json
from synckit_streams.runtime.backup import Backup, back_up
from synckit_streams.runtime.backup import restore as restore_store
from synckit_streams.runtime.ownership import shown


def backup(
    store: StoreArgument,
    file: Annotated[
        Path, typer.Argument(metavar="FILE|DIR", help="A new file; in a folder it gets the node's name and the time")
    ],
    json: JsonFlag = False,
) -> None:
    """Write all that a store holds at one moment into one file, also while its node writes.

    The file is there only when it is whole and was verified; nothing is written over. It is a store itself: `status`,
    `log`, `verify` and `export` look into it. Of a store in a file it has the read models as well.

    [bold]Examples[/bold]

      $ synckit backup sqlite:///till.db backups/
      $ synckit backup postgresql://shop@db/shop shop-monday.db
    """

    async def work() -> None:
        with progress("backing up", None, unit="parts", quiet=json) as bar:
            done = await back_up(store, file, advance=bar.of)
        _say(done, "backed up", done.where, json=json)

    carry_out(work, json=json)


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `synckit backup` wrote")],
    store: Annotated[str, typer.Argument(metavar="STORE_URL", help="A store that is not there yet, of any kind")],
    carry: Annotated[
        list[str] | None,
        typer.Option(
            "--carry",
            metavar="CONSUMER",
            help="Into a store that is no file: see `synckit migrate`.",
            show_default=False,
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Make a new store of a backup. The node that opens it writes under a new incarnation.

    So no key is given out twice, although the old store had written on after the backup; what it had sent comes back
    from the others with the next sync.

    [bold]Examples[/bold]

      $ synckit restore backups/till-7-20261123T120000Z.db sqlite:///till-new.db
      $ synckit restore shop-monday.db postgresql://shop@db/shop
    """

    async def work() -> None:
        with progress("restoring", None, unit="parts", quiet=json) as bar:
            done = await restore_store(file, store, carry=carry or (), advance=bar.of)
        _say(done, "restored", shown(store), json=json)

    carry_out(work, json=json)


def _say(done: Backup, what: str, where: str, *, json: bool) -> None:
    if json:
        show_json({**{name: getattr(done, name) for name in done.__struct_fields__}, "where": where})
        return
    console = results()
    beside = f"{plural(done.held, 'held event')}, {plural(done.offsets, 'offset')}"
    console.print(
        f"[green]✓[/green] {what} [bold]{plural(done.events, 'event')}[/bold], {beside}: {plain_markup(where)}",
        soft_wrap=True,
    )
    for name in done.rebuilt:
        console.print(
            f"[yellow]![/yellow] the projection {plain_markup(name)} is built anew when a node opens what is restored"
        )
