"""A database for each test that wants one, and a disk that is soon full."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

from synckit_streams.testing.pytest_plugin import lacking
from tests.stores.disks import mount, unmount
from tests.stores.media import asked, run_sql


@pytest.fixture
def database(postgres_url: str) -> Iterator[str]:
    """The URL of a database of this test's own."""
    name = f"test_{uuid.uuid4().hex}"
    asked(run_sql(postgres_url, f"CREATE DATABASE {name}"))
    yield urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
    asked(run_sql(postgres_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 16 MiB (`disks.SMALL_BYTES`)."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if why := mount(folder):
        lacking(f"a small file system needs root: {why}")
    yield folder
    unmount(folder)
