"""`synckit connect`: pipelines between stores, brokers, tables, files and the web, as files say."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live
from rich.table import Table

from synckit_streams.cli.running import DRAIN_S_MAX
from synckit_streams.cli.terminal import (
    JsonFlag,
    carry_out,
    note,
    notes,
    plain,
    plain_markup,
    plural,
    results,
    show,
    show_json,
)
from synckit_streams.cli.workers.here import Where, run_here
from synckit_streams.cli.workers.lifetime import Deadline
from synckit_streams.cli.workers.logs import log_to_stderr
from synckit_streams.errors import MissingDependency
from synckit_streams.observe.prometheus import PrometheusObserver
from synckit_streams.ports.operation import Standing
from synckit_streams.ports.telemetry import Observer

if TYPE_CHECKING:
    from synckit_streams.connect.runner import Runner

LOOK_S = 0.5
"""How often a terminal is repainted."""
REPORT_S = 5.0
"""How often a line is written where there is no terminal."""
WRONG_FILES = 2
DRAIN_S = 10.0
COLOURS = {"running": "green", "paused": "yellow", "failed": "red", "stopped": "dim"}


def connect(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Files of pipelines, or folders of them")],
    check: Annotated[bool, typer.Option("--check", help="Only say what is wrong with the files.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Move what is there, and end.")] = False,
    host: Annotated[str, typer.Option("--host", help="Where HTTP is served, with --port.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            "--port",
            min=0,
            max=65535,
            help="Serve webhooks, /connectors, /health and /metrics there; 0 takes a free one.",
            show_default=False,
        ),
    ] = None,
    drain_s: Annotated[
        float,
        typer.Option("--drain-s", min=0, max=DRAIN_S_MAX, help="How long what is under way may take at the end, in s."),
    ] = DRAIN_S,
    state: Annotated[
        Path | None,
        typer.Option(
            "--state",
            metavar="FOLDER",
            help="Where the pipelines keep what they remember; without, beside each file.",
            show_default=False,
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Move records from sources to sinks, as YAML files say, until Ctrl-C.

    Nothing is lost: a position moves when the sink has the records. What cannot be delivered goes to the pipeline's
    dead letter. SIGHUP reads the files again, and restarts only what has changed. With --check the status is 2 if
    something is wrong. With --port it takes webhooks, and shows over HTTP how it is.

    [bold]Examples[/bold]

      $ synckit connect orders.yaml
      $ synckit connect /etc/synckit/pipelines --check
      $ synckit connect import.yaml --once
      $ synckit connect hooks.yaml --host 0.0.0.0 --port 8000
    """
    if check:
        carry_out(lambda: _check(files, json=json), json=json)
        return
    if once:
        carry_out(lambda: _once(files, state=state, json=json), json=json)
        return
    where = None if port is None else Where(host, port)
    on_terminal = sys.stderr.isatty()
    # A terminal shows how it goes; beside that only what is wrong is said.
    colours = on_terminal and "NO_COLOR" not in os.environ
    log_to_stderr("connect", "warning" if on_terminal else "info", json=json, colours=colours)
    deadline = Deadline(drain_s)
    try:
        carry_out(
            lambda: _run(files, state=state, where=where, deadline=deadline, drain_s=drain_s, json=json),
            json=json,
        )
    finally:
        deadline.lift()


def _runner(
    files: Sequence[Path], *, once: bool = False, state: Path | None = None, observer: Observer | None = None
) -> Runner:
    try:
        import pydantic  # noqa: F401
        import yaml  # noqa: F401
    except ImportError as missing:
        raise MissingDependency(
            f"synckit connect needs {missing.name}", hint="pip install 'synckit-streams[app]'"
        ) from missing
    from synckit_streams.connect.runner import Runner

    return Runner(files, once=once, state=state, observer=observer)


async def _check(files: Sequence[Path], *, json: bool) -> int:
    loaded = _runner(files).load()
    if json:
        problems = [{**each._asdict(), "file": str(each.file)} for each in loaded.problems]
        show_json({"pipelines": [each.pipeline.name for each in loaded.declared], "problems": problems})
    elif loaded.problems:
        for problem in loaded.problems:
            show(plain(str(problem)))
    else:
        results().print(f"[green]✓[/green] {plural(len(loaded.declared), 'pipeline')}, nothing wrong")
    return WRONG_FILES if loaded.problems else 0


