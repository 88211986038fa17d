"""Where events were last read, against a plain dictionary."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence

import pytest

from synckit_streams.model.seen import Seen
from synckit_streams.sync.places import Places, Same, even_parts


@pytest.mark.parametrize(
    "positions",
    [[5], [1, 2, 3, 4, 5], [7, 7, 7, 7], [1, 5, 9, 13], [1, 2, 9, 1], [9, 8, 7], [2**53] * 2, [3] * 40 + [4] * 40,
     [*range(40), *range(90, 130)], [1, 1], [1, 9]],
)  # fmt: skip
def test_parts_are_the_positions(positions: list[int]) -> None:
    """However they are kept, they read the same, and a second look at them too."""
    parts = even_parts(positions)
    assert [at for part in parts for at in part] == positions
    assert [part[at] for part in parts for at in range(len(part))] == positions
    assert sum(map(len, parts)) == len(positions)


def test_one_position_many_times_is_a_sequence() -> None:
    same = Same(7, 3)
    assert [*same] == [7, 7, 7]
    assert [*same[1:]] == [7, 7]
    assert len(same[5:]) == 0
    assert (min(same), max(same), same[-1]) == (7, 7, 7)
    with pytest.raises(IndexError):
        same[3]


def test_a_small_frame_followed_by_single_events_ends() -> None:
    """Seen once: a frame of a few events, then one more; joining the two ran for ever."""
    places = Places()
    places.add("a", 1, [4] * 20, 0)
    places.add("a", 21, [9], 0)
    places.add("a", 22, [9, 12], 0)
    assert places.at_or_past(Seen({"a": ((1, 30),)}), {0: 5}) == Seen({"a": ((21, 23),)})


def test_a_million_events_cost_little() -> None:
    """A frame of 500 a position: two thousand runs, and none of them holds a number for each event."""
    places = Places()
    for frame in range(2_000):
        places.add("a", 1 + 500 * frame, [frame + 1] * 500, 0)
    runs = places._runs["a"]
    assert len(runs) == 2_000
    assert sum(sys.getsizeof(run) + sys.getsizeof(run.positions) for run in runs) < 500_000
    everything = Seen({"a": ((1, 1_000_000),)})
    assert places.at_or_past(everything, {0: 1}) == everything
    assert places.at_or_past(everything, {0: 1_001}) == Seen({"a": ((500_001, 1_000_000),)})


def shapes(rng: random.Random, position: int) -> Sequence[int]:
    """What is read in one go: a frame, a message an event, or a mixture."""
    length = rng.choice((1, 1, 2, 5, 30, 80))
    return rng.choice(
        (
            [position] * length,
            list(range(position, position + length)),
            list(range(position, position + 3 * length, 3)),
            sorted(rng.choices(range(position, position + 20), k=length)),
            rng.choices(range(position, position + 20), k=length),
        )
    )


@pytest.mark.parametrize("seed", range(60))
def test_what_lies_at_or_past_a_place_is_what_a_dictionary_says(seed: int) -> None:
    """Runs read, read again, over several partitions, some of which are forgotten."""
    rng = random.Random(seed)
    places, model = Places(), dict[tuple[str, int], tuple[int, int]]()
    nexts = {"a": 1, "b": 1}
    for _ in range(40):
        origin, partition = rng.choice("ab"), rng.randrange(2)
        positions = shapes(rng, rng.randrange(100))
        first = nexts[origin] + rng.choice((0, 0, 0, 3)) if rng.random() < 0.7 else rng.randrange(1, nexts[origin] + 1)
        nexts[origin] = max(nexts[origin], first + len(positions))
        places.add(origin, first, positions, partition)
        model |= {(origin, first + at): (partition, position) for at, position in enumerate(positions)}
        if rng.random() < 0.05:
            places.forget(partition)
            model = {dot: place for dot, place in model.items() if place[0] != partition}
        wanted = Seen({"a": ((1, nexts["a"]),), "b": ((2, nexts["b"] + 5),), "c": ((1, 1),)})
        threshold = {0: rng.choice((0, rng.randrange(120))), 1: rng.choice((0, rng.randrange(120)))}
        expected = Seen.of(
            dot for dot, (where, position) in model.items() if dot in wanted and position >= threshold[where]
        )
        assert places.at_or_past(wanted, threshold) == expected
        highest = places.highest()
        assert {where: place for where, (place, _, _) in highest.items()} == {
            where: max(place for of, place in model.values() if of == where)
            for where in {of for of, _ in model.values()}
        }
        assert all(model[origin, seq] == (where, place) for where, (place, origin, seq) in highest.items())
