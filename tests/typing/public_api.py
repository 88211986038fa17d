"""The whole public API, used as a program of somebody else's would use it, and what a type checker says of each call.

mypy --strict and pyright check this file in `make check`: `assert_type` fails if a call gives something else than it
says, or `Any`. The test beside it runs it, so that what type-checks also works, and sees that no public name is left
out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, ClassVar, assert_type

import msgspec

from synckit_streams import (
    AdditiveMerge,
    App,
    Batch,
    Breaker,
    CauseUnknown,
    Change,
    ClockSkew,
    ConfigError,
    Conflict,
    ConflictResolver,
    ConnectorError,
    ConnectorNotFound,
    Decision,
    Depends,
    Dot,
    DotReused,
    Draft,
    Event,
    FeatureUnsupported,
    FirstWriteWins,
    FrameMalformed,
    HandlerContext,
    HandlerError,
    HybridTime,
    IdReused,
    Ingest,
    Ingested,
    Invalid,
    Key,
    LastWriteWins,
    MissingDependency,
    Offset,
    Order,
    PayloadUndecodable,
    Projection,
    ProjectionFailed,
    Rejected,
    Resolution,
    Retry,
    SchemaNewer,
    Seen,
    StoreBusy,
    StoreClosed,
    StoreCorrupt,
    Stored,
    StoreError,
    StoreFull,
    StoreInUse,
    StoreNotFound,
    StreamedProjection,
    SyncKitError,
    SyncNode,
    SyncResult,
    Timeout,
    TooLarge,
    Unauthorised,
    Unavailable,
    Unfit,
    VersionVector,
    WireError,
)
from synckit_streams.app.declared import Next
from synckit_streams.model.exchange import AppendResult
from synckit_streams.ports.operation import Check
from synckit_streams.ports.store import EventStore, Lease, Transaction
from synckit_streams.runtime.group import Group
from synckit_streams.runtime.inbox import Attempt, Delivery, Inbox
from synckit_streams.runtime.switch import Want
from synckit_streams.testing import FaultProxy, KafkaServer, NatsServer, PostgresServer, RedisServer, TestApp

# ------------------------------------------------------------------------------------------------- classes of one's own


class HighestTotal:
    """A resolver: plain class attributes are enough."""

    name = "highest-total"
    version = 1

    def resolve(self, conflict: Conflict) -> Resolution:
        winner = max(conflict.heads, key=lambda head: (head.data["total"], head.canonical_order))
        return Resolution(winner, winner.data, conflict.heads, Decision.KEEP, ("the highest total",))


class Totals:
    """A read model: again, plain class attributes are enough."""

    name = "totals"
    topics = ("orders",)
    types = ()
    resolved = True

    async def reset(self, tx: Transaction) -> None:
        await tx.execute("CREATE TABLE IF NOT EXISTS totals (id TEXT PRIMARY KEY, total INTEGER)")
        await tx.execute("DELETE FROM totals")

    async def apply(self, batch: Batch, tx: Transaction) -> None:
        assert_type(batch.stored, Sequence[Stored])
        assert_type(batch.changes, Sequence[Change])
        for change in batch.changes:
            assert_type((change.topic, change.aggregate_id), tuple[str, str])
            assert_type((change.previous, change.current), tuple[Any, Any])
        rows = [(change.aggregate_id, change.current["total"]) for change in batch.changes]
        await tx.execute_many("INSERT OR REPLACE INTO totals VALUES (?, ?)", rows)


RESOLVERS: list[ConflictResolver] = [
    LastWriteWins(),
    FirstWriteWins(),
    AdditiveMerge({"total": "sum", "tags": "union"}),
    HighestTotal(),
]
PROJECTIONS: list[Projection] = [Totals()]


class Counted:
    """A read model that counts a whole transaction before it writes."""

    name = "counted"
    topics: Sequence[str] = ("orders",)
    types: Sequence[str] = ()
    resolved = False
    streamed = True
    batch = 100_000

    async def reset(self, tx: Transaction) -> None:
        """Make its table."""
        await tx.execute("CREATE TABLE counted (events INTEGER)")

    async def apply(self, pages: AsyncIterator[Batch], tx: Transaction) -> None:
        """Add the events of all pages up."""
        count = 0
        async for page in pages:
            count += len(page.stored)
        await tx.execute("INSERT INTO counted VALUES (?)", (count,))


STREAMED: StreamedProjection = Counted()


# --------------------------------------------------------------------------------------------------------------- a node


def simple(store: str, connector: str) -> SyncNode:
    """As most programs make one."""
    return SyncNode("till-7", store=store, connectors=[connector], topics=["orders"], resolver=LastWriteWins())


def complete(store: str | EventStore, connector: str) -> SyncNode:
    """With every setting."""
    return SyncNode(
        "till-8",
        store=store,
        connectors=(connector,),
        topics=("orders",),
        resolver=HighestTotal(),
        projections=PROJECTIONS,
        packing="batch",
        push_only=False,
        pull_only=False,
        trim=False,
        group="billing",
        bridge=False,
        observer=None,
        held_max=100,
        clock_leap_ms_max=60_000,
        lease_s=30.0,
    )


async def write(node: SyncNode) -> Stored:
    """Drafts in, what stands in the log out."""
    stored = assert_type(
        await node.append(Draft(topic="orders", type="order.placed", aggregate_id="o-1", data={"total": 5})), Stored
    )
    draft = Draft(
        topic="orders",
        type="order.changed",
        aggregate_id="o-1",
        data={"total": 7, "tags": ["hot"]},
        metadata={"clerk": "Ada"},
        id="a-fact-of-mine",
        context=stored.event.context.with_dot(stored.event.dot),
        after=(stored.event.key,),
        schema_version=2,
    )
    many = assert_type(
        await node.append_many([draft, Draft("orders", "order.placed", "o-2", b'{"total": 1}')]), list[Stored]
    )
    async with node.transaction() as tx:
        assert_type(await tx.execute("SELECT 1"), list[tuple[Any, ...]])
        await tx.execute("CREATE TABLE IF NOT EXISTS tills (name TEXT)")
        await tx.execute_many("INSERT INTO tills VALUES (?)", [("till-1",)])
        await tx.append(draft)
        await tx.append_many([draft])
    assert_type(tx.appended, Sequence[Stored])
    return many[0]


def look(stored: Stored) -> None:
    """At everything that an event has."""
    assert_type((stored.position, stored.log, stored.twin), tuple[int, str, bool])
    event = assert_type(stored.event, Event)
    assert_type((event.id, event.topic, event.type, event.aggregate_id), tuple[str, str, str, str])
    assert_type((event.origin, event.seq, event.prev), tuple[str, int, int])
    assert_type((event.payload, event.metadata_json), tuple[bytes, bytes])
    assert_type(event.data, Any)
    assert_type(event.metadata, dict[str, Any])
    assert_type(event.schema_version, int)
    assert_type(event.traceparent, str)
    assert_type(event.canonical_order, tuple[int, str, int])

    dot = assert_type(event.dot, Dot)
    assert_type((dot.origin, dot.seq), tuple[str, int])
    key = assert_type(event.key, Key)
    assert_type(key.dot, Dot)
    assert_type(event.after, tuple[Key, ...])

    at = assert_type(event.at, HybridTime)
    assert_type((at.wall_ms, at.counter, at.packed), tuple[int, int, int])
    assert_type(HybridTime.from_packed(at.packed), HybridTime)

    offset = assert_type(stored.offset, Offset)
    assert_type((offset.log, offset.position, offset.fingerprint), tuple[str, int, bytes])
    assert_type(offset.is_past(offset), bool)


def compare(context: VersionVector, dot: Dot) -> Order:
    """What an event knew, and what it did not."""
    assert_type(context.covers(dot), bool)
    more = assert_type(context.merge(VersionVector({"other@1": 3})).with_dot(dot), VersionVector)
    assert_type(dict(more), dict[str, int])
    assert_type(VersionVector.from_bytes(more.to_bytes()), VersionVector)
    order = assert_type(context.compare(more), Order)
    match order:
        case Order.BEFORE | Order.AFTER | Order.EQUAL | Order.CONCURRENT:
            return order


async def read(node: SyncNode) -> Offset | None:
    """The log, an aggregate, what it resolves to, and the digest."""
    log = assert_type(node.log("orders", after=None, twins=True), AsyncIterator[Stored])
    last: Offset | None = None
    async for stored in log:
        last = stored.offset
    async for stored in node.log(after=last):
        look(stored)
    assert_type(await node.aggregate("orders", "o-1"), list[Event])
    answer = assert_type(await node.resolve("orders", "o-1"), Resolution)
    assert_type(answer.winner, Event | None)
    assert_type(answer.data, Any)
    assert_type(answer.heads, tuple[Event, ...])
    assert_type(answer.decision, Decision)
    assert_type(answer.reasons, tuple[str, ...])
    assert_type(answer.context, VersionVector)
    assert_type(await node.digest("orders"), str)
    return last


async def resolve(node: SyncNode) -> list[Resolution]:
    """With every resolver, beside the one that the node has."""
    events = tuple(await node.aggregate("orders", "o-1"))
    conflict = Conflict("orders", "o-1", events, (await node.resolve("orders", "o-1")).heads)
    assert_type(conflict.copies, Mapping[Dot, tuple[Event, ...]])
    answers = [each.resolve(conflict) for each in RESOLVERS]
    assert_type([(each.name, each.version) for each in RESOLVERS], list[tuple[str, int]])
    return assert_type(answers, list[Resolution])


async def sync(node: SyncNode) -> SyncResult:
    """In each of the ways."""
    heard: list[SyncResult] = []

    async def hear(result: SyncResult) -> None:
        heard.append(result)

    unsubscribe = assert_type(node.subscribe(heard.append), Callable[[], None])
    node.subscribe(hear)
    result = assert_type(await node.sync(timeout_s=30), SyncResult)
    assert_type(await node.push(timeout_s=30), SyncResult)
    assert_type(await node.pull(timeout_s=30), SyncResult)
    unsubscribe()
    assert_type((result.events_pushed, result.events_pulled, result.conflicts_resolved), tuple[int, int, int])
    assert_type((result.duration_s, result.complete), tuple[float, bool])
    assert_type(result.missing, Mapping[str, tuple[tuple[int, int], ...]])
    assert_type(result.missing_by_topic, Mapping[str, Mapping[str, tuple[tuple[int, int], ...]]])
    assert_type(result.reasons, tuple[str, ...])
    assert_type(result.errors, tuple[Exception, ...])
    missing = Seen(result.missing)
    assert_type([dot for dot in missing], list[Dot])  # noqa: C416 - what iterating gives
    assert_type((missing.mark("till-7@1"), len(missing), Dot("till-7@1", 1) in missing), tuple[int, int, bool])
    return result


async def take(node: SyncNode, connector: str) -> Ingested:
    """What somebody else wrote."""
    orders = Ingest(
        connector=connector, source="raw", topic="orders", type="order.placed", aggregate_id="/id", id="/id"
    )
    try:
        done = assert_type(await node.ingest(orders, idle_s=0.1), Ingested)
    except Rejected:
        return Ingested()
    return assert_type(done.and_(done), Ingested)


async def deliver(node: SyncNode, event: Event) -> int:
    """What somebody else's consumer was given."""
    inbox = assert_type(node.inbox("billing", retry=Retry(max_attempts=3), dead_letter="billing.dlq"), Inbox)

    async def work(attempt: Attempt) -> Sequence[Draft]:
        key = assert_type(attempt.idempotency_key, str)
        return [
            Draft("invoices", "invoice.written", each.event.aggregate_id, {"by": key}) for each in attempt.deliveries
        ]

    known = assert_type(await inbox.handle([Delivery("bill", event.id, event)], work), int)
    return known + await inbox.handle([Delivery("bill", event.id, event)], work)


async def stay(node: SyncNode) -> None:
    """In sync."""
    await node.start_auto_sync(interval_s=30, timeout_s=30)
    await node.stop_auto_sync()


async def manage(node: SyncNode) -> int:
    """Without `async with`, and what else there is."""
    assert_type(await node.open(), SyncNode)
    assert_type((node.node_id, node.topics), tuple[str, tuple[str, ...]])
    assert_type(node.store, EventStore)
    assert_type(node.resolver, ConflictResolver)
    applied = assert_type(await node.project(), int)
    await node.send_also(["invoices"])
    await node.switch(["totals"], Want.PAUSE)
    group = assert_type(node.group("billing", [], concurrency=2, lease_s=10), Group)
    assert_type((group.parked, group.open_circuits, group.idle), tuple[int, list[str], bool])
    assert_type(node.inbox("mailer", retry=Retry(), dead_letter="orders.dlq"), Inbox)
    following = asyncio.create_task(node.follow(lease_s=10))
    assert_type([each.reason for each in node.projections_failing().values()], list[str])
    following.cancel()
    async with node.store.transaction() as tx:
        assert_type(await tx.execute("SELECT id, total FROM totals"), list[tuple[Any, ...]])
    leases = assert_type(await node.store.lease(["lane-1"], "worker-1", ttl_s=30), Sequence[Lease])
    async with node.store.transaction(leases) as tx:
        await tx.append([Draft("orders", "order.paid", "o-1")], now_ms=1_700_000_000_000)
        await tx.note_applied("pay", [("orders", "o-1", b"paid")])
    assert_type(tx.appended, AppendResult | None)
    assert_type(await node.store.renew(leases, ttl_s=30), Sequence[Lease])
    assert_type(await node.store.leases("lane-"), Sequence[Lease])
    assert_type(await node.store.applied("pay", after=None, limit=10), Sequence[tuple[str, str, bytes]])
    await node.close()
    return applied


