"""Where the newest events of each aggregate are: what the file's index by aggregate does not have yet.

Written by the writer's thread, read by any. A commit only leaves its pairs here; they are sorted into a dictionary when
the writer asks for one, or when they become many. Whoever else asks looks through the few that are not sorted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Set

PAIRS_UNSORTED_MAX = 2_000


class Tail:
    """See the module's text.

    Args:
        pairs: The hash of an aggregate and the position of an event of it, in the order of the log.
    """

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._sorted: defaultdict[int, list[int]] = defaultdict(list)
        self._unsorted: list[tuple[int, int]] = []
        self.add(pairs)

    def add(self, pairs: Iterable[tuple[int, int]]) -> None:
        """The events of one commit."""
        self._unsorted.extend(pairs)
        if len(self._unsorted) > PAIRS_UNSORTED_MAX:
            self._sort()

    def positions(self, aggregates: Set[int]) -> list[int]:
        """Of the events of some aggregates; perhaps one twice. From any thread."""
        # The unsorted ones first: what is sorted meanwhile is then found in the dictionary.
        late = [position for hash, position in self._unsorted if hash in aggregates]
        return [*late, *(position for hash in aggregates for position in self._sorted.get(hash, ()))]

    def positions_of(self, aggregates: Iterable[int]) -> list[int]:
        """Of the events of many aggregates. From the writer's thread only."""
        self._sort()
        found = self._sorted
        return [position for hash in aggregates if hash in found for position in found[hash]]

    def _sort(self) -> None:
        found = self._sorted
        for aggregate, position in self._unsorted:
            found[aggregate].append(position)
        self._unsorted = []
