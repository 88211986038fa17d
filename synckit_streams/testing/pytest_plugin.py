"""Fixtures with real servers, for every project that has synckit-streams and pytest installed.

For each of nats, kafka, redis and postgres:

- `nats_url`: the URL of a server that all tests of the process share; use topics of your own.
- `own_nats_url`: one of this test's own, unless a server is named.
- `nats_server`: a `NatsServer` of this test's own, to be stopped, killed and restarted; always a program on this
  machine, since nobody wants tests to kill the server they named.

A URL is of the server that `SYNCKIT_TEST_NATS_URL` names, of a container, or of a program on this machine: see
`sources`. Without a server the test is skipped, with the reasons. `SYNCKIT_TEST_REQUIRE=all` makes that a failure, so
that a green run on a build machine means that everything ran.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from synckit_streams.errors import MissingDependency
from synckit_streams.testing.server import Server
from synckit_streams.testing.sources import KAFKA, NATS, POSTGRES, REDIS, Kind, serving

# The contract suites are imported from here by tests elsewhere; this gives their asserts pytest's explanations.
pytest.register_assert_rewrite("synckit_streams.testing.store_contract", "synckit_streams.testing.connector_contract")


def lacking(reason: str) -> None:
    """Skip the running test for want of something on this machine; fail it under `SYNCKIT_TEST_REQUIRE=all`."""
    if os.environ.get("SYNCKIT_TEST_REQUIRE") == "all":
        pytest.fail(f"SYNCKIT_TEST_REQUIRE=all, but {reason}", pytrace=False)
    pytest.skip(reason)


def _url(kind: Kind, name: str, scope: Any, text: str) -> Callable[..., Any]:
    @pytest.fixture(scope=scope, name=name)
    def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
        try:
            with serving(kind, tmp_path_factory.mktemp(kind.name)) as found:
                yield found.url
        except MissingDependency as missing:
            lacking(str(missing))

    url.__doc__ = text
    return url


def _shared(kind: Kind) -> Callable[..., Any]:
    text = f"The URL of a {kind.name} server that all tests of this process share."
    return _url(kind, f"{kind.name}_url", "session", text)


def _own(kind: Kind) -> Callable[..., Any]:
    text = f"The URL of a {kind.name} server of this test's own, unless one is named."
    return _url(kind, f"own_{kind.name}_url", "function", text)


def _server(kind: Kind) -> Callable[..., Any]:
    @pytest.fixture(name=f"{kind.name}_server")
    def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
        try:
            made = kind.local(tmp_path_factory.mktemp(kind.name))
        except MissingDependency as missing:
            lacking(str(missing))
            return
        with made:
            yield made

    server.__doc__ = f"A running {kind.name} server of this test's own, that may be killed and started again."
    return server


nats_url, own_nats_url, nats_server = _shared(NATS), _own(NATS), _server(NATS)
redis_url, own_redis_url, redis_server = _shared(REDIS), _own(REDIS), _server(REDIS)
kafka_url, own_kafka_url, kafka_server = _shared(KAFKA), _own(KAFKA), _server(KAFKA)
postgres_url, own_postgres_url, postgres_server = _shared(POSTGRES), _own(POSTGRES), _server(POSTGRES)
