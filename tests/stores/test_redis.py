"""The Redis store: the contract on a real server, and what only a server can do wrong."""

from __future__ import annotations

import uuid

import pytest

from synckit_streams.testing.store_contract import StoreContract
from tests.stores.media import RedisMedia


class TestRedisStore(StoreContract):
    """Everything that a store must do."""

    histories = 10

    @pytest.fixture
    def media(self, redis_url: str) -> RedisMedia:
        return RedisMedia(redis_url, prefix=f"{uuid.uuid4().hex} ")
