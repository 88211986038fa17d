"""Every kind of store as a sink, and one store for several pipelines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.connect.kit import (
    assert_each_once,
    declare,
    events_of,
    from_file,
    letters,
    move_once,
    moving,
    numbers,
    order,
    until,
    write_lines,
)


@pytest.mark.parametrize("kind", ["rocksdb", "postgres", "redis"])
async def test_any_store_is_a_sink_and_then_an_outbox(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    """Twice over, since a lost position makes it come again."""
    if kind == "rocksdb":
        url, node = "rocksdb:///shop", ""
    elif kind == "postgres":
        url, node = request.getfixturevalue("database"), "shop"
    else:
        url, node = f"{request.getfixturevalue('redis_url')}/0?name={tmp_path.name}", "shop"
    write_lines(tmp_path / "orders.jsonl", [order(n) for n in range(1500)])
    file = declare(tmp_path, from_file(sink={"kind": "store", "store": url, "topic": "orders", "node": node}))
    for _ in range(2):
        (standing,) = await move_once(file)
        assert (standing.moved, standing.dead, standing.error) == (1500, 0, "")
        (tmp_path / "pipelines.state" / "in.db").unlink()
    back = from_file("back", source={"kind": "outbox", "store": url}, sink={"kind": "file", "path": "out.jsonl"})
    (standing,) = await move_once(declare(tmp_path, back, file="back.yaml"))
    assert (standing.moved, standing.error) == (1500, "")
    assert [each["n"] for each in letters(tmp_path / "out.jsonl")] == list(range(1500))


async def test_a_shared_store_wants_to_know_whose_it_is(tmp_path: Path, database: str) -> None:
    """What would be drawn here, the next process would not know."""
    write_lines(tmp_path / "orders.jsonl", [order(1)])
    (standing,) = await move_once(declare(tmp_path, from_file(sink={"kind": "store", "store": database, "topic": "o"})))
    assert standing.state == "failed"
    assert "nobody says whose the store is" in standing.error


async def test_two_pipelines_write_one_file(tmp_path: Path) -> None:
    """One of them is its node, and the other one goes through it; also when the first one stops."""
    first, second = from_file("first"), from_file("second")
    second["source"] = second["source"] | {"path": "more.jsonl"}
    write_lines(tmp_path / "orders.jsonl", [order(n) for n in range(100)])
    write_lines(tmp_path / "more.jsonl", [order(n) for n in range(100, 200)])
    file = declare(tmp_path, first, second)
    async with moving(file) as runner:
        await until(lambda: [each.moved for each in runner.standings()] == [100, 100])
        for name, path, number in (("first", "more.jsonl", 200), ("second", "orders.jsonl", 201)):
            await runner.pause(name)
            write_lines(tmp_path / path, [order(number)])
            await until(lambda: sum(each.moved for each in runner.standings()) == number + 1)  # noqa: B023
            await runner.resume(name)
    found = numbers(await events_of(f"sqlite:///{tmp_path}/shop.db"))
    assert_each_once(found, range(202))


async def test_a_number_of_ten_thousand_digits_holds_nobody_up(tmp_path: Path) -> None:
    """It goes to the dead letter, wherever it is met."""
    lines = [
        '{"kind":"k","order":"a","n":1}',
        '{"kind":"k","order":' + "9" * 10_000 + "}",
        '{"kind":"k","order":"b","n":2}',
    ]
    (tmp_path / "orders.jsonl").write_text("\n".join(lines) + "\n")
    transforms = [{"kind": "mask", "how": "hash", "key": "k", "fields": ["/order"]}]
    (standing,) = await move_once(declare(tmp_path, from_file(transforms=transforms)))
    assert (standing.moved, standing.dead, standing.error) == (2, 1, "")
