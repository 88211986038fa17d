"""The files in connectors/configs/ work as they are, on real servers."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from synckit_streams import Draft, SyncNode
from synckit_streams.connect.loading import load
from tests.connect.kit import (
    assert_each_once,
    events_of,
    move_once,
    moving,
    numbers,
    order,
    taken_from,
    until,
    write_lines,
)
from tests.connect.receiver import receiving
from tests.connect.tables import connected

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "connectors" / "configs"
Config = Callable[[str], Path]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A copy of a file: what it remembers lies beside it."""
    return lambda name: Path(shutil.copy(CONFIGS / f"{name}.yaml", tmp_path))


def topic(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_says_which_variables_it_takes_and_is_tested_here(path: Path) -> None:
    """The comment at its top names every one; with all of them set, nothing is wrong with the file."""
    text = path.read_text()
    used = set(re.findall(r"\$\{([A-Z_]+)", text))
    comment = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    required = set(re.findall(r"\$\{([A-Z_]+)\}", text))
    assert {name for name in required if name not in comment} == set()
    values = {name: "kafka://h" if name == "KAFKA_URL" else "http://h/" for name in used}
    values |= {"STORE_URL": "sqlite:///a.db", "DATABASE_URL": "postgresql://h/d"}
    values |= dict.fromkeys(used & {"TOPIC", "ORDERS", "CUSTOMERS"}, "x")
    values |= {"NATS_URL": "nats://h", "REDIS_URL": "redis://h"}
    assert [str(each) for each in load([path], values).problems] == []
    assert f'config("{path.stem}")' in Path(__file__).read_text()
    assert f"configs/{path.name}" in (ROOT / "connectors" / "README.md").read_text()


async def test_log_to_nats(config: Config, tmp_path: Path, nats_url: str) -> None:
    """Tests of the program's own are left out."""
    write_lines(tmp_path / "orders.jsonl", [order(1), order(2, test=True), order(3)])
    where = {"LOG_FILE": str(tmp_path / "orders.jsonl"), "NATS_URL": nats_url, "TOPIC": topic("orders")}
    (standing,) = await move_once(config("log-to-nats"), environment=where)
    assert (standing.moved, standing.error) == (2, "")
    assert numbers(await taken_from(nats_url, where["TOPIC"], 2, tmp_path)) == [1, 3]


async def test_postgres_outbox_to_kafka(config: Config, tmp_path: Path, database: str, kafka_url: str) -> None:
    """Routed by aggregatetype; with the trigger that the how-to shows."""
    page = (ROOT / "docs" / "how-to" / "connect.md").read_text()
    tables = "".join(re.findall(r"```sql\n(.*?)```", page, re.DOTALL))
    where = {"DATABASE_URL": database, "KAFKA_URL": kafka_url, "ORDERS": topic("o"), "CUSTOMERS": topic("c")}
    async with connected(database) as connection:
        await connection.execute(tables)
        insert = "INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ($1, 'x', 't', $2)"
        async with moving(config("postgres-outbox-to-kafka"), environment=where) as runner:
            for number in range(20):
                await connection.execute(insert, ("order", "customer")[number % 2], json.dumps({"n": number}))
            await until(lambda: runner.standings()[0].moved == 20)
            found = await taken_from(kafka_url, where["ORDERS"], 10, tmp_path)
        assert await connection.fetchval("SELECT count(*) FROM outbox") == 0
    assert_each_once(numbers(found), range(0, 20, 2))


async def test_store_to_http(config: Config, tmp_path: Path) -> None:
    """What is private stays here."""
    async with SyncNode("till-7", store=f"sqlite:///{tmp_path}/till.db") as node:
        data = {"n": 1, "customer": {"mail": "ann@example.org"}, "internal": {"margin": 3}}
        await node.append(Draft("orders", "order.placed", "o-1", data))
        async with receiving() as receiver:
            where = {
                "STORE_URL": f"sqlite:///{tmp_path}/till.db",
                "TARGET_URL": receiver.url,
                "TOKEN": "t0",
                "MASK_KEY": "k0",
            }
            (standing,) = await move_once(config("store-to-http"), environment=where)
            assert (standing.moved, standing.error) == (1, "")
            (event,) = receiver.taken
            assert receiver.headers[0]["authorization"] == "Bearer t0"
    assert set(event["data"]) == {"n", "customer"}
    assert "ann" not in json.dumps(event)


async def test_webhook_to_postgres(config: Config, database: str) -> None:
    """Signed as GitHub does, delivered twice, and there once."""
    body = json.dumps({"action": "opened", "repository": {"full_name": "a/b"}}).encode()
    headers = {
        "x-github-delivery": "d-1",
        "x-hub-signature-256": "sha256=" + hmac.new(b"s0", body, hashlib.sha256).hexdigest(),
    }
    where = {"WEBHOOK_SECRET": "s0", "DATABASE_URL": database}
    async with moving(config("webhook-to-postgres"), environment=where) as runner:
        hook = runner.hooks["webhook-to-postgres"]
        assert (await hook({**headers, "x-hub-signature-256": "sha256=0"}, body)).status == 401
        assert [(await hook(headers, body)).status for _ in range(2)] == [202, 202]
        await until(lambda: runner.standings()[0].moved == 1)
    (event,) = await events_of(database)
    assert (event.id, event.topic, event.type, event.aggregate_id) == ("d-1", "github", "opened", "a/b")


async def test_redis_to_archive(config: Config, tmp_path: Path, redis_url: str) -> None:
    """A file that is CloudEvents, to be read by anybody."""
    where = {"REDIS_URL": redis_url, "TOPIC": topic("orders"), "ARCHIVE": str(tmp_path / "archive.jsonl")}
    async with SyncNode(
        "till-7", store=f"sqlite:///{tmp_path}/till.db", connectors=[redis_url], topics=[where["TOPIC"]]
    ) as node:
        await node.append_many([Draft(where["TOPIC"], "order.placed", "o-1", {"n": n}) for n in range(5)])
        await node.sync()
        async with moving(config("redis-to-archive"), environment=where) as runner:
            await until(lambda: runner.standings()[0].moved == 5)
    lines = [json.loads(line) for line in (tmp_path / "archive.jsonl").read_text().splitlines()]
    assert [line["data"]["n"] for line in lines] == list(range(5))
    assert {line["specversion"] for line in lines} == {"1.0"}


async def test_csv_to_store(config: Config, tmp_path: Path) -> None:
    """The airports that come with the package; a second time, from a copy of the file, changes nothing."""
    airports = ROOT / "synckit_streams" / "cli" / "data" / "airports.csv"
    for number in range(2):
        copy = shutil.copy(airports, tmp_path / f"airports-{number}.csv")
        where = {"CSV_FILE": str(copy), "STORE_URL": f"sqlite:///{tmp_path}/airports.db"}
        (standing,) = await move_once(config("csv-to-store"), environment=where)
        assert (standing.dead, standing.error) == (0, "")
    events = await events_of(f"sqlite:///{tmp_path}/airports.db")
    assert len({event.aggregate_id for event in events}) == len(events) == 3376
