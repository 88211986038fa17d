"""`synckit connect` as its user meets it: what it says, with which status it ends, and what SIGHUP does."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import aiohttp

from tests.cli.conftest import Command, Process
from tests.connect.kit import declare, events_of, from_file, order, until, write_lines


def test_check_says_what_is_wrong_and_ends_with_2(synckit: Command, tmp_path: Path) -> None:
    """FILE:LINE:COLUMN, so that an editor finds it."""
    declare(tmp_path, from_file())
    done = synckit("connect", "pipelines.yaml", "--check")
    assert (done.status, done.out) == (0, "✓ 1 pipeline, nothing wrong\n")
    (tmp_path / "bad.yaml").write_text("name: a\nsource: {kind: file}\nsnk: {}\n")
    done = synckit("connect", ".", "--check")
    assert done.status == 2
    assert "bad.yaml:3:1: unknown key 'snk' (did you mean `sink`?)" in done.out.splitlines()
    assert "bad.yaml:2:9: `path` is missing (The file. It need not be there yet.)" in done.out.splitlines()
    found = synckit("connect", ".", "--check", "--json")
    assert found.status == 2
    assert found.json["pipelines"] == ["in"]
    assert {
        name: value for name, value in found.json["problems"][-1].items() if name in ("file", "line", "column")
    } == {"file": "bad.yaml", "line": 3, "column": 1}


def test_once_moves_what_is_there_and_says_how_much(synckit: Command, tmp_path: Path) -> None:
    """Results for programs on standard output, for people on standard error."""
    declare(tmp_path, from_file())
    write_lines(tmp_path / "orders.jsonl", [order(1), order(2)])
    done = synckit("connect", "pipelines.yaml", "--once", "--json")
    assert done.status == 0
    assert {name: done.json[name] for name in ("name", "state", "moved", "dead", "lag")} == {
        "name": "in",
        "state": "stopped",
        "moved": 2,
        "dead": 0,
        "lag": 0,
    }
    write_lines(tmp_path / "orders.jsonl", [order(3)])
    done = synckit("connect", "pipelines.yaml", "--once")
    assert (done.status, done.out) == (0, "")
    assert "1 record from" in done.err


def test_once_ends_with_1_if_a_sink_is_away(synckit: Command, tmp_path: Path) -> None:
    declare(tmp_path, from_file(sink={"kind": "http", "url": "http://user:hunter2@127.0.0.1:1/x?token=hunter2"}))
    write_lines(tmp_path / "orders.jsonl", [order(1)])
    done = synckit("connect", "pipelines.yaml", "--once")
    assert done.status == 1
    assert "SK401" in done.err
    assert "hunter2" not in done.err


def test_a_wrong_file_is_an_error(synckit: Command, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("name: a")
    done = synckit("connect", "p.yaml", "--json")
    assert done.status == 1
    assert done.error["code"] == "SK100"
    assert synckit("connect", "no.yaml", "--json").error["message"] == "there is no file no.yaml"


async def test_sighup_reloads(process: Callable[..., Process], tmp_path: Path) -> None:
    """A file that is broken leaves everything as it is, and says why; one that is right is taken."""
    store = f"sqlite:///{tmp_path}/shop.db"
    file = declare(tmp_path, from_file())
    good = file.read_text()
    write_lines(tmp_path / "orders.jsonl", [order(1)])
    running = process("connect", "pipelines.yaml")
    await until(lambda: _events(store, 1))
    file.write_text(good.replace("topic:", "topci:"))
    running.popen.send_signal(signal.SIGHUP)
    write_lines(tmp_path / "orders.jsonl", [order(2)])
    await until(lambda: _events(store, 2))
    file.write_text(good.replace("topic: orders", "topic: sales"))
    running.popen.send_signal(signal.SIGHUP)
    # Until it was reloaded, what comes goes where it went.
    number = 3
    while not await _sold(store):
        write_lines(tmp_path / "orders.jsonl", [order(number)])
        number += 1
        await until(lambda wanted=number - 1: _events(store, wanted))  # type: ignore[misc]
    done = running.end(signal.SIGTERM)
    assert done.status == 0
    assert "not reloaded: " in done.err
    assert "unknown key 'topci' (did you mean `topic`?)" in done.err
    assert "reloaded: restarted in" in done.err
    assert "Traceback" not in done.err


async def _events(store: str, wanted: int) -> bool:
    return len(await events_of(store)) >= wanted


async def _sold(store: str) -> bool:
    return any(event.topic == "sales" for event in await events_of(store))


def test_lines_for_programs_come_while_it_runs(process: Callable[..., Process], tmp_path: Path) -> None:
    declare(tmp_path, from_file())
    write_lines(tmp_path / "orders.jsonl", [order(1)])
    running = process("connect", "pipelines.yaml", "--json")
    assert json.loads(running.line())["moved"] == 1
    done = running.end(signal.SIGINT)
    assert done.status == 0
    assert done.json["state"] == "stopped"


async def test_webhooks_and_operations_over_http(process: Callable[..., Process], tmp_path: Path) -> None:
    """What was answered with 202 while the pipeline was paused is there when it goes on, over a kill -9 as well."""
    store = f"sqlite:///{tmp_path}/shop.db"
    source = {"kind": "http", "type": "/kind", "aggregate_id": "/order", "token": "${TOKEN}"}
    declare(tmp_path, from_file("shop", source=source))
    headers = {"authorization": "Bearer t0"}
    for life in range(3):
        running = process("connect", "pipelines.yaml", "--port", 0, env={"TOKEN": "t0"})
        url = await asyncio.to_thread(_served_at, running)
        async with aiohttp.ClientSession(url) as client:
            async with client.get("/connectors") as answer:
                assert await answer.json() == ["shop"]
            async with client.put("/connectors/shop/pause") as answer:
                assert answer.status == 202
            async with client.post("/hooks/shop", json=order(life)) as answer:
                assert answer.status == 401
            async with client.post("/hooks/shop", json=order(life), headers=headers) as answer:
                assert answer.status == 202
            assert not await _events(store, life + 1)
            running.popen.kill()
        running = process("connect", "pipelines.yaml", "--port", 0, env={"TOKEN": "t0"})
        url = await asyncio.to_thread(_served_at, running)
        async with aiohttp.ClientSession(url) as client:
            async with client.get("/connectors/shop/status") as answer:
                assert (await answer.json())["connector"]["state"] in ("PAUSED", "RUNNING")
            async with client.put("/connectors/shop/resume") as answer:
                assert answer.status == 202
            await until(partial(_events, store, life + 1))
            async with client.get("/health/ready") as answer:
                assert answer.status == 200
            async with client.get("/metrics") as answer:
                assert 'synckit_pipeline_records_delivered_total{node="connect",pipeline="shop"' in await answer.text()
        assert running.end(signal.SIGTERM).status == 0
    assert [event.data["n"] for event in await events_of(store)] == [0, 1, 2]


async def test_a_runner_is_a_service_like_any_other(process: Callable[..., Process], tmp_path: Path) -> None:
    """`synckit run` shows its pipelines, and takes its webhooks; with several workers it is refused."""
    declare(tmp_path, from_file("shop", source={"kind": "http", "type": "/kind", "aggregate_id": "/order"}))
    (tmp_path / "relay.py").write_text(
        "from pathlib import Path\n"
        "from synckit_streams.connect.runner import Runner\n"
        "runner = Runner([Path('pipelines.yaml')])\n"
    )
    running = process("run", "relay:runner", "--port", 0)
    url = await asyncio.to_thread(_served_at, running)
    async with aiohttp.ClientSession(url) as client:
        await until(partial(_answers, client, "/health/ready"))
        async with client.post("/hooks/shop", json=order(1)) as answer:
            assert answer.status == 202
        await until(partial(_events, f"sqlite:///{tmp_path}/shop.db", 1))
        async with client.get("/connectors/shop/status") as answer:
            assert (await answer.json())["connector"]["state"] == "RUNNING"
    assert running.end(signal.SIGTERM).status == 0
    assert process("run", "relay:runner", "--workers", 2, "--no-http").end().status == 2


async def _answers(client: aiohttp.ClientSession, path: str) -> bool:
    async with client.get(path) as answer:
        return answer.status == 200


def _served_at(running: Process) -> str:
    assert running.popen.stderr is not None
    for line in running.popen.stderr:
        if found := re.search(r"at (http://\S+)/metrics", line.decode()):
            return str(found[1])
    raise AssertionError("it serves nothing")


def test_what_is_remembered_may_lie_elsewhere(synckit: Command, tmp_path: Path) -> None:
    """Where the files' own folder is read-only, the error says what to do."""
    declare(tmp_path, from_file(sink={"kind": "file", "path": str(tmp_path / "out.jsonl")}))
    (tmp_path / "pipelines.state").write_text("a file, where the folder would be")
    write_lines(tmp_path / "orders.jsonl", [order(1)])
    done = synckit("connect", "pipelines.yaml", "--once", "--json")
    assert done.status == 1
    assert "--state FOLDER" in done.error["hint"]
    for moved in (1, 0):
        done = synckit("connect", "pipelines.yaml", "--once", "--json", "--state", "var")
        assert (done.status, done.json["moved"]) == (0, moved)
    assert (tmp_path / "var" / "pipelines.state" / "in.db").exists()


def test_without_a_library_the_command_to_install_it_is_said(tmp_path: Path) -> None:
    """Of PyYAML; the other one, pydantic, some versions of typer cannot do without."""
    declare(tmp_path, from_file())
    code = "import sys; sys.modules['yaml'] = None; from synckit_streams.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, "connect", "pipelines.yaml", "--check"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "SK103" in done.stderr
    assert "pip install 'synckit-streams[app]'" in done.stderr
