"""A database for each test that wants one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import pytest

from tests.stores.media import asked, run_sql


@pytest.fixture
def database(postgres_url: str) -> Iterator[str]:
    """The URL of a database of this test's own."""
    name = f"test_{uuid.uuid4().hex}"
    asked(run_sql(postgres_url, f"CREATE DATABASE {name}"))
    yield urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
    asked(run_sql(postgres_url, f"DROP DATABASE {name} WITH (FORCE)"))
