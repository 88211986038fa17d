"""FastStream for those who have it: its brokers and handlers, with our inbox, transaction and outbox around each call.

A delivery calls the handler, as always in FastStream. Around it the inbox sees to it that what the handler does in the
store's database, the events that it returns and the note that the message is done commit together, and FastStream
acknowledges only when they have. What the broker delivers again is not done again. What fails is tried again in place
and goes to the dead letters in the end, whatever the broker would do with a refusal.

Order is what the broker gives, and one subscriber's bad message holds up what comes after it, for as long as it is
tried. An `App` has neither limit, since its handlers read the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from synckit_streams.app.calling import drafts_of
from synckit_streams.app.faststream_codec import EventCodec, read
from synckit_streams.app.faststream_internals import (
    AckMessage,
    BaseMiddleware,
    Context,
    IgnoredException,
    NackMessage,
    StreamMessage,
    doubled,
    keep_alive,
    singles,
    subscriber_name,
    subset,
    unparsed,
    unreliable,
    untaken,
    unwanted,
)
from synckit_streams.errors import ConfigError, StoreClosed, SyncKitError, Unfit
from synckit_streams.model.codec import NAME_BYTES_MAX, check_text, check_topic
from synckit_streams.model.event import Draft, Event
from synckit_streams.runtime import inbox as runtime
from synckit_streams.runtime.handling import OneTransaction
from synckit_streams.runtime.inbox import REMEMBER_S, Attempt, Delivery
from synckit_streams.runtime.node import SyncNode
from synckit_streams.runtime.policy import Retry
from synckit_streams.runtime.settings import check_seconds

__all__ = ["CurrentEvent", "EventCodec", "IdempotencyKey", "Inbox", "Tx"]

Tx = Annotated[OneTransaction, Context("synckit_tx")]
"""A handler's parameter: the store's transaction. Its effect, its events and the note of the message commit in it."""
CurrentEvent = Annotated[Event, Context("synckit_event")]
"""A handler's parameter: the event that the message carries; of a batch the first one. Of somebody else's message: its
key as the id, where it came from as the topic, its body as the payload."""
IdempotencyKey = Annotated[str, Context("synckit_key")]
"""A handler's parameter: the same at every attempt at this message, for effects outside the database."""


