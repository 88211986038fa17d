"""What every connector has to do, as a class of tests: subclass it, say how to make a connector, run pytest.

```python
import pytest
from synckit_streams.testing import ConnectorContract


class TestMyConnector(ConnectorContract):
    @pytest.fixture
    def connector_factory(self, my_broker):
        return lambda: MyConnector(my_broker.url)
```

Each call of the factory gives a new connector, not yet open, to the same broker. The tests choose topics that nobody
had before, so the broker may be shared. They look at what `features` declares: what is declared is tried, and what is
not has to raise `FeatureUnsupported`.
"""

from __future__ import annotations

import asyncio
import threading
import tracemalloc
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from synckit_streams.errors import ConnectorError, FeatureUnsupported, Rejected, SyncKitError, TooLarge
from synckit_streams.ports.connector import ID_CHARS_MAX, Announced, Connector, Delivery, Message

DEADLINE_S = 30.0
"""Nothing here takes that long; whoever waits longer waits for ever."""

HEADER_OVERHEAD_BYTES = 4
PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F))

Factory = Callable[[], Connector]


def message(key: str = "k", *, body: bytes = b"{}", headers: Mapping[str, str] | None = None) -> Message:
    """A message with an id of its own."""
    return Message(uuid.uuid4().hex, key, headers or {}, body)


def messages(count: int, *, keys: int = 7) -> list[Message]:
    """Small messages, told apart by their bodies, over some keys."""
    return [message(f"key-{number % keys}", body=b"%d" % number) for number in range(count)]


def bodies(deliveries: Sequence[Delivery]) -> list[bytes]:
    return [delivery.message.body for delivery in deliveries]


@asynccontextmanager
async def opened(factory: Factory) -> AsyncIterator[Connector]:
    """A connector, open for a while, under the deadline."""
    connector = factory()
    async with asyncio.timeout(DEADLINE_S):
        await connector.open()
        try:
            yield connector
        finally:
            await connector.close()


async def read(
    connector: Connector, topic: str, count: int, *, start: Mapping[int, int] | None = None, batch_max: int = 500
) -> list[Delivery]:
    """The first `count` deliveries, or more if the last batch has more."""
    got: list[Delivery] = []
    async with connector.receive(topic, group=None, start=start or {}, batch_max=batch_max) as batches:
        while len(got) < count:
            got.extend(await anext(batches))
    return got


async def heard(connector: Connector, topic: str) -> dict[str, Announced]:
    """The retained digests: what comes before the marker."""
    found: dict[str, Announced] = {}
    async with connector.listen(topic) as announcements:
        async for announced in announcements:
            if not announced.node:
                break
            found[announced.node] = announced
    return found


