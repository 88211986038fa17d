"""Fixtures with real servers, for every project that has synckit-streams and pytest installed.

For each of nats, kafka, redis and postgres:

- `nats_url`: the URL of a server that all tests of the process share; use topics of your own.
- `own_nats_url`: one of this test's own, unless a server is named.
- `nats_found`, `own_nats_found`: the URL, and which source it is from.
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
from synckit_streams.testing.sources import KAFKA, NATS, POSTGRES, REDIS, Found, Kind, serving

# The contract suites are imported from here by tests elsewhere; this gives their asserts pytest's explanations.
pytest.register_assert_rewrite("synckit_streams.testing.store_contract", "synckit_streams.testing.connector_contract")


def lacking(reason: str) -> None:
    """Skip the running test for want of something on this machine; fail it under `SYNCKIT_TEST_REQUIRE=all`."""
    if os.environ.get("SYNCKIT_TEST_REQUIRE") == "all":
        pytest.fail(f"SYNCKIT_TEST_REQUIRE=all, but {reason}", pytrace=False)
    pytest.skip(reason)


def _found(kind: Kind, scope: Any, prefix: str = "") -> Callable[..., Any]:
    @pytest.fixture(scope=scope, name=f"{prefix}{kind.name}_found")
    def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
        try:
            with serving(kind, tmp_path_factory.mktemp(kind.name)) as server:
                yield server
        except MissingDependency as missing:
            lacking(str(missing))

    found.__doc__ = f"What {prefix}{kind.name}_url is the URL of, and its source."
    return found


def _url(kind: Kind, scope: Any, prefix: str = "") -> Callable[..., Any]:
    @pytest.fixture(scope=scope, name=f"{prefix}{kind.name}_url")
    def url(request: pytest.FixtureRequest) -> str:
        found: Found = request.getfixturevalue(f"{prefix}{kind.name}_found")
        return found.url

    whose = "of this test's own, unless one is named" if prefix else "that all tests of this process share"
    url.__doc__ = f"The URL of a {kind.name} server {whose}."
    return url


def _shared(kind: Kind) -> tuple[Any, Any]:
    return _found(kind, "session"), _url(kind, "session")


def _own(kind: Kind) -> tuple[Any, Any]:
    return _found(kind, "function", "own_"), _url(kind, "function", "own_")


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


nats_found, nats_url = _shared(NATS)
own_nats_found, own_nats_url = _own(NATS)
nats_server = _server(NATS)
redis_found, redis_url = _shared(REDIS)
own_redis_found, own_redis_url = _own(REDIS)
redis_server = _server(REDIS)
kafka_found, kafka_url = _shared(KAFKA)
own_kafka_found, own_kafka_url = _own(KAFKA)
kafka_server = _server(KAFKA)
postgres_found, postgres_url = _shared(POSTGRES)
own_postgres_found, own_postgres_url = _own(POSTGRES)
postgres_server = _server(POSTGRES)
