"""What becomes of an event that a projection cannot take: it is found, tried again, and in the end set aside.

Theory of operation. A read model is one fold over the log in its order, so nothing behind an event is applied before
it. A page that raises is halved until the event that raises is alone. Its attempts are counted in a note beside the
projection's place, so they survive a restart. When they are used up it is set aside, with a note of it, and goes to the
dead-letter topic; the projection goes on behind it. A dead letter that is put back applies its event where that
happens, and only if the note says that it was set aside: so an event counts once, however often it is put back, and
also when the model was built anew meanwhile.

Without a dead-letter topic the projection stays before the event, and says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import NamedTuple

import msgspec

from synckit_streams.errors import ConfigError, ProjectionFailed, SyncKitError, Unfit
from synckit_streams.model.codec import check_topic
from synckit_streams.model.event import Offset, Stored
from synckit_streams.ports.projection import AnyProjection
from synckit_streams.ports.store import EventStore, Transaction
from synckit_streams.runtime.driver import Driver
from synckit_streams.runtime.errand import DraftLine, encode
from synckit_streams.runtime.policy import REDRIVEN, Retry, Settled, dead_letter, reason_of
from synckit_streams.runtime.settings import check_list, check_seconds

logger = logging.getLogger("synckit_streams")

TROUBLE = "trouble|"
"""Before a projection's name: what is noted of events that it cannot take."""
FAILING, ASIDE = "failing", "aside"
POSTED = b"posted"
"""Noted of an event that was set aside, when its dead letter is written; before that, the letter."""
PAGE_NOTES = 1_000
EVENTS_WHOLE = 10_000
"""A page that was halved grows again up to so many events, and is a whole one then."""

Opened = Callable[[], AbstractAsyncContextManager[Transaction]]


class Terms(NamedTuple):
    """How a projection is run; a class of one's own has what it likes of these as attributes.

    Args:
        tables: Those that it writes: then it can be rebuilt beside the live ones.
        retry: When it raises.
        dead_letter: Topic for the events that it cannot take; "" stays before them.
        timeout_s: Longest time for one call; None is for ever.
    """

    tables: Sequence[str] = ()
    retry: Retry = Retry()
    dead_letter: str = ""
    timeout_s: float | None = None

    def check(self, whose: str, topics: Sequence[str]) -> None:
        """That a projection of these topics can be run like that.

        Raises:
            ConfigError: it cannot.
        """
        check_list(f"{whose}: tables", self.tables, '["daily_sales"]')
        for table in self.tables:
            if not isinstance(table, str) or not table or "." in table or '"' in table:
                raise ConfigError(
                    f"{whose}: {table!r:.80} is not the plain name of a table",
                    hint="name each table as the statements do, without a schema and without quotes",
                )
        if not isinstance(self.retry, Retry):
            raise ConfigError(f"{whose}: retry={self.retry!r:.80}", hint="for example retry=Retry()")
        self.retry.check(whose)
        if self.timeout_s is not None:
            check_seconds(f"{whose}: timeout_s", self.timeout_s)
        if not self.dead_letter:
            return
        try:
            check_topic(self.dead_letter)
        except SyncKitError as error:
            raise ConfigError(f"{whose}: {error.message}") from error
        if not topics or self.dead_letter in topics:
            raise ConfigError(
                f"{whose} follows its own dead letters, and would give them up again and again",
                hint="name its topics, and not the dead-letter topic among them",
            )


def terms_of(projection: AnyProjection) -> Terms:
    """A projection's terms."""
    given = {name: getattr(projection, name) for name in Terms._fields if hasattr(projection, name)}
    return Terms(**given)._replace(tables=tuple(given.get("tables", ())))


class Failing(msgspec.Struct, frozen=True, array_like=True):
    """The event before which a projection stands.

    Args:
        position: Of the event.
        attempts: How often it was tried.
        due_ms: When it is tried again, by the wall clock.
        reason: Why it failed last.
    """

    position: int
    attempts: int
    due_ms: int
    reason: str


