"""A webhook as a source: who may send, what is answered, and that an answer of 202 is a promise."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from synckit_streams import Draft, SyncNode
from synckit_streams.errors import ConfigError
from synckit_streams.runtime.ownership import open_reader
from tests.connect.kit import declare, events_of, letters, move_once, moving, numbers, order, until

BODY = json.dumps(order(1)).encode()


def webhook(**more: Any) -> dict[str, Any]:
    """A pipeline from a webhook to a store."""
    return {
        "name": "shop",
        "source": {"kind": "http", "type": "/kind", "aggregate_id": "/order", **more},
        "sink": {"kind": "store", "store": "sqlite:///shop.db", "topic": "orders"},
    }


async def test_what_was_answered_with_202_arrives(tmp_path: Path) -> None:
    """Also when the process ends right after the answer."""
    file = declare(tmp_path, webhook())
    async with moving(file) as runner:
        for number in range(5):
            answer = await runner.hooks["shop"]({}, json.dumps(order(number)).encode())
            assert answer.status == 202
    await move_once(file)
    assert numbers(await events_of(f"sqlite:///{tmp_path}/shop.db")) == list(range(5))
    assert {event.topic for event in await events_of(f"sqlite:///{tmp_path}/shop.db")} == {"orders"}


async def test_a_repetition_is_one_event(tmp_path: Path) -> None:
    """By the header that has the sender's id; the same id with another content is a mistake of the sender's."""
    async with moving(declare(tmp_path, webhook(id_header="X-Delivery"))) as runner:
        hook = runner.hooks["shop"]
        answers = [await hook({"x-delivery": "d-1"}, BODY) for _ in range(3)]
        assert [each.status for each in answers] == [202, 202, 202]
        assert (await hook({"x-delivery": "d-1"}, b'{"kind":"k","order":"o"}')).status == 409
        assert (await hook({}, BODY)).status == 400
        await until(lambda: runner.standings()[0].moved == 1)
    events = await events_of(f"sqlite:///{tmp_path}/shop.db")
    assert [event.id for event in events] == ["d-1"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"x-hub-signature-256": "sha256=" + "0" * 64, "authorization": "Bearer t0"}, 401),
        ({"x-hub-signature-256": "sha256=" + hmac.new(b"s0", BODY, hashlib.sha256).hexdigest()}, 401),
        (
            {
                "x-hub-signature-256": "sha256=" + hmac.new(b"s0", BODY, hashlib.sha256).hexdigest(),
                "authorization": "Bearer t0",
            },
            202,
        ),
        ({"x-hub-signature-256": "ü", "authorization": "Bearer t0"}, 401),
    ],
)
async def test_only_who_signs_and_knows_the_token_gets_in(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    async with moving(declare(tmp_path, webhook(secret="s0", token="t0"))) as runner:
        answer = await runner.hooks["shop"](headers, BODY)
    assert answer.status == status


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"{", 400, "not JSON"),
        (b'{"kind":"k"}', 400, "nothing at /order"),
        (b'"' + b"x" * 1_000_001 + b'"', 413, "at most 1000000 bytes"),
    ],
)
async def test_what_cannot_be_an_event_is_refused_to_its_sender(
    tmp_path: Path, body: bytes, status: int, text: str
) -> None:
    async with moving(declare(tmp_path, webhook())) as runner:
        answer = await runner.hooks["shop"]({}, body)
    assert answer.status == status
    assert text in answer.text


async def test_it_takes_what_comes_while_the_pipeline_is_paused(tmp_path: Path) -> None:
    """And gives it on when the pipeline goes on."""
    async with moving(declare(tmp_path, webhook())) as runner:
        await runner.pause("shop")
        await until(lambda: runner.standings()[0].state == "paused")
        assert (await runner.hooks["shop"]({}, BODY)).status == 202
        assert runner.standings()[0].moved == 0
        await runner.resume("shop")
        await until(lambda: runner.standings()[0].moved == 1)


async def test_after_its_pipeline_ended_it_takes_nothing(tmp_path: Path) -> None:
    """503: whoever sent it tries again later."""
    async with moving(declare(tmp_path, webhook())) as runner:
        hook = runner.hooks["shop"]
    assert (await hook({}, BODY)).status == 503


async def test_what_was_passed_on_is_forgotten(tmp_path: Path) -> None:
    """The inbox of a webhook that has taken much is as small as that of one that has taken nothing."""
    file = declare(tmp_path, webhook())
    async with moving(file) as runner:
        hook = runner.hooks["shop"]
        bodies = [json.dumps(order(number)).encode() for number in range(200)]
        answers = await asyncio.gather(*(hook({}, body) for body in bodies))
        assert {answer.status for answer in answers} == {202}
        await until(lambda: runner.standings()[0].moved == 200)
    assert sorted(numbers(await events_of(f"sqlite:///{tmp_path}/shop.db"))) == list(range(200))
    store = await open_reader(f"sqlite:///{tmp_path}/pipelines.state/shop.inbox.db")
    try:
        assert await store.noted() == []
        assert (await store.end()).position == 0
    finally:
        await store.close()


async def test_the_store_of_a_node_is_not_taken_for_an_inbox(tmp_path: Path) -> None:
    """It would be another node's from then on."""
    async with SyncNode("shop", store=f"sqlite:///{tmp_path}/inbox.db") as node:
        await node.append(Draft("orders", "order.placed", "o-1", {}))
    async with moving(declare(tmp_path, webhook(store="sqlite:///inbox.db"))) as runner:
        await until(lambda: "the store of the node 'shop'" in runner.standings()[0].error)
        with pytest.raises(ConfigError, match="'shop'"):
            await runner.hooks["shop"]({}, BODY)


