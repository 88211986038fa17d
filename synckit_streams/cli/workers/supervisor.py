"""Several processes that run one service: started, watched, told to end, and shown as one.

The first worker is started alone. What is wrong with the settings is then said once, and what is made at the first
start (tables, streams) is made by one. A supervisor imports nothing of the service: what it runs may leak, hang or
crash, and a changed program is read by the next worker.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial

import msgspec

from synckit_streams.cli.workers.lifetime import FAILED, OK, WRONG
from synckit_streams.cli.workers.slot import AfterWrong, Slot
from synckit_streams.cli.workers.worker import Assignment
from synckit_streams.errors import SyncKitError
from synckit_streams.observe.exposition import Exposition, Family, Sample, together
from synckit_streams.observe.health import ANSWER_S, Health
from synckit_streams.ports.operation import Checks

WORKERS_MAX = 256
"""Most workers of one supervisor."""
ASK_S = ANSWER_S + 0.5
"""How long a worker may take to answer: it gives its own parts `ANSWER_S`, and then says which of them hangs."""

_log = logging.getLogger("synckit_streams.workers")


class Supervisor:
    """Keeps so many workers.

    Args:
        assignment: What they are told; their numbers are given here.
        reloading: Somebody edits the program: what is wrong with it is waited for to be put right.
    """

    def __init__(self, assignment: Assignment, *, reloading: bool = False) -> None:
        self.health = Health(self._sources, answer_s=ASK_S)
        self._drain_s = assignment.drain_s
        self._reloading = reloading
        self._first = asyncio.Event()
        self._over = asyncio.Event()
        self._restarting = asyncio.Lock()
        self._slots = [
            Slot(
                msgspec.structs.replace(assignment, worker=number),
                after_wrong=self._after_wrong,
                changed=self._look,
            )
            for number in range(1, assignment.workers + 1)
        ]

    async def run(self) -> int:
        """Until it is told to end, or a wrong setting makes that necessary; gives the status."""
        async with asyncio.TaskGroup() as keepers:
            try:
                for slot in self._slots:
                    keepers.create_task(slot.keep(), name=slot.name)
                    await self._first.wait()
                    if self._over.is_set():
                        break
                await self._over.wait()
                self.health.phase = "stopping"
                clean = all(await asyncio.gather(*(slot.end(drain_s=self._drain_s) for slot in self._slots)))
            finally:
                for slot in self._slots:
                    slot.kill()
        if any(slot.gave_up for slot in self._slots):
            return WRONG
        return OK if clean else FAILED

    def end(self) -> None:
        """Let every worker finish what is under way, and end."""
        if not self._over.is_set():
            _log.info("ending: the workers have %g s to finish what is under way", self._drain_s)
        self._stop_waiting()

    def cut(self) -> None:
        """End at once."""
        _log.warning("cut short: the workers are killed")
        self._stop_waiting()
        for slot in self._slots:
            slot.kill()

    async def restart(self) -> None:
        """A new process for each worker, one after another, so that the work goes on meanwhile."""
        if self._restarting.locked():
            _log.info("the workers are being restarted already")
            return
        async with self._restarting:
            _log.info("restarting the workers one after another")
            for slot in self._slots:
                if self._over.is_set():
                    return
                await slot.renew(drain_s=self._drain_s)
                if not await slot.renewed():
                    if self._over.is_set():
                        return
                    _log.error("%s did not become ready again; the workers after it go on as they are", slot.name)
                    return
            _log.info("all workers have been restarted")

    async def reload(self) -> None:
        """A new process for each worker, all at once: the program has changed."""
        await asyncio.gather(*(slot.renew(drain_s=self._drain_s) for slot in self._slots))

    async def metrics(self) -> Exposition:
        """What all workers have counted, by worker, and how the workers are.

        Raises:
            MissingDependency: prometheus-client is not installed.
        """
        told = await asyncio.gather(*(_counted(slot) for slot in self._slots))
        return together({str(slot.number): each for slot, each in zip(self._slots, told, strict=True)}, label="worker")

    def _after_wrong(self) -> AfterWrong:
        if self._reloading:
            return "wait"
        # What has worked may work again: a setting that only the next process reads must not end those that run.
        return "pause" if self.health.phase == "running" else "give-up"

    def _look(self) -> None:
        """A worker became ready, or ended."""
        if self.health.phase == "starting" and any(slot.is_ready for slot in self._slots):
            self.health.phase = "running"
            self._first.set()
        if any(slot.gave_up for slot in self._slots):
            self._stop_waiting()

    def _stop_waiting(self) -> None:
        self._over.set()
        self._first.set()

    def _sources(self) -> Mapping[str, Checks]:
        nobody = not any(slot.is_ready for slot in self._slots)
        return {slot.name: partial(slot.checks, needed=nobody) for slot in self._slots}


async def _counted(slot: Slot) -> list[Family]:
    ours = standing(up=slot.is_ready, restarts=slot.restarts)
    if slot.child is None or not slot.is_ready:
        return ours
    try:
        async with asyncio.timeout(ASK_S):
            return [*ours, *await slot.child.metrics()]
    except TimeoutError:
        _log.warning("%s did not tell its metrics within %g s", slot.name, ASK_S)
    except SyncKitError as error:
        _log.warning("%s did not tell its metrics: %s", slot.name, error)
    return ours


def standing(*, up: bool, restarts: int) -> list[Family]:
    """How a worker is, as metrics.

    Args:
        up: Whether it works.
        restarts: How often it was started again.
    """
    return [
        Family(
            "synckit_worker_up", "1 while the worker works.", "gauge", "", [Sample("synckit_worker_up", {}, float(up))]
        ),
        Family(
            "synckit_worker_restarts",
            "How often the worker was started again.",
            "counter",
            "",
            [Sample("synckit_worker_restarts_total", {}, float(restarts))],
        ),
    ]
