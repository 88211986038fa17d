"""The memory connector keeps the contract, and its broker fails exactly as it is told to."""

from __future__ import annotations

import asyncio
import gc
import uuid
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from synckit_connectors.memory import MemoryBroker, MemoryConnector, memory_broker
from synckit_streams.errors import ConfigError, Rejected, TooLarge, Unavailable
from synckit_streams.ports.connector import Announced, Message, behind
from synckit_streams.testing.connector_contract import (
    ConnectorContract,
    Factory,
    Foreign,
    OwnBroker,
    bodies,
    opened,
    read,
)
from tests.own_broker import BrokerInMemory


async def publish(factory: Factory, source: str, bodies: Sequence[bytes]) -> None:
    async with opened(factory) as connector:
        await connector.send(source, [Message("", "k", {}, body) for body in bodies])


class TestContract(ConnectorContract):
    """With one partition."""

    @pytest.fixture
    def connector_factory(self) -> Factory:
        url = f"memory://{uuid.uuid4().hex}"
        return lambda: MemoryConnector(url)

    @pytest.fixture
    def impatient_connector_factory(self) -> Factory:
        url = f"memory://{uuid.uuid4().hex}?ack_wait_s={self.ack_wait_s}"
        return lambda: MemoryConnector(url)

    @pytest.fixture
    def foreign(self, factory: Factory) -> Foreign:
        return lambda source, bodies: publish(factory, source, bodies)

    @pytest.fixture
    def own_broker(self) -> OwnBroker:
        return BrokerInMemory(uuid.uuid4().hex)


class TestContractOfPartitions(ConnectorContract):
    """With three."""

    @pytest.fixture
    def connector_factory(self) -> Factory:
        url = f"memory://{uuid.uuid4().hex}?partitions=3&bytes_max=100000"
        return lambda: MemoryConnector(url)

    @pytest.fixture
    def impatient_connector_factory(self) -> Factory:
        url = f"memory://{uuid.uuid4().hex}?partitions=3&ack_wait_s={self.ack_wait_s}"
        return lambda: MemoryConnector(url)

    @pytest.fixture
    def foreign(self, factory: Factory) -> Foreign:
        return lambda source, bodies: publish(factory, source, bodies)

    @pytest.fixture
    def own_broker(self) -> OwnBroker:
        return BrokerInMemory(uuid.uuid4().hex)


@pytest.fixture
def name() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def broker(name: str) -> MemoryBroker:
    return memory_broker(name)


@pytest.fixture
async def connector(name: str) -> AsyncIterator[MemoryConnector]:
    connector = MemoryConnector(f"memory://{name}?client=reader")
    await connector.open()
    async with asyncio.timeout(20):
        yield connector
    await connector.close()


def texts(*words: str) -> list[Message]:
    return [Message(word, "k", {}, word.encode()) for word in words]


