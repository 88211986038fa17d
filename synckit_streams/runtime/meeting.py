"""Sessions over one link, or over several at once, as one meeting: each for itself, and over when all of them are.

A link that cannot be used, or is lost on the way, leaves the meeting and is named in its `errors`; the others go on.
While the meeting is live it is tried again, ever more rarely. What concerns the store ends the whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from synckit_streams.errors import ConnectorError, StoreError
from synckit_streams.runtime.autosync import BACKOFF_BASE_MS, BACKOFF_MS_MAX
from synckit_streams.runtime.driver import logger
from synckit_streams.runtime.link import Link, Session
from synckit_streams.runtime.result import nobody_reached
from synckit_streams.sync.pace import next_delay_ms

TICK_S = 0.25
TICK_HURRY_S = 0.02


class Meeting:
    """See the module's text. Used as `async with Meeting(links) as meeting`.

    Args:
        links: Over which; one at least.
        publish: False only reads (`pull`).
        timeout_s: Longest time without any progress of a link.
    """

    def __init__(self, links: Sequence[Link], *, publish: bool = True, timeout_s: float = 30.0) -> None:
        self.links = tuple(links)
        self._driver = links[0].driver
        self._publish = publish
        self._timeout_s = timeout_s
        self._changed = asyncio.Event()
        self._sessions: list[Session] = []
        self._joining: dict[asyncio.Task[None], Session] = {}
        self._leaving: dict[Link, asyncio.Task[None]] = {}
        self._failed: dict[Link, ConnectorError] = {}

    @property
    def errors(self) -> list[ConnectorError]:
        """What is wrong with the links that are not at the meeting, in their order."""
        return [self._failed[link] for link in self.links if link in self._failed]

    @property
    def reached(self) -> list[Link]:
        """The links that are at the meeting."""
        return [session.link for session in self._sessions]

    # --- beginning and ending ----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Meeting:
        # Here, and not only in the tasks below: whoever holds the store's writer himself is told so, and does not wait.
        await self._driver.store.append(now_ms=self._driver.world.wall_ms())
        self._driver.watchers.append(self._changed)
        for link in self.links:
            self._join(link)
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._driver.watchers.remove(self._changed)
        sessions = [*self._joining.values(), *self._sessions]
        try:
            for task in self._joining:
                task.cancel()
            ends = [session.end() for session in sessions]
            await asyncio.gather(*self._joining, *self._leaving.values(), *ends, return_exceptions=True)
        finally:
            for session in sessions:
                session.leave(error or session.failure)
        if any(isinstance(each, StoreError) for each in (error, *(session.failure for session in sessions))):
            # What the replica believes may not be on the disk: forget it, and read the disk.
            await self._driver.reboot()

    def _join(self, link: Link) -> None:
        session = Session(link, self._changed, publish=self._publish, timeout_s=self._timeout_s)
        task = asyncio.create_task(session.begin())
        self._joining[task] = session
        task.add_done_callback(lambda _: self._changed.set())

    def _look(self) -> None:
        """See who has come, and who has gone.

        Raises:
            ConnectorError: nobody is left; it says why.
            StoreError: the store failed.
        """
        for task in [task for task in self._joining if task.done()]:
            error = task.exception()
            if error is None:
                self._sessions.append(self._joining.pop(task))
            else:
                self._lose(self._joining[task], error)
                del self._joining[task]
        for session in [session for session in self._sessions if session.failure is not None]:
            assert session.failure is not None
            self._lose(session, session.failure)
            self._sessions.remove(session)
        if not self._sessions and not self._joining:
            raise nobody_reached(self.errors)

    def _lose(self, session: Session, error: BaseException) -> None:
        if not isinstance(error, ConnectorError):
            raise error
        link = session.link
        self._failed[link] = error
        session.leave(error)
        # What it leaves behind may take its time: nobody waits for it before the end.
        self._leaving[link] = asyncio.create_task(session.end())
        link.failures += 1
        delay_ms = next_delay_ms(
            link.failures, base_ms=BACKOFF_BASE_MS, delay_ms_max=BACKOFF_MS_MAX, dice=self._driver.world.dice()
        )
        link.again_s = asyncio.get_running_loop().time() + delay_ms / 1000

    # --- meeting -----------------------------------------------------------------------------------------------------

    async def meet(self) -> None:
        """Until there is nothing left to do: all read, all sent and read back, nothing owed, all said.

        What is written while it goes on is sent too, and not waited for.

        Raises:
            ConnectorError: no link is left: not reached, lost, or without progress for as long as was told.
            StoreError: the store failed.
        """
        while True:
            self._changed.clear()
            self._look()
            await self._driver.pass_time(hurry=True)
            if not self._joining and all(session.settled() for session in self._sessions):
                for session in self._sessions:
                    session.link.failures = 0
                    for topic in session.topics:
                        await session.retention.trim(topic)
                return
            for session in self._sessions:
                session.watch_progress()
            await self._wait(TICK_HURRY_S)

    async def live(self, until: asyncio.Event, interval_s: float) -> None:
        """Go on receiving and sending for a while, or until somebody says so; the errors are those of `meet`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + interval_s
        while not until.is_set() and loop.time() < end:
            self._changed.clear()
            self._look()
            self._try_again(loop.time())
            await self._driver.pass_time(hurry=False)
            await self._wait(min(TICK_S, max(end - loop.time(), 0.001)))

    def _try_again(self, now_s: float) -> None:
        """Bring back the links that were lost; the others are not disturbed."""
        for session in self._sessions:
            if session.link.failures and session.caught_up():
                session.link.failures = 0
                self._failed.pop(session.link, None)
        present = {session.link for session in (*self._sessions, *self._joining.values())}
        present.update(link for link, end in self._leaving.items() if not end.done())
        for link in self.links:
            if link not in present and now_s >= link.again_s:
                logger.info("%s: trying %s again", self._driver.settings.node, link.name)
                self._join(link)

    async def _wait(self, seconds: float) -> None:
        """Until something changes, and for so long at most."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass
