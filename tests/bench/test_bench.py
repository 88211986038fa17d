"""The benchmark runs, however small, and says what it found in the form that is promised."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = [
    *("append-vs-sqlite3-shell", "append-vs-eventsourcing", "append-rocksdb", "append-rocksdb-one-caller"),
    *("append-100-callers", "append-one-caller"),
    *("sync-memory", "sync-memory-packed", "sync-jetstream-packed"),
    *("publish-kafka", "receive-kafka", "receive-kafka-faststream"),
    *("publish-nats", "receive-nats", "receive-nats-faststream"),
    *("publish-redis", "receive-redis", "receive-redis-faststream"),
    *("frames-jetstream", "bridge-kafka-jetstream-redis", "read-log"),
    *(
        "postgres-append",
        "postgres-append-eventsourcing",
        "postgres-8-callers",
        "postgres-8-processes",
        "postgres-wake",
    ),
    "redis-append",
    *(
        "handle-batch-kafka",
        "handle-one-kafka",
        "handle-observed",
        "project-folded",
        "project-upserts",
        "handle-4-workers",
    ),
    *("relay-postgres-kafka", "relay-sqlite-nats", "relay-idle"),
    *("one-missing-event", "one-missing-event-opened", "sync-memory-growth"),
]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.nats
@pytest.mark.timeout(600)  # every server there is, and every row
def test_every_row_is_there_and_well_formed(tmp_path: Path) -> None:
    """All rows at a thousandth of their size; what they say of the speed is worth nothing."""
    output = tmp_path / "results.json"
    done = bench("--events", "200", "--rounds", "1", "--output", str(output), "--directory", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text())
    wanted = [name for name in NAMES if name != "append-vs-sqlite3-shell" or shutil.which("sqlite3")]
    assert [row["name"] for row in rows] == wanted
    for row in rows:
        assert list(row) == ["name", "ours", "other", "ratio", "wanted", "unit"]
        figures = [row[each] for each in ("ours", "other", "ratio", "wanted")]
        assert all(isinstance(figure, float) and figure > 0 and math.isfinite(figure) for figure in figures)
        assert row["name"] in done.stdout
        of_a_cost = row["unit"] in ("ms", "MiB")
        assert row["wanted"] == 1.0 or not of_a_cost
        # One round, so that the ratio is that of the two figures.
        assert row["ratio"] == pytest.approx(row["other"] / row["ours"] if of_a_cost else row["ours"] / row["other"])
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]  # nothing left behind


def test_only_the_named_row_runs(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    done = bench("--quick", "--events", "200", "--only", "read-log", "--output", str(output))
    assert done.returncode == 0, done.stderr
    assert [row["name"] for row in json.loads(output.read_text())] == ["read-log"]


def test_an_unknown_row_is_refused_with_the_names_of_the_known_ones() -> None:
    done = bench("--only", "append")
    assert done.returncode == 2
    assert "read-log" in done.stderr
