"""Where the projections of a store stand, who runs them and what keeps them: read from beside, and shown."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from rich.table import Table

from synckit_streams.cli.terminal import note, plain, results, show_json
from synckit_streams.ports.store import EventStore
from synckit_streams.runtime.rebuilding import CONSUMER
from synckit_streams.runtime.switch import Rebuild, Switch, Want, switches
from synckit_streams.runtime.trial import FAILING, Failing, trouble_name

PAGE_NOTES = 1_000
STATES = {
    Want.RUN: "runs",
    Want.PAUSE: "paused",
    Want.REBUILD: "to be rebuilt",
    Want.REBUILD_IN_PLACE: "to be rebuilt in place",
    Want.REPLAY: "to read again",
    Want.RESET: "to be made empty",
}


class Place(NamedTuple):
    """How far a projection is.

    Args:
        name: Its own.
        position: Up to where it has taken the log in.
        lag: How many positions of the log lie behind that.
        want: What is wanted of it.
        tables: Those that it has declared.
        rebuild: What is being built beside it.
        failing: The event before which it stands.
        aside: How many events it has set aside.
        runner: Which process runs it, where several share the store; "" for none.
    """

    name: str
    position: int
    lag: int
    want: Want
    tables: Sequence[str] = ()
    rebuild: Rebuild | None = None
    failing: Failing | None = None
    aside: int = 0
    runner: str = ""

    @property
    def reason(self) -> str:
        """Why it, or what is being built of it, does not go on; "" if it does."""
        if self.rebuild is not None:
            return self.rebuild.reason
        return f"stands before position {self.failing.position}: {self.failing.reason}" if self.failing else ""

    @property
    def percent(self) -> float:
        """How much of the log is in what is being built."""
        end = self.position + self.lag
        return 100 * min(self.rebuild.position / end, 1.0) if self.rebuild is not None and end else 0.0

    @property
    def state(self) -> str:
        """In a few words."""
        if self.rebuild is not None and self.want is Want.RUN:
            return "being rebuilt"
        return "fails" if self.failing is not None and self.want is Want.RUN else STATES[self.want]


async def places(store: EventStore) -> list[Place]:
    """Every projection that has run on a store."""
    end = (await store.end()).position
    noted = await switches(store)
    shared = store.features.shared
    runners = {each.name: each.holder for each in await store.leases(CONSUMER)} if shared else {}
    found: list[Place] = []
    for consumer, offset in sorted((await store.offsets()).items()):
        if consumer.startswith(CONSUMER):
            name = consumer.removeprefix(CONSUMER)
            switch = noted.get(name, Switch())
            failing, aside = await _trouble(store, name)
            found.append(
                Place(
                    name,
                    offset.position,
                    end - offset.position,
                    switch.want,
                    switch.tables or (),
                    switch.rebuild,
                    failing,
                    aside,
                    runners.get(consumer, ""),
                )
            )
    return found


async def _trouble(store: EventStore, name: str) -> tuple[Failing | None, int]:
    failing: Failing | None = None
    aside = 0
    after: tuple[str, str] | None = None
    while page := await store.applied(trouble_name(name), after=after, limit=PAGE_NOTES):
        for kind, _, state in page:
            if kind == FAILING:
                failing = msgspec.msgpack.decode(state, type=Failing)
            else:
                aside += 1
        after = page[-1][:2]
    return failing, aside


def _object(place: Place) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": place.name,
        "position": place.position,
        "lag": place.lag,
        "state": place.state,
    }
    if place.rebuild is not None:
        shown["rebuild"] = {
            "position": place.rebuild.position,
            "lag": place.position + place.lag - place.rebuild.position,
            "percent": round(place.percent, 1),
            "since": datetime.fromtimestamp(place.rebuild.since_ms / 1000, UTC).isoformat(timespec="seconds"),
        }
    more = {"runner": place.runner, "reason": place.reason, "aside": place.aside}
    return shown | {name: value for name, value in more.items() if value}


def show_places(found: Sequence[Place], *, json: bool) -> None:
    """As a table, or a line of JSON each."""
    if json:
        for each in found:
            show_json(_object(each))
        return
    if not found:
        note("No projection has run on this store.")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("projection")
    table.add_column("position", justify="right")
    table.add_column("behind", justify="right")
    table.add_column("state")
    runs = any(each.runner for each in found)
    if runs:
        table.add_column("run by")
    for each in found:
        built = (
            f" ({each.percent:.0f} %, {each.position + each.lag - each.rebuild.position:,} behind)"
            if each.rebuild
            else ""
        )
        aside = f", {each.aside:,} set aside" if each.aside else ""
        row = [plain(each.name), f"{each.position:,}", f"{each.lag:,}", f"{each.state}{built}{aside}"]
        table.add_row(*row, *([plain(each.runner)] if runs else []))
    results().print(table)
    for each in found:
        if each.reason:
            note(f"{plain(each.name)}: {plain(each.reason)}")
