"""Kafka through aiokafka: one Kafka topic a topic, read by assignment and seek from the store's own place.

`sk-orders` holds the events of the topic `orders`, spread over its partitions by aggregate id; `skh-HASH`
those of a topic whose name Kafka would not take. `skd-orders` is compacted and keeps the last digest of each node. A
position is the offset and one, since position 0 lies before the first message.

Kafka's client reconnects by itself and says nothing. So a reader that heard nothing for a while looks, before it goes
on, whether the last message that it read is still what it was: if not, the log was put back, and the reader is told so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from synckit_connectors.kafka_wire import (
    BYTES_MAX,
    FRAME_BYTES,
    checked,
    described,
    digests_of,
    log_of,
    message_of,
    paced,
    read_url,
    require_kafka,
    say_why,
    translate,
)
from synckit_streams.errors import ConnectorError, Rejected, TooLarge, Unavailable
from synckit_streams.ports.absent import WithoutGroups, WithoutTimes, WithoutTrimming
from synckit_streams.ports.connector import Announced, Bounds, Delivery, Features, Message
from synckit_streams.ports.reading import Reading, end_all, stop

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord
    from aiokafka.admin import AIOKafkaAdminClient

log = logging.getLogger("synckit_connectors.kafka")

OPEN_S = 2.8
"""For `open`, whatever it has to do, and for an attempt to connect."""
ANSWER_S = 1.0
"""For an answer on the connection that we have, before `open` makes a new one."""
RETRY_PAUSE_S = 0.1
POLL_S = 0.5
"""For how long a reader waits at a time."""
CHECK_S = 1.0
"""After so long without a message a reader looks whether its log is still the one that it was. No broker restarts in
less."""
LISTEN_CHECK_S = 5.0
"""The same for a listener: digests are far between."""
CLOSE_S = 2.0
"""What a client may take to say goodbye to a broker that does not answer."""
PARTITION_BYTES = 1024 * 1024
"""What is fetched of a partition at a time."""
FETCH_BYTES = 4 * 1024 * 1024
DIGEST_SEGMENT_MS = 10 * 60 * 1000
"""Kafka compacts no segment that is still written to, and who listens reads all that was not compacted."""
UNKNOWN_TOPIC = 3
TOPIC_UNAUTHORISED = 29
TOPIC_EXISTS = 36

T = TypeVar("T")


class KafkaConnector(WithoutGroups, WithoutTimes, WithoutTrimming):
    """See the module's text, and the port `Connector`.

    Args:
        url: `kafka://[user:password@]host[:9092][,host2[:port]]`.
        options: See `KafkaOptions`.

    Raises:
        ConfigError: the URL or an option is wrong.
        MissingDependency: aiokafka is not installed.
    """

    def __init__(self, url: str, **options: Any) -> None:
        require_kafka()
        self.address, self.options = read_url(url, options)
        self.url = str(self.address)
        self.features = Features(bytes_max=BYTES_MAX, partitions=self.options.partitions)
        self._opened = False
        self._cluster = ""
        self._admin: AIOKafkaAdminClient | None = None
        self._producer: AIOKafkaProducer | None = None
        self._looker: AIOKafkaConsumer | None = None
        self._administering = asyncio.Lock()
        self._looking = asyncio.Lock()
        self._producing = asyncio.Lock()
        self._made: set[str] = set()
        self._readers: set[_Reader] = set()
        self._asked: set[asyncio.Task[Any]] = set()
        self._leaving: set[asyncio.Task[None]] = set()

    # --- opening and closing -----------------------------------------------------------------------------------------

    async def open(self) -> None:
        """See `Connector.open`."""
        first = not self._opened
        self._opened = True
        try:
            try:
                async with asyncio.timeout(OPEN_S):
                    if self._admin is not None and not await self._answers():
                        self._drop()
                    await self._run(self._ready_admin)
            except TimeoutError:
                raise Unavailable(f"no connection to {self.address}") from None
        except BaseException:
            if first:
                await self.close()
            raise

    async def _answers(self) -> bool:
        """Whether the broker answers on the connection that we have."""
        with suppress(ConnectorError, TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                await self._run(self._describe)
                return True
        return False

    async def _ready_admin(self) -> AIOKafkaAdminClient:
        from aiokafka.admin import AIOKafkaAdminClient

        async with self._administering:
            if self._admin is None:
                admin = AIOKafkaAdminClient(request_timeout_ms=int(OPEN_S * 1000), **self.address.client())
                try:
                    await self._start(admin, admin.close)
                except Exception:
                    await say_why(self.address)
                    raise
                self._admin = admin
                await self._describe()
            return self._admin

    async def _start(self, client: Any, leave: Callable[[], Awaitable[Any]]) -> None:
        """Start a client of aiokafka, which would lose a connection if it were cancelled over that."""
        paced(client)
        starting = asyncio.create_task(client.start())
        try:
            await asyncio.shield(starting)
        except BaseException:
            self._leave(_farewell(starting, leave))
            raise

    def _leave(self, farewell: Coroutine[Any, Any, None]) -> None:
        """Let somebody go, without waiting for it before the end."""
        leaving = asyncio.create_task(farewell)
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _describe(self) -> None:
        assert self._admin is not None
        cluster = str((await self._admin.describe_cluster())["cluster_id"])
        if cluster != self._cluster:
            self._cluster = cluster
            self._made.clear()

    async def close(self) -> None:
        """See `Connector.close`. Ends every iterator of this connector."""
        self._opened = False
        await end_all(self._readers)
        for task in list(self._asked):
            await stop(task)
        self._drop()
        while self._leaving:
            await asyncio.wait(self._leaving)

    def _drop(self) -> None:
        """Let go of the clients."""
        admin, self._admin = self._admin, None
        producer, self._producer = self._producer, None
        looker, self._looker = self._looker, None
        if producer is not None:
            self._leave(_dismiss(producer))
        if looker is not None:
            self._leave(_part(looker))
        if admin is not None:
            self._leave(_quietly(admin.close()))

    async def _run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Let a client do something; whoever is cancelled over it leaves, and it goes on without him."""
        if not self._opened:
            raise self._not_open()

        async def run() -> T:
            try:
                return await work()
            except Exception as raised:
                error = translate(raised, self.address)
                if error is raised:
                    raise
                raise error from raised

        task = asyncio.create_task(run())
        self._asked.add(task)
        task.add_done_callback(self._answered)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # by `close`
                raise self._not_open() from None
            raise

    def _answered(self, task: asyncio.Task[Any]) -> None:
        self._asked.discard(task)
        if not task.cancelled():
            task.exception()  # perhaps nobody waits for it any more

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """`_run`, again while the broker is away for no longer than `timeout_s`."""
        until = time.monotonic() + self.options.timeout_s
        while True:
            try:
                return await self._run(work)
            except Unavailable:
                if time.monotonic() >= until:
                    raise
            await asyncio.sleep(RETRY_PAUSE_S)

    def _not_open(self) -> ConnectorError:
        return ConnectorError(f"{self.address} is not open", hint="use the connector between open and close")

    def _client_options(self) -> dict[str, Any]:
        return {"request_timeout_ms": int(self.options.timeout_s * 1000), **self.address.client()}

    # --- the log -----------------------------------------------------------------------------------------------------

    async def _make(self, name: str, *, digests: bool = False) -> None:
        """Make a Kafka topic if it is not there."""
        if name in self._made:
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
            admin = await self._ready_admin()
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

        await self._patiently(create)
        self._made.add(name)

    async def _on_looker(self, work: Callable[[AIOKafkaConsumer], Awaitable[T]]) -> T:
        """Let the consumer that only looks do something, one thing at a time."""

        async def look() -> T:
            async with self._looking:
                if self._looker is None:
                    self._looker = await self._consumer()
                try:
                    return await work(self._looker)
                except Exception:
                    looker, self._looker = self._looker, None
                    if looker is not None:
                        await _part(looker)
                    raise

        return await self._patiently(look)

    async def _consumer(self) -> AIOKafkaConsumer:
        from aiokafka import AIOKafkaConsumer

        consumer = AIOKafkaConsumer(
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_bytes=FETCH_BYTES,
            max_partition_fetch_bytes=PARTITION_BYTES,
            **self._client_options(),
        )
        await self._start(consumer, lambda: _part(consumer))
        return consumer

    async def _ends(self, name: str, partitions: int, *, digests: bool = False) -> list[tuple[int, int]]:
        """The first and the next offset of each partition, now; a topic that is not there is made."""
        from aiokafka import TopicPartition

        self._made.discard(name)  # somebody may have deleted it
        await self._make(name, digests=digests)
        found = [TopicPartition(name, number) for number in range(partitions)]

        async def ask(consumer: AIOKafkaConsumer) -> list[tuple[int, int]]:
            first, end = await consumer.beginning_offsets(found), await consumer.end_offsets(found)
            return [(first[each], end[each]) for each in found]

        return await self._on_looker(ask)

    async def bounds(self, topic: str) -> Mapping[int, Bounds]:
        """See `Connector.bounds`."""
        if not self._opened:
            raise self._not_open()
        name = log_of(topic)
        ends = await self._ends(name, self.features.partitions)
        identity = f"{name}@{self._cluster}"
        return {number: Bounds(f"{identity}/{number}", first + 1, end + 1) for number, (first, end) in enumerate(ends)}

    async def peek(self, topic: str, partition: int, position: int) -> Message | None:
        """See `Connector.peek`."""
        from aiokafka import TopicPartition

        if not self._opened:
            raise self._not_open()
        if not 0 <= partition < self.features.partitions or position <= 0:
            return None
        name, offset = log_of(topic), position - 1
        await self._make(name)
        where = TopicPartition(name, partition)

        async def look(consumer: AIOKafkaConsumer) -> Message | None:
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
                    found = await consumer.getmany(where, timeout_ms=int(POLL_S * 1000), max_records=1)
                    for record in found.get(where, []):
                        return message_of(record) if record.offset == offset else None
            finally:
                consumer.unsubscribe()
            raise Unavailable(f"{name} has {first} to {end - 1}, and does not give {offset}")

        return await self._on_looker(look)

    async def send(self, topic: str, messages: Sequence[Message]) -> Mapping[int, int]:
        """See `Connector.send`. What was sent and not acknowledged may be there all the same."""
        if not self._opened:
            raise self._not_open()
        records = [checked(message) for message in messages]
        name = log_of(topic)
        if not records:
            return {}
        await self._make(name)
        found = await self._produce(name, [(key, value, headers) for key, value, headers in records])
        ends: dict[int, int] = {}
        for sent in found:
            ends[sent.partition] = max(ends.get(sent.partition, 0), sent.offset + 1)
        return ends

    async def _produce(self, name: str, records: Sequence[tuple[bytes | None, bytes | None, Any]]) -> list[Any]:
        """Send, and give what the broker says of each."""

        loop, timeout_s = asyncio.get_running_loop(), self.options.timeout_s

        async def produce() -> list[Any]:
            producer = await self._ready_producer()
            try:
                waiting = []
                # A producer that is let go of meanwhile would keep whoever asks it for a partition waiting for ever.
                async with asyncio.timeout(timeout_s) as limit:
                    for key, value, headers in records:
                        waiting.append(await producer.send(name, value, key=key, headers=headers))
                        limit.reschedule(loop.time() + timeout_s)
                await self._acknowledged(waiting)
                return [each.result() for each in waiting]
            except Exception:
                # An idempotent producer that lost count refuses everything from then on; a new one begins a new count.
                if self._producer is producer:
                    self._producer = None
                self._made.discard(name)  # it may be that the topic is not there any more
                await _dismiss(producer)
                raise

        return await self._patiently(produce)

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

    async def _ready_producer(self) -> AIOKafkaProducer:
        from aiokafka import AIOKafkaProducer

        async with self._producing:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    acks="all",
                    enable_idempotence=True,
                    max_request_size=FRAME_BYTES,
                    max_batch_size=256 * 1024,
                    **self._client_options(),
                )
                await self._start(producer, producer.stop)
                self._producer = producer
            return self._producer

    @asynccontextmanager
    async def receive(
        self, topic: str, *, start: Mapping[int, int], batch_max: int
    ) -> AsyncIterator[AsyncIterator[Sequence[Delivery]]]:
        """See `Connector.receive`.

        Also raises Unavailable when the connection came back but the log is another one, or was put back to a state
        before what was read: the reader has to look at its bounds.
        """
        async with self._reading(_LogReader(self, topic, start, batch_max)) as reader:
            yield reader

    # --- the digests -------------------------------------------------------------------------------------------------

    async def announce(self, topic: str, node: str, body: bytes) -> None:
        """See `Connector.announce`."""
        if not self._opened:
            raise self._not_open()
        if len(body) > BYTES_MAX:
            raise TooLarge(f"a digest of {len(body)} bytes; {self.address} takes {BYTES_MAX}")
        name = digests_of(topic)
        await self._make(name, digests=True)
        await self._produce(name, [(node.encode(), body or None, [])])

    @asynccontextmanager
    async def listen(self, topic: str) -> AsyncIterator[AsyncIterator[Announced]]:
        """See `Connector.listen`."""
        async with self._reading(_Listener(self, topic)) as listener:
            yield listener

    @asynccontextmanager
    async def _reading(self, reader: _ReaderT) -> AsyncIterator[_ReaderT]:
        if not self._opened:
            raise self._not_open()
        self._readers.add(reader)
        try:
            await reader.wait_for(reader.begin)
            yield reader
        finally:
            await reader.end()
            self._readers.discard(reader)


