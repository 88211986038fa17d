"""`synckit projection`: how far the read models of a store are, and what is wanted of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

from synckit_streams.cli.access import StoreUrl, writing
from synckit_streams.cli.standing import Place, places, show_places
from synckit_streams.cli.terminal import JsonFlag, carry_out, note, plain, plural, progress, results, show_json
from synckit_streams.errors import ConfigError, ProjectionFailed
from synckit_streams.model.event import Offset
from synckit_streams.ports.store import EventStore
from synckit_streams.runtime.ownership import reading
from synckit_streams.runtime.switch import Want

PAGE_EVENTS = 1_000
WATCH_S = 0.2


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
DONE = {
    Action.PAUSE: "paused",
    Action.RESUME: "resumed",
    Action.REBUILD: "will be rebuilt",
    Action.RESET: "will be made empty",
}


def projection(
    action: Annotated[Action, typer.Argument(help="What to do.", show_default=False)],
    store: StoreUrl,
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Which projections.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    begin: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="POSITION|TIME",
            help="With `rebuild`: apply again what the log has from there on, and keep the rows.",
            show_default=False,
        ),
    ] = "",
    in_place: Annotated[
        bool, typer.Option("--in-place", help="With `rebuild`: make it empty first, and build no second one.")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="With `rebuild`: wait for the end, and show how far it is.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Look how far the read models of a store are; pause, resume, rebuild or empty them.

    What is wanted is kept in the store, and done by the process that runs the projection: at once, or with its next
    page. `rebuild` reads the whole log again. A projection that has declared its `tables` goes on meanwhile: a second
    model is built beside it, and takes its place in one commit. Another one, or one with `--in-place`, is made empty
    first; until it is at the end, those who query it see less. `reset` makes it empty and pauses it.

    `rebuild --from` makes nothing empty: events from a position of the log on, or from the first one that was written
    at or after a time (UTC), are applied once more to the rows as they are. That is for projections which can be told
    twice, like those that only set a row to what an event says. One that adds up would add twice.

    [bold]Examples[/bold]

      $ synckit projection list --store sqlite:///billing.db
      $ synckit projection rebuild daily_sales --watch --store postgresql://db/billing
      $ synckit projection rebuild prices --from 2026-05-01T00:00 --store sqlite:///billing.db
      $ synckit projection pause --all --store sqlite:///billing.db
    """

    async def work() -> None:
        if action is not Action.REBUILD and (begin or in_place or watch):
            raise ConfigError(f"{action} takes no --from, --in-place or --watch", hint="they go with rebuild")
        if begin and in_place:
            raise ConfigError("--from keeps the rows, and --in-place removes them", hint="leave one of them out")
        async with reading(store) as opened:
            chosen = _chosen(await places(opened), names or [])
            position = await _position(opened, begin) if begin else 0
        if action in (Action.LIST, Action.STATUS):
            show_places(chosen, json=json)
            return
        if every == bool(names):
            raise ConfigError("which projections?", hint=f"synckit projection {action} NAME…, or --all")
        want = Want.REPLAY if begin else Want.REBUILD_IN_PLACE if in_place else WANTS[action]
        if want is Want.REBUILD:
            for each in chosen:
                _warn(each, quiet=json)
        if chosen:
            async with writing(store, node=None, quiet=json) as writer:
                await writer.switch([each.name for each in chosen], want, position=position)
        if json:
            show_json({"action": str(action), "projections": [each.name for each in chosen]})
        else:
            done = f"will read again from position {position:,} on" if begin else DONE[action]
            results().print(f"{plural(len(chosen), 'projection')} {done}")
        if watch:
            for each in chosen:
                await _watch(store, each.name, quiet=json)

    carry_out(work, json=json)


def _warn(place: Place, *, quiet: bool) -> None:
    if not place.tables:
        note(
            f"{plain(place.name)}: it has not declared its tables, so it is rebuilt in place: until it is at the end, "
            "those who query it see less. With tables=… in @app.projection it is built beside the live one, on SQLite "
            "and PostgreSQL.",
            quiet=quiet,
        )


def _chosen(known: Sequence[Place], names: Sequence[str]) -> list[Place]:
    """Those that are named, or all.

    Raises:
        ConfigError: one is not there.
    """
    there = {each.name for each in known}
    for name in names:
        if name not in there:
            raise ConfigError(
                f"no projection {name!r} has run on this store",
                hint=f"there {'are' if there else 'is'} {', '.join(sorted(there)) or 'none'}",
            )
    return [each for each in known if not names or each.name in names]


async def _position(store: EventStore, begin: str) -> int:
    """A position of the log, or that of the first event which was written at a time or later.

    Raises:
        ConfigError: it is neither, or nothing was written since.
    """
    if begin.isdecimal():
        return int(begin)
    try:
        since = datetime.fromisoformat(begin)
    except ValueError:
        raise ConfigError(
            f"--from {begin!r:.80} is neither a position nor a time", hint="for example 4711, or 2026-05-01T12:00"
        ) from None
    since_ms = int((since if since.tzinfo else since.replace(tzinfo=UTC)).timestamp() * 1000)
    after: Offset | None = None
    while page := await store.log(after=after, limit=PAGE_EVENTS):
        for stored in page:
            if stored.event.at.wall_ms >= since_ms:
                return stored.position
        after = page[-1].offset
    raise ConfigError(f"nothing in this log was written since {begin}", hint="times are UTC, unless they say otherwise")


async def _watch(store: str, name: str, *, quiet: bool) -> None:
    """Until it has been rebuilt.

    Raises:
        ProjectionFailed: what is built cannot go on.
    """
    end = 0
    with progress(f"{name}: waits for whoever runs it", None, quiet=quiet) as advance:
        async with reading(store) as opened:
            while True:
                (place,) = [each for each in await places(opened) if each.name == name]
                end = end or place.position + place.lag
                if reason := place.reason:
                    raise ProjectionFailed(
                        f"{name}: {reason}", hint="it is tried again; see `synckit projection status`"
                    )
                at = place.rebuild.position if place.rebuild is not None else place.position
                if place.want is Want.RUN:
                    advance.of(min(at, end), end)
                    if place.rebuild is None and at >= end:
                        break
                await asyncio.sleep(WATCH_S)
    if not quiet:
        results().print(f"{name} is rebuilt")
