"""Group commit: many callers, one writer, one durable transaction for all who came while the last one was writing.

`CommitQueue` gathers requests from any thread or event loop and serves them on one writer thread (or at once, in the
caller, where a simulation wants no threads). Whoever opens a transaction of his own gets the writer to himself until he
is done; the requests wait. A caller that is cancelled stops waiting, nothing else: an append that was asked for is
done, and a writer that nobody takes any more goes on to the next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import suppress
from itertools import chain
from threading import Lock, RLock
from typing import Any

from synckit_streams.errors import StoreClosed, StoreError
from synckit_streams.sync.request import Request

GROUP_EVENTS_MAX = 10_000


class InlineExecutor(Executor):
    """Runs everything in the caller: for a store in memory, and for a simulation, which has one thread.

    What is submitted from within a task runs when that task is done, as on a thread.
    """

    def __init__(self) -> None:
        self._lock = RLock()
        self._tasks: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._running = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run it, and return it done."""
        done: Future[Any] = Future()
        with self._lock:
            self._tasks.append((done, lambda: fn(*args, **kwargs)))
            if self._running:
                return done
            self._running = True
            try:
                while self._tasks:
                    future, task = self._tasks.popleft()
                    try:
                        future.set_result(task())
                    except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
                        future.set_exception(error)
            finally:
                self._running = False
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
        with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(_settle, theirs)


def _settle(answers: Sequence[Answer]) -> None:
    for answer in answers:
        answer.settle()


class Append:
    """One call of `EventStore.append`, waiting for its group. Its answer is set by the commit."""

    __slots__ = ("answer", "request")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.answer = Answer()


class Share:
    """One request that stands for several callers' appends, which are decided at once; nearly all are of one caller.

    Most callers bring one event each. What a request costs besides its events is then what costs most, so neighbours
    that bring nothing but new events share one.
    """

    __slots__ = ("appends", "request")

    def __init__(self, appends: Sequence[Append]) -> None:
        self.appends = appends
        self.request = first = appends[0].request
        if len(appends) > 1:
            self.request = Request(
                drafts=list(chain.from_iterable([each.request.drafts for each in appends])),
                now_ms=max([each.request.now_ms for each in appends]),
                traceparent=first.traceparent,
            )

    def fail(self, error: BaseException) -> None:
        """Every caller gets it who has not got another one already."""
        for each in self.appends:
            each.answer.error = each.answer.error or error

    def apart(self) -> list[Share]:
        """The same with a request for each caller, since somebody's is wrong; the last one first."""
        return [Share([each]) for each in reversed(self.appends)]


def shares(group: Sequence[Append]) -> list[Share]:
    """A group of appends, in order, as few requests."""
    found: list[Share] = []
    run: list[Append] = []
    for each in group:
        request = each.request
        alone = not request.only_new
        if run and (alone or request.traceparent != run[0].request.traceparent):
            found.append(Share(run))
            run = []
        if alone:
            found.append(Share([each]))
        else:
            run.append(each)
    if run:
        found.append(Share(run))
    return found


class Begin:
    """Somebody wants the writer to himself."""

    __slots__ = ("answer", "begun")

    def __init__(self) -> None:
        self.answer = Answer()
        self.begun = False
        """On the writer's thread: he has it."""


class Finish:
    """The last request: `work` closes the store. `done` is for whoever else waits for it, on whatever event loop."""

    __slots__ = ("answer", "done", "work")

    def __init__(self, work: Callable[[], None]) -> None:
        self.answer = Answer()
        self.done: Future[None] = Future()
        self.work = work


