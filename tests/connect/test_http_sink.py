"""A URL as a sink: what each answer means for the records."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from synckit_streams.connect import http_sink
from tests.connect.kit import declare, from_file, letters, move_once, moving, order, until, write_lines
from tests.connect.receiver import Answer, receiving


def to_url(url: str, **more: Any) -> dict[str, Any]:
    return from_file(sink={"kind": "http", "url": url, "topic": "orders", **more})


async def test_batches_of_cloudevents_are_posted(tmp_path: Path) -> None:
    """In the file's order, with the headers that the file names."""
    write_lines(tmp_path / "orders.jsonl", [order(n) for n in range(5)])
    async with receiving() as receiver:
        pipeline = to_url(receiver.url, headers={"authorization": "Bearer ${TOKEN}"}) | {"batch": {"records": 2}}
        (standing,) = await move_once(declare(tmp_path, pipeline), environment={"TOKEN": "t0"})
        assert standing.moved == 5
        assert [len(batch) for batch in receiver.batches] == [2, 2, 1]
        assert receiver.headers[0]["authorization"] == "Bearer t0"
        assert receiver.headers[0]["content-type"] == "application/cloudevents-batch+json"
        assert len({headers["idempotency-key"] for headers in receiver.headers}) == 3
        first = receiver.taken[0]
        assert {name: first[name] for name in ("specversion", "type", "subject", "source", "data")} == {
            "specversion": "1.0",
            "type": "order.placed",
            "subject": "o-0",
            "source": "/topics/orders",
            "data": order(0),
        }


@pytest.mark.parametrize("status", [400, 404, 413, 422])
async def test_one_bad_record_of_a_batch_goes_to_the_dead_letter(tmp_path: Path, status: int) -> None:
    """Halving finds it; the others are delivered in their order."""
    write_lines(tmp_path / "orders.jsonl", [order(n) for n in range(9)])

    def answer(batch: list[dict[str, Any]]) -> Answer:
        return (status if any(event["data"]["n"] == 5 for event in batch) else 200, {})

    async with receiving() as receiver:
        receiver.answer = answer
        (standing,) = await move_once(declare(tmp_path, to_url(receiver.url)))
        assert (standing.moved, standing.dead) == (8, 1)
        assert [event["data"]["n"] for event in receiver.taken] == [0, 1, 2, 3, 4, 6, 7, 8]
    (dead,) = letters(tmp_path / "pipelines.state" / "in.dead.jsonl")
    assert f"answered {status}: this is {status}" in dead["error"]["message"]


@pytest.mark.parametrize("status", [301, 401, 403, 408, 429, 500, 503])
async def test_what_says_nothing_of_the_records_is_never_permanent(tmp_path: Path, status: int) -> None:
    """They come again, the same ones, until they are taken; nothing goes to the dead letter."""
    write_lines(tmp_path / "orders.jsonl", [order(n) for n in range(3)])
    async with receiving() as receiver:
        receiver.answer = lambda batch: (status, {}) if len(receiver.batches) < 3 else (200, {})
        async with moving(declare(tmp_path, to_url(receiver.url))) as runner:
            await until(lambda: runner.standings()[0].moved == 3)
            assert (runner.standings()[0].state, runner.standings()[0].dead) == ("running", 0)
        assert [event["data"]["n"] for event in receiver.taken] == [0, 1, 2]
        assert len({str(batch) for batch in receiver.batches}) == 1
        assert len({headers["idempotency-key"] for headers in receiver.headers}) == 1


async def test_retry_after_is_waited_for(tmp_path: Path) -> None:
    """Nobody knocks before the time that the server names."""
    write_lines(tmp_path / "orders.jsonl", [order(1)])
    times: list[float] = []

    def answer(batch: list[dict[str, Any]]) -> Answer:
        times.append(time.monotonic())
        return (429, {"retry-after": "2"}) if len(times) == 1 else (200, {})

    async with receiving() as receiver:
        receiver.answer = answer
        async with moving(declare(tmp_path, to_url(receiver.url))) as runner:
            await until(lambda: runner.standings()[0].moved == 1)
    assert times[1] - times[0] >= 2.0


def test_retry_after_is_seconds_or_a_date() -> None:
    """And nothing that cannot be read, or is absurd, stops a pipeline for long."""
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert http_sink._seconds("7") == 7.0
    assert 90 < http_sink._seconds(soon) <= 100
    assert http_sink._seconds(format_datetime(datetime(2001, 1, 1, tzinfo=UTC))) == 0.0
    assert http_sink._seconds("99999999") == http_sink.RETRY_AFTER_S_MAX
    assert [http_sink._seconds(text) for text in ("", "soon", "-4")] == [0.0, 0.0, 0.0]


async def test_a_server_that_is_away_is_waited_for(tmp_path: Path) -> None:
    """The pipeline says why; the record is delivered when somebody answers."""
    write_lines(tmp_path / "orders.jsonl", [order(1)])
    async with receiving() as receiver:
        url = receiver.url
    async with moving(declare(tmp_path, to_url(url))) as runner:
        await until(lambda: runner.standings()[0].state == "failed")
        assert "SK401" in runner.standings()[0].error
        assert runner.standings()[0].moved == 0
