"""Who reads Kafka for a replica: by assignment and seek, a log from the store's own place, or the digests beside it.

Kafka's client reconnects by itself and says nothing. So a reader that heard nothing for a while looks, before it goes
on, whether the last message that it read is still what it was: if not, the log was put back, and the reader is told so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from synckit_connectors.kafka_clients import RETRY_PAUSE_S, part
from synckit_connectors.kafka_logs import LOOK_AGAIN, KafkaLogs
from synckit_connectors.kafka_wire import digests_of, log_of, message_of, translate
from synckit_streams.errors import ConnectorError, Unavailable
from synckit_streams.ports.connector import Announced, Delivery, Message
from synckit_streams.ports.reading import Reading

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, ConsumerRecord

log = logging.getLogger("synckit_connectors.kafka")

POLL_S = 0.5
"""For how long a reader waits at a time."""
CHECK_S = 1.0
"""After so long without a message a reader looks whether its log is still the one that it was. No broker restarts in
less."""
LISTEN_CHECK_S = 5.0
"""The same for a listener: digests are far between."""


class Reader(Reading):
    """Something that waits at the broker, with a consumer of its own."""

    def __init__(self, logs: KafkaLogs, topic: str) -> None:
        super().__init__()
        self.logs = logs
        self.topic = topic
        self.consumer: AIOKafkaConsumer | None = None

    async def begin(self) -> None:
        """Connect, and look where to begin."""

    async def disconnect(self) -> None:
        """Let go of the consumer."""
        consumer, self.consumer = self.consumer, None
        if consumer is not None:
            await part(consumer)

    async def poll(self, records_max: int) -> dict[Any, list[ConsumerRecord]]:
        """What has come, after `POLL_S` at the latest.

        Raises:
            ConnectorError: whatever the driver raised.
        """
        assert self.consumer is not None
        try:
            found: dict[Any, list[ConsumerRecord]] = await self.consumer.getmany(
                timeout_ms=int(POLL_S * 1000), max_records=records_max
            )
        except Exception as raised:
            raise translate(raised, self.logs.address) from raised
        return found


class LogReader(Reader):
    """Reads a topic from a position."""

    def __init__(self, logs: KafkaLogs, topic: str, start: Mapping[int, int], batch_max: int) -> None:
        super().__init__(logs, topic)
        self._name = log_of(topic)
        self._start = start
        self._batch_max = max(batch_max, 1)
        self._last: dict[int, int] = {}
        """Per partition: the position that was read last."""
        self._messages: dict[int, Message] = {}
        """What lay there."""
        self._got: deque[list[Delivery]] = deque()
        self._checked_at = time.monotonic()

    async def begin(self) -> None:
        """Find each partition's place."""
        from aiokafka import TopicPartition

        bounds = await self.logs.bounds(self.topic)
        for number in bounds:
            last = self._last[number] = max(self._start.get(number, 0), 0)
            if last and (message := await self.logs.peek(self.topic, number, last)) is not None:
                self._messages[number] = message
        try:
            self.consumer = await self.logs.consumer()
            self.consumer.assign([TopicPartition(self._name, number) for number in bounds])
        except Exception as raised:
            raise translate(raised, self.logs.address) from raised
        for number, (_, first, end) in bounds.items():
            # Kafka refuses to wait at an offset beyond the end; what comes before it is then passed over.
            offset = min(max(self._last[number], first - 1), end - 1)
            self.consumer.seek(TopicPartition(self._name, number), offset)

    def __aiter__(self) -> LogReader:
        return self

    async def __anext__(self) -> Sequence[Delivery]:
        batch = await self.wait_for(self._read)
        if batch is None:
            raise StopAsyncIteration
        return batch

    async def _read(self) -> list[Delivery]:
        until: float | None = None
        while not self._got:
            try:
                if self.consumer is None:
                    await self._again()
                found = await self.poll(self._batch_max)
                # Whoever heard nothing for so long may hear another broker now, or one that was put back.
                if time.monotonic() - self._checked_at > CHECK_S:
                    await self._check()
                if found:
                    self._checked_at = time.monotonic()
            except Unavailable as error:
                until = until or time.monotonic() + self.logs.options.timeout_s
                if error.hint == LOOK_AGAIN or time.monotonic() >= until:
                    raise
                log.debug("%s: reading anew: %s", self._name, error.message)
                await self.disconnect()
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            until = None
            for where, records in found.items():
                last = self._last[where.partition]
                batch = [
                    Delivery(message_of(record), where.partition, record.offset + 1)
                    for record in records
                    if record.offset + 1 > last
                ]
                if batch:
                    self._last[where.partition] = batch[-1].position
                    self._messages[where.partition] = batch[-1].message
                    self._got.append(batch)
        return self._got.popleft()

    async def _again(self) -> None:
        """Another consumer, behind what was read."""
        await self._check()
        self._start = dict(self._last)
        messages = self._messages
        await self.begin()
        self._messages = messages | self._messages

    async def _check(self) -> None:
        """That what was read last is still what lies there.

        Raises:
            Unavailable: it is not.
        """
        bounds = await self.logs.bounds(self.topic)
        self._checked_at = time.monotonic()
        for number, message in self._messages.items():
            last = self._last[number]
            if last >= bounds[number].end:
                why = f"{self._name} was put back: it ends at {bounds[number].end - 1}, {last} was read"
                raise Unavailable(why, hint=LOOK_AGAIN)
            if last >= bounds[number].first:
                there = await self.logs.peek(self.topic, number, last)
                if there is not None and there != message:
                    raise Unavailable(f"{self._name} was put back: {last} is another message now", hint=LOOK_AGAIN)


