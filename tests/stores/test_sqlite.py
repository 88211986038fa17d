"""The default store: the contract on a file, and what only a file can do wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from synckit_streams.testing.store_contract import StoreContract
from tests.stores.media import SqliteMedia


class TestSqliteStore(StoreContract):
    """Everything that a store must do."""

    histories = 20

    @pytest.fixture
    def media(self, tmp_path: Path) -> SqliteMedia:
        return SqliteMedia(tmp_path)


class TestSqliteStoreInOneThread(StoreContract):
    """The same where a simulation wants no threads, and the index by aggregate is brought up to date all the time."""

    histories = 5

    @pytest.fixture
    def media(self, tmp_path: Path) -> SqliteMedia:
        return SqliteMedia(tmp_path, threads=False, index_events=3)
