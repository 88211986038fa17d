"""Where the newest events of each aggregate are: what the file's index by aggregate does not have yet.

Written by the writer's thread, read by any. A commit only leaves its pairs here; they are sorted into a dictionary when
the writer asks for one, or when they become many. Whoever else asks looks through the few that are not sorted.
"""

from __future__ import annotations

from collections.abc import Sequence

PAIRS_UNSORTED_MAX = 2_000


class Tail:
    """See the module's text.

    Args:
        pairs: The hash of an aggregate and the position of an event of it, in the order of the log.
    """

    def __init__(self, pairs: Sequence[tuple[int, int]] = ()) -> None:
        self._sorted: dict[int, int | list[int]] = {}
        self._unsorted: list[tuple[int, int]] = []
        self.add(pairs)

    def add(self, pairs: Sequence[tuple[int, int]]) -> None:
        """The events of one commit."""
        self._unsorted.extend(pairs)
        if len(self._unsorted) > PAIRS_UNSORTED_MAX:
            self._sort()

    def positions(self, aggregate: int) -> list[int]:
        """Of the events of one aggregate; perhaps one twice. From any thread."""
        # The unsorted ones first: what is sorted meanwhile is then found in the dictionary.
        late = [position for hash, position in self._unsorted if hash == aggregate]
        return _listed(self._sorted.get(aggregate)) + late

    def positions_of(self, aggregates: Sequence[int]) -> list[int]:
        """Of the events of many aggregates. From the writer's thread only."""
        self._sort()
        found = self._sorted
        return [position for hash in aggregates if hash in found for position in _listed(found[hash])]

    def _sort(self) -> None:
        pairs, found = self._unsorted, self._sorted
        new: dict[int, int | list[int]] = dict(pairs)
        if len(new) == len(pairs) and found.keys().isdisjoint(new):  # a bulk load
            found.update(new)
        else:
            for aggregate, position in pairs:
                before = found.get(aggregate)
                if before is None:
                    found[aggregate] = position
                elif isinstance(before, int):
                    found[aggregate] = [before, position]
                else:
                    before.append(position)
        self._unsorted = []


def _listed(found: int | list[int] | None) -> list[int]:
    return [] if found is None else [found] if isinstance(found, int) else found
