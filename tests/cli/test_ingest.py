"""`synckit ingest`: somebody else's JSON into a store, each message once."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator

import pytest

from synckit_connectors.memory import MemoryConnector
from synckit_streams.ports.connector import Message
from tests.cli.conftest import Command, NodeStarter

OPTIONS = ("--topic", "orders", "--type", "/kind", "--aggregate", "/order", "--idle", "0.2")


@pytest.fixture
def broker() -> Iterator[str]:
    """With messages of a producer that knows nothing of us."""
    url = f"memory://{uuid.uuid4().hex}"
    connector = MemoryConnector(url)

    async def produce() -> None:
        await connector.open()
        bodies = [b'{"kind": "placed", "order": "o-%d"}' % number for number in range(12)]
        await connector.send("raw", [Message("", "", {}, body) for body in [*bodies, b"{"]])

    asyncio.run(produce())
    yield url
    asyncio.run(connector.close())


def test_it_says_what_became_of_the_messages(synckit: Command, broker: str) -> None:
    done = synckit("ingest", "raw", "--store", "sqlite:///hub.db", "--connector", broker, *OPTIONS)
    assert done.status == 0
    assert "ingested 12 events from raw, set aside 1 that cannot become events" in done.out
    again = synckit("ingest", "raw", "--store", "sqlite:///hub.db", "--connector", broker, *OPTIONS, "--json")
    assert again.json == {"read": 0, "written": 0, "known": 0, "set_aside": 0}
    other = synckit(
        "ingest", "raw", "--store", "sqlite:///hub.db", "--connector", broker, *OPTIONS, "--group", "b", "--json"
    )
    assert other.json == {"read": 13, "written": 0, "known": 12, "set_aside": 1}
    status = synckit("status", "--store", "sqlite:///hub.db", "--json").json
    assert status["topics"]["orders"]["events"] == 12


def test_what_is_wrong_is_said(synckit: Command, broker: str) -> None:
    """Before there is a store."""
    common = ("--store", "sqlite:///hub.db", "--connector", broker)
    missing = synckit("ingest", "nowhere", *common, *OPTIONS, "--json")
    assert (missing.status, missing.error["code"]) == (1, "SK403")
    wrong = synckit("ingest", "raw", *common, "--topic", "orders", "--type", "x", "--aggregate", "order", "--json")
    assert (wrong.status, wrong.error["code"]) == (1, "SK100")
    assert "pointer" in wrong.error["message"]
    assert synckit("ingest", "raw", *common).status == 2


def test_a_store_that_a_node_has_open_is_refused(synckit: Command, broker: str, running: NodeStarter) -> None:
    with running("hub", store="sqlite:///hub.db"):
        done = synckit("ingest", "raw", "--store", "sqlite:///hub.db", "--connector", broker, *OPTIONS, "--json")
    assert (done.status, done.error["code"]) == (1, "SK305")
