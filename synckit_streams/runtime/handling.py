"""What a handler is to whoever runs it, and what it is given: the events, and a context for its work."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol
from uuid import UUID, uuid5

import msgspec

from synckit_streams.errors import StoreError
from synckit_streams.model.codec import AFTER_KEYS_MAX, encode_payload
from synckit_streams.model.event import Draft, Event, Stored
from synckit_streams.ports.store import Transaction
from synckit_streams.runtime.policy import Breaker, Retry

NAMESPACE = UUID("0b6f1f5e-7a0c-5d1b-8d3e-52a6f2f0c9a4")
"""Of the ids of events that handlers return. Another one would make a second event of each."""


class Handler(Protocol):
    """A part of a group: which events it takes, how, and what it does.

    Attributes:
        name: Its own within the group.
        topics: Which it follows; at least one.
        types: Which types of event; empty for every type that no other handler of the group names.
        batch: Most events in one call.
        timeout_s: Longest time for one call; None is for ever.
        retry: When it raises.
        breaker: When what it depends on is down.
        dead_letter: The topic for what is given up.
    """

    @property
    def name(self) -> str: ...
    @property
    def topics(self) -> Sequence[str]: ...
    @property
    def types(self) -> Sequence[str]: ...
    @property
    def batch(self) -> int: ...
    @property
    def timeout_s(self) -> float | None: ...
    @property
    def retry(self) -> Retry: ...
    @property
    def breaker(self) -> Breaker: ...
    @property
    def dead_letter(self) -> str: ...

    async def handle(self, events: Sequence[Stored], context: HandlerContext) -> Sequence[Draft]:
        """Do the work, and give what is to be written with it.

        Raises:
            Unfit: trying again is of no use.
            BaseException: anything else is tried again.
        """


class HandlerContext:
    """What a handler may ask for beside its event, by a parameter of this type.

    Args:
        group: The handler's group.
        handler: Its name.
        node: The node id.
        stored: The events of this call.
        attempt: Which one this is, from 1.
        begin: Begins the transaction in which everything of this call commits.
    """

    def __init__(
        self,
        *,
        group: str,
        handler: str,
        node: str,
        stored: Sequence[Stored],
        attempt: int,
        begin: Callable[[], Awaitable[Transaction]],
    ) -> None:
        self.group = group
        self.handler = handler
        self.node = node
        self.stored = stored
        self.attempt = attempt
        self.tx = OneTransaction(begin)
        """The store's transaction: what is done in it, the events that the handler returns, and its place in the log
        commit together, or not at all. It begins with its first statement; until it ends, others that write wait."""

    @property
    def events(self) -> list[Event]:
        """The events of this call."""
        return [each.event for each in self.stored]

    @property
    def event(self) -> Event:
        """The event of this call; of a batch, the first one."""
        return self.stored[0].event

    @property
    def idempotency_key(self) -> str:
        """The same at every attempt at this event by this handler, on every machine: for effects outside the database,
        where whoever takes them can tell a repetition by a key (a payment, an e-mail)."""
        first, last = self.stored[0].event.id, self.stored[-1].event.id
        return str(uuid5(NAMESPACE, "|".join((self.group, self.handler, first, last, str(len(self.stored))))))

    def end(self) -> None:
        """The call is over."""
        self.tx.end()

    def outgoing(self, drafts: Sequence[Draft]) -> list[Draft]:
        """What a handler returned, as it is written: *after* its causes, and under ids that say whose doing it is.

        Replicas that each handle an event write the same ids, so that what they return is one event and not several.
        Of a batch, which each of them cuts in its own way, that is so for a draft that names the one event of the batch
        that it comes of, in its `after`.

        Raises:
            Invalid, TooLarge: a draft's data cannot be written.
        """
        causes = {(each.event.topic, each.event.origin): each.event for each in self.stored}
        keys = tuple(event.key for event in list(causes.values())[-AFTER_KEYS_MAX // 2 :])
        several = len(self.stored) > 1
        batch = {each.event.key: each.event for each in self.stored} if several and any(d.after for d in drafts) else {}
        numbers: Counter[str] = Counter()
        made: list[Draft] = []
        for draft in drafts:
            named = [batch[key] for key in draft.after if key in batch]
            cause = self.event if not several else named[0] if len(named) == 1 else None
            after = tuple(dict.fromkeys((*draft.after, *(keys if cause is None else (cause.key,)))))[:AFTER_KEYS_MAX]
            id = draft.id
            if id is None and cause is not None:
                id = str(uuid5(NAMESPACE, f"{self.group}|{self.handler}|{cause.id}|{numbers[cause.id]}"))
            if cause is not None:
                numbers[cause.id] += 1
            made.append(msgspec.structs.replace(draft, data=encode_payload(draft.data), after=after, id=id))
        return made


class OneTransaction:
    """The store's transaction, which begins with the first statement; see `HandlerContext.tx`."""

    def __init__(self, begin: Callable[[], Awaitable[Transaction]]) -> None:
        self._begin = begin
        self._over = False
        # A handler may gather several statements: one transaction is begun, and it takes them one after another.
        self._turn = asyncio.Lock()

    def end(self) -> None:
        """The call is over: what a handler has left behind begins nothing more."""
        self._over = True

    async def _own(self) -> Transaction:
        if self._over:
            raise StoreError(
                "the handler's call is over, and its transaction with it",
                hint="await everything that uses ctx.tx before the handler returns",
            )
        return await self._begin()

    async def execute(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement of the store's SQL, and return its rows.

        Raises:
            FeatureUnsupported: the store has no SQL.
        """
        _check_statement(sql)
        async with self._turn:
            return await (await self._own()).execute(sql, parameters)

    async def execute_many(self, sql: str, rows: Sequence[Sequence[Any]]) -> None:
        """Run one statement for each row, in one call."""
        _check_statement(sql)
        async with self._turn:
            await (await self._own()).execute_many(sql, rows)


_ends = re.compile(
    r"\s*(begin|start\s+transaction|commit|end|rollback|abort|savepoint|release|prepare\s+transaction)\b", re.IGNORECASE
)


def _check_statement(sql: str) -> None:
    """That it does not end the transaction, or divide it: other calls may have done something in it.

    Raises:
        StoreError: it does.
    """
    if found := _ends.match(sql):
        raise StoreError(
            f"a handler's transaction takes no {found[1].upper()}",
            hint="it commits when the handler returns, and what a handler did that raises is undone",
        )