class CommitQueue:
    """Requests in order, and the writer that serves them.

    Args:
        executor: Of one thread; everything that writes runs on it.
        commit: Called there with a group of appends; it sets each one's answer and raises nothing.
        begin: Called there when a transaction of somebody's own begins; what it raises is the asker's error.
        end: Called there when it ends, with whether to commit it.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        commit: Callable[[Sequence[Append]], None],
        begin: Callable[[], None],
        end: Callable[[bool], None],
    ) -> None:
        self._executor = executor
        self._commit = commit
        self._begin = begin
        self._end = end
        self._waiting: deque[Append | Begin | Finish] = deque()
        self._lock = Lock()
        self._scheduled = False
        self._taken = False
        self._closed = False
        self._holder: asyncio.Task[Any] | None = None

    async def ask(self, request: Append | Finish) -> Any:
        """Wait for one's turn, and for its result. A caller that is cancelled does not take its request back."""
        self._enter(request)
        return await request.answer.future

    def run(self, work: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run something on the writer's thread, between two commits; it runs whether or not anybody awaits it."""
        answer = Answer()

        def done() -> None:
            try:
                answer.value = work()
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                answer.error = error
            settle_all([answer])

        try:
            self._executor.submit(done)
        except RuntimeError:
            raise StoreClosed("the store is closed") from None
        return answer.future

    async def take(self) -> None:
        """Get the writer to oneself, and a transaction begun. Whoever is cancelled here does not have it."""
        asker = Begin()
        self._enter(asker)
        try:
            await asker.answer.future
            self._holder = asyncio.current_task()
        except asyncio.CancelledError:
            with self._lock:
                waits = asker in self._waiting
                if waits:
                    self._waiting.remove(asker)
            if not waits:  # his turn has come, or comes just now: the writer's thread knows which
                with suppress(RuntimeError):  # closed meanwhile: he did not get it
                    self._executor.submit(self._give_up, asker)
            raise

    def give_back(self, *, commit: bool) -> asyncio.Future[Any]:
        """End the transaction that `take` began; it ends whether or not anybody awaits it."""

        def end() -> None:
            try:
                self._end(commit)
            finally:
                self._free()

        self._holder = None
        return self.run(end)

    def check_not_holder(self) -> None:
        """That the one who asks is not the one who would have to let go first.

        Raises:
            StoreError: he has the writer to himself, and would wait for himself for ever.
        """
        if self._holder is not None and self._holder is asyncio.current_task():
            raise StoreError(
                "the store is in a transaction of the caller's own, which this would wait for",
                hint="inside a transaction, or a projection's apply, use its `tx`, which appends too; do the rest when "
                "it has ended",
            )

    def _give_up(self, asker: Begin) -> None:
        if asker.begun:
            try:
                self._end(False)
            finally:
                self._free()

    def _free(self) -> None:
        with self._lock:
            self._taken = False
            again = bool(self._waiting) and not self._scheduled
            self._scheduled = self._scheduled or again
        if again:
            self._executor.submit(self._serve)

    def _enter(self, request: Append | Begin | Finish) -> None:
        self.check_not_holder()
        with self._lock:
            if self._closed:
                raise StoreClosed("the store is closed")
            self._closed = isinstance(request, Finish)
            self._waiting.append(request)
            schedule = not self._scheduled and not self._taken
            self._scheduled = self._scheduled or schedule
        if schedule:
            self._executor.submit(self._serve)

    def _serve(self) -> None:
        """Serve the next request, or the next group; then let whatever else wants the writer's thread come in."""
        group: list[Append] = []
        alone: Begin | Finish | None = None
        with self._lock:
            if self._taken:
                self._scheduled = False
                return
            events = 0
            while self._waiting and events < GROUP_EVENTS_MAX:
                request = self._waiting[0]
                if not isinstance(request, Append):
                    if not group:
                        alone = request
                        self._waiting.popleft()
                    break
                group.append(request)
                events += request.request.events
                self._waiting.popleft()
        if group:
            try:
                self._commit(group)
            except BaseException as error:  # noqa: BLE001 - the callers get it
                for each in group:
                    each.answer.error = each.answer.error or error
            settle_all([each.answer for each in group])
        elif isinstance(alone, Begin):
            self._hand_over(alone)
        elif alone is not None:
            try:
                alone.work()
            except BaseException as error:  # noqa: BLE001 - the caller gets it
                alone.answer.error = error
            alone.done.set_result(None)
            settle_all([alone.answer])
        with self._lock:
            self._scheduled = bool(self._waiting) and not self._taken
            again = self._scheduled
        if again:
            self._executor.submit(self._serve)

    def _hand_over(self, asker: Begin) -> None:
        try:
            self._begin()
            asker.begun = True
            with self._lock:
                self._taken = True
        except BaseException as error:  # noqa: BLE001 - the caller gets it
            asker.answer.error = error
        try:
            asker.answer.loop.call_soon_threadsafe(asker.answer.settle)
        except RuntimeError:  # his event loop is closed: he will never come for it
            self._give_up(asker)