class TestLifetime:
    """A name's log is there as long as a connector is on it, from its construction until its close."""

    async def test_nodes_that_are_never_open_together_meet(self, name: str) -> None:
        """A connector that is built but not yet open keeps the log."""
        first, second = MemoryConnector(f"memory://{name}"), MemoryConnector(f"memory://{name}")
        await first.open()
        await first.send("t", texts("a"))
        await first.close()
        await second.open()
        assert bodies(await read(second, "t", 1)) == [b"a"]
        await second.close()

    async def test_the_log_ends_with_the_last_connector(self, name: str) -> None:
        """Whoever comes after the last one closed finds an empty log with another identity, and no faults."""
        first = MemoryConnector(f"memory://{name}")
        await first.open()
        await first.send("t", texts("a"))
        before = (await first.bounds("t"))[0]
        memory_broker(name).down = True
        await first.close()
        later = MemoryConnector(f"memory://{name}")
        await later.open()
        after = (await later.bounds("t"))[0]
        assert (before.end, after.first, after.end) == (2, 1, 1)
        assert before.identity != after.identity
        await later.close()

    async def test_a_connector_that_is_thrown_away_does_not_keep_it(self, name: str) -> None:
        """A connector that was never opened and is garbage counts no more."""
        thrown = MemoryConnector(f"memory://{name}")
        first = MemoryConnector(f"memory://{name}")
        await first.open()
        await first.send("t", texts("a"))
        await first.close()
        del thrown
        gc.collect()
        later = MemoryConnector(f"memory://{name}")
        await later.open()
        assert (await later.bounds("t"))[0].end == 1
        await later.close()

    async def test_closing_twice_does_not_take_the_log_from_others(self, name: str) -> None:
        """Only the first close counts."""
        first, second = MemoryConnector(f"memory://{name}"), MemoryConnector(f"memory://{name}")
        await second.open()
        await second.send("t", texts("a"))
        await first.close()
        await first.close()
        assert bodies(await read(second, "t", 1)) == [b"a"]
        await second.close()

    async def test_garbage_after_closing_changes_nothing(self, name: str) -> None:
        """A connector leaves once: not again when it is collected, when others may already have set faults."""
        connector = MemoryConnector(f"memory://{name}")
        await connector.open()
        await connector.close()
        broker = memory_broker(name)
        broker.down = True
        del connector
        gc.collect()
        assert memory_broker(name).down
        assert memory_broker(name) is broker

    async def test_names_are_apart(self, name: str) -> None:
        """Another name is another broker; letter case counts."""
        first, second = MemoryConnector(f"memory://{name}"), MemoryConnector(f"memory://{name.upper()}x/y")
        await first.open()
        await second.open()
        await first.send("t", texts("a"))
        assert (await second.bounds("t"))[0].end == 1
        await first.close()
        await second.close()


class TestOptions:
    async def test_the_first_connector_decides_the_partitions(self, name: str) -> None:
        """Whoever says nothing takes what is there; whoever says another number is refused."""
        first = MemoryConnector(f"memory://{name}", partitions=3)
        assert MemoryConnector(f"memory://{name}").features.partitions == 3
        with pytest.raises(ConfigError, match="3 partitions, not 2"):
            MemoryConnector(f"memory://{name}?partitions=2")
        await first.open()
        assert sorted(await first.bounds("t")) == [0, 1, 2]
        await first.close()

    @pytest.mark.parametrize(
        "url",
        [
            "memory:",
            "memory://",
            "nats://x",
            "memory://x?partition=3",
            "memory://x?partitions=0",
            "memory://x?partitions=257",
            "memory://x?partitions=many",
            "memory://x?partitions=",
        ],
    )
    def test_a_wrong_url_is_a_clear_error(self, url: str) -> None:
        """At construction, before anything happens."""
        with pytest.raises(ConfigError):
            MemoryConnector(url)

    async def test_bytes_max(self, name: str) -> None:
        """The limit is an option, and it counts headers too."""
        connector = MemoryConnector(f"memory://{name}", bytes_max=20)
        await connector.open()
        await connector.send("t", [Message("1", "k", {"a": "b"}, b"x" * 14)])
        with pytest.raises(TooLarge, match="21 bytes"):
            await connector.send("t", [Message("2", "k", {"a": "b"}, b"x" * 15)])
        await connector.close()


