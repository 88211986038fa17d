"""The runner is killed again and again while it moves: afterwards every record is there, each once."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.connect.kit import (
    assert_each_once,
    declare,
    end_runner,
    events_of,
    from_file,
    move_once,
    numbers,
    order,
    start_runner,
    taken_from,
    until,
    write_lines,
)
from tests.connect.tables import OUTBOX, connected, from_outbox, put

several_kills = pytest.mark.parametrize("kills", [4, pytest.param(25, marks=pytest.mark.slow)])
SLOWLY: dict[str, Any] = {"batch": {"records": 3}}
"""Many small batches: a kill hits every place between two of them."""


async def kill_while(
    file: Path, kills: int, write: Callable[[int], Awaitable[int]], moved: Callable[[], Awaitable[int]]
) -> int:
    """Start and kill the runner, each time in the middle of something; gives how many records were written.

    Args:
        file: Of the pipeline.
        kills: How many.
        write: Adds records, from a number on; gives the next number.
        moved: How many are with the sink.
    """
    dice = random.Random(20)
    written = 0
    for _ in range(kills):
        written = await write(written)
        before = await moved()
        runner = start_runner(file, folder=file.parent)
        try:
            # Only once it moves: a kill while Python starts would prove nothing.
            await until(partial(_more, moved, before))
            await asyncio.sleep(dice.random() * 0.05)
        finally:
            runner.kill()
            said, _ = runner.communicate()
        assert "Traceback" not in said, said
    return written


async def _more(moved: Callable[[], Awaitable[int]], than: int) -> bool:
    return await moved() > than


@several_kills
@pytest.mark.timeout(300)
async def test_a_file_into_a_store(tmp_path: Path, kills: int) -> None:
    """And nothing of it is in the dead letter."""
    store = f"sqlite:///{tmp_path}/shop.db"
    file = declare(tmp_path, from_file(**SLOWLY))

    async def write(first: int) -> int:
        write_lines(tmp_path / "orders.jsonl", [order(n) for n in range(first, first + 200)])
        return first + 200

    async def moved() -> int:
        return len(await events_of(store))

    written = await kill_while(file, kills, write, moved)
    (standing,) = await move_once(file)
    assert standing.error == ""
    found = numbers(await events_of(store))
    assert_each_once(found, range(written))
    assert found == sorted(found)
    assert not (tmp_path / "pipelines.state" / "in.dead.jsonl").read_text()


@several_kills
@pytest.mark.timeout(300)
async def test_a_file_into_a_file(tmp_path: Path, kills: int) -> None:
    """Half a line is cut off, and what stands there already is not written again; also over the sink's rotations."""
    sink = {"kind": "file", "path": "out.jsonl", "rotate_bytes": 20_000}
    file = declare(tmp_path, from_file(sink=sink, **SLOWLY))

    def lines() -> list[int]:
        parts = sorted(tmp_path.glob("out.jsonl.*"), key=lambda part: int(part.suffix[1:]))
        whole = [*parts, tmp_path / "out.jsonl"]
        texts = [line for part in whole if part.exists() for line in part.read_bytes().split(b"\n")[:-1]]
        return [msgspec.json.decode(text)["data"]["n"] for text in texts]

    async def write(first: int) -> int:
        write_lines(tmp_path / "orders.jsonl", [order(n) for n in range(first, first + 200)])
        return first + 200

    async def moved() -> int:
        return len(lines())

    written = await kill_while(file, kills, write, moved)
    (standing,) = await move_once(file)
    assert standing.error == ""
    assert lines() == list(range(written))
    assert len(list(tmp_path.glob("out.jsonl.*"))) > kills // 3


@several_kills
@pytest.mark.timeout(300)
async def test_an_outbox_table_into_a_topic(tmp_path: Path, database: str, nats_url: str, kills: int) -> None:
    """Over a real broker: somebody else's node has each row once, and the table is empty."""
    topic = f"orders-{uuid.uuid4().hex[:8]}"
    sink = {"kind": "topic", "connector": nats_url, "topics": [topic]}
    file = declare(tmp_path, from_outbox(database, sink=sink, **SLOWLY))
    async with connected(database) as connection:
        await connection.execute(OUTBOX)

        async def write(first: int) -> int:
            await put(connection, *range(first, first + 200), topic=topic)
            return first + 200

        written = 0

        async def moved() -> int:
            return -int(await connection.fetchval("SELECT count(*) FROM outbox"))

        written = await kill_while(file, kills, write, moved)
        (standing,) = await move_once(file)
        assert (standing.state, standing.error) == ("stopped", "")
        assert await connection.fetchval("SELECT count(*) FROM outbox") == 0
    assert_each_once(numbers(await taken_from(nats_url, topic, written, tmp_path)), range(written))


async def test_sigterm_ends_it_cleanly(tmp_path: Path) -> None:
    """What is under way is finished, and the stores are closed."""
    file = declare(tmp_path, from_file())
    write_lines(tmp_path / "orders.jsonl", [order(1)])
    runner = start_runner(file, folder=tmp_path)
    try:
        await until(lambda: _more(lambda: _count(tmp_path), 0))
    finally:
        status, said = end_runner(runner)
    assert status == 0
    assert "stopped in: 1 record from" in said
    assert "Traceback" not in said


async def _count(folder: Path) -> int:
    return len(await events_of(f"sqlite:///{folder}/shop.db"))
