"""What the parts of the contract share: messages, readers, and the fixtures."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest

from synckit_streams.ports.connector import Announced, Connector, Delivery, Message

DEADLINE_S = 30.0
"""Nothing here takes that long; whoever waits longer waits for ever."""

HEADER_OVERHEAD_BYTES = 4
PRINTABLE = "".join(chr(code) for code in range(0x21, 0x7F))

Factory = Callable[[], Connector]
Foreign = Callable[[str, Sequence[bytes]], Awaitable[None]]
"""Writes bodies to a source of the broker's own, as a producer does that knows nothing of us; makes it, too."""


def message(key: str = "k", *, body: bytes = b"{}", headers: Mapping[str, str] | None = None) -> Message:
    """A message with an id of its own."""
    return Message(uuid.uuid4().hex, key, headers or {}, body)


def messages(count: int, *, keys: int = 7) -> list[Message]:
    """Small messages, told apart by their bodies, over some keys."""
    return [message(f"key-{number % keys}", body=b"%d" % number) for number in range(count)]


def bodies(deliveries: Sequence[Delivery]) -> list[bytes]:
    return [delivery.message.body for delivery in deliveries]


@asynccontextmanager
async def opened(factory: Factory) -> AsyncIterator[Connector]:
    """A connector, open for a while, under the deadline."""
    connector = factory()
    async with asyncio.timeout(DEADLINE_S):
        await connector.open()
        try:
            yield connector
        finally:
            await connector.close()


async def read(
    connector: Connector, topic: str, count: int, *, start: Mapping[int, int] | None = None, batch_max: int = 500
) -> list[Delivery]:
    """The first `count` deliveries, or more if the last batch has more."""
    got: list[Delivery] = []
    async with connector.receive(topic, start=start or {}, batch_max=batch_max) as batches:
        while len(got) < count:
            got.extend(await anext(batches))
    return got


async def heard(connector: Connector, topic: str) -> dict[str, Announced]:
    """The retained digests: what comes before the marker."""
    found: dict[str, Announced] = {}
    async with connector.listen(topic) as announcements:
        async for announced in announcements:
            if not announced.node:
                break
            found[announced.node] = announced
    return found


async def trickle(connector: Connector, topic: str, sent: Sequence[Message]) -> None:
    """Send a few at a time."""
    for at in range(0, len(sent), 10):
        await connector.send(topic, sent[at : at + 10])


def _kept(connector_factory: Factory) -> Factory:
    # One connector stays until the test ends: a broker inside the process is there as long as somebody is on it.
    keeper = connector_factory()

    def make(_keeper: Connector = keeper) -> Connector:
        return connector_factory()

    return make


class Bench:
    """The fixtures of every part of the contract."""

    pytestmark = pytest.mark.asyncio

    ack_wait_s = 1.0
    """After so long an impatient connector's group delivers again."""

    ahead_bytes_max = 16 * 1024 * 1024
    """What a reader that stands still may cost; a connector that cannot do better says so here."""

    @pytest.fixture
    def connector_factory(self) -> Factory:
        """Override me: a function that makes a connector, not yet open, to one and the same broker."""
        raise NotImplementedError("override the fixture connector_factory")

    @pytest.fixture
    def impatient_connector_factory(self) -> Factory:
        """Override me if there are groups: like `connector_factory`, with an `ack_wait_s` of `self.ack_wait_s`."""
        raise NotImplementedError("override the fixture impatient_connector_factory")

    @pytest.fixture
    def foreign(self) -> Foreign:
        """Override me if there are taps: what writes to a source of somebody else's."""
        raise NotImplementedError("override the fixture foreign")

    @pytest.fixture
    def factory(self, connector_factory: Factory) -> Factory:
        return _kept(connector_factory)

    @pytest.fixture
    def impatient_factory(self, impatient_connector_factory: Factory) -> Factory:
        return _kept(impatient_connector_factory)

    @pytest.fixture
    def topic(self) -> str:
        """A topic that nobody had before."""
        return f"contract-{uuid.uuid4().hex[:16]}"
