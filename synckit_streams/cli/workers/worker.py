"""A worker: the process in which one of several copies of a service runs. Its supervisor starts it, and outlives it.

When the supervisor is gone, so is the worker, at once: nobody would restart it, count it or end it, and a second
supervisor would start as many again. What it had under way is what any crash leaves behind.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import socket
import sys
import threading

import msgspec

from synckit_streams.cli.loading import load
from synckit_streams.cli.terminal import complain
from synckit_streams.cli.workers.lifetime import CLOSE_S, FAILED, OK, WRONG, Deadline, lifetime
from synckit_streams.cli.workers.logs import LogLevel, log_to_stderr
from synckit_streams.cli.workers.wire import Ask, Ready, Told, Wire
from synckit_streams.errors import ConfigError, SyncKitError
from synckit_streams.observe.exposition import families
from synckit_streams.observe.health import Health
from synckit_streams.ports.operation import Check, Service

ORPHANED = 3
"""The status of a worker whose supervisor is gone."""

_log = logging.getLogger("synckit_streams.workers")


class Assignment(msgspec.Struct):
    """What a worker is told when it is started.

    Args:
        target: The service, as `MODULE:NAME`.
        worker: Which of the workers it is, from 1.
        workers: How many there are.
        drain_s: How long what is under way may take when it ends.
        log_level: The least that is logged.
        json: Logs are lines of JSON.
        colours: Logs are for a terminal.
        socket: The number of the file descriptor that leads to the supervisor.
    """

    target: str
    worker: int
    workers: int
    drain_s: float
    log_level: LogLevel
    json: bool
    colours: bool
    socket: int = -1


def main() -> None:
    """Run what the first argument says."""
    assignment = msgspec.json.decode(sys.argv[1].encode(), type=Assignment)
    for each in (signal.SIGINT, signal.SIGHUP):
        # Ctrl-C goes to every process of a terminal; what it means is the supervisor's to say. Not SIG_IGN, which
        # the processes that a service starts would inherit.
        signal.signal(each, lambda *_: None)
    log_to_stderr(f"worker-{assignment.worker}", assignment.log_level, json=assignment.json, colours=assignment.colours)
    threading.Thread(target=_end_with, args=(os.dup(assignment.socket),), daemon=True, name="supervisor").start()
    sys.exit(_status(assignment))


def _status(assignment: Assignment) -> int:
    try:
        service = load(assignment.target, workers=assignment.workers)
        asyncio.run(_work(service, assignment))
    except ConfigError as error:
        complain(error, json=assignment.json)
        return WRONG
    except SyncKitError as error:
        _log.error("%s", error)
        return FAILED
    except Exception:  # noqa: BLE001 - it is told, and the status says that it happened
        _log.exception("%s ended by an error", assignment.target)
        return FAILED
    return OK


def _end_with(supervisor: int) -> None:
    """Wait until the other end is closed. In a thread: the event loop may be busy with anything."""
    poll = select.poll()
    poll.register(supervisor, select.POLLHUP)
    poll.poll()
    os._exit(ORPHANED)


async def _work(service: Service, assignment: Assignment) -> None:
    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    wire = await Wire.over(socket.socket(fileno=assignment.socket))
    answering = asyncio.create_task(_answer(wire, service))
    deadline = Deadline(assignment.drain_s)
    saying: list[asyncio.Task[None]] = []
    try:
        await lifetime(
            service,
            end,
            drain_s=assignment.drain_s,
            started=lambda: saying.append(asyncio.create_task(wire.send(Ready()))),
            # The supervisor ends what it told to end. When a service fails, nobody else looks.
            draining=lambda: deadline.set(assignment.drain_s + 2 * CLOSE_S, FAILED),
        )
    finally:
        answering.cancel()


async def _answer(wire: Wire, service: Service) -> None:
    """What the supervisor asks, for as long as it does; each question by itself, since one may take its time."""
    health = Health(lambda: {service.name: service.checks})
    health.phase = "running"
    under_way: set[asyncio.Task[None]] = set()

    async def told(ask: Ask) -> None:
        if ask.what == "metrics":
            await wire.send(Told(ask.number, metrics=families()))
        else:
            await wire.send(Told(ask.number, checks=await _checks(health)))

    while isinstance(ask := await wire.receive(), Ask):
        task = asyncio.create_task(told(ask))
        under_way.add(task)
        task.add_done_callback(under_way.discard)


async def _checks(health: Health) -> list[Check]:
    report = await health.report()
    return [Check(name, each.status == "up", each.needed, each.message) for name, each in report.results.items()]


if __name__ == "__main__":
    main()
