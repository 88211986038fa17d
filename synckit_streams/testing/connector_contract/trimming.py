"""Trimming: what everybody has goes, and nothing else."""

from __future__ import annotations

import pytest

from synckit_streams.errors import FeatureUnsupported
from synckit_streams.ports.connector import Connector
from synckit_streams.testing.connector_contract.groups import GROUP, joined, take
from synckit_streams.testing.connector_contract.kit import Bench, Factory, messages, opened, read


async def refuses_to_trim(connector: Connector, topic: str) -> bool:
    """Whether it declares that it cannot; then it has to refuse."""
    if connector.features.trims:
        return False
    with pytest.raises(FeatureUnsupported):
        await connector.trim(topic, below={0: 1})
    return True


class Trimming(Bench):
    """By the least position that anybody has still to read."""

    async def test_what_lies_below_a_position_is_trimmed(self, factory: Factory, topic: str) -> None:
        """The rest stays, in its places; another partition than those that were named stays as it is."""
        async with opened(factory) as connector:
            if await refuses_to_trim(connector, topic):
                return
            await connector.send(topic, messages(60))
            before = await connector.bounds(topic)
            await connector.trim(topic, below={})
            assert await connector.bounds(topic) == before
            below = {number: each.first + 4 for number, each in before.items() if each.end - each.first > 5}
            if len(below) > 1:
                below.popitem()
            await connector.trim(topic, below=below)
            await connector.trim(topic, below=dict.fromkeys(below, 0))
            after = await connector.bounds(topic)
            assert after == {
                number: each._replace(first=below.get(number, each.first)) for number, each in before.items()
            }
            got = await read(connector, topic, sum(each.end - each.first for each in after.values()))
            assert all(each.position >= below.get(each.partition, 0) for each in got)
            for number, position in below.items():
                assert await connector.peek(topic, number, position) is not None
                assert await connector.peek(topic, number, position - 1) is None

    async def test_a_log_that_is_trimmed_to_its_end_goes_on(self, factory: Factory, topic: str) -> None:
        """Positions do not begin anew, and a reader that stands before what was trimmed passes over it."""
        async with opened(factory) as connector:
            if await refuses_to_trim(connector, topic):
                return
            await connector.send(topic, messages(30))
            before = await connector.bounds(topic)
            await connector.trim(topic, below={number: each.end + 100 for number, each in before.items()})
            after = await connector.bounds(topic)
            assert all(each.first == each.end == before[number].end for number, each in after.items())
            await connector.send(topic, messages(30))
            got = await read(connector, topic, 30)
            assert len(got) == 30
            assert all(each.position >= before[each.partition].end for each in got)

    async def test_what_a_group_has_not_acknowledged_stays(self, factory: Factory, topic: str) -> None:
        """Whatever the replicas have: up to each group's first message that is not done."""
        async with opened(factory) as connector:
            if not connector.features.groups or await refuses_to_trim(connector, topic):
                return
            await connector.send(topic, messages(20, keys=1))
            (partition,) = {
                number for number, each in (await connector.bounds(topic)).items() if each.end > max(each.first, 1)
            }
            bounds = (await connector.bounds(topic))[partition]
            everything = {partition: bounds.end}
            async with connector.join(topic, group="beside", start={}, batch_max=100) as beside:
                await beside.ack(await take(beside, 20))
            async with joined(connector, topic) as member:
                got = await take(member, 20)
                await member.ack([*got[:4], *got[5:]])
                await connector.trim(topic, below=everything)
                assert (await connector.bounds(topic))[partition].first == got[4].position
                await member.ack(got[4:5])
            await connector.send(topic, messages(10, keys=1))
            await connector.trim(topic, below={partition: bounds.end + 10})
            # What was not delivered yet is not acknowledged either.
            assert (await connector.bounds(topic))[partition].first == bounds.end
            assert (await connector.progress(topic, group=GROUP)).waiting == 10
