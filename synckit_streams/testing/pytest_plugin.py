"""Fixtures with real brokers, for every project that has synckit-streams and pytest installed.

- `nats_url`: a NATS server with JetStream for the whole session; use topics of your own. The server that
  `SYNCKIT_TEST_NATS_URL` names, else one started from a local nats-server.
- `nats_server`: a `NatsServer` for one test, to be stopped, killed and restarted; always a local one, since nobody
  wants tests to kill the server they named.

Without a server the test is skipped, with the reason. `SYNCKIT_TEST_REQUIRE=all` makes that a failure, so that a
green run on a build machine means that everything ran.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from synckit_streams.errors import MissingDependency
from synckit_streams.testing.brokers import NatsServer, RedisServer
from synckit_streams.testing.kafka_server import KafkaServer

# The contract suites are imported from here by tests elsewhere; this gives their asserts pytest's explanations.
pytest.register_assert_rewrite("synckit_streams.testing.store_contract", "synckit_streams.testing.connector_contract")


def lacking(reason: str) -> None:
    """Skip the running test for want of something on this machine; fail it under `SYNCKIT_TEST_REQUIRE=all`."""
    if os.environ.get("SYNCKIT_TEST_REQUIRE") == "all":
        pytest.fail(f"SYNCKIT_TEST_REQUIRE=all, but {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A running nats-server of this test's own."""
    yield from _nats_server(tmp_path_factory.mktemp("nats"))


@pytest.fixture(scope="session")
def nats_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a NATS server with JetStream that all tests of this process share."""
    if named := os.environ.get("SYNCKIT_TEST_NATS_URL"):
        yield named
        return
    for server in _nats_server(tmp_path_factory.mktemp("nats")):
        yield server.url


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A running Redis or Valkey server of this test's own."""
    yield from _redis_server(tmp_path_factory.mktemp("redis"))


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Redis or Valkey server that all tests of this process share."""
    if named := os.environ.get("SYNCKIT_TEST_REDIS_URL"):
        yield named
        return
    for server in _redis_server(tmp_path_factory.mktemp("redis")):
        yield server.url


@pytest.fixture
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A running Apache Kafka broker of this test's own."""
    yield from _kafka_server(tmp_path_factory.mktemp("kafka"))


@pytest.fixture(scope="session")
def kafka_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Kafka broker that all tests of this process share."""
    if named := os.environ.get("SYNCKIT_TEST_KAFKA_URL"):
        yield named
        return
    for server in _kafka_server(tmp_path_factory.mktemp("kafka")):
        yield server.url


def _kafka_server(directory: Path) -> Iterator[KafkaServer]:
    try:
        server = KafkaServer(directory)
    except MissingDependency as missing:
        lacking(str(missing))
        return
    with server:
        yield server


def _redis_server(directory: Path) -> Iterator[RedisServer]:
    try:
        server = RedisServer(directory)
    except MissingDependency as missing:
        lacking(str(missing))
        return
    with server:
        yield server


def _nats_server(directory: Path) -> Iterator[NatsServer]:
    try:
        server = NatsServer(directory)
    except MissingDependency as missing:
        lacking(str(missing))
        return
    with server:
        yield server
