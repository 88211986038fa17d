"""`synckit run`: a service as a program, in one process or in several, with its operations over HTTP beside it."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Coroutine
from typing import Annotated, Any

import typer

from synckit_streams.cli.loading import load, split
from synckit_streams.cli.terminal import INTERRUPTED, JsonFlag, carry_out, complain
from synckit_streams.cli.workers.here import Where, on_signals, run_here, served
from synckit_streams.cli.workers.lifetime import FAILED, WRONG, Deadline
from synckit_streams.cli.workers.logs import LogLevel, log_to_stderr
from synckit_streams.cli.workers.supervisor import WORKERS_MAX, Supervisor
from synckit_streams.cli.workers.watching import Sources, folders_of
from synckit_streams.cli.workers.worker import Assignment
from synckit_streams.errors import ConfigError, SyncKitError
from synckit_streams.ports.operation import Service

DRAIN_S = 30.0
DRAIN_S_MAX = 86_400.0
"""The longest time that a drain may be given."""
PORT = 8000
CHANGED_SHOWN_MAX = 3

_log = logging.getLogger("synckit_streams.workers")


def run(
    target: Annotated[str, typer.Argument(metavar="MODULE:NAME", help="The service, e.g. shop.billing:app")],
    workers: Annotated[
        int, typer.Option("--workers", min=1, max=WORKERS_MAX, help="Processes; more than one need a shared store.")
    ] = 1,
    reload: Annotated[bool, typer.Option("--reload", help="Start anew when a .py file changes.")] = False,
    host: Annotated[str, typer.Option("--host", help="Where metrics and health are served.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="At which port; 0 takes a free one.")] = PORT,
    no_http: Annotated[bool, typer.Option("--no-http", help="Serve no metrics and no health.")] = False,
    drain_s: Annotated[
        float,
        typer.Option("--drain-s", min=0, max=DRAIN_S_MAX, help="How long what is under way may take at the end, in s."),
    ] = DRAIN_S,
    log_level: Annotated[LogLevel, typer.Option("--log-level", help="The least that is logged.")] = "info",
    json: JsonFlag = False,
) -> None:
    """Run a service: its handlers, projections and connectors, until SIGTERM or Ctrl-C.

    Then it finishes what is under way; a second Ctrl-C ends it at once. With several workers, one that dies is started
    again, SIGHUP starts all of them anew one after another, and one port shows the metrics and the health of all.

    The status is 0 when it was told to end, 1 when it failed or did not end in time, and 2 when a setting is wrong.

    [bold]Examples[/bold]

      $ synckit run shop.billing:app
      $ synckit run shop.billing:app --workers 4 --host 0.0.0.0 --port 9000
      $ synckit run shop.billing:app --reload --log-level debug
    """
    colours = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    where = None if no_http else Where(host, port)
    several = workers > 1 or reload
    log_to_stderr("supervisor" if several else "worker-1", log_level, json=json, colours=colours)
    deadline = Deadline(drain_s)

    async def work(service: Service | None) -> int:
        try:
            if service is not None:
                return await run_here(service, drain_s=drain_s, where=where, deadline=deadline)
            assignment = Assignment(target, 1, workers, drain_s, log_level, json, colours)
            return await _supervised(assignment, where, reload=reload)
        except ConfigError as error:
            complain(error, json=json)
            return WRONG
        except SyncKitError:
            raise
        except Exception:  # noqa: BLE001 - it is told, and the status says that it happened
            _log.exception("%s ended by an error", target)
            return FAILED

    try:
        # Before there is an event loop: a module may run one of its own while it is imported.
        service = None if several else load(target)
    except SyncKitError as error:
        complain(error, json=json)
        raise typer.Exit(WRONG if isinstance(error, ConfigError) else FAILED) from error
    try:
        carry_out(lambda: work(service), json=json)
    finally:
        deadline.lift()


async def _supervised(assignment: Assignment, where: Where | None, *, reload: bool) -> int:
    """In processes of their own."""
    module, _ = split(assignment.target)
    sources = Sources(folders_of(module)) if reload else None
    supervisor = Supervisor(assignment, reloading=reload)
    interrupted = False
    beside: set[asyncio.Task[None]] = set()

    def cut() -> None:
        nonlocal interrupted
        interrupted = True
        supervisor.cut()

    def start(work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        beside.add(task)
        task.add_done_callback(ended)

    def ended(task: asyncio.Task[None]) -> None:
        beside.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("the supervisor goes on without what it did beside", exc_info=error)

    async def follow(sources: Sources) -> None:
        while changed := await sources.changed():
            more = " …" if len(changed) > CHANGED_SHOWN_MAX else ""
            _log.info("changed: %s%s", ", ".join(each.name for each in changed[:CHANGED_SHOWN_MAX]), more)
            await supervisor.reload()

    on_signals(supervisor.end, cut, hang_up=lambda: start(supervisor.restart()))
    async with served(supervisor.health, supervisor.metrics, where):
        if sources is not None:
            start(follow(sources))
        try:
            status = await supervisor.run()
        finally:
            for each in beside:
                each.cancel()
    return INTERRUPTED if interrupted else status
