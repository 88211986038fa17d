"""The line to a Redis server: connections, and questions that are asked again over another one when one was lost.

A command that was begun is never cancelled, since its answer would go to whoever uses the connection next; whoever
waited for it leaves, and it goes on without him.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from synckit_connectors.redis_wire import LOOK, Address, RedisOptions, message, position, stream_of, translate
from synckit_streams.errors import ConnectorError, Rejected, Unauthorised, Unavailable
from synckit_streams.ports.connector import Message
from synckit_streams.ports.reading import Reading, end_all, stop

if TYPE_CHECKING:
    from redis.asyncio import Connection, Redis

OPEN_S = 2.8
"""For `open`, whatever it has to do, and for an attempt to connect."""
DOUBT_S = 1.0
"""For an answer on a connection that we have, before `open` makes a new one."""
RETRY_PAUSE_S = 0.1
SERVER_VERSION_MIN = (7, 0)
"""The first one that numbers entries by itself behind a time that the client chose (`0-*`)."""
ANSWER_S = 10.0
"""For any answer. A connection that owes one for longer is given up."""
CONNECTIONS_MAX = 16

T = TypeVar("T")


class Line:
    """What all calls of one connector share."""

    def __init__(self, address: Address, options: RedisOptions) -> None:
        self.address = address
        self.options = options
        self.durable = False
        self._client: Redis | None = None
        self._asked: set[asyncio.Task[Any]] = set()
        self._readings: set[Reading] = set()
        self._ending: set[asyncio.Task[None]] = set()

    # --- opening and closing -----------------------------------------------------------------------------------------

    async def open(self) -> None:
        """See `Connector.open`."""
        first = self._client is None
        if first:
            self._client = self.connect()
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
                await self.ask(lambda client: client.ping(), patient=False)
        except (ConnectorError, TimeoutError):
            if self._client is not None:
                await self._client.connection_pool.disconnect(inuse_connections=False)

    async def _greet(self) -> None:
        info = await self.ask(lambda client: client.info("server"), patient=False)
        self._check_version(str(info.get("redis_version", "")))
        self.durable = await self._is_durable()

    def check_open(self) -> None:
        """Raises ConnectorError if it is not."""
        if self._client is None:
            raise self._not_open()

    async def close(self) -> None:
        """End every reader; then nobody is asked any more. Never raises."""
        client, self._client = self._client, None
        await end_all(self._readings)
        if self._ending:
            await asyncio.wait(self._ending)
        for task in list(self._asked):
            await stop(task)  # each has a connection of its own, which nobody uses any more
        if client is not None:
            with suppress(Exception):  # the server may be gone; there is nothing left to lose
                await client.aclose()

    @asynccontextmanager
    async def reading(self, reading: Reading, begin: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        """Let somebody read on a connection of his own; he ends when the line is closed, at the latest."""
        self._readings.add(reading)
        try:
            await begin()
            yield
        finally:
            # To its end also if whoever leaves is cancelled.
            ending = asyncio.create_task(reading.end())
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
            ending.add_done_callback(lambda _: self._readings.discard(reading))
            await asyncio.shield(ending)

    def connect(self, *, once: bool = False) -> Redis:
        """Connections that nobody else has, made when they are needed.

        One that connects once raises where it would replace a connection that was lost. redis-py does that without a
        word when the connection was lost between two commands.
        """
        from redis import ConnectionError as ConnectionLost
        from redis.asyncio import BlockingConnectionPool, Redis
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
            connection_class=_connection_class(address.tls),
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
            found = await self.ask(lambda client: client.config_get("append*"), patient=False)
        except (Rejected, Unauthorised):  # not every server shows its configuration: then it is not known to be
            return False
        return bool(found.get("appendonly") == "yes" and found.get("appendfsync") == "always")

    # --- asking ------------------------------------------------------------------------------------------------------

    async def ask(self, work: Callable[[Redis], Awaitable[T]], *, patient: bool = True) -> T:
        """Let the server do something, over another connection if one was lost; see the module about cancelling."""
        self.check_open()
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

    # --- what everybody asks -----------------------------------------------------------------------------------------

    async def look(self, topic: str) -> tuple[str, int, int]:
        """A topic's identity, and where its first message and its end are. It is made if it is not there."""
        keys = (stream_of(topic), f"{stream_of(topic)}:id")
        found = await self.ask(lambda client: client.eval(LOOK, 2, *keys, secrets.token_hex(16)))
        identity, length, first, last, given = found
        if not length:
            end = position(given, topic) + 1
            return identity.decode(), end, end
        # By the last entry that is there: were the last ones deleted by hand, nobody would come to an end behind them.
        return identity.decode(), position(first, topic), position(last, topic) + 1

    async def entry_at(self, stream: str, id: str) -> Message | None:
        """The message under an id."""
        found: Any = await self.ask(lambda client: client.xrange(stream, id, id))
        return message(found[0][1]) if found else None


@cache
def _connection_class(tls: bool) -> type[Connection]:
    """redis-py's connection, that lets hiredis write a command: that is most of what an XADD costs us otherwise."""
    from redis.asyncio import Connection, SSLConnection

    with suppress(ImportError):
        from hiredis import pack_command

        kind: Any = SSLConnection if tls else Connection

        class Packing(kind):  # type: ignore[misc]
            def pack_command(self, name: Any, *rest: Any) -> list[bytes]:
                words = (name.encode() if isinstance(name, str) else name).split()  # as in CONFIG GET
                try:
                    return [pack_command((*words, *rest))]
                except TypeError:  # a type that only redis-py knows, or refuses with a better word
                    packed: list[bytes] = super().pack_command(name, *rest)
                    return packed

        return Packing
    return SSLConnection if tls else Connection
