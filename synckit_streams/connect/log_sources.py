"""Sources that read a log of ours: an outbox, the log of a node beside us, and a topic, by a node of our own."""

from __future__ import annotations

import asyncio
import logging

from synckit_streams.connect.record import Portion, Record
from synckit_streams.connect.spec import BATCH_RECORDS_MAX
from synckit_streams.connect.spec import OutboxSource as OutboxSpec
from synckit_streams.connect.spec import TopicSource as TopicSpec
from synckit_streams.connect.writer import node_id_for
from synckit_streams.model.event import Offset
from synckit_streams.ports.store import EventStore
from synckit_streams.ports.telemetry import Observer
from synckit_streams.runtime.node import SyncNode
from synckit_streams.runtime.ownership import open_reader
from synckit_streams.runtime.paging import PageSize

logger = logging.getLogger("synckit_streams")

LOOK_S = 0.2


class LogReader:
    """Reads a store's log on from a position, each fact once.

    Args:
        store: Open.
        topic: Only this one; "" is all.
        position: Where to begin; None is at the beginning.
    """

    def __init__(self, store: EventStore, topic: str, position: Offset | None) -> None:
        self._store = store
        self._topic = topic or None
        self._position = position
        self._size = PageSize(BATCH_RECORDS_MAX)

    @classmethod
    async def begin(cls, store: EventStore, topic: str, position: Offset | None) -> LogReader:
        """Also in a store that took the place of another one: from its beginning, since sinks know what they have."""
        end = await store.end()
        if position is not None and position.log != end.log:
            logger.warning("%s is another log than was read before: it is read from its beginning", store.name)
            position = None
        return cls(store, topic, position)

    async def read(self, limit: int) -> Portion | None:
        """See `Source`."""
        page = await self._store.log(self._topic, after=self._position, limit=min(limit, self._size.events))
        if not page:
            return None
        self._size.learn([each.event for each in page])
        self._position = page[-1].offset
        return Portion([Record.of_event(each.event) for each in page if not each.twin], self._position)

    async def lag(self) -> int:
        """Events behind the position, those of other topics included."""
        end = await self._store.end()
        return end.position - (self._position.position if self._position is not None else 0)


class _LogSource:
    """What every source does that reads a log of ours, once that is open."""

    _log: LogReader | None = None

    async def read(self, limit: int) -> Portion | None:
        """See `Source`."""
        assert self._log is not None
        return await self._log.read(limit)

    async def wait(self) -> None:
        """See `Source`."""
        await asyncio.sleep(LOOK_S)

    async def done(self, portion: Portion) -> None:
        """The position says it."""

    async def lag(self) -> int | None:
        """Of what is in the log: of a topic, what has come from the broker."""
        assert self._log is not None
        return await self._log.lag()


class OutboxSource(_LogSource):
    """A store's log. The store is only looked at, so its node goes on as if nobody read.

    Args:
        spec: What the pipeline's file says.
        url: Of the store.
        name: For people.
    """

    def __init__(self, spec: OutboxSpec, url: str, name: str) -> None:
        self._spec = spec
        self._url = url
        self._store: EventStore | None = None
        self.name = name

    async def open(self, position: Offset | None) -> None:
        """See `Source`."""
        self._store = await open_reader(self._url)
        self._log = await LogReader.begin(self._store, self._spec.topic, position)

    async def close(self) -> None:
        """See `Source`."""
        store, self._store, self._log = self._store, None, None
        if store is not None:
            await store.close()


class TopicSource(_LogSource):
    """A topic at a broker. What comes is kept in the node's own store, and read from there.

    Args:
        spec: What the pipeline's file says.
        url: Of the node's store.
        once: Meet the broker once, and end with what is there then.
        name: For people.
        observer: Told of what the node does.
    """

    def __init__(self, spec: TopicSpec, url: str, name: str, *, once: bool, observer: Observer | None = None) -> None:
        self._spec = spec
        self._url = url
        self._once = once
        self._observer = observer
        self._node: SyncNode | None = None
        self.name = name

    async def open(self, position: Offset | None) -> None:
        """See `Source`. What is in the node's store can be read without a broker."""
        node = SyncNode(
            await node_id_for(self._url, self._spec.node),
            store=self._url,
            connectors=[self._spec.connector],
            topics=[self._spec.topic],
            observer=self._observer,
        )
        self._node = await node.open()
        if self._once:
            await node.sync()
        else:
            await node.start_auto_sync()
        self._log = await LogReader.begin(node.store, self._spec.topic, position)

    async def close(self) -> None:
        """See `Source`."""
        node, self._node, self._log = self._node, None, None
        if node is not None:
            await node.close()
