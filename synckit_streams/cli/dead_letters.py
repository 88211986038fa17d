"""`synckit dlq`: what handlers have given up, and what is to become of it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from synckit_streams.cli.access import StoreUrl, writing
from synckit_streams.cli.log import moment
from synckit_streams.cli.terminal import JsonFlag, carry_out, note, plain, plural, results, show_json
from synckit_streams.errors import ConfigError
from synckit_streams.runtime.dead_letters import Letter, open_letters
from synckit_streams.runtime.ownership import reading

SHORT = 8
"""So many characters of an id are shown, and are enough to name it where no other begins so."""


class Action(StrEnum):
    """What is to be done."""

    LIST = "list"
    SHOW = "show"
    REDRIVE = "redrive"
    PURGE = "purge"


def dlq(
    action: Annotated[Action, typer.Argument(help="What to do.", show_default=False)],
    store: StoreUrl,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Which letters; the first characters will do.")
    ] = None,
    topic: Annotated[str, typer.Option("--topic", help="Only of this dead-letter topic.", show_default=False)] = "",
    group: Annotated[str, typer.Option("--group", help="Only of this handler group.", show_default=False)] = "",
    every: Annotated[bool, typer.Option("--all", help="Redrive or purge all of them.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Purge without asking.")] = False,
    json: JsonFlag = False,
) -> None:
    """Look at what handlers have given up, put it back, or let it go.

    A dead letter holds the event, the error with its traceback, and how often it was tried. `redrive` puts its event
    back: its handler gets it again, with all its attempts before it, and what came later of the same aggregate stays
    done. `purge` says that nobody wants it any more. Both are events of the dead-letter topic; nothing is deleted.
    It works beside the service that runs, too.

    [bold]Examples[/bold]

      $ synckit dlq list --store sqlite:///billing.db
      $ synckit dlq show 0198f3a2 --store sqlite:///billing.db
      $ synckit dlq redrive --all --group billing --store postgresql://db/billing
      $ synckit dlq purge 0198f3a2 --yes --store sqlite:///billing.db
    """

    async def work() -> None:
        wanted = ids or []
        if action in (Action.REDRIVE, Action.PURGE) and every == bool(wanted):
            raise ConfigError("which letters?", hint=f"synckit dlq {action} ID…, or --all")
        async with reading(store) as opened:
            nodes = opened.nodes
            letters = await open_letters(opened, [topic] if topic else (), group=group)
        chosen = _named(letters, wanted) if wanted else letters
        if action is Action.LIST:
            _list(chosen, json=json)
        elif action is Action.SHOW:
            _show(chosen, json=json)
        else:
            await _settle(store, action, chosen, nodes, yes=yes, json=json)

    carry_out(work, json=json)


def _named(letters: Sequence[Letter], ids: Sequence[str]) -> list[Letter]:
    """The letters whose ids begin so.

    Raises:
        ConfigError: there is none, or more than one.
    """
    found: list[Letter] = []
    for id in ids:
        matching = [each for each in letters if each.id.startswith(id)]
        if len(matching) != 1:
            raise ConfigError(
                f"{plural(len(matching), 'open letter')} begin{'s' if len(matching) == 1 else ''} with {id!r}",
                hint="`synckit dlq list` shows those that are open; give more of the id",
            )
        found += matching
    return found


def _object(letter: Letter) -> dict[str, Any]:
    said = letter.said
    return {
        "id": letter.id,
        "topic": letter.stored.event.topic,
        "at": moment(letter.stored.event).isoformat(timespec="milliseconds"),
        "group": said.group,
        "handler": said.handler,
        "node": said.node,
        "attempts": said.attempts,
        "error": said.error,
        "traceback": said.traceback,
        "event": said.event,
    }


def _list(letters: Sequence[Letter], *, json: bool) -> None:
    if json:
        for letter in letters:
            show_json(_object(letter))
        return
    if not letters:
        note("There is no open dead letter.")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("id", "when (UTC)", "handler", "event", "tries", "error"):
        table.add_column(name, no_wrap=name != "error")
    for letter in letters:
        said, event = letter.said, letter.said.event
        table.add_row(
            letter.id[: _short(letters, letter)],
            f"{moment(letter.stored.event):%Y-%m-%d %H:%M:%S}",
            plain(f"{said.group}/{said.handler}"),
            plain(f"{event['type']} of {event['topic']}/{event['aggregate_id']}"),
            str(said.attempts),
            plain(said.error.splitlines()[0] if said.error else ""),
        )
    results().print(table)


def _short(letters: Sequence[Letter], letter: Letter) -> int:
    """How many characters of its id are enough to name it."""
    others = [each.id for each in letters if each.id != letter.id]
    return next(
        (n for n in range(SHORT, len(letter.id)) if not any(id.startswith(letter.id[:n]) for id in others)),
        len(letter.id),
    )


def _show(letters: Sequence[Letter], *, json: bool) -> None:
    console = results()
    for letter in letters:
        if json:
            show_json(_object(letter))
        else:
            _print(console, letter)


def _print(console: Console, letter: Letter) -> None:
    shown = _object(letter)
    for name in ("id", "topic", "at", "group", "handler", "node", "attempts", "error"):
        console.print(Text.assemble((f"{name:>9}  ", "dim"), plain(str(shown[name]))), soft_wrap=True)
    console.print(Text("    event", "dim"))
    console.print_json(data=shown["event"])
    for line in shown["traceback"].splitlines():
        console.print(Text("  " + plain(line), "dim"), soft_wrap=True)


async def _settle(
    store: str, action: Action, letters: Sequence[Letter], nodes: Sequence[str], *, yes: bool, json: bool
) -> None:
    foreign = [each for each in letters if each.said.node not in nodes]
    ours = [each for each in letters if each.said.node in nodes]
    if foreign and action is Action.REDRIVE:
        names = ", ".join(sorted({each.said.node for each in foreign}))
        note(f"{plural(len(foreign), 'letter')} of {plain(names)} can only be put back there", quiet=json)
    chosen = ours if action is Action.REDRIVE else letters
    if action is Action.PURGE and chosen and not yes:
        typer.confirm(f"Let go of {plural(len(chosen), 'dead letter')}?", abort=True, err=True)
    if chosen:
        drafts = [each.redriven() if action is Action.REDRIVE else each.purged() for each in chosen]
        async with writing(store, node=None, quiet=json) as writer:
            await writer.append(drafts)
    if json:
        show_json({"action": str(action), "letters": [each.id for each in chosen], "elsewhere": len(foreign)})
    else:
        done = "put back" if action is Action.REDRIVE else "let go"
        results().print(f"{plural(len(chosen), 'letter')} {done}")
