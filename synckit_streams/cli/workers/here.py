"""A service in this process: its signals, its deadline, and what it shows over HTTP.

`synckit run` with one worker is this, and so is any other command that runs something until it is told to end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

from synckit_streams.cli.terminal import INTERRUPTED
from synckit_streams.cli.workers.lifetime import CLOSE_S, CUT_S, FAILED, OK, Deadline, lifetime
from synckit_streams.cli.workers.supervisor import standing
from synckit_streams.errors import MissingDependency
from synckit_streams.observe.exposition import Exposition, families, together
from synckit_streams.observe.health import Health
from synckit_streams.ports.operation import Hooks, Pipelines, Service, Webhook

HTTP_END_S = 1.0
"""How long requests may still take when everything else has ended."""

_log = logging.getLogger("synckit_streams.workers")


class Where(NamedTuple):
    """Where HTTP is served."""

    host: str
    port: int


async def run_here(
    service: Service,
    *,
    drain_s: float,
    where: Where | None,
    deadline: Deadline,
    hang_up: Callable[[], None] | None = None,
) -> int:
    """Run it until it is told to end; gives the status of the process.

    Args:
        service: What runs. If it is also `Pipelines` or `Hooks`, these are served over HTTP.
        drain_s: How long what is under way may take at the end.
        where: Where health and metrics are served; None for nowhere.
        deadline: Ends the process if it does not end by itself; whoever gives it lifts it, after the event loop's end.
        hang_up: What SIGHUP does; None ends the service.

    Raises:
        SyncKitError: it could not be started, or could not go on.
    """
    health = Health(lambda: {} if health.phase == "starting" else {service.name: service.checks})
    end = asyncio.Event()
    task = asyncio.current_task()
    assert task is not None

    def started() -> None:
        health.phase = "running"
        _log.info("%s is ready (pid %d)", service.name, os.getpid())

    def draining() -> None:
        health.phase = "stopping"
        deadline.set(drain_s + CLOSE_S + HTTP_END_S, FAILED)

    def drain() -> None:
        if not end.is_set():
            _log.info("ending: %g s to finish what is under way", drain_s)
            draining()
        end.set()

    def cut() -> None:
        _log.warning("cut short")
        deadline.set(CUT_S, INTERRUPTED)
        task.cancel()

    async def metrics() -> Exposition:
        ours = standing(up=health.phase == "running", restarts=0)
        return together({"1": [*ours, *families()]}, label="worker")

    on_signals(drain, cut, hang_up=hang_up or drain)
    pipelines = service if isinstance(service, Pipelines) else None
    hooks = service.hooks if isinstance(service, Hooks) else None
    async with served(health, metrics, where, pipelines=pipelines, hooks=hooks):
        try:
            await lifetime(service, end, drain_s=drain_s, started=started, draining=draining)
        except asyncio.CancelledError:
            if not end.is_set():
                raise
            return INTERRUPTED
        _log.info("%s has ended", service.name)
    return OK


def on_signals(drain: Callable[[], None], cut: Callable[[], None], *, hang_up: Callable[[], None]) -> None:
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
        (drain if on_terminal and not sys.stderr.isatty() else hang_up)()

    loop.add_signal_handler(signal.SIGTERM, drain)
    loop.add_signal_handler(signal.SIGINT, interrupted)
    loop.add_signal_handler(signal.SIGHUP, hung_up)


@asynccontextmanager
async def served(
    health: Health,
    metrics: Callable[[], Awaitable[Exposition]],
    where: Where | None,
    *,
    pipelines: Pipelines | None = None,
    hooks: Mapping[str, Webhook] | None = None,
) -> AsyncIterator[None]:
    """What there is to show over HTTP, while the block runs.

    Args:
        health: Answers probes.
        metrics: For Prometheus.
        where: None for nowhere.
        pipelines: Shown, paused and restarted.
        hooks: Taken.

    Raises:
        ConfigError: the port cannot be had, or the `http` extra is not installed.
    """
    if where is None:
        yield
        return
    try:
        from synckit_streams.http.operations import operations
        from synckit_streams.http.serving import serve
    except MissingDependency as missing:
        raise MissingDependency(missing.message, hint=f"{missing.hint}, or --no-http") from missing
    shown = operations(health, metrics=metrics, pipelines=pipelines, hooks=hooks)
    async with serve(shown, host=where.host, port=where.port, end_s=HTTP_END_S) as url:
        _log.info("metrics and health are at %s/metrics and %s/health", url, url)
        yield
