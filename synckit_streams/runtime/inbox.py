"""Deliveries of a consumer that is not ours, each handled once: note, effect and events in one commit.

Theory of operation. Whoever is called by a broker's deliveries gets some of them again: after a crash, a rebalance, an
acknowledgement that was lost. So the store keeps a note of each, by a key that is the same every time, and the note is
written in the transaction of the effect. Before the work the note is looked up, so that what is done is not done again;
and once more in the transaction, since another worker may have been faster: there only one of them can hold the note.

What fails is tried again here, and not by the broker: brokers differ in what they do with a refusal, from losing the
message to delivering it two thousand times a second. Its failures are counted in the note, so they survive a restart.
Several deliveries of one call that fail are halved until the bad one is alone. In the end it goes to the dead letters.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, suppress
from typing import NamedTuple
from uuid import uuid5
from zlib import crc32

import msgspec

from synckit_streams.errors import (
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    StoreFull,
    StoreUnavailable,
    Unfit,
)
from synckit_streams.model.codec import encode_payload
from synckit_streams.model.event import Draft, Event, Stored
from synckit_streams.ports.store import Transaction
from synckit_streams.ports.telemetry import TRACES_MAX, Handled, Received
from synckit_streams.runtime.cancel import is_cancelled
from synckit_streams.runtime.driver import Driver
from synckit_streams.runtime.envelope import traces_of
from synckit_streams.runtime.handling import NAMESPACE, OneTransaction
from synckit_streams.runtime.policy import Retry, dead_letter, reason_of
from synckit_streams.sync.pace import next_delay_ms

logger = logging.getLogger("synckit_streams")

REMEMBER_S = 7 * 86_400.0
"""For so long at least it is known what was done; no broker delivers again what it delivered a week ago."""
ALIVE_S = 5.0
"""While something waits for its next attempt, its broker is told so often that it is not forgotten."""
LOCKS = 16
"""Workers that share a store wait for one another only if their deliveries have a lock in common."""
AGAIN_MS, AGAIN_MS_MAX = 100, 10_000
"""How long it waits after its store failed."""
DONE = b"done"
STORE_AWAY = (StoreBusy, StoreFull, StoreUnavailable, StoreCorrupt)
"""The store's doing, and not the handler's: it is tried for as long as it takes."""


class Delivery(NamedTuple):
    """One message that a consumer was given.

    Args:
        subscriber: To whom; each has an inbox of its own.
        key: The same whenever it is delivered again, and no other's; None if the broker gives nothing to tell it by.
            Then it is handled each time.
        event: What is in it. Of a foreign message: its key as the id, its place as the topic, its body as the payload.
    """

    subscriber: str
    key: str | None
    event: Event


class Attempt(NamedTuple):
    """What the work is given.

    Args:
        deliveries: Those that are to be done.
        number: Which attempt this is, from 1.
        tx: The transaction in which everything commits; it begins with its first statement.
        idempotency_key: The same at every attempt, for effects outside the database.
    """

    deliveries: Sequence[Delivery]
    number: int
    tx: OneTransaction
    idempotency_key: str


Work = Callable[[Attempt], Awaitable[Sequence[Draft]]]
"""Does it, and gives what is to be written with it."""


class _Job:
    """One call of `Inbox.handle`."""

    def __init__(self, work: Work, alive: Callable[[], Awaitable[None]] | None) -> None:
        self.work = work
        self.alive = alive
        self.done = 0
        """How many deliveries came to an end here, be it as dead letters."""
        self.failures: Counter[int] = Counter()
        """By the delivery's identity: for what has no key, and so no note."""


class AlreadyDone(BaseException):
    """Another worker was faster. No handler's `except Exception` is to catch it."""


