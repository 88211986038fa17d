"""Kafka through aiokafka: one Kafka topic a topic, read from the store's own place, or by a group from the group's.

`sk-orders` holds the events of the topic `orders`, spread over its partitions by aggregate id; `skh-HASH`
those of a topic whose name Kafka would not take. `skd-orders` is compacted and keeps the last digest of each node. A
position is the offset and one, since position 0 lies before the first message.

What it consists of: `kafka_wire` says how ours becomes Kafka's, `kafka_clients` keeps the clients, `kafka_logs` makes
and looks at what lies there, `kafka_readers` read it for replicas, and `kafka_group` with `kafka_shares` for workers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from synckit_connectors.kafka_group import KafkaMember
from synckit_connectors.kafka_logs import KafkaLogs
from synckit_connectors.kafka_readers import Listener, LogReader, Reader
from synckit_connectors.kafka_wire import BYTES_MAX, checked, digests_of, group_of, log_of, tap_of
from synckit_streams.errors import Rejected, TooLarge
from synckit_streams.ports.absent import WithoutTrimming
from synckit_streams.ports.connector import Announced, Bounds, Delivery, Features, Member, Message, Progress

ReaderT = TypeVar("ReaderT", bound=Reader)


class KafkaConnector(WithoutTrimming):
    """See the module's text, and the port `Connector`.

    Args:
        url: `kafka://[user:password@]host[:9092][,host2[:port]]`.
        options: See `KafkaOptions`.

    Raises:
        ConfigError: the URL or an option is wrong.
        MissingDependency: aiokafka is not installed.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._logs = KafkaLogs(url, options)
        self.address, self.options = self._logs.address, self._logs.options
        self.url = str(self.address)
        self.features = Features(
            times=True, groups=True, taps=True, bytes_max=BYTES_MAX, partitions=self.options.partitions
        )
        self._members: set[KafkaMember] = set()

    async def open(self) -> None:
        """See `Connector.open`."""
        await self._logs.open()

    async def close(self) -> None:
        """See `Connector.close`. Ends every iterator of this connector."""
        await self._logs.close()

    def address_of(self, topic: str) -> str:
        """The Kafka topic in which a topic's events are."""
        return log_of(topic)

    async def bounds(self, topic: str) -> Mapping[int, Bounds]:
        """See `Connector.bounds`."""
        self._logs.check_open()
        return await self._logs.bounds(topic)

    async def peek(self, topic: str, partition: int, position: int) -> Message | None:
        """See `Connector.peek`."""
        self._logs.check_open()
        return await self._logs.peek(topic, partition, position)

    async def find(self, topic: str, *, at_ms: int) -> Mapping[int, int]:
        """See `Connector.find`. The brokers' clocks say when a message came: our topics have the time of arrival."""
        self._logs.check_open()
        name, partitions = log_of(topic), self.options.partitions
        await self._logs.make(name)
        return dict(enumerate(await self._logs.begun(name, partitions, at_ms)))

    async def send(self, topic: str, messages: Sequence[Message]) -> Mapping[int, int]:
        """See `Connector.send`. What was sent and not acknowledged may be there all the same."""
        self._logs.check_open()
        records = [checked(message) for message in messages]
        name = log_of(topic)
        if not records:
            return {}
        await self._logs.make(name)
        sent = await self._logs.produce(name, records, self.options.partitions)
        return {number: last.offset + 1 for number, last in sent.items()}

    @asynccontextmanager
    async def receive(
        self, topic: str, *, start: Mapping[int, int], batch_max: int
    ) -> AsyncIterator[AsyncIterator[Sequence[Delivery]]]:
        """See `Connector.receive`.

        Also raises Unavailable when the connection came back but the log is another one, or was put back to a state
        before what was read: the reader has to look at its bounds.
        """
        async with self._reading(LogReader(self._logs, topic, start, batch_max)) as reader:
            yield reader

    # --- groups ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def join(self, topic: str, *, group: str, start: Mapping[int, int], batch_max: int) -> AsyncIterator[Member]:
        """See `Connector.join`. Does not wait until the group gives it something: that may take a whole rebalance."""
        self._logs.check_open()
        name = log_of(topic)
        await self._logs.make(name)
        async with self._joined(name, group_of(topic, group), start, batch_max, foreign=False) as member:
            yield member

    @asynccontextmanager
    async def tap(self, source: str, *, group: str, batch_max: int, at_ms: int | None = None) -> AsyncIterator[Member]:
        """See `Connector.tap`. A source is a Kafka topic; only what was committed there is delivered."""
        self._logs.check_open()
        partitions = await self._logs.partitions(source)
        if not partitions:
            raise Rejected(f"{self.address} has no topic {source!r}", hint="name one that is there: it is never made")
        start = {} if at_ms is None else dict(enumerate(await self._logs.begun(source, partitions, at_ms)))
        async with self._joined(source, tap_of(source, group), start, batch_max, foreign=True) as member:
            yield member

    @asynccontextmanager
    async def _joined(
        self, name: str, group_id: str, start: Mapping[int, int], batch_max: int, *, foreign: bool
    ) -> AsyncIterator[KafkaMember]:
        member = KafkaMember(self._logs, name, group_id, start, batch_max, self._instance(group_id), foreign=foreign)
        self._members.add(member)
        try:
            async with self._reading(member):
                yield member
        finally:
            self._members.discard(member)

    def _instance(self, group_id: str) -> str | None:
        """The static name for one more member of a group: two of one connector must not throw each other out."""
        if not self.options.member:
            return None
        taken = {member.instance for member in self._members if member.group_id == group_id}
        names = [self.options.member, *(f"{self.options.member}-{number + 2}" for number in range(len(taken)))]
        return next(name for name in names if name not in taken)

    async def progress(self, topic: str, *, group: str) -> Progress:
        """See `Connector.progress`. Kafka knows only what is acknowledged: `pending` is what this connector's members
        have, and what those of others have counts as waiting."""
        self._logs.check_open()
        name, group_id = log_of(topic), group_of(topic, group)
        ends = await self._logs.ends(name, self.options.partitions)
        committed = await self._logs.committed(group_id, name, range(len(ends)))
        lag = 0
        for number, (first, end) in enumerate(ends):
            lag += max(end - max(committed.get(number, (0, ""))[0], first), 0)
        pending = min(sum(member.shares.pending for member in self._members if member.group_id == group_id), lag)
        return Progress({number: offset for number, (offset, _) in committed.items()}, lag - pending, pending)

    # --- the digests -------------------------------------------------------------------------------------------------

    async def announce(self, topic: str, node: str, body: bytes) -> None:
        """See `Connector.announce`."""
        self._logs.check_open()
        if len(body) > BYTES_MAX:
            raise TooLarge(f"a digest of {len(body)} bytes; {self.address} takes {BYTES_MAX}")
        name = digests_of(topic)
        await self._logs.make(name, digests=True)
        await self._logs.produce(name, [(node.encode(), body or None, [])])

    @asynccontextmanager
    async def listen(self, topic: str) -> AsyncIterator[AsyncIterator[Announced]]:
        """See `Connector.listen`."""
        async with self._reading(Listener(self._logs, topic)) as listener:
            yield listener

    @asynccontextmanager
    async def _reading(self, reader: ReaderT) -> AsyncIterator[ReaderT]:
        self._logs.check_open()
        self._logs.readings.add(reader)
        try:
            await reader.wait_for(reader.begin)
            yield reader
        finally:
            await reader.end()
            self._logs.readings.discard(reader)
