"""A webhook as a source: who may send, what is answered, and that an answer of 202 is a promise."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from tests.connect.kit import declare, events_of, move_once, moving, numbers, order, until

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