async def _once(files: Sequence[Path], *, state: Path | None, json: bool) -> int:
    runner = _runner(files, once=True, state=state)
    await runner.start()
    try:
        async with _telling(runner, json=json):
            await runner.wait()
        standings = runner.standings()
    finally:
        await runner.stop()
    _report(standings, json=json)
    return 1 if any(each.state == "failed" for each in standings) else 0


async def _run(
    files: Sequence[Path], *, state: Path | None, where: Where | None, deadline: Deadline, drain_s: float, json: bool
) -> int:
    # Without prometheus-client /metrics says what is to be installed; everything else works.
    counted = where is not None and find_spec("prometheus_client") is not None
    runner = _runner(files, state=state, observer=PrometheusObserver() if counted else None)
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        reloads.add(task := asyncio.create_task(_reload(runner, quiet=json)))
        task.add_done_callback(reloads.discard)

    async with _telling(runner, json=json):
        status = await run_here(runner, drain_s=drain_s, where=where, deadline=deadline, hang_up=reload)
    _report(runner.standings(), json=json)
    return status


@asynccontextmanager
async def _telling(runner: Runner, *, json: bool) -> AsyncIterator[None]:
    """Say how it goes during the block."""
    task = asyncio.create_task(_tell(runner, json=json))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _reload(runner: Runner, *, quiet: bool) -> None:
    done = await runner.reload()
    for problem in done.refused:
        note(f"[red]not reloaded[/red]: {plain_markup(problem)}", quiet=quiet)
    if not done.refused:
        said = [
            f"{what} {', '.join(names)}"
            for what, names in (("started", done.started), ("restarted", done.restarted), ("stopped", done.stopped))
            if names
        ]
        note(f"[green]reloaded[/green]: {plain_markup('; '.join(said)) or 'nothing changed'}", quiet=quiet)


async def _tell(runner: Runner, *, json: bool) -> None:
    """How it goes: on a terminal always the present state, elsewhere a line now and then."""
    console = notes()
    if console.is_terminal and not json:
        with Live(console=console, transient=True, auto_refresh=False) as live:
            while True:
                live.update(_table(runner.standings()), refresh=True)
                await asyncio.sleep(LOOK_S)
    said: set[Standing] = set()
    while True:
        await asyncio.sleep(REPORT_S)
        now = runner.standings()
        # For people only what has changed: a log is not to fill up with the same.
        _report(now if json else [each for each in now if each not in said], json=json)
        said = set(now)


def _report(standings: Sequence[Standing], *, json: bool) -> None:
    for each in standings:
        if json:
            show_json(each._asdict())
        else:
            note(_line(each))


def _line(standing: Standing) -> str:
    said = f"[{COLOURS[standing.state]}]{standing.state}[/] [bold]{plain_markup(standing.name)}[/bold]: "
    said += f"{plural(standing.moved, 'record')} from {plain_markup(standing.source)} to {plain_markup(standing.sink)}"
    if standing.dead:
        said += f", [yellow]{standing.dead:,} to the dead letter[/yellow]"
    if standing.lag:
        said += f", {standing.lag:,} to go"
    if standing.error and standing.state == "failed":
        said += f": [red]{plain_markup(standing.error)}[/red]"
    return said


def _table(standings: Sequence[Standing]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("pipeline", "state", "from", "to"):
        table.add_column(column)
    for column in ("moved", "dead", "to go"):
        table.add_column(column, justify="right")
    table.add_column("", overflow="ellipsis", no_wrap=True)
    cell: Callable[[str], str] = plain_markup
    for each in standings:
        table.add_row(
            cell(each.name),
            f"[{COLOURS[each.state]}]{each.state}[/]",
            cell(each.source),
            cell(each.sink),
            f"{each.moved:,}",
            f"{each.dead:,}",
            "" if each.lag is None else f"{each.lag:,}",
            f"[red]{cell(each.error)}[/red]" if each.state == "failed" else "",
        )
    return table
