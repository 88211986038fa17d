"""Many pipelines at once: paused, restarted, reloaded, and one that fails beside others that do not."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import Any

import pytest

from synckit_streams import Draft, SyncNode
from synckit_streams.connect.assembly import parts_of
from synckit_streams.connect.pipeline import Pipeline
from synckit_streams.connect.places import Places
from synckit_streams.connect.runner import Runner
from synckit_streams.connect.spec import Pipeline as Spec
from synckit_streams.errors import ConfigError
from synckit_streams.ports.operation import Pipelines
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


def to_file(name: str, **more: Any) -> dict[str, Any]:
    """A pipeline from `NAME.jsonl` to `NAME.out`."""
    source = {"kind": "file", "path": f"{name}.jsonl", "type": "/kind", "aggregate_id": "/order"}
    return {"name": name, "source": source, "sink": {"kind": "file", "path": f"{name}.out"}, **more}


def state_of(runner: Runner, name: str) -> str:
    (found,) = [each.state for each in runner.standings() if each.name == name]
    return found


def moved_by(runner: Runner, name: str) -> int:
    (found,) = [each.moved for each in runner.standings() if each.name == name]
    return found


async def test_a_pause_is_remembered_over_a_restart(tmp_path: Path) -> None:
    """And a resume as well; the position stays where it was."""
    path = tmp_path / "a.jsonl"
    file = declare(tmp_path, to_file("a"))
    write_lines(path, [order(1)])
    async with moving(file) as runner:
        operated: Pipelines = runner
        await until(lambda: moved_by(runner, "a") == 1)
        await operated.pause("a")
        assert state_of(runner, "a") == "paused"
        write_lines(path, [order(2)])
    assert [(each.state, each.moved) for each in await move_once(file)] == [("paused", 0)]
    async with moving(file) as runner:
        await until(lambda: state_of(runner, "a") == "paused")
        await runner.resume("a")
        await until(lambda: moved_by(runner, "a") == 1)
    async with moving(file) as runner:
        await until(lambda: state_of(runner, "a") == "running")
    assert [each["n"] for each in letters(tmp_path / "a.out")] == [1, 2]


async def test_a_pause_while_it_fails_is_remembered_too(tmp_path: Path) -> None:
    """Its stores are not open then."""
    sink = {"kind": "http", "url": "http://127.0.0.1:1/"}
    file = declare(tmp_path, to_file("a", sink=sink))
    write_lines(tmp_path / "a.jsonl", [order(1)])
    async with moving(file) as runner:
        await until(lambda: state_of(runner, "a") == "failed")
        await runner.pause("a")
        await until(lambda: state_of(runner, "a") == "paused")
    async with moving(file) as runner:
        await until(lambda: state_of(runner, "a") == "paused")


async def test_who_is_not_there_cannot_be_paused(tmp_path: Path) -> None:
    async with moving(declare(tmp_path, to_file("a"))) as runner:
        for ask in (runner.pause, runner.resume, runner.restart):
            with pytest.raises(KeyError):
                await ask("b")


async def test_a_restart_goes_on_from_where_it_stands(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [order(1)])
    async with moving(declare(tmp_path, to_file("a"))) as runner:
        await until(lambda: moved_by(runner, "a") == 1)
        await runner.restart("a")
        write_lines(tmp_path / "a.jsonl", [order(2)])
        await until(lambda: moved_by(runner, "a") == 2)
    assert [each["n"] for each in letters(tmp_path / "a.out")] == [1, 2]


async def test_one_that_fails_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """And whoever looks is told: degraded, not down."""
    sink = {"kind": "http", "url": "http://127.0.0.1:1/"}
    write_lines(tmp_path / "bad.jsonl", [order(1)])
    write_lines(tmp_path / "good.jsonl", [order(1)])
    async with moving(declare(tmp_path, to_file("bad", sink=sink), to_file("good"))) as runner:
        await until(lambda: moved_by(runner, "good") == 1)
        await until(lambda: state_of(runner, "bad") == "failed")
        assert [(check.name, check.ok, check.needed) for check in await runner.checks()] == [
            ("pipeline bad", False, False),
            ("pipeline good", True, False),
        ]
        assert "SK401" in (await runner.checks())[0].detail


async def test_a_reload_restarts_only_what_changed(tmp_path: Path) -> None:
    """What is gone stops, what is new starts, and what is as it was never notices."""
    for name in "abcd":
        write_lines(tmp_path / f"{name}.jsonl", [order(1)])
    file = declare(tmp_path, to_file("a"), to_file("b"), to_file("c"))
    async with moving(file) as runner:
        await until(lambda: [each.moved for each in runner.standings()] == [1, 1, 1])
        declare(tmp_path, to_file("a"), to_file("b", rate=100.0), to_file("d"))
        done = await runner.reload()
        assert (done.started, done.restarted, done.stopped, done.refused) == (["d"], ["b"], ["c"], ())
        await until(lambda: moved_by(runner, "d") == 1)
        # The one that was not touched still counts from its start; the one that was restarted begins anew.
        assert [(each.name, each.moved) for each in runner.standings()] == [("a", 1), ("b", 0), ("d", 1)]
        write_lines(tmp_path / "b.jsonl", [order(2)])
        await until(lambda: moved_by(runner, "b") == 1)


async def test_a_broken_file_leaves_what_runs_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = declare(tmp_path, to_file("a"))
    async with moving(file) as runner:
        await until(lambda: state_of(runner, "a") == "running")
        file.write_text(file.read_text().replace("sink:", "snik:"))
        with caplog.at_level(logging.ERROR):
            done = await runner.reload()
        assert any("unknown key 'snik'" in each for each in done.refused)
        assert "goes on as it is" in caplog.text
        write_lines(tmp_path / "a.jsonl", [order(1)])
        await until(lambda: moved_by(runner, "a") == 1)
        file.unlink()
        assert "no file" in (await runner.reload()).refused[0]
        assert state_of(runner, "a") == "running"


async def test_nothing_is_started_if_anything_is_wrong(tmp_path: Path) -> None:
    file = declare(tmp_path, to_file("a"), to_file("a"))
    runner = Runner([file])
    with pytest.raises(ConfigError, match="two pipelines 'a'"):
        await runner.start()
    assert runner.standings() == []


async def test_a_rate_is_kept(tmp_path: Path) -> None:
    """60 records at 30 a second take more than a second, and less than five."""
    write_lines(tmp_path / "a.jsonl", [order(n) for n in range(60)])
    started = time.monotonic()
    (standing,) = await move_once(declare(tmp_path, to_file("a", rate=30.0)))
    assert standing.moved == 60
    assert 1.0 <= time.monotonic() - started < 5.0


async def test_a_batch_waits_for_others(tmp_path: Path) -> None:
    """Records that come one by one are written together: one at once, and the others when the time is over."""
    store = f"sqlite:///{tmp_path}/shop.db"
    file = declare(tmp_path, from_file(batch={"records": 100, "seconds": 1.0}))
    async with moving(file) as runner:
        write_lines(tmp_path / "orders.jsonl", [order(0)])
        await until(lambda: runner.standings()[0].moved == 1)
        for number in range(1, 10):
            write_lines(tmp_path / "orders.jsonl", [order(number)])
            await asyncio.sleep(0.01)
        await until(lambda: runner.standings()[0].moved == 10)
    assert len({event.at.wall_ms for event in await events_of(store)}) == 2


async def test_a_store_that_a_node_has_open_is_written_through_it(tmp_path: Path) -> None:
    """And when that node goes away, the pipeline becomes the node."""
    url = f"sqlite:///{tmp_path}/shop.db"
    write_lines(tmp_path / "orders.jsonl", [order(1)])
    async with moving(declare(tmp_path, from_file())) as runner:
        await until(lambda: runner.standings()[0].moved == 1)
        await runner.stop()
        async with SyncNode("shop", store=url) as node:
            await node.append(Draft("orders", "order.placed", "o-2", {"n": 2}))
            await runner.restart("in")
            write_lines(tmp_path / "orders.jsonl", [order(3)])
            await until(lambda: runner.standings()[0].moved == 2)
        write_lines(tmp_path / "orders.jsonl", [order(4)])
        await until(lambda: runner.standings()[0].moved == 3)
    events = await events_of(url)
    assert_each_once(numbers(events), [1, 2, 3, 4])
    assert events[2].origin.startswith("shop@")


async def test_a_position_may_be_kept_in_a_shared_database(tmp_path: Path, database: str) -> None:
    """Where two processes have the pipeline, one works; when it ends, the other goes on from there."""
    folders = [tmp_path / "a", tmp_path / "b"]
    write_lines(tmp_path / "orders.jsonl", [order(n) for n in range(5)])
    files = []
    for folder in folders:
        folder.mkdir()
        os.link(tmp_path / "orders.jsonl", folder / "orders.jsonl")
        sink = {"kind": "file", "path": str(tmp_path / "out.jsonl")}
        files.append(declare(folder, from_file(store=database, sink=sink)))
    async with moving(files[0]) as first, moving(files[1]) as second:
        await until(lambda: first.standings()[0].moved + second.standings()[0].moved == 5)
        working, waiting = (first, second) if first.standings()[0].moved else (second, first)
        await until(lambda: "another process" in waiting.standings()[0].error)
        await working.stop()
        write_lines(tmp_path / "orders.jsonl", [order(5)])
        await until(lambda: waiting.standings()[0].moved == 1)
    assert [each["n"] for each in letters(tmp_path / "out.jsonl")] == [0, 1, 2, 3, 4, 5]


async def test_a_dead_letter_may_be_a_topic_of_a_store(tmp_path: Path) -> None:
    """The same original is buried once, however often it comes."""
    dead_letter = {"kind": "store", "store": "sqlite:///dead.db", "topic": "orders.dead"}
    file = declare(tmp_path, from_file(dead_letter=dead_letter))
    (tmp_path / "orders.jsonl").write_text("nonsense\n")
    for _ in range(2):
        (standing,) = await move_once(file)
        assert (standing.dead, standing.error) == (1, "")
        (tmp_path / "pipelines.state" / "in.db").unlink()
    (event,) = await events_of(f"sqlite:///{tmp_path}/dead.db")
    assert (event.topic, event.type, event.aggregate_id) == ("orders.dead", "connect.dead", "in")
    assert event.data["original"]["raw"] == "nonsense"


async def test_a_letter_that_is_refused_holds_the_pipeline(tmp_path: Path) -> None:
    """--check would not have let this file pass: its dead letter has no topic."""
    (tmp_path / "orders.jsonl").write_text("nonsense\n")
    dead_letter = {"kind": "store", "store": "sqlite:///dead.db"}
    given = Spec.model_validate(from_file(dead_letter=dead_letter))
    parts = parts_of(given, Places(tmp_path / "p.yaml"), once=True)
    pipeline = Pipeline("in", parts, once=True, dice=lambda: 0.0)
    pipeline.start()
    await pipeline.wait()
    standing = pipeline.standing()
    assert (standing.state, standing.dead) == ("failed", 0)
    assert "the dead letter does not take" in standing.error


async def test_a_dead_letter_that_takes_nothing_holds_the_pipeline(tmp_path: Path) -> None:
    """Going on would lose the record."""
    file = declare(tmp_path, from_file(dead_letter={"kind": "file", "path": "no/dead.jsonl"}))
    (tmp_path / "no").write_text("a file, where a folder should be")
    (tmp_path / "orders.jsonl").write_text("nonsense\n")
    (standing,) = await move_once(file)
    assert (standing.state, standing.dead) == ("failed", 0)
    (tmp_path / "no").unlink()
    (standing,) = await move_once(file)
    assert (standing.state, standing.dead) == ("stopped", 1)
    assert len(letters(tmp_path / "no" / "dead.jsonl")) == 1
