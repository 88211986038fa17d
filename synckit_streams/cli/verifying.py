"""`synckit verify`: is a store sound? Names what is wrong."""

from __future__ import annotations

from synckit_streams.cli.access import StoreArgument
from synckit_streams.cli.terminal import JsonFlag, carry_out, plain, plural, progress, results, show_json
from synckit_streams.runtime.ownership import reading
from synckit_streams.runtime.verifying import verify as verify_store


def verify(store: StoreArgument, json: JsonFlag = False) -> None:
    """Check a store: every event is hashed anew, and all that the store keeps beside the events is held against them.

    Hashes, numbers and sums, twins, causes, look-ups by key and by aggregate, held and refused events, where readers
    stand, and what the database itself finds damaged. The store is only read, also while a node writes to it. What is
    wrong is named, and the exit status is then 1.

    [bold]Examples[/bold]

      $ synckit verify sqlite:///till.db
      $ synckit verify postgresql://shop@db/shop --json
    """

    async def work() -> int:
        async with reading(store) as opened:
            with progress("verifying", None, unit="positions", quiet=json) as bar:
                found = await verify_store(opened, advance=bar.of)
        if json:
            show_json(found)
        else:
            console = results()
            for finding in found.findings:
                console.print(f"[bold red]✗[/bold red] {finding.where:<10} ", end="")
                console.print(plain(finding.what), markup=False, soft_wrap=True)
            if found.wrong > len(found.findings):
                console.print(f"… and {found.wrong - len(found.findings):,} more")
            if found.wrong:
                console.print(f"[bold]{plural(found.wrong, 'thing')} wrong[/bold]")
            else:
                beside = f"{plural(found.held, 'held event')}, {plural(found.offsets, 'offset')}"
                console.print(f"[green]✓[/green] {plural(found.events, 'event')}, each as it was written; {beside}")
        return 1 if found.wrong else 0

    carry_out(work, json=json)
