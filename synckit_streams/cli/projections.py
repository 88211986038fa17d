"""`synckit projection`: how far the read models of a store are, and what is wanted of them."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, NamedTuple

import typer
from rich.table import Table

from synckit_streams.cli.access import StoreUrl, writing
from synckit_streams.cli.terminal import JsonFlag, carry_out, note, plain, plural, results, show_json
from synckit_streams.errors import ConfigError
from synckit_streams.ports.store import EventStore
from synckit_streams.runtime.ownership import reading
from synckit_streams.runtime.projector import CONSUMER
from synckit_streams.runtime.switch import Want, switches


class Action(StrEnum):
    """What is to be done."""

    LIST = "list"
    STATUS = "status"
    PAUSE = "pause"
    RESUME = "resume"
    REBUILD = "rebuild"
    RESET = "reset"


WANTS = {
    Action.PAUSE: Want.PAUSE,
    Action.RESUME: Want.RUN,
    Action.REBUILD: Want.REBUILD,
    Action.RESET: Want.RESET,
}
STATES = {Want.RUN: "runs", Want.PAUSE: "paused", Want.REBUILD: "to be rebuilt", Want.RESET: "to be made empty"}


class Place(NamedTuple):
    """How far a projection is.

    Args:
        name: Its own.
        position: Up to where it has taken the log in.
        lag: How many positions of the log lie behind that.
        want: What is wanted of it.
    """

    name: str
    position: int
    lag: int
    want: Want


def projection(
    action: Annotated[Action, typer.Argument(help="What to do.", show_default=False)],
    store: StoreUrl,
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Which projections.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    json: JsonFlag = False,
) -> None:
    """Look how far the read models of a store are; pause, resume, rebuild or empty them.

    What is wanted is kept in the store, and done by the process that runs the projection: at once, or with its next
    page. `rebuild` makes the read model empty and reads the whole log again; until it is at the end, those who query it
    see less. `reset` makes it empty and pauses it.

    [bold]Examples[/bold]

      $ synckit projection list --store sqlite:///billing.db
      $ synckit projection rebuild daily_sales --store postgresql://db/billing
      $ synckit projection pause --all --store sqlite:///billing.db
    """

    async def work() -> None:
        async with reading(store) as opened:
            places = await _places(opened)
        chosen = _chosen(places, names or [])
        if action in (Action.LIST, Action.STATUS):
            _show(chosen, json=json)
            return
        if every == bool(names):
            raise ConfigError("which projections?", hint=f"synckit projection {action} NAME…, or --all")
        if chosen:
            async with writing(store, node=None, quiet=json) as writer:
                await writer.switch([each.name for each in chosen], WANTS[action])
        if json:
            show_json({"action": str(action), "projections": [each.name for each in chosen]})
        else:
            done = {Action.PAUSE: "paused", Action.RESUME: "resumed"}.get(
                action, f"will be {STATES[WANTS[action]][6:]}"
            )
            results().print(f"{plural(len(chosen), 'projection')} {done}")

    carry_out(work, json=json)


async def _places(store: EventStore) -> list[Place]:
    end = (await store.end()).position
    wants = await switches(store)
    found: list[Place] = []
    for consumer, offset in sorted((await store.offsets()).items()):
        if consumer.startswith(CONSUMER):
            name = consumer.removeprefix(CONSUMER)
            found.append(Place(name, offset.position, end - offset.position, wants.get(name, Want.RUN)))
    return found


def _chosen(places: Sequence[Place], names: Sequence[str]) -> list[Place]:
    """Those that are named, or all.

    Raises:
        ConfigError: one is not there.
    """
    known = {each.name for each in places}
    for name in names:
        if name not in known:
            raise ConfigError(
                f"no projection {name!r} has run on this store",
                hint=f"there {'are' if known else 'is'} {', '.join(sorted(known)) or 'none'}",
            )
    return [each for each in places if not names or each.name in names]


def _show(places: Sequence[Place], *, json: bool) -> None:
    if json:
        for each in places:
            show_json({"name": each.name, "position": each.position, "lag": each.lag, "state": STATES[each.want]})
        return
    if not places:
        note("No projection has run on this store.")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("projection")
    table.add_column("position", justify="right")
    table.add_column("behind", justify="right")
    table.add_column("state")
    for each in places:
        table.add_row(plain(each.name), f"{each.position:,}", f"{each.lag:,}", STATES[each.want])
    results().print(table)
