"""Readers and listeners of the Redis connector: each waits at the server on a connection of its own."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from synckit_connectors import redis_line
from synckit_connectors.redis_line import RETRY_PAUSE_S, Line
from synckit_connectors.redis_wire import DIGESTS, announced, kept, message, position, stream_of, translate
from synckit_streams.errors import Unavailable
from synckit_streams.ports.connector import Announced, Delivery, Message
from synckit_streams.ports.reading import Reading

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger("synckit_connectors.redis_streams")

READ_BYTES = 4 * 1024 * 1024
"""What is read at a time, as far as the last messages say."""
READ_FIRST = 16
BLOCK_S = 2.0
"""For how long a reader waits at the server; then it shows whether the connection still lives."""

T = TypeVar("T")


def next_count(count: int, count_max: int, batch: Sequence[Delivery]) -> int:
    """How many to read next: not many more than last time, since the next ones may be larger."""
    size = sum(len(each.message.body) for each in batch) + 200 * len(batch)
    return max(1, min(count_max, 4 * count, READ_BYTES * len(batch) // size))


class Waiting(Reading):
    """Something that waits at the server, on a connection of its own."""

    connects_once = True

    def __init__(self, line: Line, stream: str) -> None:
        super().__init__()
        self.line = line
        self.stream = stream
        self.client: Redis | None = None

    async def begin(self) -> None:
        """Look where to begin."""

    async def connected(self, client: Redis) -> None:
        """What has to be done over a new connection before anything is read."""

    async def lasting(self, work: Callable[[Redis], Awaitable[T | None]]) -> T:
        """Ask until there is an answer, over another connection if this one is lost, for up to `timeout_s`."""
        loop = asyncio.get_running_loop()
        until: float | None = None
        while True:
            try:
                client = self.client
                if client is None:
                    # Once: before a reader goes on over another connection, it looks whether its log is still the same.
                    client = self.client = self.line.connect(once=self.connects_once)
                    await self.connected(client)
                answer = await work(client)
                until = None
            except Exception as raised:
                error = translate(raised, self.line.address)
                until = until or loop.time() + self.line.options.timeout_s
                await self.disconnect()
                if error is raised or not isinstance(error, Unavailable) or loop.time() >= until or self.ended:
                    raise error from raised
                log.debug("%s: reading anew: %s", self.stream, error.message)
                await asyncio.sleep(RETRY_PAUSE_S)
            else:
                if answer is not None:
                    return answer

    async def disconnect(self) -> None:
        """Let go of the connection."""
        client, self.client = self.client, None
        if client is not None:
            with suppress(Exception):  # it may be broken already
                await client.aclose()


class LogReader(Waiting):
    """Reads a topic from a position."""

    def __init__(self, line: Line, topic: str, last: int, batch_max: int) -> None:
        super().__init__(line, stream_of(topic))
        self.topic = topic
        self._last = last
        self._last_message: Message | None = None
        self._identity = ""
        self._batch_max = max(batch_max, 1)
        self._count = min(READ_FIRST, self._batch_max)
        self._again = False

    async def begin(self) -> None:
        """Note what is read."""
        self._identity, _, _ = await self.line.look(self.topic)
        if self._last:
            self._last_message = await self.line.entry_at(self.stream, f"0-{self._last}")

    async def connected(self, client: Redis) -> None:
        """The second time, look whether it is still the same log."""
        if self._again:
            await self._check()
        self._again = True

    def __aiter__(self) -> LogReader:
        return self

    async def __anext__(self) -> Sequence[Delivery]:
        batch = await self.wait_for(lambda: self.lasting(self._read))
        if batch is None:
            raise StopAsyncIteration
        return batch

    async def _read(self, client: Redis) -> list[Delivery] | None:
        found, identity = await self._wait_for_entries(client)
        if not found or identity != self._identity:
            # A stream that was deleted or put back stays silent for ever, or goes on as another one.
            await self._check()
            return None
        return self._batch(found[0][1])

    async def _wait_for_entries(self, client: Redis) -> tuple[Any, str]:
        """What came within `BLOCK_S`, and whose it is: the stream's identity after that."""
        async with client.pipeline(transaction=False) as pipe:
            pipe.xread({self.stream: f"0-{self._last}"}, self._count, int(BLOCK_S * 1000))
            pipe.get(f"{self.stream}:id")
            found, identity = await pipe.execute(raise_on_error=False)
        for answer in (found, identity):
            if isinstance(answer, Exception):
                raise answer
        return found, (identity or b"").decode()

    def _batch(self, entries: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> list[Delivery]:
        batch = [Delivery(message(fields), 0, position(id, self.topic)) for id, fields in entries]
        self._last, self._last_message = batch[-1].position, batch[-1].message
        self._count = next_count(self._count, self._batch_max, batch)
        return batch

    async def _check(self) -> None:
        identity, _, end = await self.line.look(self.topic)
        why = ""
        if identity != self._identity:
            why = f"stream {self.stream} was deleted and made anew"
        elif self._last_message is not None:
            there = await self.line.entry_at(self.stream, f"0-{self._last}")
            if self._last >= end and there is None:
                why = f"stream {self.stream} was put back: it ends at {end - 1}, {self._last} was read"
            elif there is not None and there != self._last_message:
                why = f"stream {self.stream} was put back: {self._last} is another message now"
        if why:
            raise Unavailable(why, hint="look at the bounds, and receive from there")


class Listener(Waiting):
    """The digests of a topic: the last of each node, then the live ones."""

    connects_once = False  # it has nothing to look at: over another connection it subscribes anew

    def __init__(self, line: Line, topic: str) -> None:
        super().__init__(line, stream_of(topic))
        self._heard: deque[Announced] = deque()
        self._pubsub: Any = None

    async def begin(self) -> None:
        """Listen first and look then, so that nothing falls in between."""
        await self.wait_for(self._begin)

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> Announced:
        while not self._heard:
            heard = await self.wait_for(lambda: self.lasting(self._hear))
            if heard is None:
                raise StopAsyncIteration
            self._heard.extend(heard)
        if self.ended:
            raise StopAsyncIteration
        return self._heard.popleft()

    async def _begin(self) -> None:
        try:
            client = self.client = self.line.connect()
            await self.connected(client)
        except Exception as raised:
            await self.disconnect()
            raise translate(raised, self.line.address) from raised

    async def connected(self, client: Redis) -> None:
        """Subscribe, and hear what was said meanwhile."""
        channel = f"{self.stream}:digests"
        self._pubsub = client.pubsub()
        await self._pubsub.subscribe(channel)
        await self._answer()
        (seconds, micros), values = await self.line.ask(lambda client: client.eval(DIGESTS, 1, channel))
        now = int(seconds) + int(micros) / 1e6
        found = [kept(node, value, now) for node, value in sorted(zip(values[::2], values[1::2], strict=True))]
        self._heard.extend([*filter(None, found), Announced("", b"", 0.0)])

    async def _answer(self) -> Any:
        """What the server says next.

        Raises:
            TimeoutError: nothing, though it owes an answer.
        """
        said = await self._pubsub.get_message(timeout=redis_line.ANSWER_S)
        if said is None:
            raise TimeoutError(f"no answer for {redis_line.ANSWER_S:g} s")
        return said

    async def _hear(self, _client: Redis) -> list[Announced] | None:
        if self._heard:  # it subscribed anew
            return []
        found = [await self._pubsub.get_message(timeout=BLOCK_S)]
        if found[-1] is None:  # a connection that is dead says nothing either
            await self._pubsub.ping()
            found.append(await self._answer())
        while found[-1] is not None:
            found.append(await self._pubsub.get_message(timeout=0.0))
        said = [announced(each["data"]) for each in found if each is not None and each["type"] == "message"]
        live = [each for each in said if each is not None]
        return [*live, Announced("", b"", 0.0)] if live else None

    async def disconnect(self) -> None:
        """Also of what it is subscribed to."""
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            with suppress(Exception):  # it may be broken already
                await pubsub.aclose()
        await super().disconnect()
