"""Real servers for the fault suite: one of each kind for a file, since Kafka takes seconds to start."""

from __future__ import annotations

import random
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from synckit_streams.errors import MissingDependency
from synckit_streams.testing import FaultProxy, KafkaServer, NatsServer, RedisServer
from synckit_streams.testing.pytest_plugin import lacking
from synckit_streams.testing.server import Server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.faults)


def _made(kind: str, directory: Path) -> Server:
    if kind == "nats":
        return NatsServer(directory)
    if kind == "redis":
        return RedisServer(directory)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return KafkaServer(directory, advertised=probe.getsockname()[1])


@pytest.fixture(scope="module", params=["nats", "redis", "kafka"])
def kept_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    try:
        server = _made(request.param, tmp_path_factory.mktemp(request.param))
    except MissingDependency as missing:
        lacking(str(missing))
        return
    with server:
        yield server


@pytest.fixture
def server(kept_server: Server) -> Server:
    """A real server of each kind, that runs; what a test before left in it is there."""
    return kept_server.start()


@pytest.fixture
async def proxy(server: Server) -> AsyncIterator[FaultProxy]:
    """Before the server. A Kafka broker sends its clients to it by itself."""
    port = server.advertised if isinstance(server, KafkaServer) else 0
    async with FaultProxy(server, port=port) as proxy:
        yield proxy


@pytest.fixture
def topic() -> str:
    """A topic that nobody else uses."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def seed() -> int:
    """Of one test, which prints it."""
    return random.SystemRandom().randrange(2**32)


@pytest.fixture
def strikes(long_run: bool) -> int:
    """How often a fault strikes in a test."""
    return 40 if long_run else 4
