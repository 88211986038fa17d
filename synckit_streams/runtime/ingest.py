"""JSON of producers that know nothing of us becomes events: how topics that exist already come in.

A broker's group divides the messages, so that each is taken once, also where several nodes ingest the same source.
What a message becomes has an id that says where it lies (or that its producer gave it): it may come as often as it
likes, and is written once. It is acknowledged when it is in the store. What cannot become an event goes to the
quarantine, with the reason, and nothing waits behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid5

import msgspec

from synckit_streams.errors import (
    ConfigError,
    FeatureUnsupported,
    IdReused,
    Invalid,
    SyncKitError,
    Timeout,
    TooLarge,
    Unavailable,
)
from synckit_streams.model.codec import check_draft, check_topic
from synckit_streams.model.event import Draft
from synckit_streams.model.exchange import Arrival
from synckit_streams.model.pointer import check_pointer, point
from synckit_streams.ports import telemetry
from synckit_streams.ports.connector import Connector, Delivery, Member, Message
from synckit_streams.runtime.autosync import BACKOFF_BASE_MS, BACKOFF_MS_MAX
from synckit_streams.runtime.driver import Driver, logger
from synckit_streams.runtime.envelope import as_text
from synckit_streams.runtime.registry import connector_for
from synckit_streams.runtime.settings import check_seconds
from synckit_streams.sync import protocol
from synckit_streams.sync.pace import next_delay_ms

BATCH_MESSAGES = 1_000
NAMESPACE = UUID("b4b1c6f0-6c0e-5e7c-9f0e-6a1d5b7f2c11")
"""Of the ids that say where a message lies. Another one would make a second event of each."""
ABOUT_A_DRAFT = (IdReused, Invalid, TooLarge)
"""What a store says of a message and not of itself."""

_decode = msgspec.json.Decoder().decode


class Ingest(msgspec.Struct, frozen=True, kw_only=True):
    """Which messages of somebody else's become events, and how.

    `type`, `aggregate_id` and `id` may be JSON pointers into the message's body: they begin with a slash.

    Args:
        connector: The broker's URL, or a connector with `features.taps`. It need not be one of the node's own.
        source: The broker's own name: a Kafka topic, a JetStream stream, a Redis stream.
        topic: Where the events are written.
        type: What happened: a pointer, or the same for all.
        aggregate_id: To what it happened: a pointer, or "" for the message's key.
        id: The event's id, which its producer gave it: a pointer; "" makes one of where the message lies.
        group: At the broker; whoever has the same name shares the work.
        since: For a group that is new to the broker: what came at that time or later. None is from the beginning.

    Raises:
        ConfigError: by `check`: something is missing or wrong.
    """

    connector: str | Connector
    source: str
    topic: str
    type: str
    aggregate_id: str = ""
    id: str = ""
    group: str = "synckit"
    since: datetime | None = None

    def check(self) -> None:
        """That it can be carried out.

        Raises:
            ConfigError: it cannot; the message names what is wrong.
        """
        for name, text in (("source", self.source), ("type", self.type), ("group", self.group)):
            if not isinstance(text, str) or not text:
                raise ConfigError(f"to ingest, {name}={text!r:.80} says too little", hint=f"give {name} as text")
        try:
            check_topic(self.topic)
            for name, text in (("type", self.type), ("aggregate_id", self.aggregate_id), ("id", self.id)):
                if text.startswith("/") or (name != "type" and text):
                    check_pointer(text)
        except SyncKitError as error:
            raise ConfigError(f"to ingest: {error.message}", hint=error.hint) from error
        if self.since is not None and self.since.tzinfo is None:
            raise ConfigError(f"since={self.since} has no time zone", hint="for example datetime(…, tzinfo=UTC)")

    def draft(self, message: Message) -> Draft:
        """What a message becomes; its `id` says where it lies.

        Raises:
            Invalid, TooLarge: it cannot become an event.
        """
        try:
            found = _decode(message.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Invalid(f"not JSON: {error}") from error
        draft = Draft(
            topic=self.topic,
            type=self._text(found, "type", self.type) if self.type.startswith("/") else self.type,
            aggregate_id=self._text(found, "aggregate_id", self.aggregate_id) if self.aggregate_id else _key(message),
            data=message.body,
            id=self._text(found, "id", self.id) if self.id else str(uuid5(NAMESPACE, message.id)),
        )
        check_draft(draft)
        return draft

    @staticmethod
    def _text(found: Any, what: str, pointer: str) -> str:
        value = point(found, pointer)
        if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
            raise Invalid(f"{what}: what stands at {pointer} is neither text nor a whole number")
        return str(value)


def _key(message: Message) -> str:
    if not message.partition_key:
        raise Invalid("the message has no key that is text", hint="say where the aggregate's id stands in the body")
    return message.partition_key


class Ingested(NamedTuple):
    """What became of the messages.

    Args:
        read: How many came.
        written: How many became events.
        known: How many had become one already.
        set_aside: How many went to the quarantine.
    """

    read: int = 0
    written: int = 0
    known: int = 0
    set_aside: int = 0

    def and_(self, other: Ingested) -> Ingested:
        """Both together."""
        return Ingested(*map(sum, zip(self, other, strict=True)))


class Ingestion:
    """One `SyncNode.ingest`, while it runs.

    Args:
        ingest: What to do.
        driver: Of the node.

    Raises:
        ConfigError, ConnectorNotFound, MissingDependency: it cannot be done.
        FeatureUnsupported: the connector taps nothing of others.
    """

    def __init__(self, ingest: Ingest, driver: Driver) -> None:
        ingest.check()
        self.total = Ingested()
        self._ingest = ingest
        self._driver = driver
        self._connector = connector_for(ingest.connector)
        if not self._connector.features.taps:
            raise FeatureUnsupported(
                f"{type(self._connector).__name__} reads nothing but our own messages",
                hint="ingest over a connector with features.taps: Kafka, NATS, Redis",
            )
        self._made = isinstance(ingest.connector, str)
        self._name = f"{getattr(self._connector, 'url', type(self._connector).__name__)} {ingest.source}"
        self._failures = 0

    async def run(self, idle_s: float | None) -> Ingested:
        """Until nothing has come for so long; None is for ever, over every outage."""
        if idle_s is not None:
            check_seconds("idle_s", idle_s)
        try:
            while True:
                try:
                    if await self._once(idle_s):
                        return self.total
                    raise Unavailable(f"{self._name} ended")
                except (Unavailable, Timeout) as error:
                    if idle_s is not None:
                        raise
                    await self._back_off(error)
        finally:
            if self._made:
                await self._connector.close()

    async def _back_off(self, error: SyncKitError) -> None:
        self._failures += 1
        dice = self._driver.world.dice()
        delay_ms = next_delay_ms(self._failures, base_ms=BACKOFF_BASE_MS, delay_ms_max=BACKOFF_MS_MAX, dice=dice)
        logger.info("ingesting waits (%s); the next try is in %.1f s", error, delay_ms / 1000)
        await asyncio.sleep(delay_ms / 1000)

    async def _once(self, idle_s: float | None) -> bool:
        ingest = self._ingest
        at_ms = int(ingest.since.timestamp() * 1000) if ingest.since is not None else None
        await self._connector.open()
        async with self._connector.tap(
            ingest.source, group=ingest.group, batch_max=BATCH_MESSAGES, at_ms=at_ms
        ) as member:
            return await self._take_all(member, idle_s)

    async def _take_all(self, member: Member, idle_s: float | None) -> bool:
        """True when nothing came for so long, and nothing is left; False when there is no more to come."""
        while True:
            try:
                async with asyncio.timeout(idle_s):
                    batch = await anext(member, None)
            except TimeoutError:
                if await member.settled():
                    return True
                # A worker has them, or died with them: they come when the broker gives them to somebody else.
                logger.info("%s: what is left is with others of the group %s", self._name, self._ingest.group)
                continue
            if batch is None:
                return False
            await self._take(batch)
            # Only now: what is acknowledged is durable.
            await member.ack(batch)
            self._failures = 0

    async def _take(self, batch: Sequence[Delivery]) -> None:
        started = asyncio.get_running_loop().time()
        drafts: list[tuple[Message, Draft]] = []
        aside: list[Arrival] = []
        for delivery in batch:
            try:
                drafts.append((delivery.message, self._ingest.draft(delivery.message)))
            except SyncKitError as error:
                aside.append(self._aside(delivery.message, error))
        written = await self._write(drafts, aside)
        if aside:
            given = protocol.Received(self._name, self._ingest.topic, 0, aside, None)
            await self._driver.give(given)
        known = len(batch) - written - len(aside)
        self.total = self.total.and_(Ingested(len(batch), written, known, len(aside)))
        self._driver.observe(
            telemetry.Received(
                node=self._driver.settings.node,
                connector=self._name,
                topic=self._ingest.topic,
                messages=len(batch),
                bytes=sum(len(delivery.message.body) for delivery in batch),
                stored=written,
                duplicates=known,
                held=0,
                dropped=0,
                quarantined=len(aside),
                skew_ms=0,
                traceparents=(),
                traces=0,
                duration_s=asyncio.get_running_loop().time() - started,
            )
        )

    def _aside(self, message: Message, error: SyncKitError) -> Arrival:
        return Arrival(None, b"", None, as_text(message), f"{self._name}, {message.id}: {error}")

    async def _write(self, drafts: Sequence[tuple[Message, Draft]], aside: list[Arrival]) -> int:
        """In one commit if nothing is wrong with any of them; gives how many are new."""
        if not drafts:
            return 0
        try:
            with self._driver.operation("append") as traceparent:
                result = await self._driver.write([draft for _, draft in drafts], traceparent=traceparent)
        except ABOUT_A_DRAFT as error:
            if len(drafts) == 1:
                aside.append(self._aside(drafts[0][0], error))
                return 0
            middle = len(drafts) // 2  # which one it is, halving tells
            return await self._write(drafts[:middle], aside) + await self._write(drafts[middle:], aside)
        return result.fresh
