"""The container source, run with a real Docker engine: `make test-containers`.

An engine that DOCKER_HOST names, or that answers at its usual place, is used; otherwise one is started, and stopped.
The images are made of the servers on this machine, so that no registry is needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker.client
import pytest

from synckit_streams import Draft, SyncNode
from synckit_streams.errors import MissingDependency
from synckit_streams.testing.brokers import find_binary, find_redis
from synckit_streams.testing.pytest_plugin import lacking
from synckit_streams.testing.sources import NATS, REDIS, Kind, serving
from tests.containers.engine import DockerEngine, answers, image_of, remove

USUAL = "unix:///var/run/docker.sock"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a Docker engine answers."""
    named = os.environ.get("DOCKER_HOST", USUAL)
    if answers(named):
        yield named
        return
    try:
        own = DockerEngine()
    except MissingDependency as missing:
        lacking(str(missing))
        return
    with own:
        yield own.url


@pytest.fixture
def docker_host(engine: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("DOCKER_HOST", engine)
    monkeypatch.setenv("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1")
    return engine


@pytest.fixture
def image(docker_host: str, kind: Kind) -> Iterator[str]:
    """Of a server on this machine."""
    program = find_binary("nats-server", "SYNCKIT_NATS_SERVER") if kind is NATS else find_redis()
    assert program is not None
    tag = f"synckit-test-{kind.name}"
    image_of(docker_host, tag, program)
    yield f"{tag}:latest"
    remove(docker_host, tag)


def containers(host: str) -> int:
    client = docker.client.DockerClient(base_url=host)
    try:
        return len(client.containers.list(all=True))
    finally:
        client.close()


@pytest.mark.parametrize("kind", [NATS, REDIS], ids=lambda kind: kind.name)
async def test_nodes_meet_over_a_server_in_a_container(
    docker_host: str, kind: Kind, image: str, tmp_path: Path
) -> None:
    """Started before, and gone afterwards."""
    before = containers(docker_host)
    environ = {"SYNCKIT_TEST_SOURCES": "container,local", f"SYNCKIT_TEST_{kind.name.upper()}_IMAGE": image}
    with serving(kind, tmp_path, environ) as found:
        assert found.source == f"container {image}"
        assert containers(docker_host) == before + 1
        settings: dict[str, Any] = {"connectors": [found.url], "topics": ["orders"]}
        async with (
            SyncNode("till-1", store="memory:", **settings) as one,
            SyncNode("till-2", store="memory:", **settings) as other,
        ):
            await one.append_many([Draft("orders", "order.placed", f"o-{n}", n) for n in range(100)])
            assert (await one.sync()).complete
            assert (await other.sync()).events_pulled == 100
            assert await one.digest("orders") == await other.digest("orders")
    assert containers(docker_host) == before


@pytest.mark.usefixtures("docker_host")
def test_an_image_that_is_not_there_is_not_pulled(tmp_path: Path) -> None:
    """The reason says which, and how to bring it."""
    environ = {"SYNCKIT_TEST_SOURCES": "container", "SYNCKIT_TEST_NATS_IMAGE": "nowhere.invalid/nats:1"}
    with (
        pytest.raises(MissingDependency, match=r"docker pull nowhere\.invalid/nats:1"),
        serving(NATS, tmp_path, environ),
    ):
        pass