class _Reader(Reading):
    """Something that waits at the broker, with a consumer of its own."""

    def __init__(self, connector: KafkaConnector, topic: str) -> None:
        super().__init__()
        self.connector = connector
        self.topic = topic
        self.consumer: AIOKafkaConsumer | None = None

    async def begin(self) -> None:
        """Connect, and look where to begin."""

    async def disconnect(self) -> None:
        """Let go of the consumer."""
        consumer, self.consumer = self.consumer, None
        if consumer is not None:
            await _part(consumer)

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
            raise translate(raised, self.connector.address) from raised
        return found


_ReaderT = TypeVar("_ReaderT", bound=_Reader)


class _LogReader(_Reader):
    """Reads a topic from a position."""

    def __init__(self, connector: KafkaConnector, topic: str, start: Mapping[int, int], batch_max: int) -> None:
        super().__init__(connector, topic)
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

        bounds = await self.connector.bounds(self.topic)
        for number in bounds:
            last = self._last[number] = max(self._start.get(number, 0), 0)
            if last and (message := await self.connector.peek(self.topic, number, last)) is not None:
                self._messages[number] = message
        try:
            self.consumer = await self.connector._consumer()
            self.consumer.assign([TopicPartition(self._name, number) for number in bounds])
        except Exception as raised:
            raise translate(raised, self.connector.address) from raised
        for number, (_, first, end) in bounds.items():
            # Kafka refuses to wait at an offset beyond the end; what comes before it is then passed over.
            offset = min(max(self._last[number], first - 1), end - 1)
            self.consumer.seek(TopicPartition(self._name, number), offset)

    def __aiter__(self) -> _LogReader:
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
                until = until or time.monotonic() + self.connector.options.timeout_s
                if error.hint == _LOOK_AGAIN or time.monotonic() >= until:
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
        bounds = await self.connector.bounds(self.topic)
        self._checked_at = time.monotonic()
        for number, message in self._messages.items():
            last = self._last[number]
            if last >= bounds[number].end:
                why = f"{self._name} was put back: it ends at {bounds[number].end - 1}, {last} was read"
                raise Unavailable(why, hint=_LOOK_AGAIN)
            if last >= bounds[number].first:
                there = await self.connector.peek(self.topic, number, last)
                if there is not None and there != message:
                    raise Unavailable(f"{self._name} was put back: {last} is another message now", hint=_LOOK_AGAIN)


