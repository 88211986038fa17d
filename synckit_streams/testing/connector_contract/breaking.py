"""A broker that goes away and comes back, and a log that is made anew while somebody reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

import pytest

from synckit_streams.errors import Rejected, Timeout, Unavailable
from synckit_streams.ports.connector import Connector, Delivery, Message
from synckit_streams.testing.connector_contract.groups import GROUP, refuses
from synckit_streams.testing.connector_contract.kit import Bench, bodies, message

OUTAGE_S = 60.0
"""For whoever has to come back; a real server takes seconds to start."""
AWAY = (Unavailable, Timeout)


class OwnBroker(Protocol):
    """A broker of the test's own, which it may break."""

    def connector(self) -> Connector:
        """A new connector to it, not yet open."""

    async def restart(self) -> None:
        """Stop it, and start it again with all that it holds durably."""

    async def delete(self, topic: str) -> None:
        """Delete a topic's log, as an operator does."""


def numbered(first: int, count: int) -> list[Message]:
    return [message("same", body=b"%d" % number) for number in range(first, first + count)]


async def send(connector: Connector, topic: str, sent: list[Message]) -> None:
    """Until the broker has them; some may be there twice then."""
    while True:
        try:
            await connector.open()
            await connector.send(topic, sent)
        except (*AWAY, Rejected):  # what was sent before the outage may be a duplicate now
            await asyncio.sleep(0.05)
            sent = [message(each.partition_key, body=each.body) for each in sent]
        else:
            return


async def _all(batches: AsyncIterator[Sequence[Delivery]]) -> None:
    async for _ in batches:
        pass


class Breaking(Bench):
    """What a connector makes of a broker that is restarted, and of a log that is another one."""

    @pytest.fixture
    def own_broker(self) -> OwnBroker:
        """Override me: a broker that nobody else uses."""
        raise NotImplementedError("override the fixture own_broker")

    async def test_a_reader_goes_on_after_a_restart(self, own_broker: OwnBroker, topic: str) -> None:
        """By itself, or it says that it cannot; nothing that was there is passed over, and the order stays."""
        reader, writer = own_broker.connector(), own_broker.connector()
        got: list[Delivery] = []
        async with asyncio.timeout(OUTAGE_S):
            await send(writer, topic, numbered(0, 20))
            await reader.open()
            while len(got) < 20:
                await self._read_on(reader, topic, got, lambda: len(got) >= 10)
                if len(got) < 20:
                    await own_broker.restart()
                    await self._read_on(reader, topic, got, lambda: len(got) >= 20)
            await own_broker.restart()
            await send(writer, topic, numbered(20, 20))
            await self._read_on(reader, topic, got, lambda: {b"%d" % n for n in range(40)} <= set(bodies(got)))
            await reader.close()
            await writer.close()
        positions = [each.position for each in got]
        assert positions == sorted(set(positions))

    @staticmethod
    async def _read_on(reader: Connector, topic: str, got: list[Delivery], enough: Callable[[], bool]) -> None:
        """Behind what was read, again and again while the broker is away."""
        while not enough():
            start = {got[-1].partition: got[-1].position} if got else {}
            try:
                await reader.open()
                async with reader.receive(topic, start=start, batch_max=10) as batches:
                    while not enough():
                        got += await anext(batches)
            except AWAY:
                await asyncio.sleep(0.05)

    async def test_a_member_goes_on_after_a_restart(self, own_broker: OwnBroker, topic: str) -> None:
        """What it had not acknowledged comes again, and in the end all is done."""
        worker, writer = own_broker.connector(), own_broker.connector()
        done: set[bytes] = set()
        async with asyncio.timeout(2 * OUTAGE_S):
            await send(writer, topic, numbered(0, 30))
            await worker.open()
            if await refuses(worker, topic):
                await worker.close()
                await writer.close()
                return
            restarted = False
            while len(done) < 30:
                try:
                    await worker.open()
                    async with worker.join(topic, group=GROUP, start={}, batch_max=10) as member:
                        while len(done) < 30:
                            batch = await anext(member)
                            if not restarted:
                                await own_broker.restart()
                                restarted = True
                            done.update(bodies(batch))
                            await member.ack(batch)
                except AWAY:
                    await asyncio.sleep(0.05)
            await worker.close()
            await writer.close()
        assert restarted

    async def test_a_log_that_is_made_anew_ends_its_readers(self, own_broker: OwnBroker, topic: str) -> None:
        """Whoever reads it is told, and looks: a place in the old log says nothing of the new one."""
        reader, writer = own_broker.connector(), own_broker.connector()
        async with asyncio.timeout(OUTAGE_S):
            await writer.open()
            await reader.open()
            await writer.send(topic, numbered(0, 10))
            async with reader.receive(topic, start={}, batch_max=100) as batches:
                count = 0
                while count < 10:
                    count += len(await anext(batches))
                await own_broker.delete(topic)
                await send(writer, topic, numbered(100, 3))
                with pytest.raises(Unavailable):
                    await _all(batches)
            await send(writer, topic, numbered(200, 1))
            again: list[Delivery] = []
            await self._read_on(reader, topic, again, lambda: b"200" in bodies(again))
            assert b"100" in bodies(again)
            assert not {b"%d" % number for number in range(10)} & set(bodies(again))
            await reader.close()
            await writer.close()
