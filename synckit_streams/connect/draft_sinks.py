"""Sinks that write events: a store of ours, and a topic, which is a store that syncs.

A topic is written to the store of a node, at once, and whether or not a broker is there; the node syncs when one is. A
store knows ids: what comes again is there already.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from synckit_streams.connect.record import Record, Refusal
from synckit_streams.connect.spec import StoreSink as StoreSpec
from synckit_streams.connect.spec import TopicSink as TopicSpec
from synckit_streams.connect.writer import Writer, node_id_for, open_writer
from synckit_streams.errors import IdReused, Invalid, SyncKitError, TooLarge, Unavailable
from synckit_streams.model.codec import check_draft
from synckit_streams.model.event import Draft
from synckit_streams.ports.telemetry import Observer
from synckit_streams.runtime.node import SyncNode

ABOUT_A_DRAFT = (IdReused, Invalid, TooLarge)
"""What a store says of a record and not of itself."""

Append = Callable[[Sequence[Draft]], Awaitable[Any]]


async def append_or_refuse(append: Append, records: Sequence[Record], topic: str) -> list[Refusal]:
    """Write records in one commit if nothing is wrong with any of them; gives those that cannot be written."""
    drafts: list[tuple[Record, Draft]] = []
    refused: list[Refusal] = []
    for record in records:
        try:
            draft = record.draft(topic)
            check_draft(draft)
        except SyncKitError as error:
            refused.append(Refusal(record, error))
        else:
            drafts.append((record, draft))
    await _append(append, drafts, refused)
    return refused


async def _append(append: Append, drafts: Sequence[tuple[Record, Draft]], refused: list[Refusal]) -> None:
    if not drafts:
        return
    try:
        await append([draft for _, draft in drafts])
    except ABOUT_A_DRAFT as error:
        if len(drafts) == 1:
            refused.append(Refusal(drafts[0][0], error))
            return
        middle = len(drafts) // 2  # which one it is, halving tells
        await _append(append, drafts[:middle], refused)
        await _append(append, drafts[middle:], refused)


class StoreSink:
    """A store of ours.

    Args:
        spec: What the pipeline's file says.
        url: Of the store.
        name: For people.
    """

    def __init__(self, spec: StoreSpec, url: str, name: str) -> None:
        self._spec = spec
        self._url = url
        self._writer: Writer | None = None
        self.name = name

    async def open(self) -> None:
        """See `Sink`."""
        self._writer = await open_writer(self._url, self._spec.node)

    async def write(self, records: Sequence[Record]) -> Sequence[Refusal]:
        """See `Sink`."""
        assert self._writer is not None
        return await append_or_refuse(self._writer.append, records, self._spec.topic)

    async def settle(self) -> None:
        """It is there already."""

    async def close(self) -> None:
        """See `Sink`."""
        writer, self._writer = self._writer, None
        if writer is not None:
            await writer.close()


class TopicSink:
    """A topic at a broker.

    Args:
        spec: What the pipeline's file says.
        url: Of the node's store.
        topics: Every topic to which records may go.
        name: For people.
        observer: Told of what the node does.
    """

    def __init__(
        self, spec: TopicSpec, url: str, topics: Sequence[str], name: str, observer: Observer | None = None
    ) -> None:
        self._spec = spec
        self._url = url
        self._topics = topics
        self._observer = observer
        self._node: SyncNode | None = None
        self.name = name

    async def open(self) -> None:
        """See `Sink`. No broker is needed."""
        node = SyncNode(
            await node_id_for(self._url, self._spec.node),
            store=self._url,
            connectors=[self._spec.connector],
            topics=self._topics,
            packing=self._spec.packing,
            push_only=True,
            observer=self._observer,
        )
        await node.open()
        self._node = node
        await node.start_auto_sync()

    async def write(self, records: Sequence[Record]) -> Sequence[Refusal]:
        """See `Sink`."""
        assert self._node is not None
        return await append_or_refuse(self._node.append_many, records, self._spec.topic)

    async def settle(self) -> None:
        """Until the broker has everything.

        Raises:
            Unavailable: it has not: what was written waits in the node's store.
        """
        assert self._node is not None
        result = await self._node.sync()
        if not result.complete:
            raise Unavailable(f"{self.name} has not confirmed everything yet")

    async def close(self) -> None:
        """See `Sink`."""
        node, self._node = self._node, None
        if node is not None:
            await node.close()
