"""`synckit run`: a service as a program, in one process or in several, with its operations over HTTP beside it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated

import typer

from synckit_streams.cli.terminal import INTERRUPTED, JsonFlag, carry_out, complain
from synckit_streams.cli.workers.lifetime import CLOSE_S, FAILED, OK, WRONG, Deadline, lifetime
from synckit_streams.cli.workers.loading import load, split
from synckit_streams.cli.workers.logs import LogLevel, log_to_stderr
from synckit_streams.cli.workers.supervisor import WORKERS_MAX, Supervisor, standing
from synckit_streams.cli.workers.watching import Sources, folders_of
from synckit_streams.cli.workers.worker import Assignment
from synckit_streams.errors import ConfigError, SyncKitError
from synckit_streams.observe.exposition import Exposition, families, together
from synckit_streams.observe.health import Health
from synckit_streams.ports.operation import Service

DRAIN_S = 30.0
DRAIN_S_MAX = 86_400.0
"""The longest time that a drain may be given."""
PORT = 8000

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

    [bold]Examples[/bold]

      $ synckit run shop.billing:app
      $ synckit run shop.billing:app --workers 4 --host 0.0.0.0 --port 9000
      $ synckit run shop.billing:app --reload --log-level debug
    """
    colours = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    assignment = Assignment(target, 1, workers, drain_s, log_level, json, colours)
    where = None if no_http else (host, port)
    several = workers > 1 or reload
    log_to_stderr("supervisor" if several else "worker-1", log_level, json=json, colours=colours)
    deadline = Deadline(lambda: _log.error("it did not end within %g s, and is cut off", drain_s + CLOSE_S))

    async def work() -> int:
        try:
            if several:
                return await _supervised(assignment, where, reload=reload)
            return await _alone(load(target), assignment, where, deadline)
        except ConfigError as error:
            complain(error, json=json)
            return WRONG
        except SyncKitError:
            raise
        except Exception:  # noqa: BLE001 - it is told, and the status says that it happened
            _log.exception("%s ended by an error", target)
            return FAILED

    try:
        carry_out(work, json=json)
    finally:
        deadline.lift()


async def _alone(service: Service, assignment: Assignment, where: tuple[str, int] | None, deadline: Deadline) -> int:
    """In this process."""
    health = Health(lambda: {} if health.phase == "starting" else {service.name: service.checks})
    end = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None

    def started() -> None:
        health.phase = "running"
        _log.info("%s is ready (pid %d)", service.name, os.getpid())

    def drain() -> None:
        if not end.is_set():
            _log.info("ending: %g s to finish what is under way", assignment.drain_s)
            deadline.set(assignment.drain_s + 2 * CLOSE_S, FAILED)
        health.phase = "stopping"
        end.set()

    def cut() -> None:
        _log.warning("cut short")
        deadline.set(CLOSE_S, INTERRUPTED)
        task.cancel()

    async def metrics() -> Exposition:
        ours = standing(up=health.phase == "running", restarts=0)
        return together({"1": [*ours, *families()]}, label="worker")

    _on_signals(drain, cut, hang_up=drain)
    async with _served(health, metrics, where):
        try:
            await lifetime(service, end, drain_s=assignment.drain_s, started=started)
        except asyncio.CancelledError:
            if not end.is_set():
                raise
            return INTERRUPTED
    return OK


async def _supervised(assignment: Assignment, where: tuple[str, int] | None, *, reload: bool) -> int:
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

    def start(work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        beside.add(task)
        task.add_done_callback(beside.discard)

    async def follow(sources: Sources) -> None:
        while changed := await sources.changed():
            shown = ", ".join(each.name for each in changed[:3]) + (" …" if len(changed) > 3 else "")
            _log.info("changed: %s; starting anew", shown)
            await supervisor.reload()

    _on_signals(supervisor.end, cut, hang_up=lambda: start(supervisor.restart()))
    async with _served(supervisor.health, supervisor.metrics, where):
        if sources is not None:
            start(follow(sources))
        try:
            status = await supervisor.run()
        finally:
            for each in beside:
                each.cancel()
    return INTERRUPTED if interrupted else status


def _on_signals(drain: Callable[[], None], cut: Callable[[], None], *, hang_up: Callable[[], None]) -> None:
    """What the signals mean.

    Args:
        drain: SIGTERM, and the first Ctrl-C.
        cut: The second Ctrl-C.
        hang_up: SIGHUP; but when it comes because our terminal was closed, `drain`.
    """
    loop = asyncio.get_running_loop()
    on_terminal = sys.stderr.isatty()
    interrupts = 0

    def interrupted() -> None:
        nonlocal interrupts
        interrupts += 1
        (drain if interrupts == 1 else cut)()

    def hung_up() -> None:
        (drain if on_terminal and not os.isatty(2) else hang_up)()

    loop.add_signal_handler(signal.SIGTERM, drain)
    loop.add_signal_handler(signal.SIGINT, interrupted)
    loop.add_signal_handler(signal.SIGHUP, hung_up)


@asynccontextmanager
async def _served(
    health: Health, metrics: Callable[[], Awaitable[Exposition]], where: tuple[str, int] | None
) -> AsyncIterator[None]:
    """Metrics and health over HTTP, if they are wanted."""
    if where is None:
        yield
        return
    try:
        from synckit_streams.http.operations import operations
        from synckit_streams.http.serving import serve
    except ConfigError as missing:
        raise ConfigError(missing.message, hint=f"{missing.hint}, or --no-http") from missing
    async with serve(operations(health, metrics=metrics), host=where[0], port=where[1], end_s=1.0) as url:
        _log.info("metrics and health are at %s/metrics and %s/health", url, url)
        yield
