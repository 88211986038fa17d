"""Redis Streams through redis-py: one stream a topic, read from the store's own place or through a group.

The entries of a topic get the ids 0-1, 0-2, 0-3, … (`XADD key 0-*`), so that an entry's position is a plain number and
places are runs. Beside the stream lie its identity, which is drawn when the stream is made, and a hash with the last
digest of each node: `sk:{orders}`, `sk:{orders}:id` and `sk:{orders}:digests`, on one slot of a cluster. An entry has a
field for each header, and the body under `data`: any Redis client can read it.

The connections are in `redis_line`, readers and listeners in `redis_readers`, groups in `redis_member`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from synckit_connectors.redis_line import Line
from synckit_connectors.redis_member import PROGRESS, Member, Source
from synckit_connectors.redis_readers import Listener, LogReader
from synckit_connectors.redis_tap import Tapped
from synckit_connectors.redis_trimming import Trimming
from synckit_connectors.redis_wire import (
    ANNOUNCE,
    BYTES_MAX,
    OURS,
    entry,
    not_ours,
    position,
    read_url,
    require_redis,
    stream_of,
    translate,
)
from synckit_streams.errors import Rejected, TooLarge
from synckit_streams.ports.absent import WithoutTimes
from synckit_streams.ports.connector import Announced, Bounds, Delivery, Features, Message, Progress, behind
from synckit_streams.ports.connector import Member as GroupMember

if TYPE_CHECKING:
    from redis.asyncio import Redis

SEND_BYTES = 4 * 1024 * 1024
"""What one pipeline carries."""


class RedisConnector(WithoutTimes):
    """See the module's text, and the port `Connector`.

    Args:
        url: `redis://[[user]:password@]host[:6379][/database]`, or `rediss://` for TLS.
        options: See `RedisOptions`.

    Raises:
        ConfigError: the URL or an option is wrong.
        MissingDependency: redis-py is not installed.
    """

    def __init__(self, url: str, **options: Any) -> None:
        require_redis()
        self.address, self.options = read_url(url, options)
        self.url = str(self.address)
        self._line = Line(self.address, self.options)
        self._trimming = Trimming(self._line)

    @property
    def features(self) -> Features:
        """Durable if the server writes to the disk before it answers, and shows that it does."""
        return Features(durable=self._line.durable, groups=True, taps=True, trims=True, bytes_max=BYTES_MAX)

    async def open(self) -> None:
        """See `Connector.open`."""
        await self._line.open()

    async def close(self) -> None:
        """See `Connector.close`. Ends every iterator of this connector."""
        await self._line.close()

    def address_of(self, topic: str) -> str:
        """The key of the stream in which a topic's events are."""
        return stream_of(topic)

    # --- the log -----------------------------------------------------------------------------------------------------

    async def bounds(self, topic: str) -> Mapping[int, Bounds]:
        """See `Connector.bounds`."""
        identity, first, end = await self._line.look(topic)
        return {0: Bounds(f"{stream_of(topic)}@{identity}", first, end)}

    async def peek(self, topic: str, partition: int, position: int) -> Message | None:
        """See `Connector.peek`."""
        if partition != 0 or position <= 0:
            self._line.check_open()
            return None
        return await self._line.entry_at(stream_of(topic), f"0-{position}")

    async def send(self, topic: str, messages: Sequence[Message]) -> Mapping[int, int]:
        """See `Connector.send`."""
        entries = [entry(message) for message in messages]
        self._line.check_open()
        last = at = 0
        while at < len(entries):
            size, count = 0, 0
            while at + count < len(entries) and (not count or size < SEND_BYTES):
                size += entries[at + count][1]
                count += 1
            last = max(last, await self._add(topic, [fields for fields, _ in entries[at : at + count]]))
            at += count
        if entries and self.options.max_length:
            await self._trimming.alarm(topic)
        return {0: last} if entries else {}

    async def _add(self, topic: str, entries: Sequence[list[bytes]]) -> int:
        """Append in order; the stream is made, with its identity, if it is not there. Gives the last position."""
        stream = stream_of(topic)
        limit = ["MAXLEN", "~", self.options.max_length] if self.options.max_length else []
        left, last = list(entries), 0

        async def add(client: Redis) -> list[Any]:
            async with client.pipeline(transaction=False) as pipe:
                for entry in left:
                    pipe.execute_command("XADD", stream, "NOMKSTREAM", *limit, "0-*", *entry)
                return await pipe.execute(raise_on_error=False)

        while left:
            answers = await self._line.ask(add)
            for answer in answers:
                if isinstance(answer, Exception):
                    if "equal or smaller" in str(answer):
                        raise not_ours(stream)
                    raise translate(answer, self.address)
                if answer is not None:
                    last = max(last, position(answer, topic))
            left = [entry for entry, answer in zip(left, answers, strict=True) if answer is None]
            if left:
                await self._line.look(topic)
        return last

    async def trim(self, topic: str, *, below: Mapping[int, int]) -> None:
        """See `Connector.trim`."""
        self._line.check_open()
        if 0 in below:
            await self._trimming.trim(topic, below[0])

    @asynccontextmanager
    async def receive(
        self, topic: str, *, start: Mapping[int, int], batch_max: int
    ) -> AsyncIterator[AsyncIterator[Sequence[Delivery]]]:
        """See `Connector.receive`.

        Also raises Unavailable when the connection came back but the log is another one, or was put back to a state
        before what was read: the reader has to look at its bounds.
        """
        self._line.check_open()
        reader = LogReader(self._line, topic, max(start.get(0, 0), 0), batch_max)
        async with self._line.reading(reader, reader.begin):
            yield reader

    # --- groups ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def join(
        self, topic: str, *, group: str, start: Mapping[int, int], batch_max: int
    ) -> AsyncIterator[GroupMember]:
        """See `Connector.join`."""
        self._line.check_open()
        member = Member(self._line, Source(self._line, topic, start.get(0, 0)), group, batch_max)
        async with self._line.reading(member, member.begin):
            yield member

    @asynccontextmanager
    async def tap(
        self, source: str, *, group: str, batch_max: int, at_ms: int | None = None
    ) -> AsyncIterator[GroupMember]:
        """See `Connector.tap`. A source is the key of a stream, in the database of the URL."""
        self._line.check_open()
        if source.startswith(OURS):
            raise Rejected(f"{source!r} is the log of a topic of ours", hint="join the topic")
        member = Member(self._line, Tapped(self._line, source, at_ms), group, batch_max)
        async with self._line.reading(member, member.begin):
            yield member

    async def progress(self, topic: str, *, group: str) -> Progress:
        """See `Connector.progress`."""
        _, first, end = await self._line.look(topic)
        found = await self._line.ask(lambda client: client.eval(PROGRESS, 1, stream_of(topic), group.encode()))
        delivered, oldest, pending = found or (b"0-0", b"", 0)
        read = position(delivered, topic)
        done = min(read, position(oldest, topic) - 1) if oldest else read
        return Progress({0: done}, behind({0: Bounds("", first, end)}, {0: read}), pending)

    # --- the digests -------------------------------------------------------------------------------------------------

    async def announce(self, topic: str, node: str, body: bytes) -> None:
        """See `Connector.announce`."""
        if len(body) > BYTES_MAX:
            raise TooLarge(f"a digest of {len(body)} bytes; {self.address} takes {BYTES_MAX}")
        await self._line.ask(
            lambda client: client.eval(ANNOUNCE, 1, f"{stream_of(topic)}:digests", node.encode(), body)
        )

    @asynccontextmanager
    async def listen(self, topic: str) -> AsyncIterator[AsyncIterator[Announced]]:
        """See `Connector.listen`."""
        self._line.check_open()
        listener = Listener(self._line, topic)
        async with self._line.reading(listener, listener.begin):
            yield listener
