"""Where events were read, as rows of SQLite: one for a run that goes on."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from synckit_streams.model.exchange import PlaceRun
from synckit_streams.stores import sqlite_schema
from synckit_streams.stores.place_rows import UNEVEN_MAX, RunRows, run_of
from synckit_streams.stores.sqlite_places import SELECT_RUNS, PlaceRows


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    sqlite_schema.migrate(connection, tmp_path)
    yield connection
    connection.close()


def run(first: int, positions: Sequence[int], *, reader: str = "r", origin: str = "a") -> PlaceRun:
    return PlaceRun(reader, "t", origin, first, positions)


def where(connection: sqlite3.Connection, reader: str = "r") -> dict[tuple[str, int], int]:
    runs = map(run_of, connection.execute(SELECT_RUNS, (reader,)))
    return {(each.origin, each.first + at): position for each in runs for at, position in enumerate(each.positions)}


def rows(connection: sqlite3.Connection) -> int:
    count: int = connection.execute("SELECT count(*) FROM places").fetchone()[0]
    return count


def test_a_thousand_commits_of_an_event_each_are_one_row(connection: sqlite3.Connection) -> None:
    """An event a message, each at the next position, from two writers whose events do not meet."""
    places = PlaceRows(connection)
    for seq in range(1, 1_001):
        places.add([run(seq, [seq]), run(seq, [seq], reader="other")])
    assert rows(connection) == 2
    assert where(connection) == {("a", seq): seq for seq in range(1, 1_001)}


def test_uneven_places_share_a_row_until_it_is_large(connection: sqlite3.Connection) -> None:
    """Two writers whose messages mix: the steps are uneven, and a row names each position."""
    rng = random.Random(59)
    places, position, expected = PlaceRows(connection), 0, dict[tuple[str, int], int]()
    for seq in range(1, 2_001):
        position += rng.randrange(1, 4)
        expected["a", seq] = position
        places.add([run(seq, [position])])
    assert where(connection) == expected
    assert 2_000 // UNEVEN_MAX <= rows(connection) < 2_000 // UNEVEN_MAX + 20


def test_what_was_read_again_is_found_behind_what_was_read_before(connection: sqlite3.Connection) -> None:
    """Only the last row of an origin is continued, so that a later place stays the later one."""
    places = PlaceRows(connection)
    places.add([run(1, range(1, 11))])
    places.add([run(5, [20, 21])])
    places.add([run(11, [22])])
    places.add([run(7, [22])])
    found = where(connection)
    assert [found["a", seq] for seq in range(1, 12)] == [1, 2, 3, 4, 20, 21, 22, 8, 9, 10, 22]


def test_a_reader_that_was_put_back_begins_anew(connection: sqlite3.Connection) -> None:
    places = PlaceRows(connection)
    places.add([run(1, [1, 2]), run(1, [1], reader="other")])
    places.forget(["r"])
    places.add([run(3, [3]), run(2, [2], reader="other")])
    assert where(connection) == {("a", 3): 3}
    assert where(connection, "other") == {("a", 1): 1, ("a", 2): 2}


@pytest.mark.parametrize("seed", range(20))
def test_rows_say_what_a_dictionary_says(connection: sqlite3.Connection, seed: int) -> None:
    """Frames, steps and mixtures, read once or again, over several lives of the connection."""
    rng = random.Random(seed)
    places, model, nexts = PlaceRows(connection), dict[tuple[str, int], int](), {"a": 1, "b": 1}
    for _ in range(60):
        origin, start, length = rng.choice("ab"), rng.randrange(1, 1_000), rng.choice((1, 1, 2, 7, 70, 600))
        positions = rng.choice(
            ([start] * length, [*range(start, start + length)], sorted(rng.choices(range(start, start + 9), k=length)))
        )
        first = nexts[origin] if rng.random() < 0.8 else rng.randrange(1, nexts[origin] + 1)
        nexts[origin] = max(nexts[origin], first + length)
        places.add([run(first, positions, origin=origin)])
        model |= {(origin, first + at): position for at, position in enumerate(positions)}
        if rng.random() < 0.1:
            places = PlaceRows(connection)
    assert where(connection) == model


def test_a_row_grows_only_near_the_last_one_where_others_look_for_what_is_new() -> None:
    """Whoever reads the last rows anew, as many as that, misses nothing."""
    places = RunRows(0, reach=2)
    assert [row[0] for row in places.add([run(1, [1])])] == [1]
    assert [row[0] for row in places.add([run(2, [2])])] == [1]
    assert [row[0] for row in places.add([run(1, [7], origin="b"), run(1, [8], origin="c")])] == [2, 3]
    assert [row[0] for row in places.add([run(2, [9], origin="b")])] == [2]
    (row,) = places.add([run(3, [3])])
    assert (row[0], run_of(row[1:])) == (4, PlaceRun("r", "t", "a", 3, range(3, 4)))
