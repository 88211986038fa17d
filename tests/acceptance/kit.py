"""What the acceptance tests share: drafts, patience, and an observer that remembers."""

from __future__ import annotations

import asyncio
import inspect
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from synckit_connectors.memory import MemoryConnector
from synckit_streams import Draft, Event, SyncNode
from synckit_streams.model.cloudevent import to_headers
from synckit_streams.model.codec import event_hash
from synckit_streams.ports.connector import Message
from synckit_streams.ports.telemetry import Alarmed, Detail

DetailT = TypeVar("DetailT", bound=Detail)


class Make(Protocol):
    """See the fixture `make`."""

    def __call__(self, node_id: str, url: str | None, **settings: Any) -> Awaitable[SyncNode]: ...


def draft(topic: str, aggregate_id: str = "o-1", data: Any = None, **more: Any) -> Draft:
    """A draft with what does not matter filled in."""
    return Draft(topic=topic, type="order.changed", aggregate_id=aggregate_id, data=data, **more)


def drafts(topic: str, times: int, *, start: int = 0) -> list[Draft]:
    """So many, each of its own aggregate."""
    return [draft(topic, f"o-{number}", {"n": number}) for number in range(start, start + times)]


async def eventually(condition: Callable[[], Any], *, seconds: float = 15.0, what: str = "") -> float:
    """Wait until it holds, and give how long that took; no longer than `seconds`."""
    started = time.monotonic()
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return time.monotonic() - started
        assert time.monotonic() - started < seconds, f"not within {seconds:g} s: {what or inspect.getsource(condition)}"
        await asyncio.sleep(0.005)


async def ids(node: SyncNode, topic: str) -> list[str]:
    """The ids of every event that a node has, in the order of its log."""
    return [stored.event.id async for stored in node.log(topic)]


async def same(topic: str, *nodes: SyncNode) -> bool:
    """Whether the nodes hold the same events, by their digests."""
    return len({await node.digest(topic) for node in nodes}) == 1


def crafted(topic: str, origin: str, seq: int, **fields: Any) -> Event:
    """An event that no node of ours would write."""
    made: dict[str, Any] = {
        "id": f"{origin}:{seq}",
        "topic": topic,
        "type": "order.changed",
        "aggregate_id": f"{origin}:{seq}",
        "payload": b"{}",
        "metadata_json": b"",
        "origin": origin,
        "seq": seq,
        "prev": 0,
        "context_bytes": b"",
        "after_bytes": b"",
        "at_packed": 1 << 16,
    }
    return Event(**made | fields)


def message_of(event: Event) -> Message:
    """It, as a node would send it."""
    return Message(uuid.uuid4().hex, event.aggregate_id, to_headers(event, event_hash(event)), event.payload)


async def inject(url: str, topic: str, *messages: Message) -> None:
    """Put messages into a topic's log, past every check of ours."""
    connector = MemoryConnector(url, bytes_max=1 << 30)
    await connector.open()
    await connector.send(topic, messages)
    await connector.close()


async def announce(url: str, topic: str, node: str, body: bytes) -> None:
    """Leave a digest in a node's name."""
    connector = MemoryConnector(url)
    await connector.open()
    await connector.announce(topic, node, body)
    await connector.close()


class Recorder:
    """An observer that keeps what it was told, and how many syncs ran at once."""

    def __init__(self) -> None:
        self.details: list[Detail] = []
        self.now: dict[str, int] = {}
        self.most: dict[str, int] = {}

    @contextmanager
    def operation(self, name: str, *, node: str) -> Iterator[str]:
        """See `Observer`."""
        self.now[name] = self.now.get(name, 0) + 1
        self.most[name] = max(self.now[name], self.most.get(name, 0))
        try:
            yield ""
        finally:
            self.now[name] -= 1

    def observe(self, detail: Detail) -> None:
        """See `Observer`."""
        self.details.append(detail)

    def of(self, kind: type[DetailT]) -> list[DetailT]:
        """What it was told of one kind."""
        return [detail for detail in self.details if isinstance(detail, kind)]

    def alarms(self) -> set[str]:
        """The kinds of alarm that it heard."""
        return {alarm.kind for alarm in self.of(Alarmed)}
