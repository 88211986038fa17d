"""Nodes, brokers and patience for the tests that use the library as its users do."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from synckit_connectors.memory import MemoryBroker, MemoryConnector, memory_broker
from synckit_streams import SyncNode
from synckit_streams.testing.brokers import Server
from tests.acceptance.kit import Make


@pytest.fixture
def topic() -> str:
    """A topic that nobody else uses: servers are shared."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def memory_name() -> Iterator[str]:
    """A broker in memory that stays for the whole test, whoever closes."""
    name = uuid.uuid4().hex
    keeper = MemoryConnector(f"memory://{name}")
    yield name
    del keeper


@pytest.fixture
def memory(memory_name: str) -> MemoryBroker:
    """Its switchboard."""
    return memory_broker(memory_name)


@pytest.fixture
def memory_url(memory_name: str) -> str:
    """Its URL."""
    return f"memory://{memory_name}"


@pytest.fixture(params=["memory", "nats", "redis", "kafka"])
def url(request: pytest.FixtureRequest) -> str:
    """The URL of a broker: the one in memory, and then real servers."""
    found: str = request.getfixturevalue(f"{request.param}_url")
    return found


@pytest.fixture(params=["nats_server", "redis_server", "kafka_server"])
def server(request: pytest.FixtureRequest) -> Server:
    """A real server of this test's own, of each kind."""
    found: Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
async def make(tmp_path: Path, topic: str) -> AsyncIterator[Make]:
    """Makes open nodes with an SQLite store each, and closes them: `await make("till-1", url)`."""
    async with AsyncExitStack() as stack:

        async def made(node_id: str, url: str | None, **settings: Any) -> SyncNode:
            settings.setdefault("store", f"sqlite:///{tmp_path / f'{node_id}.db'}")
            settings.setdefault("topics", [topic])
            settings.setdefault("connectors", [] if url is None else [url])
            return await stack.enter_async_context(SyncNode(node_id, **settings))

        yield made