# --------------------------------------------------------------------------------------------------------------- an app


class OrderPlaced(msgspec.Struct):
    """What a handler gets of an event."""

    total: int
    schema_version: ClassVar[int] = 2


async def timed(call_next: Next, context: HandlerContext) -> Sequence[Draft]:
    """Around every call."""
    return assert_type(await call_next(context), Sequence[Draft])


@asynccontextmanager
async def opened(app: App) -> AsyncGenerator[None]:
    """Around everything."""
    assert_type(app.name, str)
    yield


def rates() -> dict[str, float]:
    """What a handler depends on."""
    return {"EUR": 1.0}


def service(store: str | EventStore) -> App:
    """With every kind of thing that can be declared."""
    app = App(
        "billing", store=store, topics=["refunds"], middleware=[timed], lifespan=opened, worker_lease_s=10, trim=False
    )

    @app.upcast("order.placed", from_version=1)
    def in_cents(data: dict[str, int]) -> dict[str, int]:
        return {"total": data["euros"] * 100}

    @app.handler(
        "orders",
        "order.placed",
        concurrency=2,
        timeout_s=5,
        retry=Retry(max_attempts=3, base_ms=100, delay_ms_max=1_000),
        breaker=Breaker((ConnectionError,), failures=3, pause_ms=100, pause_ms_max=1_000),
        dead_letter="orders.dlq",
    )
    async def bill(order: OrderPlaced, ctx: HandlerContext, rates: dict[str, float] = Depends(rates)) -> Draft:
        assert_type((ctx.event, ctx.events), tuple[Event, list[Event]])
        assert_type(ctx.stored, Sequence[Stored])
        assert_type((ctx.attempt, ctx.idempotency_key), tuple[int, str])
        assert_type((ctx.group, ctx.handler, ctx.node), tuple[str, str, str])
        assert_type(await ctx.tx.execute("SELECT total FROM takings"), list[tuple[Any, ...]])
        return Draft("invoices", "invoice.written", ctx.event.aggregate_id, {"total": order.total * rates["EUR"]})

    @app.handler("orders", group="mailer", batch=100)
    def mail(events: list[Event]) -> None: ...

    mail([])  # what is decorated is what it was

    @app.projection("takings", topics=["orders"], batch=500, tables=["takings"], dead_letter="takings.dlq", timeout_s=5)
    async def takings(batch: Batch, tx: Transaction) -> None:
        rows = [(each.event.data["total"],) for each in batch.stored]
        await tx.execute_many("UPDATE takings SET total = total + ?", rows)

    @takings.on_reset
    async def no_takings(tx: Transaction) -> None:
        await tx.execute("CREATE TABLE takings AS SELECT 0 AS total")

    @app.on_startup
    async def begin() -> None:
        assert_type(app.node, SyncNode)

    app.on_shutdown(begin)
    return app


