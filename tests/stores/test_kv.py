"""The key-value layer beside models of sets and dictionaries: its names, and its indexes by runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from synckit_streams.stores import kv_keys as keys
from synckit_streams.stores import kv_runs as runs
from synckit_streams.stores.kv_medium import Pair, Range

names = st.one_of(st.text(st.sampled_from("a\0\xff"), max_size=6), st.text(max_size=80))


class Dictionary:
    """A medium that is a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `Medium`."""
        return [self.rows.get(key) for key in keys]

    def page(self, start: bytes, end: bytes, limit: int, *, reverse: bool = False) -> list[Pair]:
        """See `Medium`."""
        return sorted([pair for pair in self.rows.items() if start <= pair[0] < end], reverse=reverse)[:limit]

    def pages(self, ranges: Sequence[Range]) -> list[list[Pair]]:
        """See `Medium`."""
        return [self.page(*each, 10**9) for each in ranges]

    def commit(self, writes: Mapping[bytes, bytes | None]) -> None:
        """See `Medium`."""
        for key, value in writes.items():
            if value is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = value


@given(names, names)
def test_no_name_is_the_beginning_of_another_one(one: str, other: str) -> None:
    """So what is found below a name is of that name alone; a long one is named by its hash."""
    first, second = keys.text(one), keys.text(other)
    assert (first == second) == (one == other)
    assert one == other or not second.startswith(first)
    assert len(first) <= 2 * keys.TEXT_BYTES + 3


@given(st.binary(min_size=1, max_size=4).filter(lambda raw: raw.rstrip(b"\xff")), st.binary(max_size=4))
def test_the_end_of_a_prefix_is_after_all_that_begin_with_it(prefix: bytes, rest: bytes) -> None:
    assert prefix + rest < keys.end_of(prefix)
    assert prefix + rest >= prefix


numbers = st.one_of(st.integers(0, 2_000), st.integers(0, 2**64 - 1), st.integers(2**64 - 600, 2**64 - 1))
batches = st.lists(st.tuples(numbers, st.integers(1, 600)), min_size=1, max_size=6)


@given(batches, st.lists(numbers, max_size=8))
def test_runs_find_what_a_dictionary_finds(batches: list[tuple[int, int]], others: list[int]) -> None:
    """Whatever numbers follow one another, overlap, or come twice: every position, in order, and no other."""
    medium, expected, position = Dictionary(), dict[int, list[int]](), 0
    for first, count in batches:
        pairs = []
        for number in range(first, min(first + count, 2**64)):
            position += 1
            pairs.append((number, position))
            expected.setdefault(number, []).append(position)
        writes: dict[bytes, bytes | None] = {}
        runs.write(b"x", pairs, writes)
        medium.commit(writes)
    medium.rows |= {b"w" + b"\0" * 16: b"theirs", b"y" + b"\0" * 16: b"theirs"}
    asked = [*others, *list(expected)[::37], *(first for first, _ in batches)]
    found = runs.positions(medium, {b"x": asked})[b"x"]
    assert found == {number: expected[number] for number in asked if number in expected}
    at, read = 0, dict[int, list[int]]()
    while at < 2**64:
        page, upto = runs.interval(medium, b"x", at, 2**64 - 1, 7)
        assert upto >= at
        read |= page
        at = upto + 1
    assert read == expected