class TestFaults:
    """What the switchboard does, seen by the connectors."""

    async def test_down(self, connector: MemoryConnector, broker: MemoryBroker) -> None:
        """Every call raises Unavailable, readers and listeners are cut off, and nothing is lost."""
        await connector.send("t", texts("a"))
        await connector.announce("t", "n", b"digest")
        async with (
            connector.receive("t", start={0: 1}, batch_max=9) as batches,
            connector.listen("t") as announcements,
        ):
            assert (await anext(announcements)).node == "n"
            assert (await anext(announcements)).node == ""
            waiting = [asyncio.ensure_future(anext(batches)), asyncio.ensure_future(anext(announcements))]
            await asyncio.sleep(0)
            broker.down = True
            for each in waiting:
                with pytest.raises(Unavailable):
                    await each
        other = MemoryConnector(connector.url)
        for call in (
            other.open(),
            connector.bounds("t"),
            connector.peek("t", 0, 1),
            connector.send("t", texts("b")),
            connector.announce("t", "n", b"x"),
            read(connector, "t", 1),
        ):
            with pytest.raises(Unavailable) as error:
                await call
            assert error.value.retryable
        broker.down = False
        assert bodies(await read(connector, "t", 1)) == [b"a"]
        await other.close()

    async def test_dropped_messages_are_acknowledged(self, connector: MemoryConnector, broker: MemoryBroker) -> None:
        """The publisher hears success; the message is nowhere. `times` and `stop` end it, `hits` counts."""
        fault = broker.drop(lambda topic, message: message.body != b"keep", times=2)
        await connector.send("t", texts("a", "keep", "b", "c"))
        assert bodies(await read(connector, "t", 2)) == [b"keep", b"c"]
        assert fault.hits == 2
        fault = broker.drop()
        assert dict(await connector.send("t", texts("d"))) == {0: 2}
        fault.stop()
        await connector.send("t", texts("e"))
        assert [each.body for each in broker.messages("t")] == [b"keep", b"c", b"e"]

    async def test_a_message_can_be_withheld_from_one_reader(
        self, name: str, connector: MemoryConnector, broker: MemoryBroker
    ) -> None:
        """It is in the log and others get it, but this reader passes its position without seeing it."""
        broker.drop(lambda topic, message: message.body == b"b", reader="reader")
        other = MemoryConnector(f"memory://{name}?client=other")
        await other.open()
        await connector.send("t", texts("a", "b", "c"))
        assert [(each.position, each.message.body) for each in await read(connector, "t", 2)] == [(1, b"a"), (3, b"c")]
        assert bodies(await read(other, "t", 3)) == [b"a", b"b", b"c"]
        await other.close()

    async def test_a_batch_that_is_withheld_whole_is_passed_over(
        self, connector: MemoryConnector, broker: MemoryBroker
    ) -> None:
        """A reader does not end, or get an empty batch, because everything in it was withheld."""
        broker.drop(lambda topic, message: message.body != b"d", reader="reader")
        await connector.send("t", texts("a", "b", "c", "d"))
        assert bodies(await read(connector, "t", 1, batch_max=2)) == [b"d"]

    async def test_duplicates(self, connector: MemoryConnector, broker: MemoryBroker) -> None:
        """The message is stored twice, at two positions."""
        broker.duplicate(lambda topic, message: message.body == b"b", times=1)
        await connector.send("t", texts("a", "b", "b"))
        assert [(each.position, each.message.body) for each in await read(connector, "t", 4)] == [
            (1, b"a"),
            (2, b"b"),
            (3, b"b"),
            (4, b"b"),
        ]

    async def test_a_log_put_back_and_written_past(self, connector: MemoryConnector, broker: MemoryBroker) -> None:
        """Length and identity look well, and the positions hold other messages: only a fingerprint tells."""
        await connector.send("t", texts("a", "b", "c"))
        before = (await connector.bounds("t"))[0]
        broker.rewind("t", 1)
        assert (await connector.bounds("t"))[0].end == 2
        await connector.send("t", texts("x", "y", "z"))
        after = (await connector.bounds("t"))[0]
        assert after.identity == before.identity
        assert after.end > before.end
        there = await connector.peek("t", 0, 3)
        assert there is not None
        assert there.body == b"y"

    async def test_rewinding_cuts_readers_off(self, connector: MemoryConnector, broker: MemoryBroker) -> None:
        """A server that was put back was restarted: who was reading has to look at the bounds again."""
        await connector.send("t", texts("a", "b"))
        faults: list[Callable[[], None]] = [lambda: broker.rewind("t", 1), lambda: broker.recreate("t")]
        for fault in faults:
            async with connector.receive("t", start={0: 5}, batch_max=9) as batches:
                waiting = asyncio.ensure_future(anext(batches))
                await asyncio.sleep(0)
                fault()
                with pytest.raises(Unavailable, match="bounds"):
                    await waiting

    async def test_a_recreated_log_is_another_one(self, connector: MemoryConnector, broker: MemoryBroker) -> None:
        """It is empty and has another identity."""
        await connector.send("t", texts("a"))
        before = (await connector.bounds("t"))[0]
        broker.recreate("t")
        after = (await connector.bounds("t"))[0]
        assert (after.first, after.end) == (1, 1)
        assert after.identity != before.identity

    async def test_a_trimmed_log_begins_later(self, connector: MemoryConnector, broker: MemoryBroker) -> None:
        """Positions stay; what was trimmed is not there for peek, and reading goes on behind it."""
        await connector.send("t", texts("a", "b", "c"))
        broker.trim("t", 3)
        assert (await connector.bounds("t"))[0][1:] == (3, 4)
        assert await connector.peek("t", 0, 2) is None
        assert [each.position for each in await read(connector, "t", 1)] == [3]
        broker.trim("t", 1)
        assert (await connector.bounds("t"))[0][1:] == (3, 4)
        broker.trim("t", 99)
        assert (await connector.bounds("t"))[0][1:] == (4, 4)
        await connector.send("t", texts("d"))
        assert [each.position for each in await read(connector, "t", 1)] == [4]
        assert behind(await connector.bounds("t"), {}) == 1

    async def test_rewinding_below_what_was_trimmed(self, connector: MemoryConnector, broker: MemoryBroker) -> None:
        """The log then begins, and goes on, where it was put back to."""
        await connector.send("t", texts("a", "b", "c"))
        broker.trim("t", 3)
        broker.rewind("t", 1)
        assert (await connector.bounds("t"))[0][1:] == (2, 2)

    async def test_delay(self, connector: MemoryConnector, broker: MemoryBroker) -> None:
        """A call takes that long before anything happens, so one that is given up did nothing."""
        broker.delay_s = 60.0
        sending = asyncio.ensure_future(connector.send("t", texts("a")))
        await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert broker.messages("t") == []
        broker.delay_s = 0.01
        started = asyncio.get_running_loop().time()
        await connector.send("t", texts("a"))
        assert asyncio.get_running_loop().time() - started >= 0.009

    async def test_heal(self, connector: MemoryConnector, broker: MemoryBroker) -> None:
        """One call ends every fault."""
        broker.drop()
        broker.duplicate()
        broker.delay_s = 60.0
        broker.down = True
        broker.heal()
        await connector.send("t", texts("a"))
        assert bodies(await read(connector, "t", 1)) == [b"a"]
        assert MemoryConnector.faults(broker.name) is broker


