"""What lies in Kafka: one Kafka topic a topic, a compacted one for its digests, and how far each group has come.

A log is made when it is first needed, and looked at without joining anything. Offsets begin at 0; a position is the
offset and one, since position 0 lies before the first message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from synckit_connectors.kafka_clients import KafkaClients
from synckit_connectors.kafka_wire import (
    FRAME_BYTES,
    LAST,
    NEXT,
    Record,
    described,
    log_of,
    mark_of,
    message_of,
    partition_of,
)
from synckit_streams.errors import Rejected, Unavailable
from synckit_streams.ports.connector import Bounds, Message

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord
    from aiokafka.producer.message_accumulator import BatchBuilder

DIGEST_SEGMENT_MS = 10 * 60 * 1000
"""Kafka compacts no segment that is still written to, and who listens reads all that was not compacted."""
LOOK_S = 0.5
"""For how long a record that should be there is waited for at a time."""
UNKNOWN_TOPIC = 3
INVALID_TOPIC = 17
TOPIC_UNAUTHORISED = 29
TOPIC_EXISTS = 36
LOOK_AGAIN = "look at the bounds, and receive from there"
"""The hint of an error that says that a log is not the one that it was."""


class Sent(NamedTuple):
    """Where the last record of a call lies in a partition, and when the broker got it: in milliseconds, -1 if it does
    not say."""

    offset: int
    timestamp: int


class KafkaLogs(KafkaClients):
    """See the module's text."""

    async def make(self, name: str, *, digests: bool = False) -> None:
        """Make a Kafka topic if it is not there."""
        if name in self.made:
            return
        from aiokafka.admin import NewTopic
        from aiokafka.errors import for_code

        configs = {"max.message.bytes": str(FRAME_BYTES), "min.insync.replicas": str(self.options.min_insync)}
        # By the broker's clock, which refuses what a client's clock that is an hour ahead says.
        configs["message.timestamp.type"] = "LogAppendTime"
        if digests:
            configs |= {
                "cleanup.policy": "compact",
                "segment.ms": str(DIGEST_SEGMENT_MS),
                "segment.bytes": str(4 * FRAME_BYTES),
                "min.cleanable.dirty.ratio": "0.1",
            }
        else:
            configs |= {"retention.ms": str(self.options.retention_ms), "retention.bytes": "-1"}
        partitions = 1 if digests else self.options.partitions
        topic = NewTopic(name, partitions, self.options.replicas, topic_configs=configs)

        async def create() -> None:
            admin = await self.admin()
            # First, since whoever may read and write a topic need not be one who may make it.
            there = await described(admin, name)
            if there["error_code"] in (UNKNOWN_TOPIC, TOPIC_UNAUTHORISED):
                answer = await admin.create_topics([topic])
                for _, code, *said in answer.topic_errors:
                    if code not in (0, TOPIC_EXISTS):
                        raise for_code(code)(f"making {name}: {said[0] if said else ''}")
                there = await described(admin, name)
            if there["error_code"]:  # the broker that we ask has not heard of it yet
                raise for_code(there["error_code"])(f"looking at {name}")
            if (count := len(there["partitions"])) != partitions:
                raise Rejected(
                    f"{name} has {count} partition{'s' * (count != 1)}, not {partitions}",
                    hint=f"say partitions={count} on every node, or give the topic another name",
                )

        await self.patiently(create)
        self.made.add(name)

    async def ends(self, name: str, partitions: int, *, digests: bool = False) -> list[tuple[int, int]]:
        """The first and the next offset of each partition, now; a topic that is not there is made."""
        self.made.discard(name)  # somebody may have deleted it
        await self.make(name, digests=digests)
        return await self.ends_of(name, partitions)

    async def ends_of(self, name: str, partitions: int) -> list[tuple[int, int]]:
        """The same of a topic that is there."""
        from aiokafka import TopicPartition

        found = [TopicPartition(name, number) for number in range(partitions)]

        async def ask(consumer: AIOKafkaConsumer) -> list[tuple[int, int]]:
            first, end = await consumer.beginning_offsets(found), await consumer.end_offsets(found)
            return [(first[each], end[each]) for each in found]

        return await self.on_looker(ask)

    async def bounds(self, topic: str) -> Mapping[int, Bounds]:
        """See `Connector.bounds`."""
        name = log_of(topic)
        ends = await self.ends(name, self.options.partitions)
        identity = f"{name}@{self.cluster}"
        return {number: Bounds(f"{identity}/{number}", first + 1, end + 1) for number, (first, end) in enumerate(ends)}

    async def peek(self, topic: str, partition: int, position: int) -> Message | None:
        """See `Connector.peek`."""
        if not 0 <= partition < self.options.partitions or position <= 0:
            return None
        name = log_of(topic)
        await self.make(name)
        record = await self.record(name, partition, position - 1)
        return None if record is None else message_of(record)

    async def record(self, name: str, partition: int, offset: int) -> ConsumerRecord | None:
        """What lies at just this offset; None if nothing does."""
        from aiokafka import TopicPartition

        where = TopicPartition(name, partition)

        async def look(consumer: AIOKafkaConsumer) -> ConsumerRecord | None:
            first, end = (
                (await consumer.beginning_offsets([where]))[where],
                (await consumer.end_offsets([where]))[where],
            )
            if not first <= offset < end:
                return None
            consumer.assign([where])
            consumer.seek(where, offset)
            until = time.monotonic() + self.options.timeout_s
            try:
                while time.monotonic() < until:
                    found = await consumer.getmany(where, timeout_ms=int(LOOK_S * 1000), max_records=1)
                    for record in found.get(where, []):
                        return record if record.offset == offset else None
            finally:
                consumer.unsubscribe()
            raise Unavailable(f"{name} has {first} to {end - 1}, and does not give {offset}")

        return await self.on_looker(look)

    async def gives(self, name: str, partition: int, offset: int) -> bool:
        """Whether a reader gets anything from this offset on: the end of a transaction has one, and is nothing."""
        from aiokafka import TopicPartition

        where = TopicPartition(name, partition)

        async def look(consumer: AIOKafkaConsumer) -> bool:
            end = (await consumer.end_offsets([where]))[where]
            consumer.assign([where])
            consumer.seek(where, offset)
            until = time.monotonic() + self.options.timeout_s
            try:
                while await consumer.position(where) < end:
                    if (await consumer.getmany(where, timeout_ms=int(LOOK_S * 1000), max_records=1)).get(where):
                        return True
                    if time.monotonic() > until:
                        raise Unavailable(f"{name} has {offset} to {end - 1}, and gives nothing")
            finally:
                consumer.unsubscribe()
            return False

        return await self.on_looker(look)

    async def partitions(self, name: str) -> int:
        """How many partitions somebody's Kafka topic has; 0 if it is not there. It is never made."""
        from aiokafka.errors import for_code

        async def look() -> int:
            there = await described(await self.admin(), name)
            if there["error_code"] in (UNKNOWN_TOPIC, INVALID_TOPIC):
                return 0
            if there["error_code"]:
                raise for_code(there["error_code"])(f"looking at {name}")
            return len(there["partitions"])

        return await self.patiently(look)

    async def begun(self, name: str, partitions: int, at_ms: int) -> list[int]:
        """Per partition the offset of the first message that came at that time or later."""
        from aiokafka import TopicPartition

        found = [TopicPartition(name, number) for number in range(partitions)]

        async def ask(consumer: AIOKafkaConsumer) -> list[int]:
            # The end first: what comes between the two questions is then behind it.
            end = await consumer.end_offsets(found)
            there = await consumer.offsets_for_times(dict.fromkeys(found, max(at_ms, 0)))
            return [end[each] if there[each] is None else there[each].offset for each in found]

        return await self.on_looker(ask)

    async def committed(self, group_id: str, name: str, partitions: Iterable[int]) -> dict[int, tuple[int, str]]:
        """Per partition the offset that a group comes to next and what it noted there; without those it has none of."""
        from aiokafka import TopicPartition

        wanted = [TopicPartition(name, number) for number in partitions]

        async def ask() -> dict[int, tuple[int, str]]:
            admin = await self.admin()
            found = await admin.list_consumer_group_offsets(group_id, partitions=wanted)
            return {
                each.partition: (there.offset, there.metadata) for each, there in found.items() if there.offset >= 0
            }

        return await self.patiently(ask) if wanted else {}

    async def changed(self, name: str, number: int, offset: int, note: str, ends: tuple[int, int]) -> str:
        """Why what a group has as its position is not to be used; empty if it is."""
        first, end = ends
        if offset > end:
            return f"it was at {offset}, and the log ends at {end}: it was put back or made anew"
        if offset < first:
            return f"it was at {offset}, and the log begins at {first}: retention took what was not read yet"
        kind, _, mark = note.partition(" ")
        there = offset if kind == NEXT else offset - 1
        if kind not in (NEXT, LAST) or there < first:
            return ""  # somebody else has set it, or what it is about was trimmed
        record = await self.record(name, number, there) if there < end else None
        if there < end and (record is None or mark_of(record.timestamp, record.value or b"") == mark):
            return ""
        return f"{there} is another message now: the log was put back or made anew"

    async def produce(self, name: str, records: Sequence[Record], partitions: int = 1) -> dict[int, Sent]:
        """Send, and give what the broker says of the last one in each partition.

        In batches that we fill: aiokafka would make a future for every message, which costs as much as all the rest.
        """
        loop, timeout_s = asyncio.get_running_loop(), self.options.timeout_s

        async def produce() -> dict[int, Sent]:
            producer = await self.producer()
            waiting: list[tuple[int, int, asyncio.Future[Any]]] = []
            try:
                # A producer that is let go of meanwhile would keep whoever hands it something waiting for ever.
                async with asyncio.timeout(timeout_s) as limit:
                    for number, batch in _batches(producer, records, partitions):
                        batch.close()
                        sent = await producer.send_batch(batch, name, partition=number)
                        waiting.append((number, batch.record_count(), sent))
                        limit.reschedule(loop.time() + timeout_s)
                await self._acknowledged([sent for _, _, sent in waiting])
            except Exception:
                self.made.discard(name)  # it may be that the topic is not there any more
                await self.dismiss(producer)
                raise
            ends: dict[int, Sent] = {}
            for number, count, sent in waiting:
                there = sent.result()
                ends[number] = Sent(there.offset + count - 1, there.timestamp)
            return ends

        return await self.patiently(produce)

    async def _acknowledged(self, sent: Sequence[asyncio.Future[Any]]) -> None:
        """Wait for the broker, which an idempotent producer alone would do for ever.

        Raises:
            Unavailable: nothing was acknowledged for `timeout_s`.
        """
        for each in sent:
            each.add_done_callback(_told)
        pending = set(sent)
        while pending:
            done, pending = await asyncio.wait(
                pending, timeout=self.options.timeout_s, return_when=asyncio.FIRST_EXCEPTION
            )
            if not done:
                raise Unavailable(f"{self.address} acknowledges nothing")
            for each in done:
                each.result()


def _batches(
    producer: AIOKafkaProducer, records: Sequence[Record], partitions: int
) -> Iterator[tuple[int, BatchBuilder]]:
    """The records, in their order within a partition, in batches that are not larger than a producer's."""
    batches: dict[int, BatchBuilder] = {}
    for key, value, headers in records:
        number = partition_of(key, partitions) if partitions > 1 else 0
        batch = batches.get(number)
        if batch is None or batch.append(timestamp=None, key=key, value=value, headers=headers) is None:
            if batch is not None:
                yield number, batch
            batch = batches[number] = producer.create_batch()
            batch.append(timestamp=None, key=key, value=value, headers=headers)  # the first one may have any size
    yield from batches.items()


def _told(sent: asyncio.Future[Any]) -> None:
    """Nobody asks for the others once one of them has failed."""
    if not sent.cancelled():
        sent.exception()
