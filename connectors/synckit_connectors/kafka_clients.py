"""The clients of aiokafka that a connector has: how they begin and end, and how whoever asks them is answered.

There is one that administers, one that produces and one that looks; each is made when it is first needed, and anew when
it failed. Readers have a consumer each. aiokafka may wait for ever for a broker that is gone and loses connections when
it is cancelled; so every call runs in a task of its own, with a limit, and every farewell is bounded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from synckit_connectors.kafka_wire import FRAME_BYTES, paced, read_url, require_kafka, say_why, translate
from synckit_streams.errors import ConnectorError, Unavailable
from synckit_streams.ports.reading import Reading, end_all, stop

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
    from aiokafka.admin import AIOKafkaAdminClient

OPEN_S = 2.8
"""For `open`, whatever it has to do, and for an attempt to connect."""
ANSWER_S = 1.0
"""For an answer on the connection that we have, before `open` makes a new one."""
RETRY_PAUSE_S = 0.1
CLOSE_S = 2.0
"""What a client may take to say goodbye to a broker that does not answer."""
PARTITION_BYTES = 1024 * 1024
"""What is fetched of a partition at a time."""
FETCH_BYTES = 4 * 1024 * 1024

T = TypeVar("T")


class KafkaClients:
    """What a connector has at the brokers. See the module's text.

    Args:
        url: See `KafkaConnector`.
        options: See `KafkaOptions`.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        require_kafka()
        self.address, self.options = read_url(url, options)
        self.opened = False
        self.cluster = ""
        self._admin: AIOKafkaAdminClient | None = None
        self._producer: AIOKafkaProducer | None = None
        self._looker: AIOKafkaConsumer | None = None
        self._administering = asyncio.Lock()
        self._looking = asyncio.Lock()
        self._producing = asyncio.Lock()
        self.made: set[str] = set()
        """The Kafka topics that are known to be there."""
        self.readings: set[Reading] = set()
        """Who waits at the broker."""
        self._asked: set[asyncio.Task[Any]] = set()
        self._leaving: set[asyncio.Task[None]] = set()

    # --- opening and closing -----------------------------------------------------------------------------------------

    async def open(self) -> None:
        """See `Connector.open`."""
        first = not self.opened
        self.opened = True
        try:
            try:
                async with asyncio.timeout(OPEN_S):
                    if self._admin is not None and not await self._answers():
                        self._drop()
                    await self.run(self.admin)
            except TimeoutError:
                raise Unavailable(f"no connection to {self.address}") from None
        except BaseException:
            if first:
                await self.close()
            raise

    async def _answers(self) -> bool:
        """Whether the broker answers on the connection that we have."""
        with suppress(ConnectorError, TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                await self.run(self._describe)
                return True
        return False

    async def admin(self) -> AIOKafkaAdminClient:
        """The client that administers, connected."""
        from aiokafka.admin import AIOKafkaAdminClient

        async with self._administering:
            if self._admin is None:
                admin = AIOKafkaAdminClient(request_timeout_ms=int(OPEN_S * 1000), **self.address.client())
                try:
                    await self._start(admin, admin.close)
                except Exception:
                    await say_why(self.address)
                    raise
                self._admin = admin
                await self._describe()
            return self._admin

    async def _start(self, client: Any, leave: Callable[[], Awaitable[Any]]) -> None:
        """Start a client of aiokafka, which would lose a connection if it were cancelled over that."""
        paced(client)
        starting = asyncio.create_task(client.start())
        try:
            await asyncio.shield(starting)
        except BaseException:
            self._leave(farewell(starting, leave))
            raise

    def _leave(self, farewell: Coroutine[Any, Any, None]) -> None:
        """Let somebody go, without waiting for it before the end."""
        leaving = asyncio.create_task(farewell)
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _describe(self) -> None:
        assert self._admin is not None
        cluster = str((await self._admin.describe_cluster())["cluster_id"])
        if cluster != self.cluster:
            self.cluster = cluster
            self.made.clear()

    async def close(self) -> None:
        """See `Connector.close`. Ends every iterator of this connector."""
        self.opened = False
        await end_all(self.readings)
        for task in list(self._asked):
            await stop(task)
        self._drop()
        while self._leaving:
            await asyncio.wait(self._leaving)

    def _drop(self) -> None:
        """Let go of the clients."""
        admin, self._admin = self._admin, None
        producer, self._producer = self._producer, None
        looker, self._looker = self._looker, None
        if producer is not None:
            self._leave(dismiss(producer))
        if looker is not None:
            self._leave(part(looker))
        if admin is not None:
            self._leave(quietly(admin.close()))

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Let a client do something; whoever is cancelled over it leaves, and it goes on without him."""
        if not self.opened:
            raise self.not_open()

        async def run() -> T:
            try:
                return await work()
            except Exception as raised:
                error = translate(raised, self.address)
                if error is raised:
                    raise
                raise error from raised

        task = asyncio.create_task(run())
        self._asked.add(task)
        task.add_done_callback(self._answered)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # by `close`
                raise self.not_open() from None
            raise

    def _answered(self, task: asyncio.Task[Any]) -> None:
        self._asked.discard(task)
        if not task.cancelled():
            task.exception()  # perhaps nobody waits for it any more

    async def patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """`run`, again while the broker is away for no longer than `timeout_s`."""
        until = time.monotonic() + self.options.timeout_s
        while True:
            try:
                return await self.run(work)
            except Unavailable:
                if time.monotonic() >= until:
                    raise
            await asyncio.sleep(RETRY_PAUSE_S)

    def check_open(self) -> None:
        """Raises ConnectorError before `open` and after `close`."""
        if not self.opened:
            raise self.not_open()

    def not_open(self) -> ConnectorError:
        """What whoever calls too early or too late is told."""
        return ConnectorError(f"{self.address} is not open", hint="use the connector between open and close")

    def client_options(self) -> dict[str, Any]:
        """What producers and consumers are told."""
        return {"request_timeout_ms": int(self.options.timeout_s * 1000), **self.address.client()}

    # --- the clients -------------------------------------------------------------------------------------------------

    async def on_looker(self, work: Callable[[AIOKafkaConsumer], Awaitable[T]]) -> T:
        """Let the consumer that only looks do something, one thing at a time."""

        async def look() -> T:
            async with self._looking:
                if self._looker is None:
                    self._looker = await self.consumer()
                try:
                    return await work(self._looker)
                except Exception:
                    looker, self._looker = self._looker, None
                    if looker is not None:
                        await part(looker)
                    raise

        return await self.patiently(look)

    async def consumer(self, **more: Any) -> AIOKafkaConsumer:
        """A consumer, started; with more of aiokafka's options, which go before ours."""
        from aiokafka import AIOKafkaConsumer

        ours = {
            "group_id": None,
            "enable_auto_commit": False,
            "auto_offset_reset": "none",
            # Somebody else's topic may have transactions: what was taken back is not there for us.
            "isolation_level": "read_committed",
            "fetch_max_bytes": FETCH_BYTES,
            "max_partition_fetch_bytes": PARTITION_BYTES,
        }
        consumer = AIOKafkaConsumer(**{**ours, **self.client_options(), **more})
        await self._start(consumer, lambda: part(consumer))
        return consumer

    async def producer(self) -> AIOKafkaProducer:
        """The idempotent producer, started."""
        from aiokafka import AIOKafkaProducer

        async with self._producing:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    acks="all",
                    enable_idempotence=True,
                    max_request_size=FRAME_BYTES,
                    max_batch_size=256 * 1024,
                    **self.client_options(),
                )
                await self._start(producer, producer.stop)
                self._producer = producer
            return self._producer

    async def dismiss(self, producer: AIOKafkaProducer) -> None:
        """Let go of a producer that failed: an idempotent one that lost count refuses everything from then on."""
        if self._producer is producer:
            self._producer = None
        await dismiss(producer)