async def test_an_inbox_that_is_full_takes_no_more_until_something_is_passed_on(tmp_path: Path) -> None:
    """Its sender is told to come again; what waits is bounded, and none of it is lost. A repetition takes no room."""
    large = json.dumps(order(1, note="x" * 400_000)).encode()
    async with moving(declare(tmp_path, webhook(kept_bytes=1_000_000, id_header="x-id"))) as runner:
        hook = runner.hooks["shop"]
        await runner.pause("shop")
        await until(lambda: runner.standings()[0].state == "paused")
        ids = ["a", "a", "a", "b"]
        assert [(await hook({"x-id": id}, large)).status for id in ids] == [202] * 4
        answer = await hook({"x-id": "c"}, large)
        assert (answer.status, "wait to be passed on" in answer.text) == (503, True)
        await runner.resume("shop")
        await until(lambda: runner.standings()[0].moved == 2)
        assert (await hook({"x-id": "c"}, large)).status == 202
        await until(lambda: runner.standings()[0].moved == 3)
    assert [event.id for event in await events_of(f"sqlite:///{tmp_path}/shop.db")] == ["a", "b", "c"]


async def test_what_a_second_process_takes_the_first_one_passes_on(tmp_path: Path, database: str) -> None:
    """Both have the inbox, in a database that they share; one has the pipeline."""
    files = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        sink = {"kind": "file", "path": str(tmp_path / "out.jsonl")}
        files.append(declare(folder, {**webhook(store=database), "store": database, "sink": sink}))
    async with moving(files[0]) as first, moving(files[1]) as second:
        await until(lambda: "another process" in first.standings()[0].error + second.standings()[0].error)
        for number, runner in enumerate([first, second, first, second]):
            assert (await runner.hooks["shop"]({}, json.dumps(order(number)).encode())).status == 202
        await until(lambda: first.standings()[0].moved + second.standings()[0].moved == 4)
    assert sorted(each["n"] for each in letters(tmp_path / "out.jsonl")) == [0, 1, 2, 3]
