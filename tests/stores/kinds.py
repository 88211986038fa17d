"""The stores that keep what they were given, by name; a new one is a line here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from synckit_streams.testing import RedisServer
from synckit_streams.testing.server import Server

KINDS: dict[str, Callable[[Path], str] | None] = {
    "sqlite": lambda folder: f"sqlite:///{folder}/till.db",
    "rocksdb": lambda folder: f"rocksdb:///{folder}/till",
    "postgres": None,
    "redis": None,
}
"""The URL of a store in a folder; None for one that a server has, which the fixture `NAME_server` starts."""


def place_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> tuple[str, Server | None]:
    """The URL of a new store of a kind, and its server, which may be killed."""
    make = KINDS[kind]
    if make is not None:
        return make(folder), None
    server: Server = request.getfixturevalue(f"{kind}_server")
    if isinstance(server, RedisServer):  # as it comes it may lose what it has not brought to its disk
        server.appendfsync = "always"
        server.restart()
        return f"{server.url}?claim_s=1", server
    return server.url, server