async def serve(app: App) -> list[Event]:
    """As a test of one's own would, and as `synckit run` does."""
    async with TestApp(app) as t:
        assert_type(
            await t.publish(Draft("orders", "order.placed", "o-1", {"total": 5}, schema_version=2)), list[Event]
        )
        await t.drain()
        invoices = assert_type(t.published("invoices"), list[Event])
    with assert_type(app.surrounded(store="memory:", connectors=[], live=False), AbstractContextManager[None]):
        await app.start()
        assert_type((app.topics, app.shared), tuple[tuple[str, ...], bool])
        assert_type(app.groups, Sequence[Group])
        assert_type(await app.checks(), Sequence[Check])
        waiting = asyncio.create_task(app.failed())
        waiting.cancel()
        await app.stop(drain_s=5)
    return invoices


# ------------------------------------------------------------------------------------------------------------ for tests


async def break_the_line(server: NatsServer | RedisServer | KafkaServer | PostgresServer) -> int:
    """As a test of one's own would: a real server, and a proxy that breaks on demand."""
    async with FaultProxy(server) as proxy:
        assert_type((proxy.url, proxy.port, server.url), tuple[str, int, str])
        proxy.refuse()
        proxy.freeze()
        proxy.freeze("up")
        proxy.slow(delay_ms=50, jitter_ms=10.5, bytes_per_s=10_000)
        proxy.heal()
        assert_type((proxy.accepted, proxy.connections, proxy.bytes_up, proxy.bytes_down), tuple[int, int, int, int])
        return assert_type(proxy.cut(), int)


