"""Where messages lie: order, positions, bounds and lag."""

from __future__ import annotations

import asyncio

import pytest

from synckit_streams.errors import FeatureUnsupported
from synckit_streams.ports.connector import behind
from synckit_streams.testing.connector_contract.kit import (
    DEADLINE_S,
    Bench,
    Factory,
    bodies,
    message,
    messages,
    opened,
    read,
)


class Places(Bench):
    """What is asked about a log."""

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
            async with connector.receive(topic, start=ahead, batch_max=10) as batches:
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
            async with connector.receive(topic, start={}, batch_max=batch_max) as batches:
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
            assert behind(await connector.bounds(topic), {}) == 0
            await connector.send(topic, [message(body=b"%d" % n) for n in range(10)])
            assert behind(await connector.bounds(topic), {}) == 10
            got = await read(connector, topic, 10)
            at = got[3]
            bounds = await connector.bounds(topic)
            start = {at.partition: at.position}
            assert behind(bounds, start) == sum(each.position > start.get(each.partition, 0) for each in got)
