"""Servers that are killed under a pipeline and come back: it goes on by itself, and each record is there once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from synckit_streams.testing.brokers import NatsServer
from synckit_streams.testing.postgres_server import PostgresServer
from tests.connect.kit import (
    assert_each_once,
    declare,
    events_of,
    from_file,
    letters,
    moving,
    numbers,
    order,
    taken_from,
    until,
    write_lines,
)
from tests.connect.receiver import receiving
from tests.connect.tables import OUTBOX, connected, from_outbox, put

ROUNDS = 2
SLOWLY: dict[str, Any] = {"batch": {"records": 5}}


@pytest.mark.timeout(300)
async def test_the_database_of_an_outbox(tmp_path: Path, postgres_server: PostgresServer) -> None:
    """Killed while rows move: what was delivered and not yet deleted is delivered under the same id."""
    async with connected(postgres_server.url) as connection:
        await connection.execute(OUTBOX)
    async with moving(declare(tmp_path, from_outbox(postgres_server.url, **SLOWLY))) as runner:
        for part in range(ROUNDS):
            before = runner.standings()[0].moved
            async with connected(postgres_server.url) as connection:
                await put(connection, *range(part * 300, part * 300 + 300))
            await until(lambda: runner.standings()[0].moved > before)  # noqa: B023
            postgres_server.kill()
            await until(lambda: runner.standings()[0].state == "failed")
            assert "SK310" in runner.standings()[0].error
            postgres_server.start()
        await until(lambda: _count(tmp_path, ROUNDS * 300), within_s=60)
        await until(lambda: runner.standings()[0].lag == 0)
        assert runner.standings()[0].dead == 0
    found = numbers(await events_of(f"sqlite:///{tmp_path}/shop.db"))
    assert_each_once(found, range(ROUNDS * 300))
    assert found == sorted(found)


async def _count(folder: Path, wanted: int) -> bool:
    return len(await events_of(f"sqlite:///{folder}/shop.db")) >= wanted


@pytest.mark.timeout(300)
async def test_the_broker_of_a_topic(tmp_path: Path, nats_server: NatsServer) -> None:
    """As a sink it holds nothing up; as a source it is waited for."""
    url = nats_server.url
    sink = {"kind": "topic", "connector": url, "topic": "orders"}
    source = {"kind": "topic", "connector": url, "topic": "orders"}
    there = declare(tmp_path, from_file("there", sink=sink), file="there.yaml")
    back = {"name": "back", "source": source, "sink": {"kind": "file", "path": "back.jsonl"}}
    async with moving(there, declare(tmp_path, back, file="back.yaml")) as runner:
        for part in range(ROUNDS):
            write_lines(tmp_path / "orders.jsonl", [order(n) for n in range(part * 50, part * 50 + 25)])
            await until(lambda: _moved(runner, "back") == part * 50 + 25)  # noqa: B023
            nats_server.kill()
            write_lines(tmp_path / "orders.jsonl", [order(n) for n in range(part * 50 + 25, part * 50 + 50)])
            await until(lambda: _moved(runner, "there") == part * 50 + 50)  # noqa: B023
            assert _moved(runner, "back") == part * 50 + 25
            nats_server.start()
            await until(lambda: _moved(runner, "back") == part * 50 + 50, within_s=60)  # noqa: B023
    assert_each_once([each["n"] for each in letters(tmp_path / "back.jsonl")], range(ROUNDS * 50))
    assert_each_once(numbers(await taken_from(url, "orders", ROUNDS * 50, tmp_path)), range(ROUNDS * 50))


def _moved(runner: Any, name: str) -> int:
    return next(each.moved for each in runner.standings() if each.name == name)


async def test_a_receiver_that_takes_and_does_not_answer(tmp_path: Path) -> None:
    """It gets the same batch again, and can know that by its key and by the events' ids."""
    write_lines(tmp_path / "orders.jsonl", [order(n) for n in range(10)])
    async with receiving() as receiver:
        pipeline = from_file(sink={"kind": "http", "url": receiver.url, "timeout_seconds": 2})
        receiver.hangs = 2
        async with moving(declare(tmp_path, pipeline)) as runner:
            await until(lambda: runner.standings()[0].moved == 10)
        assert len(receiver.batches) == 3
        assert len({headers["idempotency-key"] for headers in receiver.headers}) == 1
        assert [event["data"]["n"] for event in receiver.taken] == list(range(10))
