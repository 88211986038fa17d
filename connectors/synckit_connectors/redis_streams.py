"""Redis Streams through redis-py: one stream a topic, read from the store's own place.

The entries of a topic get the ids 0-1, 0-2, 0-3, … (`XADD key 0-*`), so that an entry's position is a plain number and
places are runs. Beside the stream lie its identity, which is drawn when the stream is made, and a hash with the last
digest of each node: `sk:{orders}`, `sk:{orders}:id` and `sk:{orders}:digests`, on one slot of a cluster. An entry has a
field for each header, and the body under `data`: any Redis client can read it.

A command that was begun is never cancelled, since its answer would go to whoever uses the connection next; whoever
waited for it leaves, and it goes on without him. Readers and listeners have connections of their own.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from synckit_connectors.redis_wire import (
    ANNOUNCE,
    BYTES_MAX,
    DIGESTS,
    LOOK,
    announced,
    entry,
    kept,
    message,
    not_ours,
    position,
    read_url,
    require_redis,
    stream_of,
    translate,
)
from synckit_streams.errors import (
    ConnectorError,
    Rejected,
    TooLarge,
    Unauthorised,
    Unavailable,
)
from synckit_streams.ports.absent import WithoutGroups, WithoutTimes
from synckit_streams.ports.connector import Announced, Bounds, Delivery, Features, Message
from synckit_streams.ports.reading import Reading, end_all, stop

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger("synckit_connectors.redis_streams")

OPEN_S = 2.8
"""For `open`, whatever it has to do, and for an attempt to connect."""
DOUBT_S = 1.0
"""For an answer on a connection that we have, before `open` makes a new one."""
RETRY_PAUSE_S = 0.1
SERVER_VERSION_MIN = (7, 0)
"""The first one that numbers entries by itself behind a time that the client chose (`0-*`)."""
SEND_BYTES = 4 * 1024 * 1024
"""What one pipeline carries."""
READ_BYTES = 4 * 1024 * 1024
"""What is read at a time, as far as the last messages say."""
READ_FIRST = 16
BLOCK_S = 2.0
"""For how long a reader waits at the server; then it shows whether the connection still lives."""
ANSWER_S = 10.0
"""For any answer. A connection that owes one for longer is given up."""
CONNECTIONS_MAX = 16

T = TypeVar("T")


class RedisConnector(WithoutGroups, WithoutTimes):
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
        self.features = Features(durable=False, bytes_max=BYTES_MAX)
        self._client: Redis | None = None
        self._asked: set[asyncio.Task[Any]] = set()
        self._readers: set[_Reader] = set()

    # --- opening and closing -----------------------------------------------------------------------------------------

    async def open(self) -> None:
        """See `Connector.open`."""
        first = self._client is None
        if first:
            self._client = self._connect()
        try:
            try:
                async with asyncio.timeout(OPEN_S):
                    if not first:
                        await self._doubt()
                    await self._greet()
            except TimeoutError:
                raise Unavailable(f"no connection to {self.address}: no answer") from None
        except BaseException:
            if first:
                await self.close()
            raise

    async def _doubt(self) -> None:
        """Give the connections that we have up if nothing answers on one of them."""
        try:
            async with asyncio.timeout(DOUBT_S):
                await self._ask(lambda client: client.ping(), patient=False)
        except (ConnectorError, TimeoutError):
            if self._client is not None:
                await self._client.connection_pool.disconnect(inuse_connections=False)

    async def _greet(self) -> None:
        info = await self._ask(lambda client: client.info("server"), patient=False)
        self._check_version(str(info.get("redis_version", "")))
        self.features = msgspec.structs.replace(self.features, durable=await self._is_durable())

    async def close(self) -> None:
        """See `Connector.close`. Ends every iterator of this connector."""
        client, self._client = self._client, None
        await end_all(self._readers)
        for task in list(self._asked):
            await stop(task)  # each has a connection of its own, which nobody uses any more
        if client is not None:
            with suppress(Exception):  # the server may be gone; there is nothing left to lose
                await client.aclose()

    def _connect(self, *, once: bool = False) -> Redis:
        """A client. One that connects once raises where it would replace a connection that was lost.

        redis-py does that without a word when the connection was lost between two commands.
        """
        from redis import ConnectionError as ConnectionLost
        from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        address, options = self.address, self.options
        made = False

        async def connected(connection: Any) -> None:
            nonlocal made
            if made:
                raise ConnectionLost("the connection was lost")
            made = True
            await connection.on_connect()

        tls: dict[str, Any] = {
            "ssl_ca_certs": options.tls_ca or None,
            "ssl_certfile": options.tls_cert or None,
            "ssl_keyfile": options.tls_key or None,
        }
        pool = BlockingConnectionPool(
            connection_class=SSLConnection if address.tls else Connection,
            host=address.host,
            port=address.port,
            db=address.database,
            max_connections=CONNECTIONS_MAX,
            timeout=None,
            protocol=2,
            socket_connect_timeout=OPEN_S,
            socket_timeout=ANSWER_S,
            retry=Retry(NoBackoff(), 0),  # a repeated XADD is a second message: only we know when that does no harm
            redis_connect_func=connected if once else None,
            **address.secrets,
            **(tls if address.tls else {}),
        )
        return Redis.from_pool(pool)

    def _check_version(self, version: str) -> None:
        try:
            major, minor = (int(part) for part in version.split(".")[:2])
        except ValueError:
            return  # a build of somebody's own
        if (major, minor) < SERVER_VERSION_MIN:
            raise Rejected(
                f"the server at {self.address} is Redis {version}",
                hint=f"it has to be {SERVER_VERSION_MIN[0]}.{SERVER_VERSION_MIN[1]} or newer, or any Valkey",
            )

    async def _is_durable(self) -> bool:
        try:
            found = await self._ask(lambda client: client.config_get("append*"), patient=False)
        except (Rejected, Unauthorised):  # not every server shows its configuration: then it is not known to be
            return False
        return bool(found.get("appendonly") == "yes" and found.get("appendfsync") == "always")

    async def _ask(self, work: Callable[[Redis], Awaitable[T]], *, patient: bool = True) -> T:
        """Let the server do something, over another connection if one was lost; see the module about cancelling."""
        if self._client is None:
            raise self._not_open()
        task = asyncio.create_task(self._attempt(work, patient))
        self._asked.add(task)
        task.add_done_callback(self._answered)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # by `close`
                raise self._not_open() from None
            raise

    def _answered(self, task: asyncio.Task[Any]) -> None:
        self._asked.discard(task)
        if not task.cancelled():
            task.exception()  # perhaps nobody waits for it any more

    async def _attempt(self, work: Callable[[Redis], Awaitable[T]], patient: bool) -> T:
        loop = asyncio.get_running_loop()
        until = loop.time() + self.options.timeout_s
        tries = 0
        while True:
            client = self._client
            if client is None:
                raise self._not_open()
            try:
                tries += 1
                return await work(client)
            except Exception as raised:
                error = translate(raised, self.address)
                # Who is not patient gets a second try, since the first was perhaps over a connection that was dead.
                over = loop.time() >= until if patient else tries > 1
                if error is raised or not isinstance(error, Unavailable) or over:
                    raise error from raised
            await client.connection_pool.disconnect(inuse_connections=False)  # the others are no better
            if patient:
                await asyncio.sleep(RETRY_PAUSE_S)

    def _not_open(self) -> ConnectorError:
        return ConnectorError(f"{self.address} is not open", hint="use the connector between open and close")

    # --- the log -----------------------------------------------------------------------------------------------------

    async def bounds(self, topic: str) -> Mapping[int, Bounds]:
        """See `Connector.bounds`."""
        identity, first, end = await self._look(topic)
        return {0: Bounds(f"{stream_of(topic)}@{identity}", first, end)}

    async def _look(self, topic: str) -> tuple[str, int, int]:
        keys = (stream_of(topic), f"{stream_of(topic)}:id")
        found = await self._ask(lambda client: client.eval(LOOK, 2, *keys, secrets.token_hex(16)))
        identity, length, first, last, given = found
        if not length:
            end = position(given, topic) + 1
            return identity.decode(), end, end
        # By the last entry that is there: were the last ones deleted by hand, nobody would come to an end behind them.
        return identity.decode(), position(first, topic), position(last, topic) + 1

    async def peek(self, topic: str, partition: int, position: int) -> Message | None:
        """See `Connector.peek`."""
        if partition != 0 or position <= 0:
            if self._client is None:
                raise self._not_open()
            return None
        at = f"0-{position}"
        found: Any = await self._ask(lambda client: client.xrange(stream_of(topic), at, at))
        return message(found[0][1]) if found else None

    async def send(self, topic: str, messages: Sequence[Message]) -> Mapping[int, int]:
        """See `Connector.send`."""
        entries = [entry(message) for message in messages]
        if self._client is None:
            raise self._not_open()
        last = at = 0
        while at < len(entries):
            size, count = 0, 0
            while at + count < len(entries) and (not count or size < SEND_BYTES):
                size += sum(map(len, entries[at + count]))
                count += 1
            last = max(last, await self._add(topic, entries[at : at + count]))
            at += count
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
            answers = await self._ask(add)
            for answer in answers:
                if isinstance(answer, Exception):
                    if "equal or smaller" in str(answer):
                        raise not_ours(stream)
                    raise translate(answer, self.address)
                if answer is not None:
                    last = max(last, position(answer, topic))
            left = [entry for entry, answer in zip(left, answers, strict=True) if answer is None]
            if left:
                await self._look(topic)
        return last

    @asynccontextmanager
    async def receive(
        self, topic: str, *, start: Mapping[int, int], batch_max: int
    ) -> AsyncIterator[AsyncIterator[Sequence[Delivery]]]:
        """See `Connector.receive`.

        Also raises Unavailable when the connection came back but the log is another one, or was put back to a state
        before what was read: the reader has to look at its bounds.
        """
        reader = _LogReader(self, topic, max(start.get(0, 0), 0), batch_max)
        async with self._reading(reader):
            yield reader

    # --- the digests -------------------------------------------------------------------------------------------------

    async def announce(self, topic: str, node: str, body: bytes) -> None:
        """See `Connector.announce`."""
        if len(body) > BYTES_MAX:
            raise TooLarge(f"a digest of {len(body)} bytes; {self.address} takes {BYTES_MAX}")
        await self._ask(lambda client: client.eval(ANNOUNCE, 1, f"{stream_of(topic)}:digests", node.encode(), body))

    @asynccontextmanager
    async def listen(self, topic: str) -> AsyncIterator[AsyncIterator[Announced]]:
        """See `Connector.listen`."""
        listener = _Listener(self, topic)
        async with self._reading(listener):
            yield listener

    @asynccontextmanager
    async def _reading(self, reader: _Reader) -> AsyncIterator[None]:
        if self._client is None:
            raise self._not_open()
        self._readers.add(reader)
        try:
            await reader.begin()
            yield
        finally:
            await reader.end()
            self._readers.discard(reader)


class _Reader(Reading):
    """Something that waits at the server, on a connection of its own."""

    def __init__(self, connector: RedisConnector, topic: str) -> None:
        super().__init__()
        self.connector = connector
        self.topic = topic
        self.stream = stream_of(topic)
        self.client: Redis | None = None

    async def begin(self) -> None:
        """Connect, and look where to begin."""

    async def disconnect(self) -> None:
        """Let go of the connection."""
        client, self.client = self.client, None
        if client is not None:
            with suppress(Exception):  # it may be broken already
                await client.aclose()


class _LogReader(_Reader):
    """Reads a topic from a position."""

    def __init__(self, connector: RedisConnector, topic: str, last: int, batch_max: int) -> None:
        super().__init__(connector, topic)
        self._last = last
        self._last_message: Message | None = None
        self._identity = ""
        self._batch_max = max(batch_max, 1)
        self._count = min(READ_FIRST, self._batch_max)

    async def begin(self) -> None:
        """Note what is read."""
        self._identity, _, _ = await self.connector._look(self.topic)
        if self._last:
            self._last_message = await self.connector.peek(self.topic, 0, self._last)

    def __aiter__(self) -> _LogReader:
        return self

    async def __anext__(self) -> Sequence[Delivery]:
        batch = await self.wait_for(self._read)
        if batch is None:
            raise StopAsyncIteration
        return batch

    async def _read(self) -> list[Delivery]:
        loop = asyncio.get_running_loop()
        until: float | None = None
        while True:
            try:
                if self.client is None:
                    # Once: before a reader goes on over another connection, it looks whether its log is still the same.
                    self.client = self.connector._connect(once=True)
                found, identity = await self._wait_for_entries(self.client)
            except Exception as raised:
                error = translate(raised, self.connector.address)
                until = until or loop.time() + self.connector.options.timeout_s
                if error is raised or not isinstance(error, Unavailable) or loop.time() >= until:
                    raise error from raised
                log.debug("%s: reading anew: %s", self.stream, error.message)
                await self.disconnect()
                await asyncio.sleep(RETRY_PAUSE_S)
                await self._check()
                continue
            until = None
            if not found or identity != self._identity:
                # A stream that was deleted or put back stays silent for ever, or goes on as another one.
                await self._check()
                continue
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

    def _batch(self, entries: Sequence[tuple[bytes, Mapping[bytes, bytes]]]) -> list[Delivery]:
        batch = [Delivery(message(fields), 0, position(id, self.topic)) for id, fields in entries]
        self._last, self._last_message = batch[-1].position, batch[-1].message
        size = sum(len(each.message.body) for each in batch) + 200 * len(batch)
        # Not many more than last time: the next ones may be larger.
        self._count = max(1, min(self._batch_max, 4 * self._count, READ_BYTES * len(batch) // size))
        return batch

    async def _check(self) -> None:
        identity, _, end = await self.connector._look(self.topic)
        why = ""
        if identity != self._identity:
            why = f"stream {self.stream} was deleted and made anew"
        elif self._last_message is not None:
            there = await self.connector.peek(self.topic, 0, self._last)
            if self._last >= end and there is None:
                why = f"stream {self.stream} was put back: it ends at {end - 1}, {self._last} was read"
            elif there is not None and there != self._last_message:
                why = f"stream {self.stream} was put back: {self._last} is another message now"
        if why:
            raise Unavailable(why, hint="look at the bounds, and receive from there")


class _Listener(_Reader):
    """The digests of a topic: the last of each node, then the live ones."""

    def __init__(self, connector: RedisConnector, topic: str) -> None:
        super().__init__(connector, topic)
        self._heard: deque[Announced] = deque()
        self._pubsub: Any = None

    async def begin(self) -> None:
        """Listen first and look then, so that nothing falls in between."""
        await self.wait_for(self._subscribe)

    def __aiter__(self) -> _Listener:
        return self

    async def __anext__(self) -> Announced:
        while not self._heard:
            heard = await self.wait_for(self._hear)
            if heard is None:
                raise StopAsyncIteration
            self._heard.extend(heard)
        if self.ended:
            raise StopAsyncIteration
        return self._heard.popleft()

    async def _subscribe(self) -> None:
        channel = f"{self.stream}:digests"
        self.client = self.connector._connect()
        self._pubsub = self.client.pubsub()
        try:
            await self._pubsub.subscribe(channel)
            await self._answer()
        except Exception as raised:
            await self.disconnect()
            raise translate(raised, self.connector.address) from raised
        (seconds, micros), values = await self.connector._ask(lambda client: client.eval(DIGESTS, 1, channel))
        now = int(seconds) + int(micros) / 1e6
        found = [kept(node, value, now) for node, value in sorted(zip(values[::2], values[1::2], strict=True))]
        self._heard.extend([*filter(None, found), Announced("", b"", 0.0)])

    async def _answer(self) -> Any:
        """What the server says next.

        Raises:
            TimeoutError: nothing, though it owes an answer.
        """
        said = await self._pubsub.get_message(timeout=ANSWER_S)
        if said is None:
            raise TimeoutError(f"no answer for {ANSWER_S:g} s")
        return said

    async def _hear(self) -> list[Announced]:
        loop = asyncio.get_running_loop()
        until: float | None = None
        while True:
            try:
                if self.client is None:
                    await self._subscribe()
                    return []
                found = [await self._pubsub.get_message(timeout=BLOCK_S)]
                if found[-1] is None:  # a connection that is dead says nothing either
                    await self._pubsub.ping()
                    found.append(await self._answer())
                while found[-1] is not None:
                    found.append(await self._pubsub.get_message(timeout=0.0))
            except Exception as raised:
                error = translate(raised, self.connector.address)
                until = until or loop.time() + self.connector.options.timeout_s
                if not isinstance(error, Unavailable) or loop.time() >= until:
                    raise error from raised
                await self.disconnect()
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            said = [announced(each["data"]) for each in found if each is not None and each["type"] == "message"]
            if live := [each for each in said if each is not None]:
                return [*live, Announced("", b"", 0.0)]

    async def disconnect(self) -> None:
        """Also of what it is subscribed to."""
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is not None:
            with suppress(Exception):  # it may be broken already
                await pubsub.aclose()
        await super().disconnect()