class Listener(Reader):
    """The digests of a topic: the last of each node, then the live ones."""

    def __init__(self, logs: KafkaLogs, topic: str) -> None:
        super().__init__(logs, topic)
        self._name = digests_of(topic)
        self._end = 0
        """Behind the last record that is known to be there."""
        self._checked_at = 0.0
        self._heard: deque[Announced] = deque()

    async def begin(self) -> None:
        """Read what is kept."""
        from aiokafka import TopicPartition

        logs, name = self.logs, self._name
        ((first, _),) = await logs.ends(name, 1, digests=True)
        # A record without a node: where it lies is the end of what was there, and its time is the broker's now.
        mark = (await logs.produce(name, [(b"", None, [])]))[0]
        now_ms = mark.timestamp if mark.timestamp >= 0 else time.time_ns() // 1_000_000
        where = TopicPartition(name, 0)
        kept: dict[str, Announced] = {}
        try:
            consumer = self.consumer = await logs.consumer()
            consumer.assign([where])
            consumer.seek(where, first)
            self._end, self._checked_at = mark.offset + 1, time.monotonic()
            at = first
            while at <= mark.offset:
                for records in (await self._poll()).values():
                    for record in records:
                        at = record.offset + 1
                        if record.offset > mark.offset:
                            break
                        node = (record.key or b"").decode(errors="replace")
                        kept.pop(node, None)
                        if node and record.value:
                            age_s = max(0.0, (now_ms - record.timestamp) / 1000)
                            kept[node] = Announced(node, record.value, age_s)
            consumer.seek(where, mark.offset + 1)
        except ConnectorError:
            raise
        except Exception as raised:
            raise translate(raised, logs.address) from raised
        self._heard.extend([*kept.values(), Announced("", b"", 0.0)])

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> Announced:
        while not self._heard:
            if await self.wait_for(self._hear) is None:
                raise StopAsyncIteration
        if self.ended:
            raise StopAsyncIteration
        return self._heard.popleft()

    async def _hear(self) -> bool:
        until: float | None = None
        while not self._heard:
            try:
                if self.consumer is None:
                    await self.begin()
                    break
                found = await self._poll()
            except Unavailable:
                until = until or time.monotonic() + self.logs.options.timeout_s
                if time.monotonic() >= until:
                    raise
                await self.disconnect()
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            until = None
            for records in found.values():
                for record in records:
                    if record.key:
                        node = record.key.decode(errors="replace")
                        self._heard.append(Announced(node, record.value or b"", 0.0))
            if self._heard:
                self._heard.append(Announced("", b"", 0.0))
        return True

    async def _poll(self) -> dict[Any, list[ConsumerRecord]]:
        """`poll`, that notices when nothing more can come.

        Raises:
            Unavailable: the broker is gone, or the digests are.
        """
        found = await self.poll(1000)
        if found:
            self._end = max(self._end, *(records[-1].offset + 1 for records in found.values()))
            self._checked_at = time.monotonic()
        elif time.monotonic() - self._checked_at > LISTEN_CHECK_S:
            ((_, end),) = await self.logs.ends(self._name, 1, digests=True)
            self._checked_at = time.monotonic()
            if end < self._end:
                raise Unavailable(f"{self._name} was made anew or put back")
        return found