async def farewell(starting: asyncio.Task[None], leave: Callable[[], Awaitable[Any]]) -> None:
    """Let go of a client that was given up while it started."""
    await asyncio.wait([starting], timeout=OPEN_S)
    await stop(starting)
    await quietly(leave())


async def dismiss(producer: AIOKafkaProducer) -> None:
    """Let go of a producer, which would wait for ever to get rid of what the broker does not take."""
    await quietly(producer.flush())
    await quietly(producer.client.close())
    await quietly(producer._sender.close())
    producer._closed = True


async def part(consumer: AIOKafkaConsumer) -> None:
    """Let go of a consumer, which may stop halfway while it stops; see `quietly`."""
    await quietly(consumer.stop())
    coordinator, fetcher = consumer._coordinator, consumer._fetcher
    left = [
        getattr(coordinator, name, None) for name in ("_coordination_task", "_heartbeat_task", "_commit_refresh_task")
    ]
    if fetcher is not None:
        left += [fetcher._fetch_task, *fetcher._pending_tasks]
    for task in left:
        if task is not None:
            await stop(task)
    await quietly(consumer._client.close())


async def commit(consumer: AIOKafkaConsumer, places: Mapping[Any, tuple[int, str]]) -> None:
    """As aiokafka's own `commit`, but that whoever gives up waiting leaves no task of its behind.

    Raises:
        CommitFailedError: the group has given our partitions to others.
    """
    from aiokafka import errors
    from aiokafka.structs import OffsetAndMetadata

    coordinator = consumer._coordinator
    offsets = {where: OffsetAndMetadata(*place) for where, place in places.items()}
    while True:
        await coordinator.ensure_coordinator_known()
        try:
            async with coordinator._commit_lock:
                await coordinator._do_commit_offsets(None, offsets)
                return
        except (errors.UnknownMemberIdError, errors.IllegalGenerationError, errors.RebalanceInProgressError) as lost:
            raise errors.CommitFailedError(str(lost)) from lost
        except errors.KafkaError as error:
            if not error.retriable:
                raise
        await asyncio.sleep(RETRY_PAUSE_S)


def alive(consumer: AIOKafkaConsumer) -> None:
    """Whoever uses a member of a group shows a sign of life: aiokafka only counts who waits for messages.

    It also forgets that somebody stopped waiting if he was cancelled, and would never notice that he is gone.
    """
    consumer._subscription._fetch_count = 0
    consumer._subscription._last_fetch_ended = time.monotonic()


async def quietly(work: Awaitable[Any]) -> None:
    """Let go of a client whose broker may be gone; nothing is lost with it.

    In a task of its own, since a client of aiokafka may be cancelled by what it cancels itself.
    """
    leaving = asyncio.ensure_future(work)
    await asyncio.wait([leaving], timeout=CLOSE_S)
    await stop(leaving)
