"""A disk that is soon full."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from synckit_streams.testing.pytest_plugin import lacking
from tests.stores.disks import mount, unmount


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 16 MiB (`disks.SMALL_BYTES`)."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if why := mount(folder):
        lacking(f"a small file system needs root: {why}")
    yield folder
    unmount(folder)
