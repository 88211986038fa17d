"""What every test has: the marker `nats` where a real server is used, and how much work a slow test may do."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import hypothesis
import pytest

from synckit_streams.testing.pytest_plugin import lacking

LONG = os.environ.get("SYNCKIT_TEST_LONG") == "1"

# No deadline: on two shared cores a single example may take as long as the machine likes; the test's own limit holds.
hypothesis.settings.register_profile("bounded", deadline=None, print_blob=True)
hypothesis.settings.register_profile("long", deadline=None, print_blob=True, max_examples=5_000)
hypothesis.settings.load_profile("long" if LONG else "bounded")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"nats_server", "nats_url", "own_nats_url"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.nats)


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A command that runs in the test's own process sets up the logging of its process."""
    loggers = [logging.getLogger(name) for name in (None, "synckit_streams", "uvicorn", "asyncio")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def database(postgres_url: str) -> Iterator[str]:
    """The URL of a PostgreSQL database of this test's own."""
    from tests.stores.media import asked, run_sql  # most tests need no driver

    name = f"test_{uuid.uuid4().hex}"
    asked(run_sql(postgres_url, f"CREATE DATABASE {name}"))
    yield urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
    asked(run_sql(postgres_url, f"DROP DATABASE {name} WITH (FORCE)"))


STAND_IN_LACKS = {
    "test_members_come_and_go_in_mid_batch": "noida-db does not let two members of a group share a topic",
    "test_a_slow_reader_costs_no_memory": "noida-db sends a consumer more at a time than that asks for",
}
"""What cannot be tested where noida-db stands in for Apache Kafka."""


@pytest.fixture(autouse=True)
def _on_a_stand_in(request: pytest.FixtureRequest) -> None:
    why = STAND_IN_LACKS.get(getattr(request.node, "originalname", ""))
    if why and "kafka_url" in request.fixturenames:
        found = request.getfixturevalue("kafka_found")
        if found.source == "local noida-db":
            lacking(why)


@pytest.fixture(scope="session")
def long_run() -> bool:
    """True under `make test-long`: a slow test does as many rounds as it has patience for."""
    return LONG