def trouble_name(projection: str) -> str:
    """The name under which a projection's trouble is noted."""
    return TROUBLE + projection


class Trial:
    """One read model of a projection's: the live one, or one that is being built.

    Args:
        driver: Of the node.
        projection: Whose.
        consumer: Under which its offset is kept.
        posts: Whether dead letters are written at once, with what is noted: in the store's own transactions.
    """

    def __init__(self, driver: Driver, projection: AnyProjection, consumer: str, *, posts: bool) -> None:
        self.terms = terms_of(projection)
        self.failing: Failing | None = None
        """As it was noted at the last look."""
        self._driver = driver
        self._projection = projection
        self._consumer = consumer
        self._posts = posts
        self._name = trouble_name(projection.name)
        self._known = False
        """Whether `failing` is what is noted."""
        self._events_max = 0
        """Less than a page while one is being halved; 0 is a whole one."""
        self.alone = False
        """Whether each page has a transaction of its own: whatever precedes one that fails is not undone with it."""
        self._pages = 0
        self._tried: Sequence[Stored] = ()
        self._end: Offset | None = None

    # --- before a page -----------------------------------------------------------------------------------------------

    async def look(self, tx: Transaction, *, patient: bool) -> bool:
        """Whether there is something to wait for first.

        Args:
            tx: Of the page.
            patient: Wait also where an event without a dead letter is concerned.
        """
        self._pages, self._tried = 0, ()
        if not self._known or self.failing is not None:
            self.failing = await self._noted(tx)
        self._known = True
        if self.failing is None:
            return False
        self.alone, self._events_max = True, 1
        patient = patient or bool(self.terms.dead_letter)
        return patient and self._driver.world.wall_ms() < self.failing.due_ms

    async def _noted(self, tx: Transaction) -> Failing | None:
        (noted,) = await tx.applied(self._name, [(FAILING, "")])
        return msgspec.msgpack.decode(noted, type=Failing) if noted else None

    def forget(self) -> None:
        """Another process may have changed what is noted."""
        self._known = False
        self.failing = None

    def caught_up(self) -> None:
        """It is at the end of the log: pages share a transaction again."""
        self.alone = self.failing is not None

    def limit(self, events: int) -> int:
        """How many events the next page may have."""
        return min(events, self._events_max or events)

    async def cut(self, tx: Transaction, page: Sequence[Stored]) -> tuple[Sequence[Stored], Sequence[Stored]]:
        """The part of a page that is applied together, and the events of it; what puts a dead letter back is alone, and
        stands for its event."""
        if not self.terms.dead_letter:
            return page, page
        redriven = next((at for at, each in enumerate(page) if self._settled(each) is not None), None)
        if redriven is None:
            return page, page
        if redriven:
            return page[:redriven], page[:redriven]
        settled = self._settled(page[0])
        assert settled is not None
        found = await self._aside(tx, self._driver.store, settled.position)
        return page[:1], found

    def _settled(self, stored: Stored) -> Settled | None:
        event = stored.event
        if event.type != REDRIVEN or event.topic != self.terms.dead_letter or stored.twin:
            return None
        with suppress(msgspec.MsgspecError):
            settled = msgspec.json.decode(event.payload, type=Settled)
            if (settled.group, settled.node) == (self._consumer, self._driver.settings.node):
                return settled
        return None

    async def _aside(self, tx: Transaction, store: EventStore, position: int) -> Sequence[Stored]:
        """The event at a position, if it was set aside; it is not, any more, when the transaction commits."""
        (noted,) = await tx.applied(self._name, [(ASIDE, str(position))])
        if noted is None:
            return ()
        await tx.note_applied(self._name, [(ASIDE, str(position), b"")])
        page = await store.log(after=Offset(store.id, position - 1), limit=1)
        return [each for each in page if each.position == position]

    # --- its outcome -------------------------------------------------------------------------------------------------

    def begin(self, events: Sequence[Stored], end: Offset) -> None:
        """These are tried, and the projection stands there when they have succeeded."""
        self._pages += 1
        self._tried, self._end = events, end

    async def succeeded(self, tx: Transaction, end: Offset) -> None:
        """Everything up to there is in the transaction."""
        self._events_max = 2 * self._events_max if self._events_max < EVENTS_WHOLE else 0
        if self.failing is not None and self.failing.position <= end.position:
            await tx.note_applied(self._name, [(FAILING, "", b"")])

    async def failed(self, error: ProjectionFailed, opened: Opened) -> bool:
        """Whether the projection can go on at once; if not, it waits for its next attempt.

        Args:
            error: What was raised.
            opened: Begins a transaction of the read model's.

        Raises:
            ProjectionFailed: it cannot go on, and nobody is to be told by a dead letter.
            StoreError: it could not be noted.
        """
        tried, self._tried = self._tried, ()
        if self._pages > 1:
            self.alone = True
            return True
        if not tried:
            raise error
        if len(tried) > 1:
            self.alone = True
            self._events_max = max(1, len(tried) // 2)
            return True
        stored, cause = tried[0], error.__cause__ or error
        async with opened() as tx:
            failing = await self._count(tx, stored, cause)
            last = failing.attempts >= self.terms.retry.max_attempts or isinstance(cause, Unfit)
            if last and self.terms.dead_letter:
                await self._give_up(tx, stored, failing.attempts, cause)
            else:
                await tx.note_applied(self._name, [(FAILING, "", msgspec.msgpack.encode(failing))])
        event, name = stored.event, self._projection.name
        what = f"{event.type} of {event.topic}/{event.aggregate_id} at position {stored.position}"
        if last and self.terms.dead_letter:
            self.failing = None
            logger.error("projection %s gave up %.500s: %s", name, what, failing.reason)
            return True
        self.failing = failing
        if not self.terms.dead_letter:
            raise ProjectionFailed(f"{error.message}, and stands before {what:.500}", hint=error.hint) from cause
        logger.warning("projection %s: %.500s: attempt %d: %s", name, what, failing.attempts, failing.reason)
        return False

    async def _count(self, tx: Transaction, stored: Stored, error: BaseException) -> Failing:
        """One more attempt."""
        before, world = await self._noted(tx), self._driver.world
        attempts = 1 if before is None or before.position != stored.position else before.attempts + 1
        due_ms = world.wall_ms() + self.terms.retry.delay_ms(attempts, world.dice())
        return Failing(stored.position, attempts, due_ms, reason_of(error))

    async def _give_up(self, tx: Transaction, stored: Stored, attempts: int, error: BaseException) -> None:
        assert self._end is not None
        names = {"group": self._consumer, "handler": self._projection.name, "node": self._driver.settings.node}
        letter = dead_letter(self.terms.dead_letter, stored, attempts, error, **names)
        noted = POSTED if self._posts else encode(DraftLine.of(letter))
        await tx.note_applied(self._name, [(FAILING, "", b""), (ASIDE, str(stored.position), noted)])
        await tx.set_offset(self._consumer, self._end)
        if self._posts:
            await self._driver.write_in(tx, [letter])


async def post_letters(driver: Driver, projection: str) -> None:
    """Write the dead letters of what a build has set aside, once it has taken the place of the live model."""
    after: tuple[str, str] | None = None
    name = trouble_name(projection)
    while page := await driver.store.applied(name, after=after, limit=PAGE_NOTES):
        due = [each for each in page if each[0] == ASIDE and each[2] != POSTED]
        if due:
            async with driver.transaction() as tx:
                letters = [msgspec.json.decode(letter, type=DraftLine).draft() for _, _, letter in due]
                await tx.note_applied(name, [(ASIDE, position, POSTED) for _, position, _ in due])
                await driver.write_in(tx, letters)
        after = page[-1][:2]