class ConnectorContract:
    """The promises of `synckit_streams.ports.connector`. See the module for how to use it."""

    pytestmark = pytest.mark.asyncio

    ahead_bytes_max = 16 * 1024 * 1024
    """What a reader that stands still may cost; a connector that cannot do better says so here."""

    @pytest.fixture
    def connector_factory(self) -> Factory:
        """Override me: a function that makes a connector, not yet open, to one and the same broker."""
        raise NotImplementedError("override the fixture connector_factory")

    @pytest.fixture
    def factory(self, connector_factory: Factory) -> Factory:
        # One connector stays until the test ends: a broker inside the process is there as long as somebody is on it.
        keeper = connector_factory()

        def make(_keeper: Connector = keeper) -> Connector:
            return connector_factory()

        return make

    @pytest.fixture
    def topic(self) -> str:
        """A topic that nobody had before."""
        return f"contract-{uuid.uuid4().hex[:16]}"

    # ------------------------------------------------------------------------------------------- what is carried

    async def test_it_is_a_connector(self, factory: Factory) -> None:
        """It has everything that the port asks for."""
        assert isinstance(factory(), Connector)

    async def test_a_message_arrives_as_it_was_sent(self, factory: Factory, topic: str) -> None:
        """Bodies are bytes and headers are text, and both arrive exactly."""
        sent = [
            message(body=b""),
            message(body=bytes(range(256)) * 3, headers={"ce-id": "1"}),
            message(body=b"NATS/1.0\r\n\r\n$5\r\n", headers={"Mixed-Case_Name.1": PRINTABLE, "empty": ""}),
            message(
                body=b"\xff\xfe", headers={"inner": "a  b   c", "colon": "a: b:c", "quoted": '"\\"=?utf-8?q?=41?='}
            ),
        ]
        async with opened(factory) as connector:
            await connector.send(topic, sent)
            got = {each.message.id: each.message for each in await read(connector, topic, len(sent))}
        assert {each.id: each.body for each in sent} == {id: each.body for id, each in got.items()}
        assert {each.id: dict(each.headers) for each in sent} == {id: dict(each.headers) for id, each in got.items()}

    @pytest.mark.parametrize("value", ["a\r\nForged: yes", "a\nForged: yes", "café", "\x00", " outer blanks "])
    async def test_a_header_that_cannot_be_carried_is_refused(self, factory: Factory, topic: str, value: str) -> None:
        """No header is changed on the way and none becomes two: it is refused, and nothing is stored."""
        async with opened(factory) as connector:
            with pytest.raises(Rejected):
                await connector.send(topic, [message(headers={"a": value})])
            assert all(each.first == each.end for each in (await connector.bounds(topic)).values())
            await connector.send(topic, [message(body=b"next")])
            assert bodies(await read(connector, topic, 1)) == [b"next"]

    @pytest.mark.parametrize("id", ["x" * (ID_CHARS_MAX + 1), "a\r\nb", "é", " a", "a ", "\x7f"])
    async def test_an_id_that_cannot_be_carried_is_refused(self, factory: Factory, topic: str, id: str) -> None:
        """Nor is an id changed: what comes back has the id that was sent, and its fingerprint depends on it."""
        async with opened(factory) as connector:
            with pytest.raises(Rejected):
                await connector.send(topic, [message(body=b"before"), Message(id, "k", {}, b"")])
            longest = "a b~" + "x" * (ID_CHARS_MAX - 4)
            await connector.send(topic, [Message(longest, "k", {}, b""), Message("", "k", {}, b"none")])
            assert sorted(each.message.id for each in await read(connector, topic, 2)) == ["", longest]

    async def test_a_large_message_arrives(self, factory: Factory, topic: str) -> None:
        """A message of exactly `bytes_max`, headers included, is carried."""
        async with opened(factory) as connector:
            headers = {"a": "b" * 100}
            room = connector.features.bytes_max - sum(
                len(n) + len(v) + HEADER_OVERHEAD_BYTES for n, v in headers.items()
            )
            large = message(body=b"x" * room, headers=headers)
            await connector.send(topic, [large, message(body=b"small")])
            got = {each.message.id: each.message.body for each in await read(connector, topic, 2)}
        assert got[large.id] == large.body

    async def test_a_message_that_is_too_large_is_refused(self, factory: Factory, topic: str) -> None:
        """It is a clear error, nothing of the call is stored, and the connector goes on."""
        async with opened(factory) as connector:
            large = message(body=b"x" * (connector.features.bytes_max + 1))
            with pytest.raises(SyncKitError) as refused:
                await connector.send(topic, [message(body=b"before"), large])
            assert not refused.value.retryable
            await connector.send(topic, [message(body=b"after")])
            assert bodies(await read(connector, topic, 1)) == [b"after"]

    @pytest.mark.parametrize("name", ["a.b c/d*>~", "Ünïcode ✓", "x" * 100, "CON", ".", "sk", "A", "a"])
    async def test_any_topic_has_a_log_of_its_own(self, factory: Factory, topic: str, name: str) -> None:
        """Topics are any text; two of them never share a log."""
        unique = f"{topic[-12:]}{name}"[:100]
        async with opened(factory) as connector:
            await connector.send(unique, [message(body=b"mine")])
            await connector.send(unique + "-", [message(body=b"other")])
            await connector.announce(unique, "n", b"digest")
            assert bodies(await read(connector, unique, 1)) == [b"mine"]
            assert (await heard(connector, unique))["n"].body == b"digest"
            assert await heard(connector, unique + "-") == {}

    async def test_sending_nothing_does_nothing(self, factory: Factory, topic: str) -> None:
        """An empty call succeeds."""
        async with opened(factory) as connector:
            assert dict(await connector.send(topic, [])) == {}

    async def test_thousands_of_messages(self, factory: Factory, topic: str) -> None:
        """5,000 messages arrive once each, and the positions that `send` returns lie behind all of them."""
        sent = messages(5000)
        async with opened(factory) as connector:
            ends = await connector.send(topic, sent)
            got = await read(connector, topic, len(sent), batch_max=1000)
        assert sorted(bodies(got)) == sorted(each.body for each in sent)
        assert {each.partition for each in got} == set(ends)
        for partition, end in ends.items():
            assert max(each.position for each in got if each.partition == partition) <= end

    async def test_many_senders_at_once(self, factory: Factory, topic: str) -> None:
        """Concurrent calls on one connector do not disturb one another."""
        sent = messages(1000)
        async with opened(factory) as connector:
            await asyncio.gather(*(connector.send(topic, sent[at : at + 50]) for at in range(0, 1000, 50)))
            got = await read(connector, topic, len(sent))
        assert sorted(bodies(got)) == sorted(each.body for each in sent)

    # -------------------------------------------------------------------------------------------- order and places

    async def test_a_partition_keeps_its_order(self, factory: Factory, topic: str) -> None:
        """What has one key lies in one partition, in the order in which it was sent, at ascending positions."""
        async with opened(factory) as connector:
            if not connector.features.ordering:
                pytest.skip("declares ordering=False")
            for at in range(0, 300, 100):
                await connector.send(
                    topic, [message(f"k{n % 3}", body=b"%d %d" % (n % 3, n)) for n in range(at, at + 100)]
                )
            got = await read(connector, topic, 300, batch_max=7)
        where: dict[bytes, int] = {}
        for each in got:
            assert where.setdefault(each.message.body.split()[0], each.partition) == each.partition
        for partition in {each.partition for each in got}:
            here = [each for each in got if each.partition == partition]
            assert [each.position for each in here] == sorted({each.position for each in here})
            numbers = [int(each.message.body.split()[1]) for each in here]
            assert numbers == sorted(numbers)

    async def test_replay_from_any_position(self, factory: Factory, topic: str) -> None:
        """`start` is the last position that was read: the next one comes first, whatever it is."""
        async with opened(factory) as connector:
            await connector.send(topic, messages(60))
            everything = await read(connector, topic, 60)
            if not connector.features.replay:
                with pytest.raises(FeatureUnsupported):
                    await read(connector, topic, 1, start={everything[0].partition: everything[0].position})
                return
            for index in (0, 1, 29, 58):
                start: dict[int, int] = {}
                for each in everything[: index + 1]:
                    start[each.partition] = each.position
                rest = everything[index + 1 :]
                got = await read(connector, topic, len(rest), start=start)
                assert sorted((each.partition, each.position) for each in got) == sorted(
                    (each.partition, each.position) for each in rest
                )
                assert sorted(bodies(got)) == sorted(bodies(rest))

    async def test_a_start_beyond_the_end_waits(self, factory: Factory, topic: str) -> None:
        """A position that the log does not have yet is waited for; nothing at or before it is delivered."""
        async with opened(factory) as connector:
            if not connector.features.replay:
                pytest.skip("declares replay=False")
            await connector.send(topic, [message(body=b"old") for _ in range(3)])
            bounds = await connector.bounds(topic)
            ahead = {partition: each.end + 2 for partition, each in bounds.items()}
            async with connector.receive(topic, group=None, start=ahead, batch_max=10) as batches:
                waiting = asyncio.ensure_future(anext(batches))
                await connector.send(topic, [message(body=b"%d" % number) for number in range(8)])
                batch = await waiting
            assert all(each.position > ahead[each.partition] for each in batch)

    @pytest.mark.parametrize("batch_max", [1, 3, 100])
    async def test_batches_are_bounded(self, factory: Factory, topic: str, batch_max: int) -> None:
        """A batch has 1 to `batch_max` deliveries of one partition, in ascending positions."""
        async with opened(factory) as connector:
            await connector.send(topic, messages(200))
            count = 0
            async with connector.receive(topic, group=None, start={}, batch_max=batch_max) as batches:
                async for batch in batches:
                    assert 1 <= len(batch) <= batch_max
                    assert len({each.partition for each in batch}) == 1
                    assert [each.position for each in batch] == sorted({each.position for each in batch})
                    count += len(batch)
                    if count == 200:
                        break

    async def test_peek(self, factory: Factory, topic: str) -> None:
        """The message at a position is the one that was delivered there; elsewhere there is none."""
        async with opened(factory) as connector:
            await connector.send(
                topic, [message(f"k{n}", body=b"%d\xff" % n, headers={"n": str(n)}) for n in range(20)]
            )
            for each in await read(connector, topic, 20):
                found = await connector.peek(topic, each.partition, each.position)
                assert found is not None
                assert (found.id, found.body, dict(found.headers)) == (
                    each.message.id,
                    each.message.body,
                    dict(each.message.headers),
                )
            for partition, bounds in (await connector.bounds(topic)).items():
                for position in (-1, 0, bounds.end + 1, bounds.end + 10**6):
                    assert await connector.peek(topic, partition, position) is None
            assert await connector.peek(topic, 9999, 1) is None
            assert await connector.peek(f"{topic}-empty", 0, 1) is None

    async def test_bounds(self, factory: Factory, topic: str) -> None:
        """An empty log begins where it ends; afterwards every message lies in [first, end)."""
        async with opened(factory) as connector:
            empty = await connector.bounds(topic)
            assert sorted(empty) == list(range(connector.features.partitions))
            assert all(each.first == each.end and each.identity for each in empty.values())
            await connector.send(topic, messages(30))
            bounds = await connector.bounds(topic)
            got = await read(connector, topic, 30)
            for each in got:
                assert bounds[each.partition].first <= each.position < bounds[each.partition].end
            await connector.send(topic, [message(body=b"more")])
            after = await connector.bounds(topic)
            assert sum(each.end for each in after.values()) > sum(each.end for each in bounds.values())
            assert {n: each.identity for n, each in after.items()} == {n: each.identity for n, each in empty.items()}

    async def test_identity_stays_when_the_connection_does_not(self, factory: Factory, topic: str) -> None:
        """A log is the same for every connector and over every reconnect, and another topic's is another one."""
        first, second = factory(), factory()
        async with asyncio.timeout(DEADLINE_S):
            await first.open()
            await first.send(topic, messages(3))
            before = await first.bounds(topic)
            await first.close()
            await second.open()
            assert dict(await second.bounds(topic)) == dict(before)
            other = await second.bounds(f"{topic}-other")
            await second.close()
        assert not {each.identity for each in before.values()} & {each.identity for each in other.values()}

    async def test_lag(self, factory: Factory, topic: str) -> None:
        """A reader is behind by the messages after its position."""
        async with opened(factory) as connector:
            assert (await connector.lag(topic, group=None, start={})).messages == 0
            await connector.send(topic, [message(body=b"%d" % n) for n in range(10)])
            assert (await connector.lag(topic, group=None, start={})).messages == 10
            got = await read(connector, topic, 10)
            at = got[3]
            assert (await connector.lag(topic, group=None, start={at.partition: at.position})).messages == 6

    # --------------------------------------------------------------------------------------------------- live reading

    async def test_what_is_sent_arrives_at_who_waits(self, factory: Factory, topic: str) -> None:
        """A reader at the end gets each message when it is sent, from its own connector or another's."""
        async with (
            opened(factory) as reader,
            opened(factory) as writer,
            reader.receive(topic, group=None, start={}, batch_max=10) as batches,
        ):
            for number, connector in enumerate([reader, writer, reader, writer]):
                waiting = asyncio.ensure_future(anext(batches))
                await connector.send(topic, [message(body=b"%d" % number)])
                assert bodies(await waiting) == [b"%d" % number]

    async def test_each_reader_gets_everything(self, factory: Factory, topic: str) -> None:
        """Two readers of one connector and one of another do not divide the messages."""
        sent = messages(300)
        async with opened(factory) as first, opened(factory) as second:
            readers = [asyncio.ensure_future(read(each, topic, len(sent))) for each in (first, first, second)]
            await first.send(topic, sent)
            for got in await asyncio.gather(*readers):
                assert sorted(bodies(got)) == sorted(each.body for each in sent)

    async def test_a_publisher_never_waits_for_a_reader(self, factory: Factory, topic: str) -> None:
        """A reader that stands still holds up neither a publisher nor another reader."""
        async with (
            opened(factory) as slow,
            opened(factory) as quick,
            slow.receive(topic, group=None, start={}, batch_max=5) as batches,
        ):
            await quick.send(topic, [message(body=b"first")])
            await anext(batches)
            for _ in range(40):
                await quick.send(topic, [message(body=b"x" * 10_000) for _ in range(25)])
            assert len(await read(quick, topic, 1001)) == 1001
            count = 1
            while count < 1001:
                count += len(await anext(batches))
            assert count == 1001

    @pytest.mark.parametrize(
        ("count", "size_bytes", "batch_max", "share"),
        [pytest.param(1000, 40_000, 1000, 1, id="large"), pytest.param(6000, 10, 2, 16, id="small")],
    )
    async def test_a_slow_reader_costs_no_memory(
        self, factory: Factory, topic: str, count: int, size_bytes: int, batch_max: int, share: int
    ) -> None:
        """A reader is at most a few batches ahead of who takes them, however many messages there are."""
        async with opened(factory) as slow, opened(factory) as quick:
            for _ in range(0, count, 100):
                await quick.send(topic, [message(body=b"x" * size_bytes) for _ in range(100)])
            tracemalloc.start()
            try:
                held_bytes = 0
                async with (
                    slow.receive(topic, group=None, start={}, batch_max=batch_max) as batches,
                    quick.receive(topic, group=None, start={}, batch_max=count // 200) as others,
                ):
                    taken, passed = 0, 0
                    while passed < count:
                        if taken < count // 2:
                            taken += len(await anext(batches))
                        passed += len(await anext(others))
                        held_bytes = max(held_bytes, tracemalloc.get_traced_memory()[0])
            finally:
                tracemalloc.stop()
        assert held_bytes < self.ahead_bytes_max / share

    async def test_closing_ends_the_iterators(self, factory: Factory, topic: str) -> None:
        """Who waits for a message or a digest when the connector is closed comes to the end, without an error."""
        connector = factory()
        await connector.open()
        reading = asyncio.Event()
        listening = asyncio.Event()

        async def receive() -> int:
            count = 0
            async with connector.receive(topic, group=None, start={}, batch_max=10) as batches:
                async for batch in batches:
                    count += len(batch)
                    reading.set()
            return count

        async def listen() -> int:
            count = 0
            async with connector.listen(topic) as announcements:
                async for _ in announcements:
                    count += 1
                    listening.set()
            return count

        tasks = [asyncio.ensure_future(receive()), asyncio.ensure_future(listen())]
        async with asyncio.timeout(DEADLINE_S):
            await connector.send(topic, [message()])
            await reading.wait()
            await listening.wait()
            for _ in range(20):  # until both wait for more
                await asyncio.sleep(0)
            await connector.close()
            assert await asyncio.gather(*tasks) == [1, 1]

    async def test_a_cancelled_reader_loses_nothing(self, factory: Factory, topic: str) -> None:
        """Waiting for a batch may be given up at any time: every message still comes, once, in order."""
        sent = [message(body=b"%d" % n) for n in range(400)]
        got: list[bytes] = []
        async with (
            opened(factory) as reader,
            opened(factory) as writer,
            reader.receive(topic, group=None, start={}, batch_max=20) as batches,
        ):
            writing = asyncio.ensure_future(self._trickle(writer, topic, sent))
            patience = 0
            while len(got) < len(sent):
                waiting = asyncio.ensure_future(anext(batches))
                for _ in range(patience % 7):
                    await asyncio.sleep(0)
                patience += 1
                # A batch that is there is taken; one that is not is given up, a little later each time.
                if not waiting.done() and patience % 7:
                    waiting.cancel()
                with suppress(asyncio.CancelledError):
                    got.extend(bodies(await waiting))
            await writing
        assert got == [each.body for each in sent]

    @staticmethod
    async def _trickle(connector: Connector, topic: str, sent: Sequence[Message]) -> None:
        for at in range(0, len(sent), 10):
            await connector.send(topic, sent[at : at + 10])

    async def test_a_cancelled_send_leaves_the_connector_usable(self, factory: Factory, topic: str) -> None:
        """Publishing may be given up at any time; what is sent afterwards is stored all the same."""
        async with opened(factory) as connector:
            for rounds in range(12):
                sending = asyncio.ensure_future(connector.send(topic, messages(300)))
                for _ in range(rounds):
                    await asyncio.sleep(0)
                sending.cancel()
                with suppress(asyncio.CancelledError):
                    await sending
            after = [message(body=b"after %d" % number) for number in range(50)]
            ends = await connector.send(topic, after)
            found: set[bytes] = set()
            async with connector.receive(topic, group=None, start={}, batch_max=500) as batches:
                async for batch in batches:
                    found.update(bodies(batch))
                    if any(each.position >= ends.get(each.partition, each.position + 1) for each in batch):
                        break
        assert {each.body for each in after} <= found

    async def test_two_event_loops(self, factory: Factory, topic: str) -> None:
        """Connectors to one broker work in the event loops of different threads at the same time."""
        sent = messages(500)
        got: list[bytes] = []
        errors: list[BaseException] = []

        async def write() -> None:
            async with opened(factory) as connector:
                await self._trickle(connector, topic, sent)

        async def collect() -> None:
            async with opened(factory) as connector:
                got.extend(bodies(await read(connector, topic, len(sent))))

        def run(work: Callable[[], object]) -> None:
            try:
                asyncio.run(work())  # type: ignore[arg-type]
            except BaseException as error:  # noqa: BLE001 - it belongs to the test's own thread
                errors.append(error)

        threads = [threading.Thread(target=run, args=(work,)) for work in (collect, write)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await asyncio.to_thread(thread.join, DEADLINE_S)
        assert errors == []
        assert sorted(got) == sorted(each.body for each in sent)

    # ----------------------------------------------------------------------------------------------- open and closed

    async def test_open_and_close_leave_nothing_running(self, factory: Factory, topic: str) -> None:
        """After `close`, which may be called twice, no task of the connector is left."""
        before = asyncio.all_tasks()
        async with opened(factory) as connector:
            await connector.send(topic, messages(10))
            await read(connector, topic, 10)
            await heard(connector, topic)
        await connector.close()
        assert asyncio.all_tasks() == before

    async def test_a_closed_connector_says_so(self, factory: Factory, topic: str) -> None:
        """Before `open` and after `close` every call raises, and none hangs."""
        never, closed = factory(), factory()
        async with asyncio.timeout(DEADLINE_S):
            await closed.open()
            await closed.close()
            for connector in (never, closed):
                for call in (
                    connector.bounds(topic),
                    connector.peek(topic, 0, 1),
                    connector.send(topic, [message()]),
                    connector.lag(topic, group=None, start={}),
                    connector.announce(topic, "n", b"x"),
                    read(connector, topic, 1),
                    heard(connector, topic),
                ):
                    with pytest.raises(ConnectorError):
                        await call
            await never.close()

    async def test_opening_an_open_connector_changes_nothing(self, factory: Factory, topic: str) -> None:
        """Whoever meets opens first, each time: readers and listeners go on, and so does what waits in them."""
        async with (
            opened(factory) as connector,
            connector.receive(topic, group=None, start={}, batch_max=10) as batches,
            connector.listen(topic) as announcements,
        ):
            assert await anext(announcements) == Announced("", b"", 0.0)
            waiting = asyncio.ensure_future(anext(batches)), asyncio.ensure_future(anext(announcements))
            for _ in range(3):
                await connector.open()
            await connector.send(topic, [message(body=b"1")])
            await connector.announce(topic, "a", b"digest")
            assert bodies(await waiting[0]) == [b"1"]
            assert await waiting[1] == Announced("a", b"digest", 0.0)

    async def test_it_can_be_opened_again(self, factory: Factory, topic: str) -> None:
        """A closed connector may be opened again, and finds the same log."""
        connector = factory()
        async with asyncio.timeout(DEADLINE_S):
            await connector.open()
            await connector.send(topic, [message(body=b"1")])
            await connector.close()
            await connector.open()
            assert bodies(await read(connector, topic, 1)) == [b"1"]
            await connector.close()

    # ------------------------------------------------------------------------------------------------------- features

    async def test_what_is_not_declared_is_unsupported(self, factory: Factory, topic: str) -> None:
        """Without groups, asking for one raises, and so do the verbs that only a group has."""
        async with opened(factory) as connector:
            if connector.features.groups:
                pytest.skip("declares groups=True")
            await connector.send(topic, [message()])
            with pytest.raises(FeatureUnsupported):
                async with connector.receive(topic, group="workers", start={}, batch_max=1):
                    pass
            with pytest.raises(FeatureUnsupported):
                await connector.lag(topic, group="workers", start={})
            (delivery,) = await read(connector, topic, 1)
            await delivery.ack()
            for call in (delivery.nack, delivery.term):
                with pytest.raises(FeatureUnsupported):
                    await call()
            # None of that moved anything.
            assert len(await read(connector, topic, 1)) == 1

    async def test_a_repeated_id(self, factory: Factory, topic: str) -> None:
        """With dedup, a message whose id the broker knows from an earlier call is refused; without, it is stored."""
        async with opened(factory) as connector:
            first = message(body=b"first")
            again = Message(first.id, "k", {}, b"again")
            await connector.send(topic, [first])
            if connector.features.dedup:
                with pytest.raises(Rejected, match="duplicate"):
                    await connector.send(topic, [again, message(body=b"other")])
                assert bodies(await read(connector, topic, 2)) == [b"first", b"other"]
            else:
                await connector.send(topic, [again])
                assert sorted(bodies(await read(connector, topic, 2))) == [b"again", b"first"]

    # -------------------------------------------------------------------------------------------------------- digests

    async def test_a_digest_that_is_too_large_is_refused(self, factory: Factory, topic: str) -> None:
        """It is a clear error, and the last one stands."""
        async with opened(factory) as connector:
            await connector.announce(topic, "a", b"1")
            with pytest.raises(TooLarge):
                await connector.announce(topic, "a", b"x" * (connector.features.bytes_max + 1))
            assert (await heard(connector, topic))["a"].body == b"1"

    async def test_the_last_digest_of_each_node_is_kept(self, factory: Factory, topic: str) -> None:
        """Whoever listens first hears the last one of every node with its age, and then the marker."""
        async with opened(factory) as early:
            assert await heard(early, topic) == {}
            for round_ in range(3):
                for node in ("a", "node é/2", "b.c*>"):
                    await early.announce(topic, node, f"{node} {round_}".encode())
            await early.announce(f"{topic}-other", "stranger", b"x")
        async with opened(factory) as late:
            found = await heard(late, topic)
        assert {node: each.body.decode() for node, each in found.items()} == {
            "a": "a 2",
            "node é/2": "node é/2 2",
            "b.c*>": "b.c*> 2",
        }
        assert all(0 <= each.age_s < DEADLINE_S for each in found.values())

    async def test_an_age_is_the_brokers(self, factory: Factory, topic: str) -> None:
        """The age of a retained digest grows; one that comes live has none."""
        async with opened(factory) as connector:
            await connector.announce(topic, "a", b"1")
            first = (await heard(connector, topic))["a"].age_s
            deadline = asyncio.get_running_loop().time() + DEADLINE_S
            while (age := (await heard(connector, topic))["a"].age_s) <= first + 0.05:
                assert asyncio.get_running_loop().time() < deadline
            assert age < DEADLINE_S
            async with connector.listen(topic) as announcements:
                async for announced in announcements:
                    if not announced.node:
                        await connector.announce(topic, "a", b"2")
                    elif announced.body == b"2":
                        assert announced.age_s == 0.0
                        break

    async def test_a_digest_that_was_taken_back_is_gone(self, factory: Factory, topic: str) -> None:
        """Who listens hears that it was taken back; who comes later does not hear of the node at all."""
        async with opened(factory) as connector:
            await connector.announce(topic, "a", b"1")
            await connector.announce(topic, "b", b"1")
            told: list[tuple[str, bytes]] = []
            async with connector.listen(topic) as announcements:
                async for announced in announcements:
                    if not announced.node and not any(body == b"" for _, body in told):
                        await connector.announce(topic, "a", b"")
                    elif announced.node:
                        told.append((announced.node, announced.body))
                        if announced.body == b"":
                            break
            assert told[-1] == ("a", b"")
            assert {node: each.body for node, each in (await heard(connector, topic)).items()} == {"b": b"1"}
            await connector.announce(topic, "a", b"2")
            assert (await heard(connector, topic))["a"].body == b"2"

    async def test_digests_come_live(self, factory: Factory, topic: str) -> None:
        """A listener hears each new digest of others, and the marker again each time when there is no more."""
        async with (
            opened(factory) as listener,
            opened(factory) as speaker,
            listener.listen(topic) as announcements,
        ):
            assert await anext(announcements) == Announced("", b"", 0.0)
            for round_ in range(3):
                waiting = asyncio.ensure_future(anext(announcements))
                await speaker.announce(topic, "a", b"%d" % round_)
                assert await waiting == Announced("a", b"%d" % round_, 0.0)
                assert await anext(announcements) == Announced("", b"", 0.0)


__all__ = ["ConnectorContract"]