# --------------------------------------------------------------------------------------------------------------- errors

CONFIG: list[type[ConfigError]] = [ConnectorNotFound, StoreNotFound, MissingDependency, FeatureUnsupported]
WIRE: list[type[WireError]] = [FrameMalformed, DotReused, TooLarge, PayloadUndecodable, Invalid]
STORE: list[type[StoreError]] = [
    *(StoreBusy, StoreFull, StoreCorrupt, IdReused, StoreInUse, StoreClosed, ClockSkew, CauseUnknown, SchemaNewer)
]
CONNECTOR: list[type[ConnectorError]] = [Unavailable, Timeout, Rejected, Unauthorised]
HANDLER: list[type[HandlerError]] = [ProjectionFailed, Unfit]


async def fail(node: SyncNode) -> tuple[str, str]:
    """As a service would take it."""
    try:
        await node.sync()
    except SyncKitError as error:
        assert_type((error.code, error.message, error.hint, error.retryable), tuple[str, str, str, bool])
        return error.code, error.hint
    return "", ""


# ------------------------------------------------------------------------------------------------------------- together


async def main(folder: str) -> SyncResult:
    """Two nodes, in a folder of their own."""
    connector = "memory://public-api"
    other = complete(f"sqlite:///{folder}/till-8.db", connector)
    async with simple(f"sqlite:///{folder}/till-7.db", connector) as node:
        assert_type(node, SyncNode)
        stored = await write(node)
        look(stored)
        assert compare(stored.event.context, stored.event.dot) is Order.BEFORE
        assert await read(node) is not None
        assert len(await resolve(node)) == len(RESOLVERS)
        assert (await sync(node)).complete
        await stay(node)
        assert await take(node, connector) == Ingested(read=0, written=0, known=0, set_aside=0)
        async with other:
            result = await sync(other)
    assert await manage(other) == 0
    async with SyncNode("alone", store="memory:") as alone:
        assert (await fail(alone))[0] == "SK100"
        assert await deliver(alone, stored.event) == 1
    assert [invoice.data for invoice in await serve(service("memory:"))] == [{"total": 5.0}]
    return result


def run(folder: str) -> SyncResult:
    """The program."""
    return asyncio.run(main(folder))
