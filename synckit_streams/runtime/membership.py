"""Reading a topic as a member of a consumer group: the broker divides the messages, the store still knows its place.

The broker's position alone would not do. It survives a store that was restored from a backup, and what lies in between
would never come again. So the store keeps a place as a replica's does: the *acknowledged* position of the group, up to
which everything was committed here before it was acknowledged there. Whoever joins reads from the store's place to the
group's by himself, and only then takes part in the group.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from synckit_streams.model.event import Offset
from synckit_streams.model.exchange import PlaceRun
from synckit_streams.ports.connector import Bounds, Connector, Delivery, Progress
from synckit_streams.runtime.envelope import arrivals, fingerprint
from synckit_streams.runtime.intake import Intake
from synckit_streams.sync.channel import Channel
from synckit_streams.sync.places import Places

LOOK_S = 1.0
"""How often a member looks how far the group has come while it acknowledges nothing itself."""
LOOK_PAUSE_S = 0.05
"""Least time between two such looks."""
MARKS_MAX = 1_000


class Consumer(Protocol):
    """What a membership needs of its session."""

    async def consume(
        self, topic: str, batches: AsyncIterator[Sequence[Delivery]], take: Callable[[Intake], Awaitable[None]]
    ) -> None:
        """Go through the batches until they end; one is committed while the next is decoded."""

    async def commit(self, topic: str, intake: Intake, offset: Offset | None) -> None:
        """Make it durable."""

    async def stand(self, topic: str, partition: int, offset: Offset) -> None:
        """The reader's place is here now."""


class Membership:
    """See the module's text.

    Args:
        consumer: The session.
        connector: Open, with groups.
        channel: Of the topic, just joined.
        group: The group's name.
        batch_max: Most messages in a batch.
    """

    def __init__(self, consumer: Consumer, connector: Connector, channel: Channel, group: str, batch_max: int) -> None:
        self._consumer = consumer
        self._connector = connector
        self._channel = channel
        self._group = group
        self._batch_max = batch_max
        self._topic = channel.topic
        self._identity = dict(channel.identity)
        self._marks: dict[int, deque[tuple[int, bytes]]] = {}
        """Per partition, the fingerprints of what was committed here and lies beyond the store's place."""
        self._acknowledged = asyncio.Event()

    async def run(self) -> None:
        """Read for as long as the group does; ends when the member is told that there is no more."""
        await self._catch_up()
        start = dict(self._channel.position)
        joining = self._connector.join(self._topic, group=self._group, start=start, batch_max=self._batch_max)
        async with joining as member:

            async def take(intake: Intake) -> None:
                await self._consumer.commit(self._topic, intake, None)
                self._mark(intake.taken[-1])
                # Only now: what is acknowledged is durable.
                await member.ack(intake.taken)
                self._acknowledged.set()

            async def read() -> None:
                await self._consumer.consume(self._topic, member, take)

            # Either may fail, and then the other ends with it.
            tasks = [asyncio.create_task(read()), asyncio.create_task(self._follow())]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                ended = await asyncio.gather(*tasks, return_exceptions=True)
        for result in ended:
            if isinstance(result, Exception):
                raise result

    # --- up to where the group stands --------------------------------------------------------------------------------

    async def _catch_up(self) -> None:
        """Read what the group has acknowledged and this store does not have: it was put back, or is a new one."""
        channel = self._channel
        acknowledged = (await self._progress()).acknowledged
        goal = {
            number: min(position, channel.target[number] - 1)
            for number, position in acknowledged.items()
            if number in channel.target
        }
        goal = {
            number: position
            for number, position in goal.items()
            if max(channel.position.get(number, 0) + 1, channel.first[number]) <= position
        }
        if not goal:
            return
        start = dict(channel.position)
        async with self._connector.receive(self._topic, start=start, batch_max=self._batch_max) as batches:
            await self._consumer.consume(self._topic, _until(batches, goal), self._take_in_order)

    async def _take_in_order(self, intake: Intake) -> None:
        last = intake.taken[-1]
        offset = Offset(self._identity.get(last.partition, ""), last.position, fingerprint(last.message))
        await self._consumer.commit(self._topic, intake, offset)

    # --- with the group ----------------------------------------------------------------------------------------------

    async def _progress(self) -> Progress:
        return await self._connector.progress(self._topic, group=self._group)

    def _mark(self, last: Delivery) -> None:
        marks = self._marks.setdefault(last.partition, deque(maxlen=MARKS_MAX))
        marks.append((last.position, fingerprint(last.message)))

    async def _follow(self) -> None:
        """Move the store's place behind what the group has acknowledged."""
        while True:
            self._acknowledged.clear()
            for partition, position in (await self._progress()).acknowledged.items():
                if position > self._channel.position.get(partition, 0):
                    await self._stand(partition, position)
            await asyncio.sleep(LOOK_PAUSE_S)
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._acknowledged.wait()
            except TimeoutError:
                pass  # somebody else may have acknowledged something

    async def _stand(self, partition: int, position: int) -> None:
        """A place needs a witness: the message that lies there, or the last one before it that we know."""
        marks = self._marks.get(partition, deque())
        known: tuple[int, bytes] | None = None
        while marks and marks[0][0] <= position:
            known = max(marks.popleft(), known or (0, b""))
        if known is None or known[0] < position:
            message = await self._connector.peek(self._topic, partition, position)
            if message is not None:
                known = (position, fingerprint(message))
        if known is not None and known[0] > self._channel.position.get(partition, 0):
            await self._consumer.stand(self._topic, partition, Offset(self._identity.get(partition, ""), *known))


async def _until(
    batches: AsyncIterator[Sequence[Delivery]], goal: Mapping[int, int]
) -> AsyncIterator[Sequence[Delivery]]:
    """Batches, until every partition has come so far."""
    left = dict(goal)
    async for batch in batches:
        yield batch
        last = batch[-1]
        if last.position >= left.get(last.partition, last.position + 1):
            del left[last.partition]
        if not left:
            return


def places_of(runs: Sequence[tuple[int, PlaceRun]]) -> Places:
    """Where events were read, as a store has it: per partition, runs."""
    places = Places()
    for partition, run in runs:
        places.add(run.origin, run.first, run.positions, partition)
    return places


async def witness_beyond(
    connector: Connector, topic: str, bounds: Mapping[int, Bounds], stored: Mapping[int, Offset], places: Places
) -> dict[int, bool | None]:
    """In which partitions the last event that was read is not where it was (False).

    A member of a group reads beyond the store's place. A log that was put back to somewhere in between would look as if
    nothing had happened to it, and what was read there would count as being in the log.
    """
    found: dict[int, bool | None] = {}
    for partition, (position, origin, seq) in places.highest().items():
        log, offset = bounds.get(partition), stored.get(partition)
        if log is None or offset is None or offset.log != log.identity:
            continue
        if position <= offset.position or position < log.first:
            continue
        message = await connector.peek(topic, partition, position) if position < log.end else None
        events = [] if message is None else [each.event for each in arrivals(message, topic, None)]
        if not any(event is not None and (event.origin, event.seq) == (origin, seq) for event in events):
            found[partition] = False
    return found
