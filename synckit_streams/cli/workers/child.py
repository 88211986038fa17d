"""A worker as its supervisor sees it: a process that becomes ready, answers what it is asked, and ends."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import socket
import sys

import msgspec

from synckit_streams.cli.workers.lifetime import CLOSE_S, OK
from synckit_streams.cli.workers.wire import Ask, Ready, Told, Wire
from synckit_streams.cli.workers.worker import Assignment
from synckit_streams.errors import Unavailable
from synckit_streams.observe.exposition import Family
from synckit_streams.ports.operation import Check

MODULE = "synckit_streams.cli.workers.worker"

_log = logging.getLogger("synckit_streams.workers")


class Child:
    """One process, from its start to its end.

    Args:
        process: It.
        wire: To it.
        assignment: What it was told.
    """

    def __init__(self, process: asyncio.subprocess.Process, wire: Wire, assignment: Assignment) -> None:
        self._process = process
        self._wire = wire
        self._assignment = assignment
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Told]] = {}
        self._killed = False
        self.ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Done when it works, or with False when it ended before."""
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, assignment: Assignment) -> Child:
        """A fresh interpreter: a fork would share the loop, the connections and the locks of whoever forks.

        Raises:
            OSError: the system has no room for another process.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            told = msgspec.structs.replace(assignment, socket=theirs.fileno())
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                MODULE,
                msgspec.json.encode(told).decode(),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        return cls(process, await Wire.over(ours), assignment)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """Whether it works just now."""
        return self.ready.done() and self.ready.result() and self._process.returncode is None

    async def ended(self) -> int:
        """Wait for its end; gives its status, or the negative number of the signal that killed it."""
        status = await self._process.wait()
        await self._listening
        return status

    async def end(self, *, drain_s: float) -> bool:
        """Let it finish what is under way, and kill it when it does not; gives whether it ended by itself.

        Args:
            drain_s: How long it may take.
        """
        was_ready = self.is_ready
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(drain_s + CLOSE_S):
                status = await self._process.wait()
        except TimeoutError:
            _log.error(
                "worker %d (pid %d) did not end within %g s, and is killed",
                self._assignment.worker,
                self.pid,
                drain_s + CLOSE_S,
            )
            self.kill()
            status = await self._process.wait()
        # Before it is ready it has no handler for the signal, and nothing to finish.
        return not self._killed and (status == OK or (not was_ready and status == -signal.SIGTERM))

    def kill(self) -> None:
        """End it at once."""
        self._killed = True
        self._signal(signal.SIGKILL)

    async def checks(self) -> list[Check]:
        """How its parts are.

        Raises:
            Unavailable: it ended meanwhile.
        """
        return (await self._ask(Ask(next(self._numbers), "checks"))).checks

    async def metrics(self) -> list[Family]:
        """What it has counted.

        Raises:
            Unavailable: it ended meanwhile.
        """
        return (await self._ask(Ask(next(self._numbers), "metrics"))).metrics

    async def _ask(self, ask: Ask) -> Told:
        answer = self._asked[ask.number] = asyncio.get_running_loop().create_future()
        try:
            await self._wire.send(ask)
            told: Told = await answer
            return told
        finally:
            self._asked.pop(ask.number, None)

    async def _listen(self) -> None:
        while (frame := await self._wire.receive()) is not None:
            if isinstance(frame, Ready):
                self.ready.set_result(True)
            elif isinstance(frame, Told) and (answer := self._asked.get(frame.number)) and not answer.done():
                answer.set_result(frame)
        self._wire.close()
        if not self.ready.done():
            self.ready.set_result(False)
        for each in self._asked.values():
            if not each.done():
                each.set_exception(Unavailable(f"worker {self._assignment.worker} has ended"))

    def _signal(self, by: signal.Signals) -> None:
        if self._process.returncode is None:
            self._process.send_signal(by)