async def test_a_slow_listener_hears_the_latest(connector: MemoryConnector) -> None:
    """What newer digests of a node replaced is not queued up for a listener that stands still."""
    async with connector.listen("t") as announcements:
        await connector.announce("t", "a", b"first")
        await connector.announce("t", "b", b"x")
        for number in range(1000):
            await connector.announce("t", "a", b"%d" % number)
        assert [await anext(announcements) for _ in range(3)] == [
            Announced("b", b"x", 0.0),
            Announced("a", b"999", 0.0),
            Announced("", b"", 0.0),
        ]


async def test_a_busy_partition_does_not_starve_the_others(name: str) -> None:
    """Partitions are read in turn."""
    connector = MemoryConnector(f"memory://{name}", partitions=2)
    await connector.open()
    await connector.send("t", [Message(str(n), f"k{n}", {}, b"x") for n in range(100)])
    async with connector.receive("t", start={}, batch_max=5) as batches:
        assert [(await anext(batches))[0].partition for _ in range(6)] == [0, 1, 0, 1, 0, 1]
    await connector.close()


async def test_nothing_of_a_refused_call_is_stored(connector: MemoryConnector, broker: MemoryBroker) -> None:
    """One message that cannot be carried keeps the whole call out."""
    with pytest.raises(Rejected, match="header 'a b'"):
        await connector.send("t", [*texts("a"), Message("2", "k", {"a b": "c"}, b"b")])
    assert broker.messages("t") == []
