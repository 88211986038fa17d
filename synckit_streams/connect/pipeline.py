"""One pipeline at work: read, transform, write, and only then move the position; again, until it is told to stop.

Whatever goes wrong has one way out: everything is closed, and after a wait that grows it is opened anew and goes on
from the position. Nothing is remembered in between but how often it failed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from synckit_streams.connect.dead_letter import Dead, letters
from synckit_streams.connect.record import Later, Portion, Record, Refusal, Sink, Source, Unreadable
from synckit_streams.connect.state import NODE, State
from synckit_streams.connect.transforms import Transform, transformed
from synckit_streams.connect.webhook import Inbox
from synckit_streams.errors import IdReused, StoreError, SyncKitError
from synckit_streams.observe.fanout import Observers
from synckit_streams.ports.operation import Standing, Webhook
from synckit_streams.ports.operation import State as Condition
from synckit_streams.ports.telemetry import TRACES_MAX, Lagged, Moved, Observer, Stalled
from synckit_streams.runtime.autosync import BACKOFF_BASE_MS, BACKOFF_MS_MAX
from synckit_streams.sync.pace import next_delay_ms

logger = logging.getLogger("synckit_streams")

LAG_S = 2.0
"""How often a source is asked what is left."""
DRAIN_S = 10.0
"""How long what is under way may take when a pipeline is stopped; then it is cut off, and comes again."""


class Pace(NamedTuple):
    """How much at a time, and how fast.

    Args:
        records: At most so many in a batch.
        seconds: So long the first of a batch may wait for others.
        rate: At most so many records a second; 0 is no limit.
    """

    records: int
    seconds: float
    rate: float


class Parts(NamedTuple):
    """What a pipeline is made of."""

    source: Source
    transforms: Sequence[Transform]
    sink: Sink
    dead_letter: Sink
    state: State
    pace: Pace
    inbox: Inbox | None = None
    """Of a webhook: it takes what comes as long as the pipeline is not stopped."""


class _Written(NamedTuple):
    """What became of a portion: records that the sink took, that it refused, and that are dead letters."""

    taken: int
    refused: int
    dead: int


class Pipeline:
    """See the module's text.

    Args:
        name: Its own.
        parts: What it is made of.
        once: End when the source has nothing more, and at the first failure.
        dice: A draw from [0, 1).
        observer: Told of what it does.
    """

    def __init__(
        self, name: str, parts: Parts, *, once: bool, dice: Callable[[], float], observer: Observer | None = None
    ) -> None:
        self.name = name
        self.error: Exception | None = None
        """Why it failed last."""
        self._parts = parts
        self._once = once
        self._dice = dice
        # What an observer raises is not the pipeline's failure.
        self._observers = Observers() if observer is None else Observers(observer)
        self._condition: Condition = "stopped"
        self._moved = self._dead = 0
        self._lag: int | None = None
        self._failures = 0
        self._paused = False
        self._ends = False
        self._halt = asyncio.Event()
        """Set when what it does is to end: it is paused, let go on, or stopped."""
        self._free_at = 0.0
        self._lag_due = 0.0
        self._task: asyncio.Task[None] | None = None

    # --- told by somebody --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        self._ends = False
        self._condition = "running"
        if self._parts.inbox is not None:
            self._parts.inbox.queue.begin()
        self._task = asyncio.create_task(self._run(), name=f"synckit-connect-{self.name}")

    @property
    def hook(self) -> Webhook | None:
        """What takes what a webhook brings, if that is the source."""
        return self._parts.inbox

    async def wait(self) -> None:
        """Until it ends by itself, as with `once`."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def stop(self, *, drain_s: float = DRAIN_S) -> None:
        """Finish what is under way, and let go of everything.

        Args:
            drain_s: How long that may take, in seconds.
        """
        task, self._task = self._task, None
        if task is None:
            return
        self._ends = True
        self._halt.set()
        try:
            await asyncio.wait([task], timeout=drain_s)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
        if self._parts.inbox is not None:
            await self._parts.inbox.queue.close()
        self._condition = "stopped"
        if not task.cancelled() and (error := task.exception()):
            logger.error("the pipeline %s did not end well", self.name, exc_info=error)

    async def pause(self, paused: bool) -> None:
        """Take nothing more, or go on; it is on the disk when this returns."""
        await self._parts.state.pause(paused)
        self._paused = paused
        self._halt.set()
        if paused and self._condition != "stopped":
            self._condition = "paused"
        elif not paused and self._condition == "paused":
            self._condition = "running"

    def standing(self) -> Standing:
        """How it is."""
        return Standing(
            name=self.name,
            state=self._condition,
            source=self._parts.source.name,
            sink=self._parts.sink.name,
            moved=self._moved,
            dead=self._dead,
            lag=self._lag,
            error=str(self.error) if self.error is not None else "",
        )

    # --- at work -----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while not self._ends:
            self._halt.clear()
            try:
                await self._parts.state.open()
                self._paused = await self._parts.state.paused()
                if self._paused:
                    self._condition = "paused"
                    if self._once:
                        return
                    await self._halt.wait()
                else:
                    await self._move_all()
                    if self._once:
                        self._condition = "stopped"
                        return
            except Exception as error:  # noqa: BLE001 - whatever it was, the next try may go well
                self._fail(error)
                if self._once:
                    return
            finally:
                await self._close()
            if self._condition == "failed":
                await self._back_off()

    async def _close(self) -> None:
        parts = self._parts
        for part in (parts.source, parts.sink, parts.dead_letter, parts.state):
            try:
                await part.close()
            except Exception as error:  # noqa: BLE001 - the others are closed all the same
                logger.warning("%s: closing failed: %s", self.name, error)

    def _fail(self, error: Exception) -> None:
        self._failures += 1
        self.error = error
        self._condition = "failed"
        code = error.code if isinstance(error, SyncKitError) else type(error).__name__
        self._observers.observe(Stalled(node=NODE, pipeline=self.name, error=code))
        if not isinstance(error, SyncKitError):  # a defect, of ours or of a client's
            logger.error("the pipeline %s failed", self.name, exc_info=error)

    async def _back_off(self) -> None:
        delay_ms = next_delay_ms(
            self._failures, base_ms=BACKOFF_BASE_MS, delay_ms_max=BACKOFF_MS_MAX, dice=self._dice()
        )
        if isinstance(self.error, Later):
            delay_ms = max(delay_ms, int(self.error.after_s * 1000))
        logger.warning("the pipeline %s waits (%s); the next try is in %.1f s", self.name, self.error, delay_ms / 1000)
        await self._unless_halted(asyncio.sleep(delay_ms / 1000))
        if self._condition == "failed" and self._ends:
            self._condition = "stopped"

    async def _unless_halted(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that may be cut off at any time."""
        tasks = [asyncio.create_task(work), asyncio.create_task(self._halt.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():
                tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _move_all(self) -> None:
        """Until it is told to do something else; with `once`, until nothing is left."""
        parts, pace = self._parts, self._parts.pace
        await parts.source.open(await parts.state.position())
        await parts.sink.open()
        await parts.dead_letter.open()
        limit = pace.records if not pace.rate else min(pace.records, max(int(pace.rate), 1))
        ahead: Portion | None = None
        """What was read while the portion before it was written."""
        while not self._halt.is_set():
            await self._keep_pace()
            if self._halt.is_set():
                return
            portion = ahead or await parts.source.read(limit)
            await self._look_at_lag(at_end=portion is None)
            if portion is not None:
                full = len(portion.items) >= limit
                # Where there is more, it is read meanwhile; otherwise others may still come to be written together.
                with self._observers.operation("move", node=NODE):
                    ahead = await self._deliver(portion, limit if full else 0)
                if pace.seconds and not full and not self._once:
                    await self._unless_halted(asyncio.sleep(pace.seconds))
            elif self._once:
                await parts.sink.settle()
                await parts.dead_letter.settle()
                return
            else:
                self._well()
                await self._unless_halted(parts.source.wait())

    async def _look_at_lag(self, *, at_end: bool) -> None:
        """Now and then, since it may cost the source something; and when it comes to its end."""
        now = asyncio.get_running_loop().time()
        if now >= self._lag_due or (at_end and self._lag != 0):
            self._lag = await self._parts.source.lag()
            self._lag_due = now + LAG_S
            if self._lag is not None:
                self._observers.observe(Lagged(node=NODE, pipeline=self.name, records=self._lag))

    def _well(self) -> None:
        self._failures = 0
        if self._condition == "failed":
            self._condition = "running"

    async def _deliver(self, portion: Portion, next_limit: int) -> Portion | None:
        """Everything of it is with the sink or the dead letter when the position moves; gives the next portion, of at
        most so many items, which was read meanwhile."""
        source, started = self._parts.source, time.monotonic()
        reading = asyncio.create_task(source.read(next_limit)) if next_limit else None
        try:
            written = await self._write(portion)
            if reading is not None:
                await asyncio.wait([reading])
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
        if portion.position is not None:
            await self._parts.state.move(portion.position)
        await source.done(portion)
        self._charge(written.taken + written.refused)
        self._moved += written.taken
        self._dead += written.dead
        self._well()
        records = (item for item in portion.items if isinstance(item, Record))
        traces = tuple({record.traceparent: None for record in records if record.traceparent})
        self._observers.observe(
            Moved(
                node=NODE,
                pipeline=self.name,
                records=len(portion.items),
                delivered=written.taken,
                dead=written.dead,
                traceparents=traces[:TRACES_MAX],
                traces=len(traces),
                duration_s=time.monotonic() - started,
            )
        )
        return reading.result() if reading is not None else None

    async def _write(self, portion: Portion) -> _Written:
        """What the transforms make of it goes to the sink, and what cannot go there to the dead letter."""
        attempts = self._failures + 1
        records: list[Record] = []
        dead: list[Dead] = []
        origins: dict[int, Record] = {}
        refusals: Sequence[Refusal] = ()
        for item in portion.items:
            if isinstance(item, Unreadable):
                dead.append(Dead(item, item.error, 1))
                continue
            try:
                record = transformed(item, self._parts.transforms)
            except SyncKitError as error:
                dead.append(Dead(item, error, 1))
                continue
            if record is not None:
                origins[id(record)] = item
                records.append(record)
        if records:
            refusals = await self._parts.sink.write(records)
            dead += [Dead(origins[id(each.record)], each.error, attempts) for each in refusals]
        if dead:
            await self._bury(dead)
        return _Written(len(records) - len(refusals), len(refusals), len(dead))

    async def _keep_pace(self) -> None:
        """Wait until the rate allows more."""
        wait_s = self._free_at - asyncio.get_running_loop().time()
        if wait_s > 0:
            await self._unless_halted(asyncio.sleep(wait_s))

    def _charge(self, records: int) -> None:
        """So many were moved just now."""
        if rate := self._parts.pace.rate:
            self._free_at = max(asyncio.get_running_loop().time(), self._free_at) + records / rate

    async def _bury(self, dead: Sequence[Dead]) -> None:
        logger.warning(
            "%s: %s to the dead letter, the first one because of %s",
            self.name,
            "1 record goes" if len(dead) == 1 else f"{len(dead)} records go",
            dead[0].error,
        )
        written = letters(dead, self.name, datetime.now(UTC))
        for refusal in await self._parts.dead_letter.write(written):
            if not isinstance(refusal.error, IdReused):  # it is there already, from the time before the crash
                raise StoreError(
                    f"the dead letter does not take {refusal.record.id}: {refusal.error.message}",
                    hint="put the dead letter right: until then this pipeline waits, so that nothing is lost",
                ) from refusal.error
