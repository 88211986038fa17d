"""What a session publishes: page by page out of the store, and never far ahead of what it reads back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from synckit_streams.errors import Rejected, StoreCorrupt, TooLarge
from synckit_streams.model.event import Event
from synckit_streams.model.seen import Seen
from synckit_streams.ports import telemetry
from synckit_streams.ports.connector import Message
from synckit_streams.runtime.echoes import Echoes
from synckit_streams.runtime.envelope import to_messages, traces_of
from synckit_streams.runtime.paging import PageSize
from synckit_streams.sync import protocol

if TYPE_CHECKING:
    from synckit_streams.runtime.link import Link

AHEAD_EVENTS_MAX = 4_000
"""How many events may be sent and not yet read back before the next page waits for the reader."""


class Sending:
    """See the module's text.

    Args:
        link: Over what.
        echoes: Told of each message, to know it again when it comes back.
        give: Gives the replica an input.
        progressed: Called when the broker has taken a page.
    """

    def __init__(
        self,
        link: Link,
        echoes: Echoes,
        give: Callable[[protocol.Input], Awaitable[Any]],
        progressed: Callable[[], None],
    ) -> None:
        self.committed = asyncio.Event()
        """Set by whoever reads back, whenever something of that is durable."""
        self._link = link
        self._driver = link.driver
        self._echoes = echoes
        self._give = give
        self._progressed = progressed
        self._size = PageSize(link.driver.settings.batch_events)

    async def send(self, effect: protocol.Publish) -> None:
        """Publish these events; what does not go through is unsent again.

        Raises:
            ConnectorError: the broker does not answer, or takes nothing.
            StoreError: the store cannot give them.
        """
        topic, left = effect.topic, effect.events
        size = self._size
        try:
            # What an earlier incarnation left first: what was written since may be caused by it, and whoever is killed
            # in between would leave that waiting for its cause at everybody else's.
            now = self._driver.store.origin
            for origin, intervals in sorted(effect.events.ranges.items(), key=lambda each: (each[0] == now, each)):
                for first, last in intervals:
                    while first <= last:
                        await self._echoed(topic)
                        page = await self._driver.events(topic, origin, (first, last), limit=size.events)
                        if not page or page[-1][0].seq != first + len(page) - 1:
                            # Going on would be trying again, at once and for ever.
                            raise StoreCorrupt(f"the store has lost events of {origin!r} on {topic!r} from {first} on")
                        size.learn([event for event, _ in page])
                        await self._page(topic, page, again=effect.again)
                        left = left.minus(Seen({origin: ((first, page[-1][0].seq),)}))
                        first = page[-1][0].seq + 1
        finally:
            if left:
                await self._give(protocol.Failed(self._link.name, topic, left))

    async def _echoed(self, topic: str) -> None:
        """Until not too much of what was sent is still to be read back: more of it would only fill the memory."""
        channel = self._driver.replica.channel(self._link.name, topic)
        assert channel is not None
        while sum(len(events) for events, barrier in channel.flights if barrier is not None) > AHEAD_EVENTS_MAX:
            self.committed.clear()
            await self.committed.wait()

    async def _page(self, topic: str, page: Sequence[tuple[Event, bytes]], *, again: bool) -> None:
        driver, connector = self._driver, self._link.connector
        started = asyncio.get_running_loop().time()
        round_id = driver.world.entropy(6).hex()
        parcels = to_messages(
            page, packing=driver.settings.packing, round_id=round_id, bytes_max=connector.features.bytes_max
        )
        messages = [parcel.message for parcel in parcels]
        for parcel in parcels:
            self._echoes.expect(parcel)
        sent = Seen.of((event.origin, event.seq) for event, _ in page)
        try:
            with driver.operation("publish"):
                barrier = await connector.send(topic, messages)
                self._observe_published(topic, page, messages, again=again, started=started)
        except (TooLarge, Rejected):
            if len(page) > 1:  # one of them: find it, and let the others pass
                for part in (page[: len(page) // 2], page[len(page) // 2 :]):
                    await self._page(topic, part, again=again)
            else:
                await self._give(protocol.Refused(self._link.name, topic, sent))
            return
        self._progressed()
        if not again:
            self._link.counts.pushed += len(page)
        await self._give(protocol.Sent(self._link.name, topic, sent, barrier))

    def _observe_published(
        self,
        topic: str,
        page: Sequence[tuple[Event, bytes]],
        messages: Sequence[Message],
        *,
        again: bool,
        started: float,
    ) -> None:
        traces = traces_of(event for event, _ in page)
        self._driver.observe(
            telemetry.Published(
                node=self._driver.settings.node,
                connector=self._link.name,
                topic=topic,
                events=len(page),
                messages=len(messages),
                bytes=sum(len(message.body) for message in messages),
                again=len(page) if again else 0,
                traceparents=traces[: telemetry.TRACES_MAX],
                traces=len(traces),
                duration_s=asyncio.get_running_loop().time() - started,
            )
        )