class Inbox:
    """See the module's text.

    Args:
        driver: Of the node.
        name: Of the inbox: its notes are kept under it.
        retry: When the work raises.
        dead_letter: Topic for what is given up.
        remember_s: For how long, at least, it is known what was done, in seconds.
        passing: Exceptions that are the caller's, and no failure: they undo what was done, and are raised.
    """

    def __init__(
        self,
        driver: Driver,
        name: str,
        *,
        retry: Retry,
        dead_letter: str,
        remember_s: float,
        passing: tuple[type[BaseException], ...],
    ) -> None:
        self.name = name
        self._driver = driver
        self._retry = retry
        self._dead_letter = dead_letter
        self._remember_ms = int(remember_s * 1000)
        self._passing = passing

    @property
    def meets_others(self) -> bool:
        """Whether the node has brokers of its own."""
        return bool(self._driver.links)

    async def handle(
        self, deliveries: Sequence[Delivery], work: Work, *, alive: Callable[[], Awaitable[None]] | None = None
    ) -> int:
        """See to it that each is done, or is a dead letter; gives how many of them somebody had done already.

        It returns only then, whatever fails, and as long as the store is away: so the caller can acknowledge.

        Args:
            deliveries: Of one call, for one subscriber.
            work: The handler.
            alive: Called now and then while something waits, to tell the broker.

        Raises:
            StoreClosed: the node was closed; not everything is done.
            BaseException: one of `passing`; what this attempt did is undone.
        """
        # A span of its own, linked to the traces in which the events were written; the handler's are in it.
        with self._driver.operation("receive"):
            started = time.perf_counter()
            job = _Job(work, alive)
            await self._handle(deliveries, job)
            known = len(deliveries) - job.done
            self._observe(deliveries, known, time.perf_counter() - started)
        return known

    async def _handle(self, deliveries: Sequence[Delivery], job: _Job) -> None:
        parts = deque([list(deliveries)])
        failures = 0
        while parts:
            part = parts.popleft()
            try:
                todo = await self._todo(part, job)
                if not todo:
                    continue
                again = await self._attempt(todo, job)
            except STORE_AWAY as error:
                failures += 1
                logger.warning("inbox %s: %s; it goes on when the store does", self.name, error)
                await self._wait(
                    next_delay_ms(
                        failures, base_ms=AGAIN_MS, delay_ms_max=AGAIN_MS_MAX, dice=self._driver.world.dice()
                    ),
                    job,
                )
                again = [part]
            parts.extendleft(reversed(again))

    async def _attempt(self, todo: Sequence[tuple[Delivery, int]], job: _Job) -> list[list[Delivery]]:
        """One call of the handler; gives what is still to be done."""
        part, failed = [delivery for delivery, _ in todo], max(failures for _, failures in todo)
        once = _Once(self, self._driver, part)
        started = time.perf_counter()
        error: BaseException | None = None
        try:
            with self._driver.operation("handle") as traceparent:
                drafts = await job.work(Attempt(part, failed + 1, OneTransaction(once.begin), self._key_of(part)))
                await once.commit(self._outgoing(part, drafts), DONE, traceparent)
        except BaseException as raised:
            await once.roll_back()
            if once.overtaken:
                return [part]
            if is_cancelled(raised) or isinstance(raised, self._passing):
                raise
            if once.begun and isinstance(raised, (*STORE_AWAY, StoreClosed)):  # ours, and not one that the work has
                raise
            error = raised
        self._tell(part, error, time.perf_counter() - started)
        if error is None:
            job.done += len(part)
            return []
        if len(part) > 1:
            half = len(part) // 2
            return [part[:half], part[half:]]
        return await self._failed(part[0], failed + 1, error, job)

    async def _failed(self, delivery: Delivery, failures: int, error: BaseException, job: _Job) -> list[list[Delivery]]:
        once = _Once(self, self._driver, [delivery])
        world = self._driver.world
        last = failures >= self._retry.max_attempts or isinstance(error, Unfit)
        try:
            if last:
                logger.error(
                    "inbox %s: %s gave up %s: %s", self.name, delivery.subscriber, delivery.key, reason_of(error)
                )
                await once.commit([self._letter(delivery, failures, error)], DONE, "")
                job.done += 1
                return []
            if delivery.key is not None:
                await once.commit([], b"%d" % failures, "")
        except AlreadyDone:
            await once.roll_back()
            return []
        except BaseException:
            await once.roll_back()
            raise
        job.failures[id(delivery)] = failures
        await self._wait(self._retry.delay_ms(failures, world.dice()), job)
        return [[delivery]]

    async def _wait(self, delay_ms: int, job: _Job) -> None:
        until = time.monotonic() + delay_ms / 1000
        while True:
            if job.alive is not None:
                await job.alive()
            left_s = until - time.monotonic()
            if left_s <= 0:
                return
            await asyncio.sleep(min(left_s, ALIVE_S))

    # --- the notes ---------------------------------------------------------------------------------------------------

    async def _todo(self, deliveries: Sequence[Delivery], job: _Job) -> list[tuple[Delivery, int]]:
        """What is not done yet, and how often it failed."""
        async with self._driver.transaction() as tx:
            states = await self.states(tx, deliveries)
        seen: set[str | None] = set()
        found: list[tuple[Delivery, int]] = []
        for delivery, state in zip(deliveries, states, strict=True):
            # One batch may have it twice.
            if state != DONE and (delivery.key is None or delivery.key not in seen):
                seen.add(delivery.key)
                found.append((delivery, max(int(state or b"0"), job.failures[id(delivery)])))
        return found

    async def states(self, tx: Transaction, deliveries: Sequence[Delivery]) -> list[bytes | None]:
        """What is noted of some deliveries: `DONE`, the number of failures, or None."""
        names = await self._generations(tx)
        keys = [(each.subscriber, each.key) for each in deliveries if each.key is not None]
        noted: dict[tuple[str, str], bytes] = {}
        for name in names:
            found = await tx.applied(name, keys)
            noted |= {key: state for key, state in zip(keys, found, strict=True) if state}
        return [None if each.key is None else noted.get((each.subscriber, each.key)) for each in deliveries]

    async def note(self, tx: Transaction, deliveries: Sequence[Delivery], state: bytes) -> None:
        """Write it down, with whatever else the transaction does."""
        states = [(each.subscriber, each.key, state) for each in deliveries if each.key is not None]
        if states:
            await tx.note_applied((await self._generations(tx))[-1], states)

    async def _generations(self, tx: Transaction) -> list[str]:
        """Under which names notes are kept: the last one for new ones, and the one before it. Older ones are let go,
        each in one piece: so an inbox in use does not grow for ever, and no note has to know its age."""
        present = f"inbox.{self.name}.{self._driver.world.wall_ms() // self._remember_ms}"
        (noted,) = await tx.applied(f"inbox.{self.name}", [("inbox", "generations")])
        names = (noted or b"").decode().split()
        if present in names:
            return names
        for old in names[:-1]:
            await tx.forget_applied(old)
        names = [*names[-1:], present]
        await tx.note_applied(f"inbox.{self.name}", [("inbox", "generations", " ".join(names).encode())])
        return names

    # --- what is written and told ------------------------------------------------------------------------------------

    def _key_of(self, part: Sequence[Delivery]) -> str:
        keys = "|".join(each.key or each.event.id for each in part)
        return str(uuid5(NAMESPACE, f"{self.name}|{part[0].subscriber}|{keys}"))

    def _outgoing(self, part: Sequence[Delivery], drafts: Sequence[Draft]) -> list[Draft]:
        """Under ids that say whose doing it is: two nodes that each get the message write one event, and not two."""
        made: list[Draft] = []
        for number, draft in enumerate(drafts):
            id = draft.id
            if id is None and len(part) == 1 and part[0].key is not None:
                id = str(uuid5(NAMESPACE, f"{self.name}|{part[0].subscriber}|{part[0].key}|{number}"))
            made.append(msgspec.structs.replace(draft, data=encode_payload(draft.data), id=id))
        return made

    def _letter(self, delivery: Delivery, attempts: int, error: BaseException) -> Draft:
        names = {"group": self.name, "handler": delivery.subscriber, "node": self._driver.settings.node}
        stored = Stored(delivery.event, 0, self._driver.store.id)
        letter = dead_letter(self._dead_letter, stored, attempts, error, **names)
        return msgspec.structs.replace(letter, after=())  # it need not be in this store

    def _tell(self, part: Sequence[Delivery], error: BaseException | None, took_s: float) -> None:
        self._driver.observe(
            Handled(
                node=self._driver.settings.node,
                group=self.name,
                handler=part[0].subscriber,
                events=len(part),
                error="" if error is None else type(error).__name__,
                duration_s=took_s,
            )
        )

    def _observe(self, deliveries: Sequence[Delivery], known: int, took_s: float) -> None:
        traces = traces_of(each.event for each in deliveries)
        self._driver.observe(
            Received(
                node=self._driver.settings.node,
                connector=self.name,
                topic=deliveries[0].event.topic if deliveries else "",
                messages=len(deliveries),
                bytes=sum(len(each.event.payload) for each in deliveries),
                stored=len(deliveries) - known,
                duplicates=known,
                held=0,
                dropped=0,
                quarantined=0,
                skew_ms=0,
                traceparents=traces[:TRACES_MAX],
                traces=len(traces),
                duration_s=took_s,
            )
        )


