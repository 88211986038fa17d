"""What is special about the commands on a PostgreSQL store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command

SECRET = "postgresql://joe:swordfish@127.0.0.1:1/shop?sslpassword=swordfish"


@pytest.mark.parametrize(
    "command",
    [
        ("log",),
        ("status",),
        ("export",),
        ("doctor",),
        ("import", "x.jsonl"),
        ("sync", "--topic", "x", "--connector", "memory:"),
    ],
)
def test_no_command_repeats_a_password(synckit: Command, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "x.jsonl").write_text("")
    done = synckit(*command, "--store", SECRET)
    assert done.status != 0
    assert "swordfish" not in done.out + done.err
    assert "127.0.0.1:1/shop" in (done.out + done.err).replace("\n", "")


def test_a_command_that_writes_is_told_whose_the_store_is(
    synckit: Command, tmp_path: Path, own_postgres_url: str
) -> None:
    """Of a new store, which all processes of a node share; then it remembers."""
    event = {
        "specversion": "1.0", "id": "1", "source": "/shop", "type": "order.placed", "subject": "o-1", "data": {"n": 1},
    }  # fmt: skip
    (tmp_path / "x.jsonl").write_text(json.dumps(event) + "\n")
    words = ("import", "x.jsonl", "--store", own_postgres_url, "--topic", "orders")
    done = synckit(*words)
    assert done.status != 0
    assert "--node" in done.err
    done = synckit(*words, "--node", "hub")
    assert done.status == 0, done.err
    done = synckit(*words, "--json")
    assert (done.status, done.json["node"]) == (0, "hub"), done.err
