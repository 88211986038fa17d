"""The public face: a node with its own store, that writes offline and converges with its peers over a broker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType

from synckit_streams.errors import ConfigError, Invalid, StoreClosed
from synckit_streams.model.event import Draft, Event, Offset, Stored
from synckit_streams.ports.connector import Connector
from synckit_streams.ports.projection import AnyProjection
from synckit_streams.ports.store import EventStore
from synckit_streams.ports.telemetry import Observer
from synckit_streams.runtime.cancel import end
from synckit_streams.runtime.door import Door, open_door
from synckit_streams.runtime.driver import Driver, Silence, World
from synckit_streams.runtime.following import Follower
from synckit_streams.runtime.group import Group
from synckit_streams.runtime.handling import Handler
from synckit_streams.runtime.inbox import REMEMBER_S, Inbox
from synckit_streams.runtime.ingest import Ingest, Ingested, Ingestion
from synckit_streams.runtime.keeping import LEASE_S
from synckit_streams.runtime.link import Link, link_name
from synckit_streams.runtime.paging import PageSize
from synckit_streams.runtime.policy import Retry
from synckit_streams.runtime.projector import Projector
from synckit_streams.runtime.registry import connector_for, store_for
from synckit_streams.runtime.result import SyncResult
from synckit_streams.runtime.settings import (
    OBSERVER,
    RESOLVER,
    Settings,
    check_bridge,
    check_count,
    check_directions,
    check_group,
    check_links,
    check_list,
    check_names,
    check_packing,
    check_part,
    check_projections,
    check_seconds,
    check_trim,
)
from synckit_streams.runtime.switch import Want, turn_switch
from synckit_streams.runtime.syncing import OnResult, Syncing
from synckit_streams.runtime.together import NodeTransaction, together
from synckit_streams.runtime.trial import Failing
from synckit_streams.sync.conflict import ConflictResolver, Resolution, conflict_of, resolve
from synckit_streams.sync.replica import checksum
from synckit_streams.sync.resolvers import LastWriteWins

logger = logging.getLogger("synckit_streams")

PAGE_EVENTS = 1_000


class SyncNode:
    """One replica: a store of its own, and the brokers over which it meets the others.

    Opening, appending and reading never need a broker. Used as `async with SyncNode(...) as node`.

    Args:
        node_id: Unique among the nodes that share topics; 1 to 64 bytes without white space, `@` and `~`.
        store: URL (`sqlite:///till.db`, `memory:`) or a store that was made already.
        connectors: URLs (`nats://host:port`, `memory://name`) or connectors; none makes a local-only node, and
            several are tried in their order, unless `bridge` says otherwise.
        topics: What is replicated. A local-only node may leave them out.
        resolver: How conflicts are answered; last-write-wins by default.
        projections: Read models that follow the log.
        packing: "event" sends one message per event, a CloudEvent that anybody can read; "batch" sends packed frames,
            many times faster.
        push_only: Publish, and take nothing from others. What they hold is then not missing here; without the setting,
            the next sync asks for all of it.
        pull_only: Take, and publish nothing, not even a digest. What is written here all the same stays here, and
            `complete` is then never true.
        group: Read as a member of this consumer group at the broker, which divides the messages over the workers that
            share this node's store. Without it every node reads everything, from its own store's place.
        bridge: Meet over all connectors at once, and pass on what came by one to the others.
        trim: Take away from the broker what every node has read, where the connector can (Redis). Needed on one node
            only. Whoever comes later gets what he lacks from the stores of the others.
        observer: Told of everything; see `synckit_streams.ports.telemetry`.
        held_max: How many events may wait here for their causes.
        clock_leap_ms_max: How far this machine's clock may leap between two writes.
        lease_s: For how long a peer's digest makes it count as live.
        world: Time and chance, for a simulation.

    Raises:
        ConfigError: a setting is wrong; the hint says which way.
        StoreInUse: another node has the store.
        MissingDependency: a connector or store needs an extra that is not installed.
    """

    def __init__(
        self,
        node_id: str,
        *,
        store: str | EventStore,
        connectors: Sequence[str | Connector] = (),
        topics: Sequence[str] = (),
        resolver: ConflictResolver | None = None,
        projections: Sequence[AnyProjection] = (),
        packing: str = "event",
        push_only: bool = False,
        pull_only: bool = False,
        group: str = "",
        trim: bool = False,
        bridge: bool = False,
        observer: Observer | None = None,
        held_max: int = 10_000,
        clock_leap_ms_max: int = 600_000,
        lease_s: float = 90.0,
        world: World | None = None,
    ) -> None:
        check_names(node_id, topics)
        check_list("connectors", connectors, '["nats://127.0.0.1:4222"]')
        check_directions(connectors, topics, push_only=push_only, pull_only=pull_only)
        check_bridge(connectors, group, bridge)
        check_packing(packing)
        check_count("held_max", held_max, least=1)
        check_count("clock_leap_ms_max", clock_leap_ms_max, least=0)
        check_seconds("lease_s", lease_s)
        self.resolver: ConflictResolver = resolver or LastWriteWins()
        check_part("a resolver", self.resolver, RESOLVER)
        check_projections(projections)
        check_part("an observer", observer or Silence(), OBSERVER)
        made = [connector_for(each) for each in connectors]
        names = [
            link_name(each, url if isinstance(url, str) else getattr(each, "url", ""))
            for url, each in zip(connectors, made, strict=True)
        ]
        check_links(names)
        check_group(group, made)
        check_trim(trim, made)
        settings = Settings(
            node=node_id,
            topics=tuple(dict.fromkeys(topics)),
            resolver=(self.resolver.name, self.resolver.version),
            packing=packing,
            push_only=push_only,
            pull_only=pull_only,
            group=group,
            trim=trim,
            bridge=bridge,
            held_max=held_max,
            clock_leap_ms_max=clock_leap_ms_max,
            lease_s=lease_s,
        )
        # The store comes last: making it claims the file.
        self._driver = Driver(settings, store_for(store), observer or Silence(), world or World())
        self._links = [Link(name, each, self._driver) for name, each in zip(names, made, strict=True)]
        self._projector = Projector(self._driver, projections, self.resolver)
        self._follower = Follower(self._driver, self._projector)
        self._syncing = Syncing(self._driver, self._links, self._projector)
        self._following: asyncio.Task[None] | None = None
        self._opened = False
        self._door: Door | None = None

    # --- opening and closing -----------------------------------------------------------------------------------------

    @property
    def node_id(self) -> str:
        """As given."""
        return self._driver.settings.node

    @property
    def topics(self) -> tuple[str, ...]:
        """As given, and what is sent beside (`send_also`)."""
        return self._driver.settings.topics

    @property
    def store(self) -> EventStore:
        """The node's own store."""
        return self._driver.store

    async def open(self) -> SyncNode:
        """Open the store. No broker is needed. Whoever is cancelled here has nothing to close.

        Raises:
            StoreInUse, StoreCorrupt, SchemaNewer, StoreBusy: the store cannot be opened.
        """
        await self._driver.open()
        self._opened = True
        names = [link.name for link in self._links]
        try:
            self._door = await open_door(self, names, bridge=self._driver.settings.bridge)
        except BaseException:
            await self.close()
            raise
        return self

    async def close(self) -> None:
        """Stop auto-sync, let go of the brokers, and close the store cleanly. May be called twice."""
        await self.stop_auto_sync()
        if self._door is not None:
            await self._door.close()
        for link in self._links:
            await link.close()
        self._opened = False
        await self._projector.close()
        await self._driver.close()

    async def __aenter__(self) -> SyncNode:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _check_open(self) -> None:
        if not self._opened:
            raise StoreClosed(f"the node {self.node_id!r} is not open")

    # --- writing -----------------------------------------------------------------------------------------------------

    async def append(self, draft: Draft) -> Stored:
        """Write one event, durably; works offline.

        Raises:
            IdReused: the draft's id belongs to an event with other content.
            Invalid, TooLarge, CauseUnknown, ClockSkew: the draft cannot be written.
            StoreBusy, StoreFull: nothing was written.
        """
        return (await self.append_many([draft]))[0]

    async def append_many(self, drafts: Sequence[Draft]) -> list[Stored]:
        """Write events in one durable commit: all of them, or none; see `append` for the errors."""
        self._check_open()
        if isinstance(drafts, Draft) or not isinstance(drafts, Iterable):
            raise Invalid("append_many takes several drafts", hint="write append(draft), or append_many([draft])")
        drafts = tuple(drafts)
        if not drafts:
            return []
        for draft in drafts:
            self._check_draft(draft)
        with self._driver.operation("append") as traceparent:
            result = await self._driver.write(drafts, traceparent=traceparent)
        return list(result.appended)

    def transaction(self) -> AbstractAsyncContextManager[NodeTransaction]:
        """Change tables of your own and write events, all or nothing: `async with node.transaction() as tx`.

        Whoever else wants to write into a SQLite file waits until the block ends, so it should be short. What the block
        raises undoes everything.

        Raises:
            IdReused, CauseUnknown: about the drafts, when the block ends; nothing of it was written.
            StoreError: nothing was written; after a connection was lost in the commit, nobody knows.
        """
        self._check_open()
        return together(self._driver, self._check_draft)

    def _check_draft(self, draft: Draft) -> None:
        if not isinstance(draft, Draft):
            raise Invalid(f"{draft!r:.80} is not a Draft", hint="append takes Draft(topic=…, type=…, aggregate_id=…)")
        if self.topics and draft.topic not in self.topics:
            raise Invalid(
                f"{draft.topic!r:.80} is not a topic of this node",
                hint=f"it replicates {', '.join(self.topics)}; an event elsewhere would never be sent",
            )

    async def send_also(self, topics: Iterable[str]) -> None:
        """Send what is written here of more topics than the node replicates; of them nothing is taken from others.

        Raises:
            ConfigError: one is no topic.
            StoreError: the store cannot say what it holds of them.
        """
        self._check_open()
        topics = tuple(topics)
        check_names(self.node_id, topics)
        await self._driver.widen(topics)

    async def ingest(self, ingest: Ingest, *, idle_s: float | None = None) -> Ingested:
        """Write what producers that know nothing of us have put into a topic of theirs; see `Ingest`.

        Args:
            ingest: Which messages, and what becomes of them.
            idle_s: End when nothing has come for so many seconds, and the group has acknowledged all there is. None
                goes on for ever, over every outage; cancel it.

        Raises:
            ConfigError: it cannot be carried out, or the topic is none of the node's.
            FeatureUnsupported: the connector cannot.
            Rejected: there is no such source.
            Unavailable, Timeout: with `idle_s` only: the broker is not there.
            StoreError: nothing of the batch was acknowledged; it comes again.
        """
        self._check_open()
        if self.topics and ingest.topic not in self.topics:
            raise ConfigError(
                f"{ingest.topic!r:.80} is not a topic of this node", hint=f"it replicates {', '.join(self.topics)}"
            )
        return await Ingestion(ingest, self._driver).run(idle_s)

    # --- reading -----------------------------------------------------------------------------------------------------

    async def log(
        self, topic: str | None = None, *, after: Offset | None = None, twins: bool = False
    ) -> AsyncIterator[Stored]:
        """The log in commit order, to its present end.

        Args:
            topic: None for every topic.
            after: Begin behind this offset; `stored.offset` of the last one read goes on from there.
            twins: Also give the second event of a fact that two nodes wrote under one id.
        """
        self._check_open()
        if isinstance(after, Stored):
            after = after.offset
        if after is not None and not isinstance(after, Offset):
            raise Invalid(f"{after!r:.80} is not an Offset", hint="give the `offset` of the last event that you read")
        size = PageSize(PAGE_EVENTS)
        while page := await self.store.log(topic, after=after, limit=size.events):
            size.learn([stored.event for stored in page])
            after = page[-1].offset
            for stored in page:
                if twins or not stored.twin:
                    yield stored
            del page, stored  # before the next one comes

    async def aggregate(self, topic: str, aggregate_id: str) -> list[Event]:
        """Every event of an aggregate, each fact once, in canonical order (hybrid time, origin, number)."""
        self._check_open()
        return list(conflict_of(topic, aggregate_id, await self.store.aggregate(topic, aggregate_id)).events)

    async def resolve(self, topic: str, aggregate_id: str) -> Resolution:
        """What the aggregate's state is, by the node's resolver; equal on every replica with the same events."""
        self._check_open()
        return resolve(self.resolver, conflict_of(topic, aggregate_id, await self.store.aggregate(topic, aggregate_id)))

    async def digest(self, topic: str) -> str:
        """64 hex digits; equal on two replicas iff they hold the same events of the topic."""
        self._check_open()
        return f"{checksum(await self.store.summary(topic)):064x}"

    # --- syncing -----------------------------------------------------------------------------------------------------

    async def sync(self, *, timeout_s: float = 30.0) -> SyncResult:
        """One whole meeting: read to the end, publish what is unsent and what is owed, and read it back.

        It is over the first connector that can be reached, in the order in which they were named; a bridge's is over
        all of them that can be reached.

        Args:
            timeout_s: Longest time without any progress of a connector; never a limit on the whole.

        Raises:
            Unavailable: nobody was reached. Being offline is normal: try again later.
            Timeout: the broker made no progress.
            ConfigError: the node has no connector, or `timeout_s` is no time.
            StoreError: the local store failed.
        """
        self._check_open()
        return await self._syncing.meet(timeout_s=timeout_s, publish=True)

    async def push(self, *, timeout_s: float = 30.0) -> SyncResult:
        """Like `sync`: to know what is unsent the log has to be read, and what is read is kept."""
        self._check_open()
        return await self._syncing.meet(timeout_s=timeout_s, publish=True)

    async def pull(self, *, timeout_s: float = 30.0) -> SyncResult:
        """Read the log to its end, and publish nothing; see `sync` for the errors."""
        self._check_open()
        return await self._syncing.meet(timeout_s=timeout_s, publish=False)

    async def start_auto_sync(self, *, interval_s: float = 30.0, timeout_s: float = 30.0) -> None:
        """Keep in sync: live while the broker is there, with backoff and jitter while it is not.

        Args:
            interval_s: How often a whole meeting looks at everything anew; in between events flow as they come.
            timeout_s: See `sync`.

        Raises:
            ConfigError: the node has no connector, a time is none, or auto-sync runs already.
        """
        self._check_open()
        self._syncing.start(interval_s=interval_s, timeout_s=timeout_s)
        if self._projector:
            self._following = asyncio.create_task(self._follower.run(), name="synckit-project")

    async def stop_auto_sync(self) -> None:
        """Send what is still unsent, if the broker is there, and stop. Does nothing if it does not run."""
        following, self._following = self._following, None
        try:
            await self._syncing.stop()
        finally:
            if following is not None:
                await end(following)

    def subscribe(self, on_result: OnResult) -> Callable[[], None]:
        """Call this with the result of every sync (it may be a coroutine function); gives what ends it.

        Raises:
            ConfigError: it cannot be called.
        """
        return self._syncing.subscribe(on_result)

    async def follow(self, *, lease_s: float = LEASE_S) -> None:
        """Keep the projections at the end of the log, for ever; cancel it.

        One that fails is logged, and tried again after a while; while the store fails it waits. Where several processes
        share the store, one of them runs a projection, and the others stand by.

        Args:
            lease_s: For how long a process that says nothing keeps its projections.

        Raises:
            StoreClosed: the store was closed.
        """
        self._check_open()
        self._projector.tenure.lease_s = lease_s
        await self._follower.run()

    def projections_failing(self) -> Mapping[str, Failing]:
        """The projections of this process that stand before an event that they cannot take."""
        return self._projector.failing

    async def switch(self, projections: Sequence[str], what: Want, *, position: int = 0) -> None:
        """Let projections pause, run, be rebuilt or be made empty. It is kept in the store, and is done by whoever runs
        them, at once or with the next page.

        Args:
            projections: Which.
            what: Is wanted of them.
            position: From where on a replay reads the log.

        Raises:
            StoreError: it was not kept.
        """
        self._check_open()
        async with self.store.transaction() as tx:
            await turn_switch(tx, projections, what, position=position)
        self._follower.poke()

    def group(
        self,
        name: str,
        handlers: Sequence[Handler],
        *,
        concurrency: int = 1,
        lease_s: float = LEASE_S,
        latest: bool = False,
    ) -> Group:
        """Handlers that follow this node's log; they work while `Group.run` does. See `Group` for the arguments."""
        self._check_open()
        return Group(self._driver, name, handlers, concurrency=concurrency, lease_s=lease_s, latest=latest)

    def inbox(
        self,
        name: str,
        *,
        retry: Retry,
        dead_letter: str,
        remember_s: float = REMEMBER_S,
        passing: tuple[type[BaseException], ...] = (),
    ) -> Inbox:
        """Deliveries of a consumer that is not ours, each handled once in a transaction of this node's store; see
        `Inbox` for what it is told."""
        self._check_open()
        return Inbox(self._driver, name, retry=retry, dead_letter=dead_letter, remember_s=remember_s, passing=passing)

    async def project(self) -> int:
        """Bring the projections up to the end of the log; gives how many events were applied. `sync` does it too.

        Raises:
            ProjectionFailed: one raised; its offset has not moved.
        """
        self._check_open()
        applied, failures = await self._projector.catch_up()
        if failures:
            raise failures[0]
        return applied