class _Listener(_Reader):
    """The digests of a topic: the last of each node, then the live ones."""

    def __init__(self, connector: KafkaConnector, topic: str) -> None:
        super().__init__(connector, topic)
        self._name = digests_of(topic)
        self._end = 0
        """Behind the last record that is known to be there."""
        self._checked_at = 0.0
        self._heard: deque[Announced] = deque()

    async def begin(self) -> None:
        """Read what is kept."""
        from aiokafka import TopicPartition

        connector, name = self.connector, self._name
        ((first, _),) = await connector._ends(name, 1, digests=True)
        # A record without a node: where it lies is the end of what was there, and its time is the broker's now.
        (mark,) = await connector._produce(name, [(b"", None, [])])
        where = TopicPartition(name, 0)
        kept: dict[str, Announced] = {}
        try:
            consumer = self.consumer = await connector._consumer()
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
                            age_s = max(0.0, (mark.timestamp - record.timestamp) / 1000)
                            kept[node] = Announced(node, record.value, age_s)
            consumer.seek(where, mark.offset + 1)
        except ConnectorError:
            raise
        except Exception as raised:
            raise translate(raised, connector.address) from raised
        self._heard.extend([*kept.values(), Announced("", b"", 0.0)])

    def __aiter__(self) -> _Listener:
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
                until = until or time.monotonic() + self.connector.options.timeout_s
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
            ((_, end),) = await self.connector._ends(self._name, 1, digests=True)
            self._checked_at = time.monotonic()
            if end < self._end:
                raise Unavailable(f"{self._name} was made anew or put back")
        return found


