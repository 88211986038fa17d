"""An outbox table in PostgreSQL, as somebody's program has it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

OUTBOX = """
CREATE TABLE outbox (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    n bigserial,
    aggregatetype text NOT NULL,
    aggregateid text NOT NULL,
    type text,
    payload jsonb,
    published_at timestamptz
)
"""
INSERT = "INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES ($1, $2, $3, $4)"


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """A connection of the program's."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def put(connection: Any, *numbers: int, topic: str = "orders") -> None:
    """Rows with these numbers."""
    rows = [(topic, f"o-{number % 7}", "order.placed", json.dumps({"n": number})) for number in numbers]
    await connection.executemany(INSERT, rows)


def from_outbox(url: str, name: str = "relay", **more: Any) -> dict[str, Any]:
    """A pipeline from the table to a store."""
    return {
        "name": name,
        "source": {"kind": "postgres_outbox", "url": url, "order": "n", "poll_seconds": 0.1},
        "sink": {"kind": "store", "store": "sqlite:///shop.db"},
        **more,
    }
