"""Handlers and projections: beside FastStream, beside bare SQL, with observers, and with several workers."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from pydantic import BaseModel

from bench import drafts, postgres
from bench.brokers import MESSAGES_MAX, as_messages, new_topic, opened, send_all, server, written
from bench.measure import Case, Row, Scale, compare, timed
from bench.nodes import fill
from bench.raw import Table, address, fact_of_kafka
from bench.services import run as run_service
from synckit_streams import App, Batch, Draft, HandlerContext, SyncNode
from synckit_streams.observe.fanout import Observers
from synckit_streams.observe.prometheus import PrometheusObserver
from synckit_streams.ports.store import Transaction
from synckit_streams.runtime.lanes import LANES

BATCH = 500
ROWS = 10_000
"""Of the read model."""
WAIT_S = 0.005
"""What a handler waits for, where workers are counted."""
WORKER_EVENTS = 4_000


class Line(BaseModel):
    """Of an order."""

    sku: str
    quantity: int
    price: float


class Order(BaseModel):
    """What the events say."""

    order: int
    customer: str
    lines: list[Line]
    paid: bool
    note: str


def cases() -> list[Case]:
    """The rows about handlers and projections."""
    return [
        Case("handle-batch-kafka", "batches of 500 into SQLite, against FastStream's batch subscriber", batches),
        Case("handle-one-kafka", "an event at a time, against FastStream with a commit a message", singles),
        Case("handle-observed", "batches with metrics and traces on, against the same without", observed),
        Case("project-folded", "a read model of 10,000 rows, against INSERT … SELECT … GROUP BY", folded),
        Case("project-upserts", "the same with an upsert an event", upserts),
        Case("handle-4-workers", "four workers of a handler that waits 5 ms, against one", four_workers, long=True),
    ]


async def until(app: App, count: int) -> None:
    """So many events were handled and committed."""
    (group,) = app.groups
    end = count
    while not (group.idle and group.tally.handled >= end):  # noqa: ASYNC110 - a benchmark looks now and then
        await asyncio.sleep(0.005)


async def tables(app: App) -> None:
    async with app.node.store.transaction() as tx:
        await tx.execute("CREATE TABLE bills (id TEXT PRIMARY KEY, type TEXT, subject TEXT, cents INTEGER)")


INSERT = "INSERT INTO bills VALUES (?, ?, ?, ?)"


def billing(place: Path, topic: str, *, batch: int | None, connectors: Sequence[str] = (), **more: Any) -> App:
    """A handler that inserts a row for each order."""
    app = App("billing", store=f"sqlite:///{place / 'billing'}.db", connectors=connectors, **more)

    if batch is None:

        @app.handler(topic)
        async def one(order: Order, ctx: HandlerContext) -> None:
            event = ctx.event
            await ctx.tx.execute(INSERT, (event.id, event.type, event.aggregate_id, order.order))
    else:

        @app.handler(topic, batch=batch)
        async def many(orders: list[Order], ctx: HandlerContext) -> None:
            rows = [
                (event.id, event.type, event.aggregate_id, order.order)
                for event, order in zip(ctx.events, orders, strict=True)
            ]
            await ctx.tx.execute_many(INSERT, rows)

    @app.on_startup
    async def make() -> None:
        await tables(app)

    return app


# --- beside FastStream -----------------------------------------------------------------------------------------------


def batches(scale: Scale, directory: Path) -> Row:
    """From Kafka: ours also keeps the log, knows duplicates and keeps its place with the rows."""
    return _against_faststream("handle-batch-kafka", BATCH, min(scale.events, MESSAGES_MAX), 1.0, scale, directory)


def singles(scale: Scale, directory: Path) -> Row:
    """The same, an event in a call; theirs commits and acknowledges each."""
    return _against_faststream("handle-one-kafka", None, min(scale.events, MESSAGES_MAX // 5), 1.5, scale, directory)


def _against_faststream(name: str, batch: int | None, count: int, wanted: float, scale: Scale, directory: Path) -> Row:
    async def prepare(url: str, topic: str) -> None:
        async with opened(url) as connector:
            await send_all(connector, topic, as_messages(await written(count, topic)))

    async def ours(place: Path, url: str, topic: str) -> float:
        app = billing(place, topic, batch=batch, connectors=[url], group=uuid.uuid4().hex)
        started = time.perf_counter()
        async with app:
            await until(app, count)
            seconds = time.perf_counter() - started
        return count / seconds

    async def other(place: Path, url: str, topic: str) -> float:
        from faststream import AckPolicy
        from faststream.kafka import KafkaBroker, KafkaMessage

        table, done, started = Table(place), asyncio.Event(), time.perf_counter()
        broker = KafkaBroker(address(url), logger=None)
        options: dict[str, Any] = {"batch": True, "max_records": BATCH} if batch is not None else {}

        @broker.subscriber(
            f"sk-{topic}",
            group_id=uuid.uuid4().hex,
            auto_offset_reset="earliest",
            ack_policy=AckPolicy.NACK_ON_ERROR,
            **options,
        )
        async def take(body: Any, msg: KafkaMessage) -> None:
            raw = msg.raw_message
            table.insert(map(fact_of_kafka, raw if batch is not None else [raw]))
            if table.count >= count:
                done.set()

        return count / await run_service(broker, done, table, started)

    with server("kafka", directory) as url:
        topic = new_topic()
        asyncio.run(prepare(url, topic))
        return compare(
            name,
            lambda place: asyncio.run(ours(place, url, topic)),
            lambda place: asyncio.run(other(place, url, topic)),
            wanted=wanted,
            unit="events/s",
            scale=scale,
            directory=directory,
        )


# --- what observing costs --------------------------------------------------------------------------------------------


def observed(scale: Scale, directory: Path) -> Row:
    """A log that is there, handled in batches; spans go to an exporter that drops them."""
    count = min(scale.events, MESSAGES_MAX)

    def watching() -> dict[str, Any]:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
        from prometheus_client import CollectorRegistry

        from synckit_streams.observe.otel import OtelObserver

        class Drop(SpanExporter):
            def export(self, spans: Any) -> SpanExportResult:
                return SpanExportResult.SUCCESS

        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(Drop()))
        return {"observer": Observers(PrometheusObserver(CollectorRegistry()), OtelObserver(provider))}

    async def rate(place: Path, **more: Any) -> float:
        app = billing(place, drafts.TOPIC, batch=BATCH, **more)
        async with SyncNode("billing", store=f"sqlite:///{place / 'billing'}.db") as writer:
            await fill(writer, count)
        started = time.perf_counter()
        async with app:
            await until(app, count)
            seconds = time.perf_counter() - started
        return count / seconds

    return compare(
        "handle-observed",
        lambda place: asyncio.run(rate(place, **watching())),
        lambda place: asyncio.run(rate(place)),
        wanted=0.87,
        unit="events/s",
        scale=scale,
        directory=directory,
    )


# --- projections -----------------------------------------------------------------------------------------------------


def folded(scale: Scale, directory: Path) -> Row:
    """A streamed projection: what a transaction adds up to is upserted."""

    async def apply(pages: AsyncIterator[Batch], tx: Transaction) -> None:
        sums: dict[str, list[int]] = {}
        async for page in pages:
            for stored in page.stored:
                total = sums.setdefault(decode(stored.event.payload).customer, [0, 0])
                total[0] += 1
                total[1] += 1
        await tx.execute_many(UPSERT, [(customer, *total) for customer, total in sums.items()])

    return _projected("project-folded", apply, {"batch": 200_000, "streamed": True}, 0.6, scale, directory)


def upserts(scale: Scale, directory: Path) -> Row:
    """A statement for each event."""

    async def apply(batch: Batch, tx: Transaction) -> None:
        rows = [(decode(stored.event.payload).customer, 1, 1) for stored in batch.stored]
        await tx.execute_many(UPSERT, rows)

    return _projected("project-upserts", apply, {"batch": 1_000}, 0.4, scale, directory)


class _Sale(msgspec.Struct):
    order: int
    customer: str


decode = msgspec.json.Decoder(_Sale).decode
UPSERT = """INSERT INTO sales VALUES (?, ?, ?) ON CONFLICT (customer)
    DO UPDATE SET orders = orders + excluded.orders, cents = cents + excluded.cents"""
GROUP_BY = "INSERT INTO sales SELECT payload ->> '$.customer', count(*), count(*) FROM said GROUP BY 1"


def _projected(
    name: str, apply: Callable[..., Any], options: dict[str, Any], wanted: float, scale: Scale, directory: Path
) -> Row:
    filled = directory / "filled"
    filled.mkdir()
    count = 10 * scale.events if scale.long else scale.events

    async def prepare() -> None:
        async with SyncNode("shop", store=f"sqlite:///{filled / 'shop'}.db") as node:
            await fill(node, count)

    asyncio.run(prepare())

    async def begin(node: SyncNode) -> None:
        async with node.store.transaction() as tx:
            await tx.execute("DROP TABLE IF EXISTS sales")
            await tx.execute("CREATE TABLE sales (customer TEXT PRIMARY KEY, orders INTEGER, cents INTEGER)")

    async def ours() -> float:
        app = App("shop", store="memory:")
        app.projection(uuid.uuid4().hex, topics=[drafts.TOPIC], **options)(apply)
        async with SyncNode("shop", store=f"sqlite:///{filled / 'shop'}.db", projections=app.projections) as node:
            await begin(node)
            started = time.perf_counter()
            assert await node.project() == count
            return count / (time.perf_counter() - started)

    async def other() -> float:
        """The payloads of the same log as text, so that SQLite can read them: making that table is not counted."""
        async with SyncNode("shop", store=f"sqlite:///{filled / 'shop'}.db") as node:
            async with node.store.transaction() as tx:
                await tx.execute("CREATE TABLE IF NOT EXISTS said (payload TEXT)")
                ((there,),) = await tx.execute("SELECT count(*) FROM said")
                if not there:
                    after = None
                    while page := await node.store.log(after=after, limit=10_000):
                        after = page[-1].offset
                        rows = [(stored.event.payload.decode(),) for stored in page]
                        await tx.execute_many("INSERT INTO said VALUES (?)", rows)
            await begin(node)
            with timed() as watch:
                async with node.store.transaction() as tx:
                    await tx.execute(GROUP_BY)
            return count / watch.seconds

    return compare(
        name,
        lambda place: asyncio.run(ours()),
        lambda place: asyncio.run(other()),
        wanted=wanted,
        unit="events/s",
        scale=scale,
        directory=directory,
    )


# --- workers ---------------------------------------------------------------------------------------------------------

WORKER = """
import asyncio, sys
from synckit_streams import App, Draft, HandlerContext

