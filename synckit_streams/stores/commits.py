"""Group commit: many callers, one writer, one durable transaction for all who came while the last one was writing.

`CommitQueue` gathers requests from any thread or event loop and runs `drain` on one writer thread (or at once, in the
caller, where a simulation wants no threads). Whoever opens a transaction of his own gets the writer to himself until
he is done; the requests wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from threading import Lock, RLock
from typing import Any

from synckit_streams.errors import StoreClosed
from synckit_streams.model.clock import Key
from synckit_streams.model.event import Draft, Offset
from synckit_streams.model.exchange import Arrival

GROUP_EVENTS_MAX = 10_000


class InlineExecutor(Executor):
    """Runs everything at once, in the caller: for a store in memory, and for a simulation, which has one thread."""

    def __init__(self) -> None:
        self._lock = RLock()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run it, and return it done."""
        done: Future[Any] = Future()
        try:
            with self._lock:
                done.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
            done.set_exception(error)
        return done


class Answer:
    """A result that is awaited on one event loop and set from another thread."""

    __slots__ = ("error", "future", "loop", "value")

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.value: Any = None
        self.error: BaseException | None = None

    def settle(self) -> None:
        """On the future's own loop."""
        if self.future.done():  # the caller was cancelled: what it asked for has been done all the same
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.value)


def settle_all(answers: Sequence[Answer]) -> None:
    """Hand out results, with one call into each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Answer]] = {}
    for answer in answers:
        by_loop.setdefault(answer.loop, []).append(answer)
    for loop, theirs in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle, theirs)


def _settle(answers: Sequence[Answer]) -> None:
    for answer in answers:
        answer.settle()


class Append:
    """One call of `EventStore.append`, waiting for its group."""

    __slots__ = ("answer", "drafts", "forget", "now_ms", "offsets", "received", "traceparent", "voids")

    def __init__(
        self,
        drafts: Sequence[Draft],
        received: Sequence[Arrival],
        now_ms: int,
        offsets: Mapping[str, Offset],
        voids: Sequence[Key],
        forget: Sequence[str],
        traceparent: str,
    ) -> None:
        self.drafts = drafts
        self.received = received
        self.now_ms = now_ms
        self.offsets = offsets
        self.voids = voids
        self.forget = forget
        self.traceparent = traceparent
        self.answer = Answer()


class Begin:
    """Somebody wants the writer to himself."""

    __slots__ = ("answer",)

    def __init__(self) -> None:
        self.answer = Answer()


class CommitQueue:
    """Requests in order, and the writer that serves them.

    Args:
        executor: Of one thread; everything that writes runs on it.
        commit: Called there with a group of appends; it sets each one's answer.
        begin: Called there when a transaction of somebody's own begins; what it raises is the asker's error.
    """

    def __init__(
        self, executor: Executor, commit: Callable[[Sequence[Append]], None], begin: Callable[[], None]
    ) -> None:
        self._executor = executor
        self._commit = commit
        self._begin = begin
        self._waiting: list[Append | Begin] = []
        self._lock = Lock()
        self._scheduled = False
        self._taken = False
        self._closed = False

    async def ask(self, request: Append | Begin) -> Any:
        """Wait for one's turn, and for its result."""
        with self._lock:
            if self._closed:
                raise StoreClosed("the store is closed")
            self._waiting.append(request)
            schedule = not self._scheduled and not self._taken
            self._scheduled = self._scheduled or schedule
        if schedule:
            self._executor.submit(self._drain)
        return await request.answer.future

    async def run(self, work: Callable[[], Any]) -> Any:
        """Run something on the writer's thread, between two commits."""
        answer = Answer()

        def done() -> None:
            try:
                answer.value = work()
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                answer.error = error
            settle_all([answer])

        with self._lock:
            if self._closed:
                raise StoreClosed("the store is closed")
            self._executor.submit(done)
        return await answer.future

    def done(self) -> None:
        """On the writer's thread: whoever had it to himself is done."""
        with self._lock:
            self._taken = False
            again = bool(self._waiting) and not self._scheduled
            self._scheduled = self._scheduled or again
        if again:
            self._executor.submit(self._drain)

    def close(self) -> None:
        """Take no more; what waits is still served."""
        with self._lock:
            self._closed = True

    def _drain(self) -> None:
        while True:
            with self._lock:
                if not self._waiting or self._taken:
                    self._scheduled = False
                    return
                group: list[Append] = []
                events = 0
                while self._waiting and events < GROUP_EVENTS_MAX:
                    first = self._waiting[0]
                    if isinstance(first, Begin):
                        break
                    group.append(first)
                    events += len(first.drafts) + len(first.received)
                    self._waiting.pop(0)
                asker = self._waiting.pop(0) if not group else None
            if asker is not None:
                try:
                    self._begin()
                    self._taken = True
                except BaseException as error:  # noqa: BLE001 - the callers get it
                    asker.answer.error = error
                settle_all([asker.answer])
            else:
                try:
                    self._commit(group)
                except BaseException as error:  # noqa: BLE001 - the callers get it
                    for each in group:
                        if each.answer.error is None:
                            each.answer.error = error
                settle_all([each.answer for each in group])
