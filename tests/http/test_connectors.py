"""Connectors over HTTP, as users of Kafka Connect know them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from synckit_streams import Unavailable
from synckit_streams.ports.operation import Standing, State
from tests.http.conftest import Client, Served


class Pair:
    """Two pipelines that do what they are told; see `Pipelines`."""

    def __init__(self) -> None:
        self.states: dict[str, State] = {"orders": "running", "mail out": "failed"}
        self.done: list[tuple[str, str]] = []

    def standings(self) -> Sequence[Standing]:
        """Both."""
        return [
            Standing(
                name,
                state,
                "nats://a",
                "file:///b",
                3,
                1,
                None if state == "failed" else 4,
                "no room" * (state == "failed"),
            )
            for name, state in self.states.items()
        ]

    async def pause(self, name: str) -> None:
        """One."""
        self.states[name] = "paused"

    async def resume(self, name: str) -> None:
        """One; but the one that failed has nowhere to go."""
        if name == "mail out":
            raise Unavailable("the disk is full")
        self.states[name] = "running"

    async def restart(self, name: str) -> None:
        """One."""
        self.done.append(("restart", name))


@asynccontextmanager
async def both(served: Served) -> AsyncIterator[tuple[Pair, Client]]:
    pair = Pair()
    async with served(pipelines=pair) as ask:
        yield pair, ask


async def test_they_are_listed_and_looked_at_one_by_one(served: Served) -> None:
    """A list of names, as Connect gives it; with `expand` how each of them is."""
    async with both(served) as (_, ask):
        assert (await ask("GET", "/connectors")).json == ["orders", "mail out"]
        expanded = (await ask("GET", "/connectors?expand=status&expand=info")).json
        assert expanded["orders"]["status"]["connector"]["state"] == "RUNNING"
        assert expanded["mail out"]["info"]["source"] == "nats://a"
        one = (await ask("GET", "/connectors/orders")).json
        assert (one["name"], one["state"], one["moved"], one["dead"], one["lag"]) == ("orders", "running", 3, 1, 4)
        assert one["config"] == {"source": "nats://a", "sink": "file:///b"}
        failed = (await ask("GET", "/connectors/mail%20out/status")).json
        assert (failed["connector"]["state"], failed["connector"]["trace"]) == ("FAILED", "no room")
        assert failed["tasks"][0]["id"] == 0


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_they_are_paused_resumed_and_restarted(served: Served, method: str) -> None:
    async with both(served) as (pair, ask):
        paused = await ask(method, "/connectors/orders/pause")
        assert (paused.status, paused.body) == (202, b"")
        assert pair.states["orders"] == "paused"
        assert (await ask("GET", "/connectors/orders/status")).json["connector"]["state"] == "PAUSED"
        assert (await ask(method, "/connectors/orders/resume")).status == 202
        assert (await ask("GET", "/connectors/orders/status")).json["connector"]["state"] == "RUNNING"
        assert (await ask(method, "/connectors/orders/restart")).status == 204
        assert pair.done == [("restart", "orders")]


async def test_what_goes_wrong_is_told_in_our_way_and_in_connects(served: Served) -> None:
    async with both(served) as (pair, ask):
        for method, path in (("GET", "/connectors/x"), ("GET", "/connectors/x/status"), ("PUT", "/connectors/x/pause")):
            unknown = await ask(method, path)
            assert (unknown.status, unknown.error["code"], unknown.json["error_code"]) == (404, "NOT_FOUND", 404)
            assert "'x'" in unknown.json["message"]
        assert "x" not in pair.states
        refused = await ask("PUT", "/connectors/mail%20out/resume")
        assert (refused.status, refused.error["code"], refused.json["error_code"]) == (503, "SK401", 503)
        assert (await ask("GET", "/connectors/orders/pause")).status == 405