class _Once:
    """One transaction of an inbox, which begins when somebody needs it, and commits once a delivery in all."""

    def __init__(self, inbox: Inbox, driver: Driver, part: Sequence[Delivery]) -> None:
        self.begun = False
        self.overtaken = False
        self._inbox = inbox
        self._driver = driver
        self._part = part
        self._stack = AsyncExitStack()
        self._tx: Transaction | None = None

    async def begin(self) -> Transaction:
        """The transaction.

        Raises:
            AlreadyDone: one of the deliveries is done.
        """
        if self._tx is None:
            self.begun = True
            self._tx = tx = await self._stack.enter_async_context(self._driver.transaction())
            if self._driver.store.features.shared:
                for number in self._locks():
                    # Other processes that ask for it wait here until this transaction has ended.
                    await tx.offset(f"inbox.{self._inbox.name}.lock-{number}")
            if DONE in await self._inbox.states(tx, self._part):
                self.overtaken = True
                raise AlreadyDone
        return self._tx

    def _locks(self) -> Iterator[int]:
        """In one order everywhere, so that nobody waits for one who waits for him."""
        keys = {crc32(f"{each.subscriber}|{each.key}".encode()) % LOCKS for each in self._part if each.key is not None}
        yield from sorted(keys)

    async def commit(self, drafts: Sequence[Draft], state: bytes, traceparent: str) -> None:
        """Everything at once."""
        tx = await self.begin()
        if self.overtaken:  # the handler caught what told it so
            raise AlreadyDone
        async with self._stack:
            await self._inbox.note(tx, self._part, state)
            if drafts:
                await self._driver.write_in(tx, drafts, traceparent=traceparent)

    async def roll_back(self) -> None:
        """Undo it; nothing to do if it has not begun, or has ended."""
        stack, self._stack = self._stack, AsyncExitStack()
        with suppress(_Undone):
            await stack.__aexit__(_Undone, _Undone(), None)


class _Undone(Exception):
    """Leaves a transaction that is to be rolled back."""
