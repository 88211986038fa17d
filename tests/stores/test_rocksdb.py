"""The RocksDB store: the contract on a folder, and what only a folder can do wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from synckit_streams.testing.store_contract import StoreContract
from tests.stores.media import RocksMedia


class TestRocksDbStore(StoreContract):
    """Everything that a store must do."""

    histories = 20

    @pytest.fixture
    def media(self, tmp_path: Path) -> RocksMedia:
        return RocksMedia(tmp_path)
