"""Services to be run by `synckit run`. Each writes what it does into the file `journal` of its working directory."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from prometheus_client import Counter

from synckit_streams import Unavailable
from synckit_streams.ports.operation import Check

STARTS = Counter("service_starts", "How often it was started in this process.")


def note(what: str) -> None:
    """One line, by one write: several processes do so."""
    with Path("journal").open("a", encoding="utf-8") as journal:
        journal.write(f"{what} {os.getpid()}\n")


async def there(name: str) -> None:
    """Wait for a file, which is how a test tells a service something."""
    while not Path(name).exists():  # noqa: ASYNC110 - a file sets no event
        await asyncio.sleep(0.01)


class Steady:
    """Works until it is ended; the file `checks` says how its parts are."""

    shared = True

    def __init__(self, name: str) -> None:
        self.name = name

    async def start(self) -> None:
        STARTS.inc()
        note("started")

    async def stop(self, *, drain_s: float) -> None:
        note(f"stopped with {drain_s:g} s")

    async def failed(self) -> None:
        await asyncio.Event().wait()

    async def checks(self) -> Sequence[Check]:
        path = Path("checks")
        return [Check(*each) for each in json.loads(path.read_text())] if path.exists() else [Check("store", True)]


class Alone(Steady):
    """Its store belongs to one process."""

    shared = False


class Slow(Steady):
    """Has a piece of work under way that ends when the file `enough` is there."""

    async def stop(self, *, drain_s: float) -> None:
        note("drains")
        async with asyncio.timeout(drain_s):
            await there("enough")
        note("finished")


class Stubborn(Steady):
    """Does not end, and lets nobody else do anything."""

    async def stop(self, *, drain_s: float) -> None:
        note("stubborn")
        time.sleep(3600)  # noqa: ASYNC251 - as the code of a user may


class Blocked(Steady):
    """Works, and soon its event loop hangs."""

    async def start(self) -> None:
        await super().start()
        asyncio.get_running_loop().call_later(0.05, time.sleep, 3600)


class Crashing(Steady):
    """Cannot be started."""

    async def start(self) -> None:
        note("crashed")
        raise Unavailable("no way to the broker")


class Failing(Steady):
    """Works, until the file `fail` is there."""

    async def failed(self) -> NoReturn:
        await there("fail")
        raise Unavailable("the store is gone")


class Stuck(Failing):
    """Fails, and then does not end either."""

    async def stop(self, *, drain_s: float) -> None:
        note("stuck")
        time.sleep(3600)  # noqa: ASYNC251 - as the code of a user may


steady = Steady("steady")
alone = Alone("alone")
slow = Slow("slow")
stubborn = Stubborn("stubborn")
blocked = Blocked("blocked")
crashing = Crashing("crashing")
failing = Failing("failing")
stuck = Stuck("stuck")
