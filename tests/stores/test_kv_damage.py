"""What a key-value store finds wrong in its own medium: each kind of damage is done to a real one, and named."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from synckit_streams.stores import kv_keys as keys
from synckit_streams.stores.kv_beside import rows
from synckit_streams.stores.rocksdb import RocksDbStore
from synckit_streams.testing.store_contract import opening
from synckit_streams.testing.store_contract.moving import furnish


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[RocksDbStore]:
    """With everything in it."""
    store = RocksDbStore(f"rocksdb:///{tmp_path}/till")
    await store.open(opening("till"))
    await furnish(store)
    assert await store.damage() == []
    yield store
    await store.close()


def row_of(store: RocksDbStore, table: bytes, at: int = 0) -> tuple[bytes, bytes]:
    """One row of a table."""
    return list(rows(store.medium, table))[at]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (keys.OF_AGGREGATE, "is not in the index by aggregate"),
        (keys.AGGREGATE, "is not in the index by aggregate"),
        (keys.OF_ID, "is not in the index by id"),
        (keys.OF_KEY, "is not in the index by key"),
        (keys.EVENT, "the index by aggregate has 1, where no such event is"),
        (keys.STREAM, "wrong stream or seq"),
    ],
)
async def test_a_row_that_is_gone_is_named(store: RocksDbStore, table: bytes, said: str) -> None:
    """By what cannot be found any more."""
    store.medium.commit({row_of(store, table)[0]: None})
    assert any(said in each for each in await store.damage()), await store.damage()


async def test_an_event_that_cannot_be_read_is_named(store: RocksDbStore) -> None:
    """Cut off, and overwritten."""
    key, value = row_of(store, keys.EVENT)
    store.medium.commit({key: value[:20]})
    assert (await store.damage())[0] == "position 1: the event at position 1 is damaged"
    store.medium.commit({key: value[:-10] + b"\xc1" * 10})
    assert (await store.damage())[0].startswith("position 1: ")


async def test_an_index_that_says_something_else_is_named(store: RocksDbStore) -> None:
    """The number of an event of an aggregate, by which the next one's cause is found."""
    key, value = row_of(store, keys.OF_AGGREGATE)
    store.medium.commit({key: value[:-1] + bytes([value[-1] ^ 1])})
    (said,) = await store.damage()
    assert "is not in the index by aggregate" in said
