"""The reference store."""

from __future__ import annotations

import pytest

from synckit_streams.errors import ConfigError
from synckit_streams.stores.memory import MemoryStore
from synckit_streams.testing import StoreContract
from tests.stores.media import MemoryMedia


class TestMemoryStore(StoreContract):
    """Everything that a store must do."""

    @pytest.fixture
    def media(self) -> MemoryMedia:
        return MemoryMedia()


def test_a_memory_store_is_nobody_elses() -> None:
    """A name would promise that two nodes can share it."""
    with pytest.raises(ConfigError):
        MemoryStore("memory://shared")
    assert not MemoryStore("memory:").features.durable
