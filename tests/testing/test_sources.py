"""Where a test gets its server from: one that is named, a container, a program on this machine; else the reasons."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from synckit_streams import Draft, SyncNode
from synckit_streams.errors import ConfigError, ConnectorError, MissingDependency
from synckit_streams.testing import PostgresServer
from synckit_streams.testing.kafka_server import NoidaServer
from synckit_streams.testing.sources import KAFKA, NATS, POSTGRES, REDIS, Kind, serving

LOCAL = {"SYNCKIT_TEST_SOURCES": "local"}


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Where Docker would be, and is not."""
    host = f"unix://{tmp_path}/docker.sock"
    monkeypatch.setenv("DOCKER_HOST", host)
    return iter([host])


@pytest.mark.parametrize("kind", [NATS, REDIS, KAFKA, POSTGRES], ids=lambda kind: kind.name)
def test_what_is_named_comes_first(kind: Kind, tmp_path: Path) -> None:
    """And nobody looks whether it is there: that it is away is what the test is to say."""
    named = {f"SYNCKIT_TEST_{kind.name.upper()}_URL": "somewhere://else"}
    with serving(kind, tmp_path, named) as found:
        assert found == ("somewhere://else", next(iter(named)))


@pytest.mark.nats
@pytest.mark.usefixtures("no_engine")
def test_without_an_engine_it_is_a_program_on_this_machine(tmp_path: Path) -> None:
    with serving(NATS, tmp_path, {}) as found:
        assert found.url.startswith("nats://127.0.0.1:")
        assert found.source == "local nats-server"
        assert NATS.ready("127.0.0.1", int(found.url.rpartition(":")[2]))
    assert not NATS.ready("127.0.0.1", int(found.url.rpartition(":")[2]))


@pytest.mark.parametrize("kind", [REDIS, POSTGRES], ids=lambda kind: kind.name)
def test_a_server_that_is_gone_is_not_ready(kind: Kind, tmp_path: Path) -> None:
    with serving(kind, tmp_path, LOCAL) as found:
        port = int(found.url.removesuffix("/postgres").rpartition(":")[2])
        assert kind.ready("127.0.0.1", port)
    assert not kind.ready("127.0.0.1", port)


def test_every_source_that_was_passed_over_says_why(
    tmp_path: Path, no_engine: Iterator[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(MissingDependency) as raised, serving(NATS, tmp_path, {}):
        pass
    said = str(raised.value)
    for why in (
        "SYNCKIT_TEST_NATS_URL is not set",
        f"no Docker engine at {next(no_engine)}",
        "there is no nats-server",
    ):
        assert why in said


def test_a_source_that_is_not_wanted_is_not_tried(tmp_path: Path) -> None:
    environ = {"SYNCKIT_TEST_SOURCES": "container, local", "SYNCKIT_TEST_NATS_URL": "nats://127.0.0.1:1"}
    with serving(NATS, tmp_path, environ) as found:
        assert found.url != environ["SYNCKIT_TEST_NATS_URL"]
    with (
        pytest.raises(MissingDependency, match="local is not among SYNCKIT_TEST_SOURCES"),
        serving(NATS, tmp_path, {"SYNCKIT_TEST_SOURCES": "url"}),
    ):
        pass
    with pytest.raises(ConfigError, match="cloud"), serving(NATS, tmp_path, {"SYNCKIT_TEST_SOURCES": "cloud"}):
        pass


TESTS = """
def test_shared(nats_url, redis_url, postgres_url): assert nats_url[:7] + redis_url[:8] == "nats://redis://"
def test_own(nats_url, own_nats_url): assert nats_url != own_nats_url
def test_server(nats_server, own_redis_url): assert nats_server.running
"""


def outcome(tmp_path: Path, text: str, **environ: str) -> str:
    """What pytest says of tests in another project."""
    (tmp_path / "test_it.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "--rootdir", str(tmp_path), str(tmp_path)],
        env={key: value for key, value in os.environ.items() if not key.startswith("SYNCKIT_TEST")} | environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


@pytest.mark.nats
@pytest.mark.usefixtures("no_engine")
def test_the_fixtures_give_shared_and_own_servers(tmp_path: Path) -> None:
    assert "3 passed" in outcome(tmp_path, TESTS)


def test_a_test_without_a_server_is_skipped_with_the_reason_and_fails_where_all_is_required(tmp_path: Path) -> None:
    text = "def test_one(kafka_url): pass"
    said = outcome(tmp_path, text, SYNCKIT_TEST_SOURCES="url")
    assert "1 skipped" in said
    assert "SYNCKIT_TEST_KAFKA_URL is not set" in said
    said = outcome(tmp_path, text, SYNCKIT_TEST_SOURCES="url", SYNCKIT_TEST_REQUIRE="all")
    assert "1 error" in said
    assert "SYNCKIT_TEST_KAFKA_URL is not set" in said


# -------------------------------------------------------------------------------------------------------- PostgreSQL


async def test_postgres_keeps_what_was_committed_over_a_kill_and_stops_under_its_clients(
    postgres_server: PostgresServer,
) -> None:
    """On the same port; and stopping does not wait for clients to leave."""
    url = postgres_server.url
    client = await asyncpg.connect(url)
    await client.execute("CREATE TABLE kept (n int)")
    await client.execute("INSERT INTO kept VALUES (7)")
    postgres_server.kill()
    client.terminate()
    postgres_server.start()
    assert postgres_server.url == url
    client = await asyncpg.connect(url)
    assert await client.fetchval("SELECT n FROM kept") == 7
    postgres_server.stop(timeout_s=60)
    assert not postgres_server.running
    client.terminate()
    assert "database system is shut down" in postgres_server.log_tail()


def test_a_postgres_setting_that_is_refused_is_told_with_its_own_words() -> None:
    server = PostgresServer(settings={"not_a_setting": "1"})
    try:
        with pytest.raises(ConnectorError, match="not_a_setting"):
            server.start()
    finally:
        server.close()


def test_a_postgres_that_is_named_and_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNCKIT_POSTGRES", sys.executable)
    with pytest.raises(ConfigError, match="no initdb beside"):
        PostgresServer()


# ------------------------------------------------------------------------------------------- what stands in for Kafka


def test_without_java_something_that_speaks_kafka_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is called by its name."""
    monkeypatch.setenv("PATH", "/nowhere")
    with serving(KAFKA, tmp_path, LOCAL) as found:
        assert found.source == "local noida-db"
        assert found.url.startswith("kafka://127.0.0.1:")


async def test_two_nodes_meet_over_the_stand_in_and_again_after_it_forgot_everything() -> None:
    settings: dict[str, Any] = {"store": "memory:", "topics": ["orders"]}
    with NoidaServer() as server:
        async with (
            SyncNode("till-1", connectors=[server.url], **settings) as one,
            SyncNode("till-2", connectors=[server.url], **settings) as other,
        ):
            await one.append_many([Draft("orders", "order.placed", f"o-{n}", n) for n in range(100)])
            assert (await one.sync()).complete
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            for node in (one, other):
                await node.sync()
            assert await one.digest("orders") == await other.digest("orders")


def test_a_port_that_somebody_has_is_not_taken_for_the_stand_ins_own() -> None:
    with NoidaServer() as server:
        second = NoidaServer(port=server.port)
        try:
            with pytest.raises(ConnectorError, match="already in use"):
                second.start(timeout_s=10)
        finally:
            second.close()
