"""A member of a Kafka consumer group: how it is given partitions and lets go of them, and where the group stands.

Theory of operation. A rebalance takes every partition from every member. The member then hands nothing out, gives its
caller a moment to acknowledge what is in hand, commits, and lets go. Whatever it is given afterwards begins at the
committed position, which never passes a message that is not done (`kafka_shares`): whoever has the partition next gets
what was open, and what was done behind it once more.

aiokafka keeps the membership in tasks of its own, and calls us when partitions come and go. Whatever takes time is left
to who reads: between two assignments aiokafka gives no sign of life for us.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from synckit_connectors.kafka_clients import CLOSE_S, RETRY_PAUSE_S, alive, commit, part, quietly
from synckit_connectors.kafka_logs import LOOK_AGAIN, KafkaLogs
from synckit_connectors.kafka_readers import CHECK_S, POLL_S, Reader
from synckit_connectors.kafka_shares import Held, Share, Shares
from synckit_connectors.kafka_wire import mark_of, message_of, tapped, translate
from synckit_streams.errors import ConnectorError, Unauthorised, Unavailable
from synckit_streams.ports.connector import BATCHES_HELD_MAX, Delivery
from synckit_streams.ports.reading import stop

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, ConsumerRecord
    from aiokafka.abc import ConsumerRebalanceListener

log = logging.getLogger("synckit_connectors.kafka")

LEAVE_S = 0.1
"""What leaving takes, unless a rebalance is on."""


class KafkaMember(Reader):
    """See `Member`, and the module's text.

    Args:
        logs: What lies on the brokers.
        name: The Kafka topic.
        group_id: The Kafka group.
        start: See `Connector.join`.
        batch_max: See `Connector.join`.
        instance: The name of a static member; None for one that is new each time.
        foreign: The topic is somebody else's: it is never made, and its messages are known by where they lie.
    """

    def __init__(
        self,
        logs: KafkaLogs,
        name: str,
        group_id: str,
        start: Mapping[int, int],
        batch_max: int,
        instance: str | None,
        *,
        foreign: bool,
    ) -> None:
        super().__init__(logs, name)
        self.group_id = group_id
        self.instance = instance
        self._name = name
        self._start = start
        self._batch_max = max(batch_max, 1)
        self._foreign = foreign
        self.shares = Shares(batch_max, logs.options.ack_wait_s)
        self._fresh: set[int] = set()
        """Partitions that we were given, and do not know yet where to begin."""
        self._tenure = 0
        """Grows whenever partitions are lost."""
        self._revoking = True
        """Nothing is handed out: between two assignments."""
        self._revoking_since = time.monotonic()
        self._marks: dict[int, tuple[int, str]] = {}
        """Per partition: the position that was read last, and what lay there; also where it is another's now."""
        self._heard_at = time.monotonic()
        self._failing_until: float | None = None
        self._broken = False
        self._polling: asyncio.Task[dict[Any, list[ConsumerRecord]]] | None = None
        self._found: dict[Any, list[ConsumerRecord]] = {}
        """What was read, and not looked at: kept, since aiokafka would not give it again."""
        self._committing = asyncio.Lock()
        self._news: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # --- coming and going --------------------------------------------------------------------------------------------

    @property
    def _handover_s(self) -> float:
        """How long the others wait for a member that lets go."""
        return self.logs.options.handover_s + self.logs.options.timeout_s + CLOSE_S

    async def begin(self) -> None:
        """Connect, and say that we want a part."""
        options = self.logs.options
        # A join is answered when all the others have joined, too: whoever gave up before would never get in.
        patience_s = self._handover_s + options.session_s + CLOSE_S
        try:
            async with asyncio.timeout(options.timeout_s):
                consumer = self.consumer = await self.logs.consumer(
                    group_id=self.group_id,
                    group_instance_id=self.instance,
                    session_timeout_ms=int(options.session_s * 1000),
                    heartbeat_interval_ms=int(options.heartbeat_s * 1000),
                    rebalance_timeout_ms=int(self._handover_s * 1000),
                    max_poll_interval_ms=int(max(options.idle_s, options.ack_wait_s) * 1000),
                    request_timeout_ms=int(patience_s * 1000),
                )
                # First: a leader that learns of the partitions afterwards divides them a second time.
                await consumer._client._wait_on_metadata(self._name)
        except Exception as raised:
            self._broken = True
            raise translate(raised, self.logs.address) from raised
        self._revoking, self._revoking_since = True, time.monotonic()
        consumer.subscribe([self._name], listener=_listener(self, consumer))

    async def disconnect(self) -> None:
        """Give up what is open, and leave; what is done is committed first."""
        consumer, self.consumer = self.consumer, None
        self._ring()
        await self._stop_polling()
        if consumer is None:
            return
        if self.shares.owed and not _thrown_out(consumer):
            await quietly(self._commit_over(consumer))
        self._drop()
        await self._leave(consumer)

    async def _leave(self, consumer: AIOKafkaConsumer) -> None:
        """Say goodbye also from the middle of a rebalance: aiokafka would wait for its end, or go without a word, and
        then everybody waits for somebody who is gone."""
        parting = asyncio.ensure_future(part(consumer))
        told = ""
        while not (await asyncio.wait([parting], timeout=LEAVE_S))[0]:
            coordinator = consumer._coordinator
            if coordinator is None or self.instance or coordinator.member_id in ("", told):
                continue
            told = coordinator.member_id
            await quietly(self._farewell(told))

    async def _farewell(self, member_id: str) -> None:
        from aiokafka.protocol.group import LeaveGroupRequest

        # On another connection: on its own the broker reads nothing until it has answered the join.
        admin = await self.logs.admin()
        node = await admin.find_coordinator(self.group_id)
        await admin._send_request(LeaveGroupRequest(self.group_id, member_id), node)

    async def revoked(self, consumer: AIOKafkaConsumer) -> None:
        """A rebalance begins: finish, commit and let go."""
        if consumer is not self.consumer:
            return
        self._revoking, self._revoking_since = True, time.monotonic()
        await self._stop_polling()
        now = time.monotonic()
        until = now + self.logs.options.handover_s
        while now < until and self.shares.in_hand(now) and consumer is self.consumer and not _thrown_out(consumer):
            await asyncio.wait([self._news], timeout=min(until - now, POLL_S))
            now = time.monotonic()
        if consumer is not self.consumer:
            return
        if self.shares.owed and not _thrown_out(consumer):
            await quietly(self._commit_over(consumer))
        self._drop()

    def assigned(self, consumer: AIOKafkaConsumer, partitions: set[Any]) -> None:
        """A rebalance is over, and these are ours; where to begin is found out by who reads, since whoever is slow here
        gives no sign of life."""
        if self.consumer is not consumer:
            return
        _hold(consumer, partitions)
        self._fresh = {where.partition for where in partitions}
        self._revoking = False
        self._ring()

    def _drop(self) -> None:
        self.shares.drop()
        self._found = {}
        self._fresh.clear()
        self._tenure += 1
        self._ring()

    # --- reading -----------------------------------------------------------------------------------------------------

    def __aiter__(self) -> KafkaMember:
        return self

    async def __anext__(self) -> Sequence[Delivery]:
        while True:
            batch = await self.wait_for(self._next)
            if batch is None:
                raise StopAsyncIteration
            # It may have been read for somebody who gave up, and be another's by now.
            if not self._revoking and (handed := self.shares.hand(batch, time.monotonic())):
                return handed

    async def _next(self) -> list[Held]:
        self._revoking_since = time.monotonic()  # nobody waited for its end before
        while True:
            try:
                if self.consumer is None:
                    await self.begin()
                if not self._revoking and (batch := self.shares.next(time.monotonic())):
                    return batch
                if self._fresh:
                    await self._take_over()
                else:
                    await self._wait()
            except ConnectorError as error:
                now = time.monotonic()
                self._failing_until = self._failing_until or now + self.logs.options.timeout_s
                if error.hint == LOOK_AGAIN or isinstance(error, Unauthorised) or now >= self._failing_until:
                    self._failing_until = None
                    raise
                if self._broken:
                    log.warning("%s: joining %s anew: %s", self._name, self.group_id, error.message)
                    self._broken = False
                    await self.disconnect()
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _wait(self) -> None:
        """For messages if there is room for more, and for news; and see that the log is still the one that it was.

        Raises:
            ConnectorError: whatever the driver raised.
        """
        consumer, now = self.consumer, time.monotonic()
        assert consumer is not None
        alive(consumer)
        self._complain(consumer)
        room = BATCHES_HELD_MAX * self._batch_max - self.shares.open
        if self._polling is None and not self._found and room > 0 and self.shares.of and not self._revoking:
            records_max = min(room, self._batch_max)
            self._polling = asyncio.create_task(
                consumer.getmany(timeout_ms=int(POLL_S * 1000), max_records=records_max)
            )
        if not self._found:
            waiting: list[asyncio.Future[Any]] = [self._news]
            if self._polling is not None:
                waiting.append(self._polling)
            patience_s = min(self.shares.due_in_s(now), POLL_S)
            await asyncio.wait(waiting, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
        if (polling := self._polling) is not None and polling.done():
            self._polling = None
            if not polling.cancelled():
                await self._polled(polling)
        # Whoever heard nothing for so long may hear another broker now, or one that was put back.
        if time.monotonic() - self._heard_at > CHECK_S:
            await self._check(waiting_for=room > 0)
        found, self._found = self._found, {}
        if found:
            self._failing_until = None
            self._heard_at = time.monotonic()
            for where, records in found.items():
                self._take(where.partition, records)

    def _complain(self, consumer: AIOKafkaConsumer) -> None:
        """Raises what the group refuses us, which aiokafka would tell only those who read."""
        try:
            consumer._coordinator.check_errors()
        except Exception as raised:
            self._broken = True
            raise translate(raised, self.logs.address) from raised

    async def _polled(self, polling: asyncio.Task[dict[Any, list[ConsumerRecord]]]) -> None:
        from aiokafka.errors import OffsetOutOfRangeError

        raised = polling.exception()
        if raised is None:
            self._found = polling.result()
        elif isinstance(raised, OffsetOutOfRangeError):
            await self._out_of_range({where.partition for where in raised.args[0]})
        else:
            self._broken = True
            assert isinstance(raised, Exception)
            raise translate(raised, self.logs.address) from raised

    def _take(self, number: int, records: Sequence[ConsumerRecord]) -> None:
        cluster = self.logs.cluster
        self.shares.take(
            number,
            (
                (
                    Delivery(tapped(each, cluster) if self._foreign else message_of(each), number, each.offset + 1),
                    each.timestamp,
                )
                for each in records
            ),
        )
        last = records[-1]
        self._marks[number] = (last.offset + 1, mark_of(last.timestamp, last.value or b""))

    async def _stop_polling(self) -> None:
        polling, self._polling = self._polling, None
        if polling is not None:
            await stop(polling)

    # --- the verbs ---------------------------------------------------------------------------------------------------

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """See `Member.ack`. Returns when the broker has the position that this has moved; what lies behind one that is
        not done yet waits for it."""
        self.shares.settle(deliveries)
        self._lives()
        if self.shares.owed:
            await self.logs.run(self._commit)

    async def term(self, deliveries: Sequence[Delivery]) -> None:
        """See `Member.term`."""
        await self.ack(deliveries)

    async def nack(self, deliveries: Sequence[Delivery], delay_s: float = 0.0) -> None:
        """See `Member.nack`. From memory, by this member."""
        self.shares.put_off(deliveries, time.monotonic() + delay_s, in_hand=False)
        self._lives()

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """See `Member.extend`."""
        self.shares.extend(deliveries, time.monotonic())
        self._lives()

    async def settled(self) -> bool:
        """See `Member.settled`. Only what the group has committed counts: others may have what we have not."""
        ends = await self._ends()
        committed = await self.logs.committed(self.group_id, self._name, ends)
        for number, (first, end) in ends.items():
            place = committed[number][0] if number in committed else max(self._start.get(number, 0), first)
            if place < end and await self.logs.gives(self._name, number, max(place, first)):
                return False
        return True

    def _lives(self) -> None:
        if self.consumer is not None:
            alive(self.consumer)
        self._ring()

    def _ring(self) -> None:
        """Wake whoever waits for something to change."""
        news, self._news = self._news, asyncio.get_running_loop().create_future()
        if not news.done():
            news.set_result(None)

    # --- the position ------------------------------------------------------------------------------------------------

    async def _commit(self) -> None:
        """Tell the broker how far we are; one at a time tells it for all who wait.

        Raises:
            ConnectorError: it does not answer.
        """
        async with asyncio.timeout(self.logs.options.timeout_s):
            if (consumer := self.consumer) is not None:
                await self._commit_over(consumer)

    async def _commit_over(self, consumer: AIOKafkaConsumer) -> None:
        from aiokafka import TopicPartition
        from aiokafka.errors import CommitFailedError

        async with self._committing:
            shares = dict(self.shares.of)
            told = {number: (each.done, each.note) for number, each in shares.items() if each.done > each.committed}
            if not told:
                return
            try:
                await commit(consumer, {TopicPartition(self._name, number): place for number, place in told.items()})
            except CommitFailedError as lost:
                # Others have them now, and do once more what was not committed; we hear of it in a moment.
                log.info("%s: what was done came too late for %s: %s", self._name, self.group_id, lost)
                return
            for number, (done, _) in told.items():
                shares[number].committed = done

    async def _take_over(self) -> None:
        """Find out where to begin in what we were given, and begin.

        A group that has no position yet gets one, from whoever has the partition first.
        """
        from aiokafka import TopicPartition

        tenure, fresh = self._tenure, sorted(self._fresh)
        consumer: Any = self.consumer
        ends = await self._ends()
        committed = await self.logs.committed(self.group_id, self._name, fresh)
        places: dict[int, Share] = {}
        for number in fresh:
            first, end = ends.get(number, (0, 0))
            if number not in committed:
                start = max(self._start.get(number, 0), 0)
                places[number] = Share(min(max(start, first), end), passed=start, known=False)
                continue
            offset, note = committed[number]
            why = await self.logs.changed(self._name, number, offset, note, (first, end))
            places[number] = Share(first if why else offset, known=not why)
            if why:
                log.warning("%s: %s begins anew in partition %s: %s", self._name, self.group_id, number, why)
        if tenure != self._tenure or self._revoking:
            return
        for number, share in places.items():
            where = TopicPartition(self._name, number)
            consumer.seek(where, share.read)
            consumer.resume(where)
            self.shares.of[number] = share
            self._fresh.discard(number)
        self._failing_until = None
        self._heard_at = time.monotonic()
        await self.logs.run(self._commit)

    # --- the log -----------------------------------------------------------------------------------------------------

    async def _ends(self) -> dict[int, tuple[int, int]]:
        """The first and the next offset of each partition.

        Raises:
            Unavailable: somebody else's topic is not there any more.
        """
        if not self._foreign:
            return dict(enumerate(await self.logs.ends(self._name, self.logs.options.partitions)))
        partitions = await self.logs.partitions(self._name)
        if not partitions:
            raise Unavailable(f"{self._name} is not there any more", hint=LOOK_AGAIN)
        return dict(enumerate(await self.logs.ends_of(self._name, partitions)))

    async def _check(self, *, waiting_for: bool) -> None:
        """That what we read is still what lies there, and that nothing keeps us from reading on.

        Raises:
            Unavailable: it is not; or the broker does not answer.
        """
        ends = await self._ends()
        for number, (position, mark) in list(self._marks.items()):
            first, end = ends.get(number, (0, 0))
            if position > end:
                why = f"{self._name} was put back: it ends at {end}, {position} was read"
                raise Unavailable(why, hint=LOOK_AGAIN)
            if position > first:
                record = await self.logs.record(self._name, number, position - 1)
                if record is not None and mark_of(record.timestamp, record.value or b"") != mark:
                    raise Unavailable(f"{self._name} was put back: {position} is another message now", hint=LOOK_AGAIN)
        now, options = time.monotonic(), self.logs.options
        # aiokafka has been seen to wait for ever after a rebalance; a new consumer begins where the group stands.
        if self._revoking and now - self._revoking_since > self._handover_s + options.session_s + CLOSE_S:
            self._broken = True
            raise Unavailable(f"{self.group_id} does not let us in")
        behind = any(ends.get(number, (0, 0))[1] > share.read for number, share in self.shares.of.items())
        if waiting_for and behind and not self._foreign and not self._revoking:
            if now - self._heard_at > options.timeout_s:
                self._broken = True
                raise Unavailable(f"{self._name} has more, and gives nothing")
        else:
            self._heard_at = now
        self._failing_until = None
        if self.shares.owed:  # somebody acknowledged while the broker was away
            await self.logs.run(self._commit)

    async def _out_of_range(self, partitions: set[int]) -> None:
        """Retention took what we were about to read, or the log is another one."""
        from aiokafka import TopicPartition

        tenure, ends = self._tenure, await self._ends()
        for number in partitions:
            share, (first, end) = self.shares.of.get(number), ends.get(number, (0, 0))
            if share is None or tenure != self._tenure or self.consumer is None:
                continue
            if share.read > end:
                raise Unavailable(
                    f"{self._name} was put back: it ends at {end}, {share.read} was read", hint=LOOK_AGAIN
                )
            if share.read < first:
                log.warning("%s: retention took %s to %s before it was read", self._name, share.read, first - 1)
                share.read, share.last = first, None
            self.consumer.seek(TopicPartition(self._name, number), share.read)


def _hold(consumer: AIOKafkaConsumer, partitions: set[Any]) -> None:
    """Read nothing before it is known where to begin: it would look for a position, and complain that there is none."""
    for where in partitions:
        consumer.seek(where, 0)
        consumer.pause(where)


def _thrown_out(consumer: AIOKafkaConsumer) -> bool:
    """Whether the group has given our partitions to others already."""
    return consumer._coordinator is None or consumer._coordinator.generation < 0


def _listener(member: KafkaMember, consumer: AIOKafkaConsumer) -> ConsumerRebalanceListener:
    """What aiokafka tells when partitions come and go. Its base is only known where aiokafka is."""
    from aiokafka.abc import ConsumerRebalanceListener

    class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
        async def on_partitions_revoked(self, revoked: set[Any]) -> None:
            await member.revoked(consumer)

        async def on_partitions_assigned(self, assigned: set[Any]) -> None:
            member.assigned(consumer, assigned)

    return Listener()