_LOOK_AGAIN = "look at the bounds, and receive from there"


def _told(sent: asyncio.Future[Any]) -> None:
    """Nobody asks for the others once one of them has failed."""
    if not sent.cancelled():
        sent.exception()


async def _farewell(starting: asyncio.Task[None], leave: Callable[[], Awaitable[Any]]) -> None:
    """Let go of a client that was given up while it started."""
    await asyncio.wait([starting], timeout=OPEN_S)
    await stop(starting)
    await _quietly(leave())


async def _dismiss(producer: AIOKafkaProducer) -> None:
    """Let go of a producer, which would wait for ever to get rid of what the broker does not take."""
    await _quietly(producer.flush())
    await _quietly(producer.client.close())
    await _quietly(producer._sender.close())
    producer._closed = True


async def _part(consumer: AIOKafkaConsumer) -> None:
    """Let go of a consumer, which may stop halfway while it stops; see `_quietly`."""
    await _quietly(consumer.stop())
    if consumer._fetcher is not None:
        for fetching in list(consumer._fetcher._pending_tasks):
            await stop(fetching)
    await _quietly(consumer._client.close())


async def _quietly(work: Awaitable[Any]) -> None:
    """Let go of a client whose broker may be gone; nothing is lost with it.

    In a task of its own, since a client of aiokafka may be cancelled by what it cancels itself.
    """
    leaving = asyncio.ensure_future(work)
    await asyncio.wait([leaving], timeout=CLOSE_S)
    await stop(leaving)
