"""The outbox relay, as one deploys it: `synckit connect` with a file, from a table or a store to a broker.

A rate counts until the broker has acknowledged everything and the relay has read it back from the broker's log; the
idle relay is the command itself, as a process. What is wanted is twenty times what Watermill publishes for its SQL
subscriber, 472 messages/s (https://watermill.io/benchmark, PostgreSQL, 16 cores, 256 B).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import asyncpg

from bench import drafts, postgres
from bench.brokers import new_topic, server
from bench.measure import Case, Row, Scale, settle
from bench.nodes import fill
from synckit_streams import SyncNode
from synckit_streams.connect.runner import Runner

WATERMILL = 472.0
WANTED = 20 * WATERMILL
IDLE_S = 20.0
IDLE_MS_ALLOWED = 10.0
"""CPU in a second: one per cent of a core."""
IDLE_ROWS = 10
STEADY_S = 3.0
"""What begins is over after so long: connecting, meeting, the first digests."""
CONFIGS = Path(__file__).parents[1] / "connectors" / "configs"
TABLE = """
CREATE TABLE outbox (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    aggregatetype text NOT NULL,
    aggregateid text NOT NULL,
    type text NOT NULL,
    payload jsonb,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX ON outbox (created_at);
"""


def cases() -> list[Case]:
    """The rows about relays."""
    return [
        Case("relay-postgres-kafka", "an outbox table to Kafka, against twenty times Watermill", from_postgres),
        Case("relay-sqlite-nats", "a store's log to JetStream, against twenty times Watermill", from_sqlite),
        Case("relay-idle", "an idle relay of an outbox table, at most 1% of a core", idle, long=True),
    ]


# --- how fast --------------------------------------------------------------------------------------------------------


def from_postgres(scale: Scale, directory: Path) -> Row:
    """The file in connectors/configs, as it is."""
    with postgres.server(directory) as database, server("kafka", directory) as broker:

        def rate(place: Path) -> float:
            url = postgres.database(database)
            asyncio.run(fill_table(url, scale.events))
            settle()
            return asyncio.run(relayed(shipped(place), variables(url, broker), scale.events))

        return against_watermill("relay-postgres-kafka", rate, scale, directory)


def from_sqlite(scale: Scale, directory: Path) -> Row:
    """The log of a node is its outbox; whoever cannot let the node itself sync relays it like this."""
    with server("nats", directory) as broker:

        def rate(place: Path) -> float:
            asyncio.run(fill_store(place, scale.events))
            settle()
            file = place / "relay.yaml"
            source = {"kind": "outbox", "store": "sqlite:///shop.db"}
            sink = {"kind": "topic", "connector": broker, "topic": new_topic(), "packing": "batch"}
            batch = {"records": 2000}
            # JSON is YAML.
            file.write_text(json.dumps({"name": "relay", "source": source, "sink": sink, "batch": batch}))
            return asyncio.run(relayed(file, {}, scale.events))

        return against_watermill("relay-sqlite-nats", rate, scale, directory)


def against_watermill(name: str, rate: Callable[[Path], float], scale: Scale, directory: Path) -> Row:
    """The median over the rounds."""
    rates: list[float] = []
    for at in range(scale.rounds):
        place = directory / f"{name}-{at}"
        place.mkdir()
        rates.append(rate(place))
    ours = median(rates)
    return Row(name, ours, WANTED, ours / WANTED, 1.0, "messages/s")


async def relayed(file: Path, environment: Mapping[str, str], count: int) -> float:
    """Records a second, from a pipeline that is not open to everything read back from the broker."""
    runner = Runner([file], once=True, environment=environment)
    started = time.perf_counter()
    await runner.start()
    try:
        await runner.wait()
        seconds = time.perf_counter() - started
        (standing,) = runner.standings()
        assert (standing.moved, standing.dead, standing.error) == (count, 0, ""), standing
    finally:
        await runner.stop()
    return count / seconds


async def fill_table(url: str, count: int) -> None:
    """So many rows, as a service's transactions left them."""
    ids = drafts.aggregates(count)
    rows = [("order", ids[number], "order.placed", json.dumps(drafts.payload(number))) for number in range(count)]
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(TABLE)
        columns = ["aggregatetype", "aggregateid", "type", "payload"]
        await connection.copy_records_to_table("outbox", records=rows, columns=columns)
        await connection.execute("ANALYZE outbox")  # as autovacuum does within a minute
    finally:
        await connection.close()


async def fill_store(place: Path, count: int) -> None:
    async with SyncNode("shop", store=f"sqlite:///{place}/shop.db") as node:
        await fill(node, count)


def shipped(place: Path) -> Path:
    """A copy of the file, since what it remembers lies beside it."""
    return Path(shutil.copy(CONFIGS / "postgres-outbox-to-kafka.yaml", place))


def variables(database: str, broker: str) -> dict[str, str]:
    """What the file wants to know."""
    return {"DATABASE_URL": database, "KAFKA_URL": broker, "ORDERS": new_topic(), "CUSTOMERS": new_topic()}


# --- idle ------------------------------------------------------------------------------------------------------------


def idle(scale: Scale, directory: Path) -> Row:
    """`synckit connect FILE`, when it has relayed what there was."""
    with postgres.server(directory) as database, server("kafka", directory) as broker:
        url = postgres.database(database)
        asyncio.run(fill_table(url, IDLE_ROWS))
        command = [sys.executable, "-m", "synckit_streams.cli", "connect", str(shipped(directory)), "--json"]
        topic = new_topic()
        environment = {**os.environ, **variables(url, broker), "ORDERS": topic, "CUSTOMERS": topic}
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as relay:
            try:
                asyncio.run(emptied(url))
                time.sleep(STEADY_S)
                used = median(cpu_ms_a_second(relay.pid) for _ in range(scale.rounds))
                assert relay.poll() is None, "the relay has ended"
            finally:
                relay.terminate()
    return Row("relay-idle", used, IDLE_MS_ALLOWED, IDLE_MS_ALLOWED / used, 1.0, "ms")


async def emptied(url: str) -> None:
    """Until every row is relayed."""
    connection = await asyncpg.connect(url)
    try:
        async with asyncio.timeout(60):
            while await connection.fetchval("SELECT count(*) FROM outbox"):  # noqa: ASYNC110 - another process empties it
                await asyncio.sleep(0.1)
    finally:
        await connection.close()


def cpu_ms_a_second(pid: int) -> float:
    """What a process uses of a core, its threads included, over `IDLE_S`."""
    before = cpu_ms(pid)
    time.sleep(IDLE_S)
    return max(cpu_ms(pid) - before, 1.0) / IDLE_S


def cpu_ms(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