class Inbox:
    """Adds itself to a broker as its innermost middleware.

    `FastStream(broker, lifespan=inbox.lifespan)` opens the node before the broker, and closes it after it.

    Args:
        node: Whose store keeps the notes, the read models and the events that handlers return.
        broker: A KafkaBroker, NatsBroker or RedisBroker.
        name: Of the inbox; the node's by default. Workers that share a store share it, too.
        retry: When a handler raises.
        timeout_s: Longest time for one call, in seconds: then it has failed. None is for ever.
        dead_letter: Topic for what is given up; `<name>.dlq` by default.
        remember_s: For how long, at least, it is known what was done, in seconds.
        at_most_once: Also take subscribers of which the broker is told before the commit (`ACK_FIRST`, `MANUAL`, and
            Redis' channels and lists): what is lost with the process then is lost.

    Raises:
        ConfigError: a setting is wrong.
    """

    def __init__(
        self,
        node: SyncNode,
        broker: Any,
        *,
        name: str = "",
        retry: Retry = Retry(),  # noqa: B008 - frozen
        timeout_s: float | None = 30.0,
        dead_letter: str = "",
        remember_s: float = REMEMBER_S,
        at_most_once: bool = False,
    ) -> None:
        self.node = node
        self.name = name or node.node_id
        self.dead_letter = dead_letter or f"{self.name}.dlq"
        self._broker = broker
        self._retry = retry
        self._timeout_s = timeout_s
        self._remember_s = remember_s
        self._at_most_once = at_most_once
        self._inbox: runtime.Inbox | None = None
        try:
            check_text("an inbox", self.name, bytes_max=NAME_BYTES_MAX // 2)
            check_topic(self.dead_letter)
        except SyncKitError as error:
            raise ConfigError(f"the inbox {self.name!r}: {error.message}") from error
        retry.check(f"the inbox {self.name!r}")
        check_seconds("remember_s", remember_s)
        if timeout_s is not None:
            check_seconds("timeout_s", timeout_s)
        if not hasattr(broker, "add_middleware"):
            raise ConfigError(f"{broker!r:.80} is no broker of FastStream's", hint="Inbox(node, KafkaBroker(…))")
        broker.add_middleware(self)

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """The node is open within it, and meets others by itself if it has connectors.

        Raises:
            ConfigError: a subscriber acknowledges before the commit, or two handlers have one name.
        """
        if names := doubled(self._broker):
            # What one of them has done would count as done for the other.
            raise ConfigError(f"several handlers are called {', '.join(names)}", hint="give each function its own name")
        if not self._at_most_once and (wrong := unreliable(self._broker)):
            raise ConfigError(
                f"of {', '.join(wrong)} the broker is told before anything is committed",
                hint="ack_policy=AckPolicy.NACK_ON_ERROR at the subscriber or the broker; or Inbox(at_most_once=True)",
            )
        async with self.node:
            self._inbox = self._made()
            try:
                if self._inbox.meets_others:
                    await self.node.start_auto_sync()
                yield
            finally:
                self._inbox = None

    def _made(self) -> runtime.Inbox:
        return self.node.inbox(
            self.name,
            retry=self._retry,
            dead_letter=self.dead_letter,
            remember_s=self._remember_s,
            passing=(IgnoredException,),
        )

    def __call__(self, msg: Any, /, *, context: Any) -> BaseMiddleware:
        """FastStream's: one middleware for each message."""
        return _Call(msg, self, context=context)

    async def handle(self, call_next: Any, message: StreamMessage[Any], context: Any) -> Any:
        """What stands around one call of a handler; gives what FastStream is to publish."""
        inbox = self._inbox
        if inbox is None:
            raise ConfigError(
                f"the node {self.node.node_id!r} is not open", hint="FastStream(broker, lifespan=inbox.lifespan)"
            )
        subscriber = subscriber_name(context)
        deliveries = [Delivery(subscriber, *read(each)) for each in singles(message)]
        numbers = {id(each): number for number, each in enumerate(deliveries)}
        answers: list[Any] = []

        async def work(attempt: Attempt) -> Sequence[Draft]:
            answers.clear()  # of an attempt that did not commit
            part = subset(message, [numbers[id(each)] for each in attempt.deliveries])
            part.clear_cache()
            given = {
                "synckit_tx": attempt.tx,
                "synckit_event": attempt.deliveries[0].event,
                "synckit_key": attempt.idempotency_key,
            }
            try:
                with context.scopes(given.items()):
                    async with asyncio.timeout(self._timeout_s):
                        answer = await call_next(part)
            except AckMessage:
                return []  # the handler says: done
            except Exception as error:
                if untaken(error):
                    raise Unfit(f"{attempt.deliveries[0].key} does not fit: {error}") from error
                raise
            if _is_drafts(answer):
                return drafts_of(answer, f"the handler {subscriber!r}")
            answers.append(answer)
            return []

        try:
            known = await inbox.handle(deliveries, work, alive=keep_alive(message))
        except StoreClosed as error:
            raise NackMessage from error  # not done: whoever opens the store next gets it again
        if known == len(deliveries) or not answers:
            raise Settled
        return answers[-1]

    async def give_up(self, raw: Any, context: Any, error: Exception) -> None:
        """A message that FastStream cannot read, or finds no handler for, becomes a dead letter."""

        async def work(attempt: Attempt) -> Sequence[Draft]:
            raise Unfit(f"FastStream cannot hand it on: {type(error).__name__}: {error}") from error

        if self._inbox is None:
            raise error
        found = [Delivery(subscriber_name(context), *read(each)) for each in unparsed(raw)]
        await self._inbox.handle(found, work)


def _is_drafts(answer: Any) -> bool:
    """Whether a handler's answer is for us; FastStream publishes any other."""
    if isinstance(answer, list | tuple) and answer:
        return isinstance(answer[0], Draft)
    return isinstance(answer, Draft)


class Settled(IgnoredException):
    """The message is done, and there is nothing for FastStream to publish: not even an empty message."""


class _Call(BaseMiddleware):
    """See `Inbox.handle`."""

    __slots__ = ("_inbox", "_parsed")

    def __init__(self, msg: Any, inbox: Inbox, *, context: Any) -> None:
        super().__init__(msg, context=context)
        self._inbox = inbox
        self._parsed = False

    async def consume_scope(self, call_next: Any, msg: StreamMessage[Any]) -> Any:
        """FastStream's: around the handler."""
        self._parsed = True
        try:
            return await self._inbox.handle(call_next, msg, self.context)
        except Settled:
            # A handler that acknowledges by hand is not called for what is done already.
            await msg.ack()
            raise

    async def __aexit__(self, kind: Any = None, error: Any = None, trace: Any = None) -> bool | None:
        """FastStream's: `Settled` ends here, so that it acknowledges as after any success; and so does what kept a
        message from ever coming to a handler, since a broker that is refused it would give it again and again."""
        if isinstance(error, Settled):
            return True
        if self._parsed or error is None or not unwanted(error):
            return await super().__aexit__(kind, error, trace)
        await self._inbox.give_up(self.msg, self.context, error)
        return True