app = App("shop", store=sys.argv[1], topics=["done"], worker_lease_s=3)

@app.handler("orders")
async def wait(order: dict, ctx: HandlerContext) -> Draft:
    await asyncio.sleep(float(sys.argv[2]))
    return Draft("done", "done", ctx.event.aggregate_id)

app.run()
"""


async def divided(node: SyncNode, workers: int) -> bool:
    """Whether each worker has its part of the lanes, and no more."""
    held = Counter(each.holder for each in await node.store.leases("handler|shop|"))
    part = -(-LANES // workers)
    return len(held) == workers and sum(held.values()) == LANES and max(held.values()) <= part


def four_workers(scale: Scale, directory: Path) -> Row:
    """Processes on one PostgreSQL, each with one strand; measured from when the lanes are divided."""
    count = min(scale.events, WORKER_EVENTS)

    async def rate(url: str, workers: int) -> float:
        program = [sys.executable, "-c", WORKER, url, str(WAIT_S)]
        running = [await asyncio.create_subprocess_exec(*program) for _ in range(workers)]
        try:
            async with SyncNode("shop", store=url) as node:
                while not await divided(node, workers):  # noqa: ASYNC110 - other processes take them
                    await asyncio.sleep(0.05)
                ids = [f"o-{number}" for number in range(count)]
                await node.append_many([Draft(drafts.TOPIC, "order.placed", id, {}) for id in ids])
                end = (await node.store.end()).position
                started = time.perf_counter()
                while (await node.store.end()).position < end + count:  # noqa: ASYNC110 - other processes write
                    await asyncio.sleep(0.02)
                return count / (time.perf_counter() - started)
        finally:
            for process in running:
                process.terminate()
            for process in running:
                await process.wait()

    with postgres.server(directory) as url:
        return compare(
            "handle-4-workers",
            lambda place: asyncio.run(rate(postgres.database(url), 4)),
            lambda place: asyncio.run(rate(postgres.database(url), 1)),
            wanted=3.5,
            unit="events/s",
            scale=scale,
            directory=directory,
        )
