"""A topic of ours as a source that several runners share: the broker's consumer group divides its messages.

There is no node here and no store: a message is acknowledged when the sink has what was in it, and until then the
broker keeps it for us. Whoever dies, or cannot deliver, leaves what he has not acknowledged to the others; so none is
lost, and one that was delivered just before may be delivered again, with the same ids.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack

from synckit_streams.connect.record import Portion, Record, Unreadable, derived_id
from synckit_streams.connect.spec import TopicSource as Spec
from synckit_streams.errors import FeatureUnsupported, FrameMalformed, SyncKitError, Unavailable
from synckit_streams.model.event import Offset
from synckit_streams.ports.connector import Connector, Delivery, Member
from synckit_streams.runtime.envelope import arrivals, fingerprint
from synckit_streams.runtime.registry import connector_for

logger = logging.getLogger("synckit_streams")

BATCH_MESSAGES = 500
GRACE_S = 0.05
"""How long `read` waits for what may be on its way."""
WAIT_S = 1.0
EXTEND_S = 5.0
"""How often the broker is told that somebody is still at work: the shortest `ack_wait_s` in use is longer."""


class GroupSource:
    """See the module's text.

    Args:
        spec: What the pipeline's file says; it names a group.
        name: For people.
        once: End when the whole group has acknowledged what is there.

    Raises:
        FeatureUnsupported: the broker has no groups.
    """

    def __init__(self, spec: Spec, name: str, *, once: bool) -> None:
        self._spec = spec
        self._once = once
        self._connector: Connector = connector_for(spec.connector)
        if not self._connector.features.groups:
            raise FeatureUnsupported(f"{name}: this connector has no groups", hint="leave group out")
        self._stack = AsyncExitStack()
        self._member: Member | None = None
        self._come: deque[Delivery] = deque()
        """Delivered to us, and in no portion yet."""
        self._under_way: deque[list[Delivery]] = deque()
        """By portion: acknowledged when it is done."""
        self._extending: asyncio.Task[None] | None = None
        self.name = name

    async def open(self, position: Offset | None) -> None:
        """See `Source`; the group's position is the broker's."""
        await self._connector.open()
        joining = self._connector.join(self._spec.topic, group=self._spec.group, start={}, batch_max=BATCH_MESSAGES)
        self._member = await self._stack.enter_async_context(joining)
        self._extending = asyncio.create_task(self._extend(self._member))

    async def _extend(self, member: Member) -> None:
        while True:
            await asyncio.sleep(EXTEND_S)
            held = [*self._come, *(each for portion in self._under_way for each in portion)]
            if held:
                try:
                    await member.extend(held)
                except SyncKitError as error:  # then it may come again, to somebody else
                    logger.warning("%s: the broker was not told that work goes on: %s", self.name, error)

    async def read(self, limit: int) -> Portion | None:
        """See `Source`. A packed message is not divided, so that a portion may be larger by one."""
        if not self._come:
            await self._receive(GRACE_S)
        while self._once and not self._come and not self._under_way and not await self._joined.settled():
            # What is left is with others of the group. If they die with it, it comes here.
            await self._receive(WAIT_S)
        if not self._come:
            return None
        items: list[Record | Unreadable] = []
        deliveries: list[Delivery] = []
        while self._come and len(items) < limit:
            delivery = self._come.popleft()
            deliveries.append(delivery)
            items += self._items(delivery)
        self._under_way.append(deliveries)
        return Portion(items, None)

    @property
    def _joined(self) -> Member:
        assert self._member is not None, "the source is not open"
        return self._member

    async def _receive(self, within_s: float) -> None:
        try:
            async with asyncio.timeout(within_s):
                batch = await anext(self._joined, None)
        except TimeoutError:
            return
        if batch is None:
            raise Unavailable(f"{self.name}: the connection has ended")
        self._come.extend(batch)

    def _items(self, delivery: Delivery) -> Sequence[Record | Unreadable]:
        message, topic = delivery.message, self._spec.topic
        return [
            Record.of_event(each.event)
            if each.event is not None
            else Unreadable(derived_id(topic, fingerprint(message).hex()), each.raw, FrameMalformed(each.reason))
            for each in arrivals(message, topic, None)
        ]

    async def wait(self) -> None:
        """See `Source`."""
        await self._receive(WAIT_S)

    async def done(self, portion: Portion) -> None:
        """Only now: what is acknowledged is with the sink."""
        await self._joined.ack(self._under_way[0])
        self._under_way.popleft()

    async def lag(self) -> int | None:
        """Messages that the whole group has not acknowledged; those that are under way here are left out."""
        progress = await self._connector.progress(self._spec.topic, group=self._spec.group)
        return max(progress.lag - sum(map(len, self._under_way)), 0)

    async def close(self) -> None:
        """See `Source`. What is not acknowledged the others get at once."""
        extending, self._extending = self._extending, None
        if extending is not None:
            extending.cancel()
            await asyncio.gather(extending, return_exceptions=True)
        self._member = None
        self._come.clear()
        self._under_way.clear()
        try:
            await self._stack.aclose()
        finally:
            await self._connector.close()
